//! Resizing and one-hot encoding of label masks.

use candle_core::{DType, Tensor};
use stillhouse_core::{Error, Result};

/// Resizes masks `[B, H, W]` to `[B, h, w]`: row i is row `floor(i * H / h)`, columns likewise.
pub(crate) fn resize_nearest(mask: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (_, from_h, from_w) = mask.dims3()?;
    let pick = |from: usize, to: usize| -> Result<Tensor> {
        let indices: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
        Ok(Tensor::new(indices, mask.device())?)
    };
    let mut labels = mask.contiguous()?;
    if from_h != h {
        labels = labels.index_select(&pick(from_h, h)?, 1)?;
    }
    if from_w != w {
        labels = labels.index_select(&pick(from_w, w)?, 2)?;
    }
    Ok(labels)
}

/// One-hot encoding of labels `[B, ...]`, `[B, classes, P]` with P positions in row order. Labels
/// outside of `0..classes` are 0 in all channels.
pub(crate) fn one_hot(labels: &Tensor, classes: usize, dtype: DType) -> Result<Tensor> {
    let class = Tensor::arange(0, classes as u32, labels.device())?.reshape((1, classes, 1))?;
    Ok(labels.flatten_from(1)?.unsqueeze(1)?.broadcast_eq(&class)?.to_dtype(dtype)?)
}

/// Requires masks `[B, H, W]` of a batch.
pub(crate) fn require_batch(mask: &Tensor, batch: usize, component: &str) -> Result<()> {
    match mask.dims() {
        [b, h, w] if *b == batch && *h > 0 && *w > 0 => Ok(()),
        other => Err(Error::incompatible(
            component,
            format!("expected masks [B, H, W] of {batch} images, found the shape {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rounds_row_and_column_indices_down() {
        let mask = Tensor::arange(0u32, 20, &Device::Cpu).unwrap().reshape((1, 4, 5)).unwrap();
        let small = resize_nearest(&mask, (3, 2)).unwrap().squeeze(0).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!(small, [[0, 2], [5, 7], [10, 12]]); // rows 0, 1, 2 and columns 0, 2
        let large = resize_nearest(&mask.narrow(1, 0, 2).unwrap(), (4, 5)).unwrap();
        assert_eq!(large.squeeze(0).unwrap().to_vec2::<u32>().unwrap()[1], [0, 1, 2, 3, 4]);
    }

    #[test]
    fn encodes_labels_outside_the_classes_as_zero() {
        let labels = Tensor::new(&[[[0u32, 255], [2, 3]]], &Device::Cpu).unwrap();
        let hot = one_hot(&labels, 3, DType::F64).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(hot, [[1., 0., 0., 0.], [0., 0., 0., 0.], [0., 0., 1., 0.]]);
        assert!(require_batch(&labels, 1, "m").is_ok());
        let e = require_batch(&labels, 2, "m").unwrap_err().to_string();
        assert!(e.contains("2 images") && e.contains("[1, 2, 2]"), "{e}");
    }
}
