//! What every registered metric must do; a new row is tested by being registered.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use stillhouse_core::data::Labels;
use stillhouse_core::metric::{Metric, MetricBuild, Score};
use stillhouse_core::registry::Entry;
use stillhouse_metrics::registry;

const CLASSES: usize = 6;

/// A batch of one class per image, or of label maps with some pixels to ignore.
#[derive(Debug, Clone)]
struct Data {
    logits: Tensor,
    target: Tensor,
}

impl Data {
    fn target(&self) -> Labels {
        if self.target.rank() == 1 {
            Labels::Classes(self.target.clone())
        } else {
            Labels::Mask(self.target.clone())
        }
    }
    fn part(&self, from: usize, to: usize) -> Self {
        let cut = |t: &Tensor| t.narrow(0, from, to - from).unwrap();
        Self { logits: cut(&self.logits), target: cut(&self.target) }
    }
    fn reversed(&self) -> Self {
        let n = self.target.dims()[0] as u32;
        let order = Tensor::from_vec((0..n).rev().collect(), n as usize, &Device::Cpu).unwrap();
        let turn = |t: &Tensor| t.index_select(&order, 0).unwrap();
        Self { logits: turn(&self.logits), target: turn(&self.target) }
    }
}

fn data(maps: bool) -> impl Strategy<Value = Data> {
    let (h, w) = if maps { (3, 2) } else { (1, 1) };
    (2usize..9).prop_flat_map(move |n| {
        let pixels = n * h * w;
        let label = prop_oneof![9 => 0..CLASSES as u32, 1 => Just(255u32)];
        let label = label.prop_map(move |l| if maps { l } else { l % CLASSES as u32 });
        let logits = prop::collection::vec(-8.0..8.0f32, pixels * CLASSES);
        (logits, prop::collection::vec(label, pixels)).prop_map(move |(logits, labels)| {
            let shapes =
                if maps { (vec![n, CLASSES, h, w], vec![n, h, w]) } else { (vec![n, CLASSES], vec![n]) };
            Data {
                logits: Tensor::from_vec(logits, shapes.0, &Device::Cpu).unwrap(),
                target: Tensor::from_vec(labels, shapes.1, &Device::Cpu).unwrap(),
            }
        })
    })
}

fn fresh(row: &Entry<MetricBuild>) -> Box<dyn Metric> {
    (row.build)(CLASSES)
}

/// The scores after the data, or `None` if the metric refuses such data.
fn scores(row: &Entry<MetricBuild>, parts: &[Data]) -> Option<Vec<Score>> {
    let mut metric = fresh(row);
    for part in parts {
        metric.update(&part.logits, &part.target()).ok()?;
    }
    Some(metric.scores())
}

/// Equal to the bit, NaN included.
fn same(a: &[Score], b: &[Score]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| a.name == b.name && (a.value == b.value || (a.value.is_nan() && b.value.is_nan())))
}

/// Failing values are kept in a file beside this one.
fn config() -> ProptestConfig {
    let beside = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { failure_persistence: Some(Box::new(beside)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn parts_are_the_whole(images in data(false), maps in data(true), cut in 1usize..8) {
        for row in registry().entries() {
            let mut accepted = 0;
            for all in [&images, &maps] {
                let whole = scores(row, std::slice::from_ref(all));
                prop_assert_eq!(whole.is_some(), fresh(row).supports(all.target().task()), "{}", row.name);
                let Some(whole) = whole else { continue };
                accepted += 1;
                prop_assert!(whole.iter().any(|s| s.value.is_finite()), "{}: nothing counted", row.name);
                let n = all.target.dims()[0];
                let cut = cut.min(n - 1);
                let (a, b) = (all.part(0, cut), all.part(cut, n));
                let parts = scores(row, &[a.clone(), b.clone()]).unwrap();
                prop_assert!(same(&whole, &parts), "{}: batches: {whole:?} {parts:?}", row.name);
                let turned = scores(row, &[all.reversed()]).unwrap();
                prop_assert!(same(&whole, &turned), "{}: order: {whole:?} {turned:?}", row.name);
                let (mut left, mut right) = (fresh(row), fresh(row));
                left.update(&a.logits, &a.target()).unwrap();
                right.update(&b.logits, &b.target()).unwrap();
                right.merge(left.as_ref()).unwrap();
                right.merge(fresh(row).as_ref()).unwrap();
                prop_assert!(same(&whole, &right.scores()), "{}: merged: {whole:?}", row.name);
            }
            prop_assert!(accepted > 0, "{} accepts neither images nor maps", row.name);
        }
    }
}

#[test]
fn nothing_counted_is_not_defined() {
    for row in registry().entries() {
        let scores = fresh(row).scores();
        assert!(!scores.is_empty(), "{}", row.name);
        for score in &scores {
            let count = ["right", "tested"].contains(&score.name.as_str());
            assert!(if count { score.value == 0.0 } else { score.value.is_nan() }, "{}: {score:?}", row.name);
        }
        let mut names: Vec<&str> = scores.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), scores.len(), "{}: a name stands twice", row.name);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let logits = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let classes = |v: &[u32]| Labels::Classes(Tensor::new(v, &Device::Cpu).unwrap());
    let map = |v: u32| Labels::Mask(Tensor::full(v, (1, 2, 2), &Device::Cpu).unwrap());
    for row in registry().entries() {
        let refused = [
            (logits(&[2, CLASSES + 1]), classes(&[0, 1])),
            (logits(&[2, CLASSES]), classes(&[0])),
            (logits(&[2, CLASSES]), classes(&[0, CLASSES as u32])),
            (logits(&[1, CLASSES, 2, 3]), map(0)),
            (logits(&[1, CLASSES, 2, 2]), map(CLASSES as u32)),
        ];
        for (logits, target) in refused {
            let error = fresh(row).update(&logits, &target).unwrap_err().to_string();
            assert!(error.contains(row.name), "{}: {error}", row.name);
        }
        for other in registry().entries().iter().filter(|r| r.name != row.name) {
            let error = fresh(row).merge(fresh(other).as_ref()).unwrap_err().to_string();
            assert!(error.contains(row.name) && error.contains(other.name), "{error}");
        }
        let more = (row.build)(CLASSES + 1);
        assert!(fresh(row).merge(more.as_ref()).is_err(), "{}: another number of classes", row.name);
    }
}

#[test]
fn rows_are_in_order() {
    let all = registry();
    for row in all.entries() {
        assert_eq!(fresh(row).name(), row.name);
        assert!(!row.summary.is_empty() && !row.source.is_empty(), "{}", row.name);
    }
    let error = all.get("acuracy").unwrap_err().to_string();
    assert!(error.contains("did you mean `accuracy`"), "{error}");
}
