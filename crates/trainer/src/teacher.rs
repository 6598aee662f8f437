//! The frozen teacher.

use candle_core::Tensor;
use stillhouse_core::data::Batch;
use stillhouse_core::model::Features;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;

use crate::experiment::Precision;
use crate::feature_cache::{TeacherFeatures, View};
use crate::{Network, Result};

/// The frozen teacher.
pub struct Teacher {
    pub(crate) network: Network,
    pub(crate) tape: Tape,
    /// Factor and offset per channel `[1, 3, 1, 1]` from the student's normalization to the teacher's, if
    /// they differ.
    normalization: Option<(Tensor, Tensor)>,
    cache: Option<TeacherFeatures>,
}

impl Teacher {
    /// Freezes a network.
    ///
    /// # Errors
    /// If the network or the device does not support the precision.
    pub fn new(network: Network, precision: Precision) -> Result<Self> {
        let mut tape = Tape::new(&network.params, Mode::Inference)?;
        if precision == Precision::Bf16 {
            tape.set_precision(stillhouse_ops::Precision::Bf16)?;
        }
        tape.release_weights();
        Ok(Self { network, tape, normalization: None, cache: None })
    }

    /// Sets the conversion from the student's input to the teacher's, `[1, 3, 1, 1]` each:
    /// `images * factor + offset`.
    pub fn renormalize(&mut self, factor: Tensor, offset: Tensor) {
        self.normalization = Some((factor, offset));
    }

    /// Keeps the features of each view of an image.
    pub(crate) fn set_cache(&mut self, cache: TeacherFeatures) {
        self.cache = Some(cache);
    }

    /// Returns the selected features of a batch.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<Features> {
        let Some(cache) = self.cache.take() else { return self.forward_images(&batch.images) };
        let result = self.forward_cached(batch, &cache);
        self.cache = Some(cache);
        result
    }

    fn forward_cached(&mut self, batch: &Batch, cache: &TeacherFeatures) -> Result<Features> {
        if batch.views.len() != batch.ids.len() {
            return self.forward_images(&batch.images);
        }
        let views: Vec<View> = batch.ids.iter().copied().zip(batch.views.iter().copied()).collect();
        let names = self.tape.selected_features().to_vec();
        let mut images: Vec<Option<Vec<Tensor>>> =
            views.iter().map(|view| cache.get(*view, &names)).collect();
        let missing: Vec<u32> =
            (0..images.len()).filter(|i| images[*i].is_none()).map(|i| i as u32).collect();
        if !missing.is_empty() {
            let all_missing = missing.len() == images.len();
            let features = if all_missing {
                self.forward_images(&batch.images)?
            } else {
                let indices = Tensor::new(&missing[..], batch.images.device())?;
                self.forward_images(&batch.images.index_select(&indices, 0)?)?
            };
            for (row, index) in missing.iter().enumerate() {
                let own = image_features(&features, &names, row)?;
                cache.insert(views[*index as usize], &names, &own);
                images[*index as usize] = Some(own);
            }
            if all_missing {
                return Ok(features);
            }
        }
        stack_images(&names, &images.into_iter().flatten().collect::<Vec<_>>())
    }

    fn forward_images(&mut self, images: &Tensor) -> Result<Features> {
        self.tape.begin(Rng::new(0), 0);
        Ok(match &self.normalization {
            None => self.network.model.forward(images, &mut self.tape)?,
            Some((factor, offset)) => {
                let images = images.broadcast_mul(factor)?.broadcast_add(offset)?;
                self.network.model.forward(&images, &mut self.tape)?
            }
        })
    }
}

/// Copies the features of one image; maps channels last, as networks produce them.
fn image_features(features: &Features, names: &[String], row: usize) -> Result<Vec<Tensor>> {
    let copy = |name: &String| {
        let feature = features.get(name)?;
        let feature = if feature.rank() == 4 { feature.permute((0, 2, 3, 1))? } else { feature.clone() };
        Ok(feature.detach().narrow(0, row, 1)?.force_contiguous()?)
    };
    names.iter().map(copy).collect()
}

