//! Samplers: the samples of each batch.

use std::collections::BTreeMap;

use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, Sampler};

use crate::{Error, Result};

/// Batches of dataset indices. A batch depends on the generator, the epoch and its index in the epoch
/// only, so batches can be computed in any order.
#[derive(Debug)]
pub struct BatchSampler {
    sampler: Sampler,
    indices: Vec<usize>,
    /// Indices of each class, for `ClassBalanced`.
    classes: Vec<Vec<usize>>,
    rng: Rng,
}

impl BatchSampler {
    /// Creates the batches over `indices` of a dataset.
    ///
    /// # Errors
    ///
    /// No indices, an index out of range, an empty batch, a shuffled epoch without a full batch, or
    /// `class_balanced` on a dataset with masks.
    pub fn new(dataset: &dyn Dataset, indices: &[usize], sampler: &Sampler, rng: Rng) -> Result<Self> {
        let invalid = |why: String| Err(Error::setting("sampler", why));
        let name = &dataset.info().name;
        if indices.is_empty() {
            return invalid(format!("expected images of `{name}`, found none; check the split"));
        }
        if let Some(index) = indices.iter().find(|&&i| i >= dataset.len()) {
            return invalid(format!("expected indices below {} for `{name}`, found {index}", dataset.len()));
        }
        let mut classes = BTreeMap::<u32, Vec<usize>>::new();
        match *sampler {
            Sampler::ClassBalanced { classes: 0, .. } | Sampler::ClassBalanced { per_class: 0, .. } => {
                return invalid(
                    "expected classes and per_class of at least 1 for class_balanced".to_string(),
                );
            }
            Sampler::Shuffle { batch: 0, .. } | Sampler::Sequential { batch: 0 } => {
                return invalid("expected a batch of at least 1, found batch = 0".to_string());
            }
            Sampler::Shuffle { batch, drop_last: true } if batch > indices.len() => {
                return invalid(format!(
                    "expected batch <= {} with drop_last, found batch = {batch}",
                    indices.len()
                ));
            }
            Sampler::ClassBalanced { .. } => {
                for &index in indices {
                    let Some(class) = dataset.class(index) else {
                        return invalid(format!(
                            "expected one class per image for class_balanced, `{name}` has masks; use shuffle"
                        ));
                    };
                    classes.entry(class).or_default().push(index);
                }
            }
            _ => {}
        }
        let mut sampler = sampler.clone();
        if let Sampler::ClassBalanced { classes: wanted, .. } = &mut sampler {
            *wanted = (*wanted).min(classes.len());
        }
        let rng = rng.stream("order");
        Ok(Self { sampler, indices: indices.to_vec(), classes: classes.into_values().collect(), rng })
    }

    /// Returns the batch size; the last batch of an epoch may be smaller.
    pub fn batch_size(&self) -> usize {
        match self.sampler {
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => batch,
            Sampler::ClassBalanced { classes, per_class } => classes * per_class,
        }
    }

    /// Returns the number of batches in an epoch, at least 1.
    pub fn batches_per_epoch(&self) -> u64 {
        let (n, batch) = (self.indices.len(), self.batch_size());
        let batches = match self.sampler {
            Sampler::Shuffle { drop_last: true, .. } | Sampler::ClassBalanced { .. } => n / batch,
            Sampler::Shuffle { .. } | Sampler::Sequential { .. } => n.div_ceil(batch),
        };
        batches.max(1) as u64
    }

