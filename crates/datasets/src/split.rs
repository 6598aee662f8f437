//! Training and test splits.

use std::collections::BTreeSet;

use stillhouse_core::data::{Dataset, Split, SplitMode, SplitSpec};
use stillhouse_core::{Result, Rng};

use crate::Error;
use crate::diagnostics::{examples, warn_once};

/// Splits a dataset; dataset, ratio, mode and seed determine the split.
///
/// `stratified`: the keys of each class are sorted by bytes and shuffled (Fisher-Yates from the last
/// index down) with `Rng::new(seed).stream("split").at(0, class)`; the first
/// `floor(ratio * n + 0.5)` are training images, the others test images. `global_random` does the
/// same with all images, at address (1, 0). `per_class = [a, b]` then keeps at most the first `a`
/// training and the first `b` test images of each class in the shuffled order. `official` uses the
/// dataset's lists `train` and `test` (`val` without a `test`) and ignores ratio and seed, and so does
/// every mode for a dataset whose folders define the split. Both lists are returned in ascending order.
/// A class that is in one list only is reported as a warning.
///
/// # Errors
///
/// A ratio outside (0, 1), an empty list, `stratified` without image classes, or `official` for a
/// dataset without an official split.
pub fn split(dataset: &dyn Dataset, spec: &SplitSpec) -> Result<Split> {
    let name = &dataset.info().name;
    let invalid = |message: String| -> stillhouse_core::Error {
        Error::setting(format!("split of `{name}`"), message).into()
    };
    let mode = if dataset.has_given_split() { SplitMode::Official } else { spec.mode };
    if mode != spec.mode {
        warn_once(&format!("{name}: split by its folders, not by a ratio ({})", dataset.info().title));
    }
    if mode != SplitMode::Official && !(spec.ratio > 0.0 && spec.ratio < 1.0) {
        return Err(invalid(format!("expected a ratio between 0 and 1, such as 0.8, found {}", spec.ratio)));
    }
    let rng = Rng::new(spec.seed).stream("split");
    let mut split = Split { train: Vec::new(), test: Vec::new() };
    match mode {
        SplitMode::Stratified => {
            let mut classes = vec![Vec::new(); dataset.info().classes.len()];
            for index in 0..dataset.len() {
                let class = dataset.class(index).and_then(|c| classes.get_mut(c as usize));
                let Some(class) = class else {
                    return Err(invalid(format!(
                        "expected a class for `{}`; use mode = \"global_random\" or an official split",
                        dataset.key(index)
                    )));
                };
                class.push(index);
            }
            for (class, members) in classes.into_iter().enumerate() {
                let order = shuffled(dataset, members, &rng, (0, class as u64));
                assign(&order, spec.ratio, &mut split);
            }
        }
        SplitMode::GlobalRandom => {
            let order = shuffled(dataset, (0..dataset.len()).collect(), &rng, (1, 0));
            assign(&order, spec.ratio, &mut split);
        }
        SplitMode::Official => {
            let list = |name| dataset.official_split(name);
            let Some((train, test)) = list("train").zip(list("test").or_else(|| list("val"))) else {
                return Err(invalid(
                    "no official split; use `stratified` or `global_random` with a ratio".to_string(),
                ));
            };
            split = Split { train, test };
        }
    }
    if let Some([train, test]) = spec.per_class {
        truncate_classes(dataset, &mut split.train, train);
        truncate_classes(dataset, &mut split.test, test);
    }
    for (side, list) in [("training", &mut split.train), ("test", &mut split.test)] {
        if list.is_empty() {
            return Err(invalid(format!(
                "no {side} image among {} with ratio {} and per_class {:?}",
                dataset.len(),
                spec.ratio,
                spec.per_class
            )));
        }
        list.sort_unstable();
    }
    report_missing_classes(dataset, &split);
    Ok(split)
}

/// Warns of classes that are in one of the lists only.
fn report_missing_classes(dataset: &dyn Dataset, split: &Split) {
    let info = dataset.info();
    let classes = |list: &[usize]| list.iter().filter_map(|&i| dataset.class(i)).collect::<BTreeSet<u32>>();
    let (train, test) = (classes(&split.train), classes(&split.test));
    for (part, missing) in [("test", train.difference(&test)), ("training", test.difference(&train))] {
        let names: Vec<String> =
            missing.filter_map(|&c| info.classes.get(c as usize)).map(|name| format!("`{name}`")).collect();
        if !names.is_empty() {
            warn_once(&format!(
                "{}: {} classes have no {part} image: {}",
                info.title,
                names.len(),
                examples(&names)
            ));
        }
    }
}