/// Concatenates features of single images to features of a batch.
fn stack_images(names: &[String], images: &[Vec<Tensor>]) -> Result<Features> {
    let stack = |(index, name): (usize, &String)| {
        let own: Vec<&Tensor> = images.iter().map(|features| &features[index]).collect();
        let feature = Tensor::cat(&own, 0)?;
        Ok((name.clone(), if feature.rank() == 4 { feature.permute((0, 3, 1, 2))? } else { feature }))
    };
    names.iter().enumerate().map(stack).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::{DType, Device};
    use stillhouse_core::data::Labels;
    use stillhouse_core::model::{FeatureInfo, Model};
    use stillhouse_core::{ParamBuilder, ParamStore};
    use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear};

    use super::*;
    use crate::feature_cache::FeatureCache;

    /// Images that went through a network.
    static FORWARDED: AtomicUsize = AtomicUsize::new(0);

    struct Counting(ConvBnAct, Linear);

    impl Counting {
        fn new(p: &ParamBuilder) -> stillhouse_core::Result<Self> {
            let init = Init::fan_in_uniform(9);
            let conv = ConvBnAct::new(ConvSpec::new(3, 5, 3), "conv", "bn", Activation::Relu, init, p)?;
            Ok(Self(conv, Linear::new(5, 4, "fc", init, None, p)?))
        }
    }

    impl Model for Counting {
        fn name(&self) -> &str {
            "counting"
        }
        fn features(&self) -> &[FeatureInfo] {
            &[]
        }
        fn classes(&self) -> usize {
            4
        }
        fn forward(&self, images: &Tensor, tape: &mut Tape) -> stillhouse_core::Result<Features> {
            FORWARDED.fetch_add(images.dim(0)?, Ordering::Relaxed);
            let x = tape.input(images)?;
            let x = self.0.forward(&x, tape)?;
            tape.mark_feature("F1", &x)?;
            let x = tape.global_avg_pool(&x)?;
            let x = self.1.forward(&x, tape)?;
            tape.mark_feature("logits", &x)?;
            Ok(tape.outputs()?.into_iter().collect())
        }
        fn head(&self) -> Vec<String> {
            Vec::new()
        }
        fn macs(&self, _height: usize, _width: usize) -> stillhouse_core::Result<u64> {
            Ok(0)
        }
    }

    fn teacher() -> Teacher {
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let model = Box::new(Counting::new(&params.builder(Rng::new(1))).unwrap());
        let mut teacher = Teacher::new(Network { model, params }, Precision::F32).unwrap();
        teacher.tape.select_features(&["F1".to_string(), "logits".to_string()]);
        teacher
    }

    /// Images of these ids; an image depends on its id alone.
    fn batch(ids: &[u64]) -> Batch {
        let value = |id: u64, i: u64| ((id * 1009 + i * 37) % 101) as f32 / 50.0 - 1.0;
        let values: Vec<f32> = ids.iter().flat_map(|id| (0..108).map(move |i| value(*id, i))).collect();
        let images = Tensor::from_vec(values, (ids.len(), 3, 6, 6), &Device::Cpu).unwrap();
        let labels = Labels::Classes(Tensor::zeros(ids.len(), DType::U32, &Device::Cpu).unwrap());
        Batch { images, labels, ids: ids.to_vec(), views: vec![0; ids.len()] }
    }

    fn bits(features: &Features) -> Vec<(String, Vec<usize>, Vec<u32>)> {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bits = |t: &Tensor| bits(t).into_iter().map(f32::to_bits).collect();
        features.iter().map(|(name, t)| (name.to_string(), t.dims().to_vec(), bits(t))).collect()
    }

    #[test]
    fn cached_features_equal_fresh_ones() {
        let batches = [batch(&[3, 1, 4]), batch(&[1, 5]), batch(&[4, 3, 5, 1]), batch(&[1, 3, 4])];
        let fresh: Vec<_> = batches.iter().map(|b| bits(&teacher().forward(b).unwrap())).collect();
        // An image has 6 * 6 * 5 + 4 values of four bytes. The cache holds none, two or all images.
        for (bytes, forwarded) in [(0, 12), (2 * 736, 7), (1 << 20, 4)] {
            let mut teacher = teacher();
            teacher.set_cache(FeatureCache::default().of_teacher("counting".into(), bytes));
            let before = FORWARDED.load(Ordering::Relaxed);
            for (batch, fresh) in batches.iter().zip(&fresh) {
                let features = teacher.forward(batch).unwrap();
                assert_eq!(&bits(&features), fresh, "cache of {bytes} bytes");
                let strides = features.get("F1").unwrap().stride().to_vec();
                assert_eq!(strides, [180, 1, 30, 5], "maps have the memory layout of the network");
            }
            assert_eq!(FORWARDED.load(Ordering::Relaxed) - before, forwarded, "cache of {bytes} bytes");
        }
    }
}