    /// Returns all batches of an epoch.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let batches = self.batches_per_epoch();
        match self.sampler {
            Sampler::ClassBalanced { classes, per_class } => {
                (0..batches).map(|batch| self.balanced(epoch, batch, classes, per_class)).collect()
            }
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => {
                let mut order = self.indices.clone();
                if matches!(self.sampler, Sampler::Shuffle { .. }) {
                    self.rng.at(epoch, 0).shuffle(&mut order);
                }
                order.chunks(batch).take(batches as usize).map(<[usize]>::to_vec).collect()
            }
        }
    }

    /// Draws P distinct classes, then K distinct images of each; with replacement only from classes
    /// with fewer than K images.
    fn balanced(&self, epoch: u64, batch: u64, classes: usize, per_class: usize) -> Vec<usize> {
        let mut draw = self.rng.at(epoch, batch);
        let mut drawn = Vec::with_capacity(classes * per_class);
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        for i in 0..classes {
            let j = i + draw.below((order.len() - i) as u64) as usize;
            order.swap(i, j);
            let members = &self.classes[order[i]];
            if members.len() < per_class {
                drawn.extend((0..per_class).map(|_| members[draw.below(members.len() as u64) as usize]));
                continue;
            }
            let mut members = members.clone();
            for k in 0..per_class {
                let j = k + draw.below((members.len() - k) as u64) as usize;
                members.swap(k, j);
                drawn.push(members[k]);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{prop, prop_assert, prop_assert_eq, prop_assert_ne, proptest};

    use super::*;
    use crate::fake::Fake;

    fn order(set: &Fake, sampler: Sampler, seed: u64) -> Result<BatchSampler> {
        let indices: Vec<usize> = (0..set.len()).collect();
        BatchSampler::new(set, &indices, &sampler, Rng::new(seed))
    }

    #[test]
    fn rejects_invalid_settings() {
        let set = Fake::new(&[3, 3]);
        let error = |sampler| order(&set, sampler, 0).unwrap_err().to_string();
        assert!(error(Sampler::Sequential { batch: 0 }).contains("batch = 0"));
        assert!(error(Sampler::Shuffle { batch: 7, drop_last: true }).contains("batch <= 6"));
        assert!(error(Sampler::ClassBalanced { classes: 2, per_class: 0 }).contains("at least 1"));
        let masks = Fake::new(&[3, 3]).without_classes();
        let e = order(&masks, Sampler::ClassBalanced { classes: 2, per_class: 2 }, 0).unwrap_err();
        assert!(e.to_string().contains("use shuffle"));
        let sampler = Sampler::Sequential { batch: 2 };
        assert!(BatchSampler::new(&set, &[], &sampler, Rng::new(0)).is_err());
        assert!(BatchSampler::new(&set, &[6], &sampler, Rng::new(0)).is_err());
    }

    #[test]
    fn computes_the_length_of_an_epoch() {
        let set = Fake::new(&[30, 34]);
        let batches = |sampler| order(&set, sampler, 0).unwrap().batches_per_epoch();
        assert_eq!(batches(Sampler::Sequential { batch: 10 }), 7);
        assert_eq!(batches(Sampler::Shuffle { batch: 10, drop_last: true }), 6);
        assert_eq!(batches(Sampler::Shuffle { batch: 10, drop_last: false }), 7);
        assert_eq!(batches(Sampler::ClassBalanced { classes: 8, per_class: 8 }), 4); // 2 classes
        assert_eq!(batches(Sampler::ClassBalanced { classes: 2, per_class: 50 }), 1);
    }

    proptest! {
        #[test]
        fn draws_every_image_once_per_epoch(n in 1usize..60, batch in 1usize..20, seed: u64, epoch in 0u64..5) {
            let set = Fake::new(&[n]);
            let shuffled = order(&set, Sampler::Shuffle { batch, drop_last: false }, seed).unwrap().epoch(epoch);
            let mut all = shuffled.concat();
            prop_assert!(shuffled.iter().rev().skip(1).all(|b| b.len() == batch));
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..n));
            let sequence = order(&set, Sampler::Sequential { batch }, seed).unwrap().epoch(epoch).concat();
            prop_assert!(sequence.into_iter().eq(0..n));
            if n >= batch {
                let dropped = order(&set, Sampler::Shuffle { batch, drop_last: true }, seed).unwrap().epoch(epoch);
                prop_assert_eq!(&dropped[..], &shuffled[..n / batch]);
            }
        }

        #[test]
        fn balances_batches(
            counts in prop::collection::vec(1usize..12, 1..7),
            classes in 1usize..9,
            per_class in 1usize..9,
            seed: u64,
            epoch in 0u64..4,
        ) {
            let set = Fake::new(&counts);
            let order = order(&set, Sampler::ClassBalanced { classes, per_class }, seed).unwrap();
            let p = classes.min(counts.len());
            let batches = order.epoch(epoch);
            prop_assert_eq!(batches.len() as u64, order.batches_per_epoch());
            prop_assert_eq!(batches.len(), (set.len() / (p * per_class)).max(1));
            for batch in batches {
                prop_assert_eq!(batch.len(), p * per_class);
                let mut seen = BTreeSet::new();
                for group in batch.chunks(per_class) {
                    let class = set.class(group[0]).unwrap();
                    prop_assert!(group.iter().all(|&i| set.class(i) == Some(class)));
                    prop_assert!(seen.insert(class));
                    let distinct: BTreeSet<_> = group.iter().collect();
                    if counts[class as usize] >= per_class {
                        prop_assert_eq!(distinct.len(), per_class);
                    }
                }
            }
        }

        #[test]
        fn repeats_an_epoch_and_varies_between_epochs(seed: u64) {
            let set = Fake::new(&[40, 40]);
            for sampler in [Sampler::Shuffle { batch: 8, drop_last: true }, Sampler::ClassBalanced { classes: 2, per_class: 4 }] {
                let order = order(&set, sampler, seed).unwrap();
                prop_assert_eq!(order.epoch(3), order.epoch(3));
                prop_assert_ne!(order.epoch(3), order.epoch(4));
            }
        }
    }
}