fn shuffled(dataset: &dyn Dataset, indices: Vec<usize>, rng: &Rng, address: (u64, u64)) -> Vec<usize> {
    let mut keyed: Vec<(String, usize)> = indices.into_iter().map(|i| (dataset.key(i), i)).collect();
    keyed.sort_unstable(); // strings compare by bytes
    rng.at(address.0, address.1).shuffle(&mut keyed);
    keyed.into_iter().map(|(_, i)| i).collect()
}

fn assign(order: &[usize], ratio: f64, split: &mut Split) {
    let train = ((ratio * order.len() as f64 + 0.5).floor() as usize).min(order.len());
    split.train.extend_from_slice(&order[..train]);
    split.test.extend_from_slice(&order[train..]);
}

/// Keeps the first `limit` of each class; images without a class are one class.
fn truncate_classes(dataset: &dyn Dataset, list: &mut Vec<usize>, limit: usize) {
    let mut counts = vec![0; dataset.info().classes.len() + 1];
    let last = counts.len() - 1;
    list.retain(|&index| {
        let class = dataset.class(index).map_or(last, |c| (c as usize).min(last));
        counts[class] += 1;
        counts[class] <= limit
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::fake::Fake;

    fn spec(ratio: f64, seed: u64) -> SplitSpec {
        SplitSpec { ratio, mode: SplitMode::Stratified, seed, per_class: None }
    }

    /// Pinned: a change would change every published split.
    #[test]
    fn keeps_the_pinned_split() {
        let split = split(&Fake::new(&[4, 6]), &spec(0.5, 7)).unwrap();
        assert_eq!((split.train, split.test), (vec![1, 3, 4, 6, 8], vec![0, 2, 5, 7, 9]));
    }

    #[test]
    fn has_the_counts_of_the_papers() {
        for (counts, ratio, test) in
            [(vec![100; 21], 0.8, 420), (vec![100; 21], 0.6, 840), (vec![400; 7], 0.6, 1120)]
        {
            assert_eq!(split(&Fake::new(&counts), &spec(ratio, 0)).unwrap().test.len(), test);
        }
    }

    #[test]
    fn rejects_invalid_settings() {
        let set = Fake::new(&[3, 3]);
        for ratio in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(split(&set, &spec(ratio, 0)).unwrap_err().to_string().contains("between 0 and 1"));
        }
        assert!(split(&set, &spec(0.01, 0)).unwrap_err().to_string().contains("no training image"));
        let none = SplitSpec { per_class: Some([2, 0]), ..spec(0.5, 0) };
        assert!(split(&set, &none).unwrap_err().to_string().contains("no test image"));
        let masks = Fake::new(&[3, 3]).without_classes();
        assert!(split(&masks, &spec(0.5, 0)).unwrap_err().to_string().contains("global_random"));
        let random = SplitSpec { mode: SplitMode::GlobalRandom, ..spec(0.5, 0) };
        assert_eq!(split(&masks, &random).unwrap().train.len(), 3);
        let official = SplitSpec { mode: SplitMode::Official, ..spec(0.0, 0) };
        assert!(split(&set, &official).unwrap_err().to_string().contains("no official split"));
    }

    proptest! {
        #[test]
        fn partitions_the_images(
            counts in prop::collection::vec(2usize..30, 1..6),
            ratio in 0.3f64..0.7,
            seed: u64,
            global: bool,
            reduce in prop::option::of((1usize..5, 1usize..5)),
        ) {
            let set = Fake::new(&counts);
            let mode = if global { SplitMode::GlobalRandom } else { SplitMode::Stratified };
            let whole = SplitSpec { mode, ..spec(ratio, seed) };
            let a = split(&set, &whole).unwrap();
            prop_assert_eq!(&a, &split(&set, &whole).unwrap());
            let mut all: Vec<usize> = a.train.iter().chain(&a.test).copied().collect();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..set.len()));
            prop_assert!(a.train.is_sorted() && a.test.is_sorted());
            if !global {
                for (class, &n) in counts.iter().enumerate() {
                    let train = a.train.iter().filter(|&&i| set.class(i) == Some(class as u32)).count();
                    prop_assert_eq!(train, (ratio * n as f64 + 0.5).floor() as usize);
                }
            }
            if let Some((train, test)) = reduce {
                let b = split(&set, &SplitSpec { per_class: Some([train, test]), ..whole }).unwrap();
                prop_assert!(b.train.iter().all(|i| a.train.contains(i)));
                prop_assert!(b.test.iter().all(|i| a.test.contains(i)));
                for class in 0..counts.len() as u32 {
                    let of = |list: &[usize]| list.iter().filter(|&&i| set.class(i) == Some(class)).count();
                    prop_assert_eq!(of(&b.train), of(&a.train).min(train));
                    prop_assert_eq!(of(&b.test), of(&a.test).min(test));
                }
            }
        }
    }
}
