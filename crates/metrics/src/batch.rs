//! Iteration over the samples or pixels of a batch.

use candle_core::{DType, Tensor};
use stillhouse_core::data::{IGNORE_INDEX, Labels};
use stillhouse_core::metric::Metric;
use stillhouse_core::{Error, Result};

/// Calls `f` with the scores `[C]` and the label of every sample of `logits [B, C]`, or of every pixel
/// of `logits [B, C, H, W]` without the ignore label.
pub(crate) fn for_each(
    metric: &str,
    classes: usize,
    logits: &Tensor,
    target: &Labels,
    mut f: impl FnMut(&[f64], u32) -> crate::Result<()>,
) -> Result<()> {
    let (labels, ignore) = match target {
        Labels::Classes(t) => (t, None),
        Labels::Mask(t) => (t, Some(u32::from(IGNORE_INDEX))),
    };
    let mut want = labels.dims().to_vec();
    want.insert(1.min(want.len()), classes);
    let rank = if ignore.is_some() { 4 } else { 2 };
    if logits.dims() != want || want.len() != rank {
        return Err(Error::incompatible(
            metric,
            format!(
                "logits do not match labels of shape {:?} and {classes} classes: expected {want:?}, found {:?}",
                labels.dims(),
                logits.dims()
            ),
        ));
    }
    let mut scores = vec![0.0; classes];
    for image in 0..want[0] {
        // [C] or [C, H, W], class by class
        let values: Vec<f64> = logits.get(image)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        let labels: Vec<u32> = labels.get(image)?.flatten_all()?.to_vec1()?;
        let pixels = labels.len();
        for (pixel, &label) in labels.iter().enumerate() {
            if Some(label) == ignore {
                continue;
            }
            if label as usize >= classes {
                return Err(Error::incompatible(
                    metric,
                    format!(
                        "label out of range in image {image} of the batch: expected less than {classes}, found {label}"
                    ),
                ));
            }
            for (class, score) in scores.iter_mut().enumerate() {
                *score = values[class * pixels + pixel];
            }
            f(&scores, label)?;
        }
    }
    Ok(())
}

/// Downcasts another metric to the same type, for merging.
pub(crate) fn same_kind<'a, M: Metric + 'static>(metric: &M, other: &'a dyn Metric) -> Result<&'a M> {
    other.as_any().downcast_ref().ok_or_else(|| {
        Error::incompatible(metric.name(), format!("cannot merge with the metric `{}`", other.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn seen(classes: usize, logits: &Tensor, target: &Labels) -> Result<Vec<(Vec<f64>, u32)>> {
        let mut all = Vec::new();
        for_each("test", classes, logits, target, |s, t| {
            all.push((s.to_vec(), t));
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn visits_samples_and_pixels() {
        let dev = &Device::Cpu;
        let logits = Tensor::new(&[[1f32, 2.], [3., 4.]], dev).unwrap();
        let target = Labels::Classes(Tensor::new(&[1u32, 0], dev).unwrap());
        assert_eq!(seen(2, &logits, &target).unwrap(), [(vec![1., 2.], 1), (vec![3., 4.], 0)]);
        let logits = Tensor::arange(0f32, 12., dev).unwrap().reshape((1, 2, 2, 3)).unwrap();
        let target = Labels::Mask(Tensor::new(&[[[0u32, 255, 1], [255, 255, 0]]], dev).unwrap());
        let want = [(vec![0., 6.], 0), (vec![2., 8.], 1), (vec![5., 11.], 0)];
        assert_eq!(seen(2, &logits, &target).unwrap(), want);
        // the same values through a view that is not contiguous
        let turned = logits.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let turned = turned.permute((0, 3, 1, 2)).unwrap();
        assert_eq!(seen(2, &turned, &target).unwrap(), want);
    }

    #[test]
    fn rejects_mismatched_logits_and_labels() {
        let dev = &Device::Cpu;
        let classes = |v: &[u32]| Labels::Classes(Tensor::new(v, dev).unwrap());
        let logits = Tensor::zeros((2, 3), DType::F32, dev).unwrap();
        assert!(seen(3, &logits, &classes(&[0, 2])).is_ok());
        let e = seen(3, &logits, &classes(&[0, 3])).unwrap_err().to_string();
        assert!(e.contains("image 1 of the batch: expected less than 3, found 3"), "{e}");
        for (n, labels) in [(4, vec![0, 1]), (3, vec![0]), (3, vec![0, 1, 2])] {
            let e = seen(n, &logits, &classes(&labels)).unwrap_err().to_string();
            assert!(e.contains("[2, 3]") && e.contains("test"), "{e}");
        }
        let mask = Labels::Mask(Tensor::zeros((2, 4, 4), DType::U32, dev).unwrap());
        assert!(seen(3, &logits, &mask).is_err());
        let maps = Tensor::zeros((2, 3, 4, 4), DType::F32, dev).unwrap();
        assert!(seen(3, &maps, &mask).is_ok() && seen(3, &maps, &classes(&[0, 1])).is_err());
    }
}
