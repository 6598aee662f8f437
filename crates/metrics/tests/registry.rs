//! Requirements of every registered metric.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use stillhouse_core::data::Labels;
use stillhouse_core::metric::{Metric, MetricBuild, Score};
use stillhouse_core::registry::Entry;
use stillhouse_metrics::registry;

const CLASSES: usize = 6;

/// A batch with one class per image, or with label masks that have some ignored pixels.
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
    fn slice(&self, from: usize, to: usize) -> Self {
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

fn new_metric(entry: &Entry<MetricBuild>) -> Box<dyn Metric> {
    (entry.build)(CLASSES)
}

/// Returns the scores of the batches, or `None` if the metric rejects them.
fn scores(entry: &Entry<MetricBuild>, batches: &[Data]) -> Option<Vec<Score>> {
    let mut metric = new_metric(entry);
    for batch in batches {
        metric.update(&batch.logits, &batch.target()).ok()?;
    }
    Some(metric.scores())
}

/// Returns whether the scores are bitwise equal, including NaN.
fn same(a: &[Score], b: &[Score]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| a.name == b.name && (a.value == b.value || (a.value.is_nan() && b.value.is_nan())))
}

/// Stores failing inputs in a file next to this one.
fn config() -> ProptestConfig {
    let regressions = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { failure_persistence: Some(Box::new(regressions)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn scores_are_independent_of_order_and_batches(images in data(false), maps in data(true), cut in 1usize..8) {
        for entry in registry().entries() {
            let mut accepted = 0;
            for all in [&images, &maps] {
                let whole = scores(entry, std::slice::from_ref(all));
                prop_assert_eq!(whole.is_some(), new_metric(entry).supports(all.target().task()), "{}", entry.name);
                let Some(whole) = whole else { continue };
                accepted += 1;
                prop_assert!(whole.iter().any(|s| s.value.is_finite()), "{}: nothing counted", entry.name);
                let n = all.target.dims()[0];
                let cut = cut.min(n - 1);
                let (a, b) = (all.slice(0, cut), all.slice(cut, n));
                let parts = scores(entry, &[a.clone(), b.clone()]).unwrap();
                prop_assert!(same(&whole, &parts), "{}: batches: {whole:?} {parts:?}", entry.name);
                let turned = scores(entry, &[all.reversed()]).unwrap();
                prop_assert!(same(&whole, &turned), "{}: order: {whole:?} {turned:?}", entry.name);
                let (mut left, mut right) = (new_metric(entry), new_metric(entry));
                left.update(&a.logits, &a.target()).unwrap();
                right.update(&b.logits, &b.target()).unwrap();
                right.merge(left.as_ref()).unwrap();
                right.merge(new_metric(entry).as_ref()).unwrap();
                prop_assert!(same(&whole, &right.scores()), "{}: merged: {whole:?}", entry.name);
            }
            prop_assert!(accepted > 0, "{} accepts neither images nor maps", entry.name);
        }
    }
}

#[test]
fn scores_are_undefined_without_samples() {
    for entry in registry().entries() {
        let scores = new_metric(entry).scores();
        assert!(!scores.is_empty(), "{}", entry.name);
        for score in &scores {
            let count = ["correct", "total"].contains(&score.name.as_str());
            assert!(
                if count { score.value == 0.0 } else { score.value.is_nan() },
                "{}: {score:?}",
                entry.name
            );
        }
        let mut names: Vec<&str> = scores.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), scores.len(), "{}: duplicate score name", entry.name);
    }
}

#[test]
fn rejects_mismatched_inputs() {
    let logits = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let classes = |v: &[u32]| Labels::Classes(Tensor::new(v, &Device::Cpu).unwrap());
    let map = |v: u32| Labels::Mask(Tensor::full(v, (1, 2, 2), &Device::Cpu).unwrap());
    for entry in registry().entries() {
        let invalid = [
            (logits(&[2, CLASSES + 1]), classes(&[0, 1])),
            (logits(&[2, CLASSES]), classes(&[0])),
            (logits(&[2, CLASSES]), classes(&[0, CLASSES as u32])),
            (logits(&[1, CLASSES, 2, 3]), map(0)),
            (logits(&[1, CLASSES, 2, 2]), map(CLASSES as u32)),
        ];
        for (logits, target) in invalid {
            let error = new_metric(entry).update(&logits, &target).unwrap_err().to_string();
            assert!(error.contains(entry.name), "{}: {error}", entry.name);
        }
        for other in registry().entries().iter().filter(|r| r.name != entry.name) {
            let error = new_metric(entry).merge(new_metric(other).as_ref()).unwrap_err().to_string();
            assert!(error.contains(entry.name) && error.contains(other.name), "{error}");
        }
        let more = (entry.build)(CLASSES + 1);
        assert!(
            new_metric(entry).merge(more.as_ref()).is_err(),
            "{}: a different number of classes",
            entry.name
        );
    }
}

#[test]
fn entries_are_complete() {
    let all = registry();
    for entry in all.entries() {
        assert_eq!(new_metric(entry).name(), entry.name);
        assert!(!entry.summary.is_empty() && !entry.source.is_empty(), "{}", entry.name);
    }
    let error = all.get("acuracy").unwrap_err().to_string();
    assert!(error.contains("did you mean `accuracy`"), "{error}");
}
