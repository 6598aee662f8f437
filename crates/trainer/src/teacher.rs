//! The frozen teacher, and what it has made of images that come the same in every epoch.

use std::collections::HashMap;

use candle_core::Tensor;
use stillhouse_core::data::Batch;
use stillhouse_core::model::Features;
use stillhouse_core::{Rng, Tape};

use crate::{Network, Result};

/// The frozen teacher.
pub(crate) struct Teacher {
    pub(crate) network: Network,
    pub(crate) tape: Tape,
    /// Factor and summand per channel `[1, 3, 1, 1]` from the student's normalization to the
    /// teacher's, where they differ.
    pub(crate) renormalize: Option<(Tensor, Tensor)>,
    kept: Option<Kept>,
}

/// Taps of single images, as many as fit.
struct Kept {
    by_image: HashMap<u64, Vec<(String, Tensor)>>,
    /// Bytes that may still be taken.
    left: usize,
}

impl Teacher {
    pub(crate) fn new(network: Network, tape: Tape, renormalize: Option<(Tensor, Tensor)>) -> Self {
        Self { network, tape, renormalize, kept: None }
    }

    /// Keeps what it makes of each image, up to so many bytes: for images that never change.
    pub(crate) fn keep(&mut self, bytes: usize) {
        self.kept = Some(Kept { by_image: HashMap::new(), left: bytes });
    }

    /// The wanted taps of a batch. A frozen network treats each image by itself, so they are the
    /// same bits whether it runs or remembers.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Result<Features> {
        let Some(mut kept) = self.kept.take() else { return self.run(&batch.images) };
        let result = self.remember(batch, &mut kept);
        self.kept = Some(kept);
        result
    }

    fn remember(&mut self, batch: &Batch, kept: &mut Kept) -> Result<Features> {
        let known = |id: &u64| kept.by_image.contains_key(id);
        let new: Vec<u32> = (0..batch.ids.len() as u32).filter(|i| !known(&batch.ids[*i as usize])).collect();
        let whole = new.len() == batch.ids.len();
        let mut rows: HashMap<u64, Vec<(String, Tensor)>> = HashMap::new();
        if !new.is_empty() {
            let features = if whole {
                self.run(&batch.images)?
            } else {
                let places = Tensor::new(&new[..], batch.images.device())?;
                self.run(&batch.images.index_select(&places, 0)?)?
            };
            for (row, place) in new.iter().enumerate() {
                let id = batch.ids[*place as usize];
                let taps = row_of(&features, row)?;
                let bytes = taps.iter().map(|(_, t)| t.elem_count() * t.dtype().size_in_bytes()).sum();
                match kept.left.checked_sub(bytes) {
                    Some(left) if !kept.by_image.contains_key(&id) => {
                        kept.left = left;
                        kept.by_image.insert(id, taps);
                    }
                    _ if !whole => drop(rows.insert(id, taps)),
                    _ => {}
                }
            }
            if whole {
                return Ok(features);
            }
        }
        let rows = batch.ids.iter().filter_map(|id| kept.by_image.get(id).or_else(|| rows.get(id)));
        together(&rows.collect::<Vec<_>>())
    }

    fn run(&mut self, images: &Tensor) -> Result<Features> {
        self.tape.begin(Rng::new(0), 0);
        Ok(match &self.renormalize {
            None => self.network.model.forward(images, &mut self.tape)?,
            Some((factor, summand)) => {
                let images = images.broadcast_mul(factor)?.broadcast_add(summand)?;
                self.network.model.forward(&images, &mut self.tape)?
            }
        })
    }
}

/// The taps of one image, in memory of their own; maps with their channels last, as a network gives
/// them.
fn row_of(features: &Features, row: usize) -> Result<Vec<(String, Tensor)>> {
    let copy = |(name, tap): (&str, &Tensor)| {
        let tap = if tap.rank() == 4 { tap.permute((0, 2, 3, 1))? } else { tap.clone() };
        Ok((name.to_string(), tap.detach().narrow(0, row, 1)?.force_contiguous()?))
    };
    features.iter().map(copy).collect()
}

/// Rows of single images as taps of a batch.
fn together(rows: &[&Vec<(String, Tensor)>]) -> Result<Features> {
    let Some(first) = rows.first() else { return Ok(Features::default()) };
    let tap = |(place, (name, _)): (usize, &(String, Tensor))| {
        let of_images: Vec<&Tensor> = rows.iter().map(|taps| &taps[place].1).collect();
        let tap = Tensor::cat(&of_images, 0)?;
        Ok((name.clone(), if tap.rank() == 4 { tap.permute((0, 3, 1, 2))? } else { tap }))
    };
    first.iter().enumerate().map(tap).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::{DType, Device};
    use stillhouse_core::data::Labels;
    use stillhouse_core::model::{FeatureInfo, Model};
    use stillhouse_core::{ParamBuilder, ParamStore};
    use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear, Mode};

    use super::*;

    /// Images that a network has seen.
    static SEEN: AtomicUsize = AtomicUsize::new(0);

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
            SEEN.fetch_add(images.dim(0)?, Ordering::Relaxed);
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
        let mut tape = Tape::new(&params, Mode::Inference).unwrap();
        tape.select_features(&["F1".to_string(), "logits".to_string()]);
        Teacher::new(Network { model, params }, tape, None)
    }

    /// Images of these ids; one is the same wherever it stands.
    fn batch(ids: &[u64]) -> Batch {
        let value = |id: u64, i: u64| ((id * 1009 + i * 37) % 101) as f32 / 50.0 - 1.0;
        let values: Vec<f32> = ids.iter().flat_map(|id| (0..108).map(move |i| value(*id, i))).collect();
        let images = Tensor::from_vec(values, (ids.len(), 3, 6, 6), &Device::Cpu).unwrap();
        let labels = Labels::Classes(Tensor::zeros(ids.len(), DType::U32, &Device::Cpu).unwrap());
        Batch { images, labels, ids: ids.to_vec() }
    }

    fn bits(features: &Features) -> Vec<(String, Vec<usize>, Vec<u32>)> {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bits = |t: &Tensor| bits(t).into_iter().map(f32::to_bits).collect();
        features.iter().map(|(name, t)| (name.to_string(), t.dims().to_vec(), bits(t))).collect()
    }

    #[test]
    fn what_is_kept_is_what_it_would_make() {
        let batches = [batch(&[3, 1, 4]), batch(&[1, 5]), batch(&[4, 3, 5, 1]), batch(&[1, 3, 4])];
        let fresh: Vec<_> = batches.iter().map(|b| bits(&teacher().forward(b).unwrap())).collect();
        // A row has 6 * 6 * 5 + 4 values of four bytes. Nothing, two images or all are kept.
        for (room, seen) in [(0, 12), (2 * 736, 7), (1 << 20, 4)] {
            let mut teacher = teacher();
            teacher.keep(room);
            let before = SEEN.load(Ordering::Relaxed);
            for (batch, fresh) in batches.iter().zip(&fresh) {
                let features = teacher.forward(batch).unwrap();
                assert_eq!(&bits(&features), fresh, "room for {room} bytes");
                let strides = features.get("F1").unwrap().stride().to_vec();
                assert_eq!(strides, [180, 1, 30, 5], "maps lie in memory as a network leaves them");
            }
            assert_eq!(SEEN.load(Ordering::Relaxed) - before, seen, "room for {room} bytes");
        }
    }
}
