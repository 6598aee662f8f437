//! Golden values of `tests/golden/metrics`: every case, selected by its metadata.

use std::collections::BTreeMap;

use serde_json::Value;
use stillhouse_metrics::bootstrap::Bootstrap;
use stillhouse_metrics::calibration::Calibration;
use stillhouse_metrics::mcnemar::McNemar;
use stillhouse_metrics::paired::{self, Distribution};
use stillhouse_metrics::seeds::SeedSummary;
use stillhouse_metrics::topk::{RankCounts, rank};
use stillhouse_metrics::{ConfusionMatrix, classification, segmentation};
use stillhouse_testkit::golden::{self, Case};

/// Keys of the golden files whose name differs here.
const KEYS: &[(&str, &str)] = &[("confusion_row_normalised", "confusion_row_normalized")];

fn key(golden: &str) -> &str {
    KEYS.iter().find(|(name, _)| *name == golden).map_or(golden, |(_, key)| key)
}

/// Computed values, by the name of the expected value.
#[derive(Default)]
struct Computed(BTreeMap<String, Values>);

enum Values {
    Counts(Vec<i64>),
    Reals(Vec<f64>),
}

impl Computed {
    fn real(&mut self, name: &str, value: f64) {
        self.reals(name, vec![value]);
    }
    fn reals(&mut self, name: &str, values: Vec<f64>) {
        self.0.insert(name.into(), Values::Reals(values));
    }
    fn count(&mut self, name: &str, value: u64) {
        self.counts(name, &[value]);
    }
    fn counts(&mut self, name: &str, values: &[u64]) {
        self.0.insert(name.into(), Values::Counts(values.iter().map(|&v| v as i64).collect()));
    }
}

/// Settings and inputs of a case; one that is never read is unknown, and fails the test.
struct Inputs<'a> {
    case: &'a Case,
    settings: Vec<&'a str>,
    inputs: Vec<&'a str>,
}

impl<'a> Inputs<'a> {
    fn setting(&mut self, name: &'a str) -> &'a Value {
        self.settings.push(name);
        let value = &self.case.meta["hyper"][name];
        assert!(!value.is_null(), "{}: no setting `{name}`", self.case);
        value
    }
    fn size(&mut self, name: &'a str) -> usize {
        let value = self.setting(name);
        value.as_u64().unwrap_or_else(|| panic!("{}: `{name}` is {value}", self.case)) as usize
    }
    fn has(&self, name: &str) -> bool {
        self.case.has(&format!("input.{name}"))
    }
    fn reals(&mut self, name: &'a str) -> Vec<f64> {
        self.inputs.push(name);
        self.case.f64s(&format!("input.{name}"))
    }
    fn integers<T: TryFrom<i64>>(&mut self, name: &'a str) -> Vec<T> {
        self.inputs.push(name);
        let values = self.case.i64s(&format!("input.{name}"));
        let fit = |v: i64| T::try_from(v).unwrap_or_else(|_| panic!("{}: {name}: {v}", self.case));
        values.into_iter().map(fit).collect()
    }
    fn bools(&mut self, name: &'a str) -> Vec<bool> {
        self.integers::<u8>(name).into_iter().map(|v| v != 0).collect()
    }
    /// Rows of a matrix.
    fn rows(&mut self, name: &'a str) -> Vec<Vec<f64>> {
        let width = self.case.shape(&format!("input.{name}"))[1];
        self.reals(name).chunks(width).map(<[f64]>::to_vec).collect()
    }
    fn assert_all_read(&self) {
        let keys = |field: &str| match &self.case.meta[field] {
            Value::Object(map) => map.keys().cloned().collect::<Vec<_>>(),
            other => panic!("{}: `{field}` is {other}", self.case),
        };
        for key in keys("hyper") {
            assert!(self.settings.contains(&key.as_str()), "{}: unknown setting `{key}`", self.case);
        }
        for key in keys("inputs") {
            assert!(self.inputs.contains(&key.as_str()), "{}: unknown input `{key}`", self.case);
        }
    }
}

fn compute(case: &Case) -> Computed {
    let mut inputs = Inputs { case, settings: Vec::new(), inputs: Vec::new() };
    let family = case.meta["family"].as_str().unwrap_or_else(|| panic!("{case}: no family"));
    let got = match family {
        "classification" => classification_of(&mut inputs),
        "topk" => topk_of(&mut inputs),
        "segmentation" => segmentation_of(&mut inputs),
        "calibration" => calibration_of(&mut inputs),
        "seeds" => seeds_of(&mut inputs),
        "paired" => paired_of(&mut inputs),
        "mcnemar" => mcnemar_of(&mut inputs),
        "bootstrap" => bootstrap_of(&mut inputs),
        other => panic!("{case}: unknown family `{other}`"),
    };
    inputs.assert_all_read();
    got
}

fn classification_of(inputs: &mut Inputs) -> Computed {
    let classes = inputs.size("classes");
    let (truth, predicted) = (inputs.integers("target"), inputs.integers("pred"));
    let m = ConfusionMatrix::from_labels(classes, &truth, &predicted).unwrap();
    let s = classification::Scores::new(&m);
    let mut got = Computed::default();
    got.counts("confusion", m.counts());
    got.counts("support", &s.support);
    got.reals("confusion_row_normalized", m.row_normalized());
    got.real("overall_accuracy", s.overall_accuracy);
    got.reals("recall", s.recall);
    got.reals("precision", s.precision);
    got.reals("f1", s.f1);
    got.real("macro_recall_present", s.macro_recall_present);
    got.real("macro_recall_zero", s.macro_recall_zero);
    got.real("macro_precision_zero", s.macro_precision_zero);
    got.real("macro_f1_zero", s.macro_f1_zero);
    got.real("macro_f1_present", s.macro_f1_present);
    got.real("weighted_f1", s.weighted_f1);
    got.real("kappa", s.kappa);
    got.real("kappa_linear", s.kappa_linear);
    got.real("kappa_quadratic", s.kappa_quadratic);
    got
}

fn topk_of(inputs: &mut Inputs) -> Computed {
    let case = inputs.case;
    assert!(inputs.setting("ties").is_boolean(), "{case}: ties"); // informative: ranks cover both
    let classes = case.shape("input.scores")[1];
    let (scores, targets) = (inputs.rows("scores"), inputs.integers::<u32>("target"));
    let mut ranks = Vec::new();
    let mut counts = RankCounts::new(classes);
    for (row, &target) in scores.iter().zip(&targets) {
        let rank = rank(row, target as usize).unwrap();
        counts.add(rank).unwrap();
        ranks.push(rank as u64);
    }
    let mut got = Computed::default();
    got.counts("rank", &ranks);
    for k in inputs.setting("k").as_array().unwrap_or_else(|| panic!("{case}: k")) {
        let k = k.as_u64().unwrap_or_else(|| panic!("{case}: k"));
        got.real(&format!("top{k}"), counts.top(k as usize));
    }
    got
}

fn segmentation_of(inputs: &mut Inputs) -> Computed {
    let (classes, ignore) = (inputs.size("classes"), inputs.size("ignore") as u32);
    let (truth, predicted) = (inputs.integers("target"), inputs.integers("pred"));
    let m = segmentation::confusion(classes, ignore, &truth, &predicted).unwrap();
    let s = segmentation::Scores::new(&m);
    let mut got = Computed::default();
    got.counts("confusion", m.counts());
    got.real("pixel_accuracy", s.pixel_accuracy);
    got.reals("class_accuracy", s.class_accuracy);
    got.real("mean_class_accuracy", s.mean_class_accuracy);
    got.reals("iou", s.iou);
    got.real("miou_union", s.miou_union);
    got.real("miou_truth", s.miou_truth);
    got.real("miou_zero", s.miou_zero);
    got.real("frequency_weighted_iou", s.frequency_weighted_iou);
    got
}

fn calibration_of(inputs: &mut Inputs) -> Computed {
    let mut c = Calibration::new(inputs.size("bins")).unwrap();
    let targets = inputs.integers::<u32>("target");
    if inputs.has("logits") {
        for (row, &target) in inputs.rows("logits").iter().zip(&targets) {
            c.add_logits(row, target as usize).unwrap();
        }
    } else {
        for (row, &target) in inputs.rows("probs").iter().zip(&targets) {
            c.add_probabilities(row, target as usize).unwrap();
        }
    }
    assert_eq!(c.total(), targets.len() as u64);
    let mut got = Computed::default();
    got.counts("bin_count", &c.bin_count());
    got.reals("bin_accuracy", c.bin_accuracy());
    got.reals("bin_confidence", c.bin_confidence());
    got.real("ece", c.ece());
    got.real("mce", c.mce());
    got.real("nll", c.nll());
    got.real("brier", c.brier());
    got.real("mean_confidence", c.mean_confidence());
    got
}

fn seeds_of(inputs: &mut Inputs) -> Computed {
    let s = SeedSummary::new(&inputs.reals("values"));
    let mut got = Computed::default();
    got.count("count", s.count);
    got.real("mean", s.mean);
    got.real("std", s.std);
    got.real("sem", s.sem);
    got.real("min", s.min);
    got.real("max", s.max);
    got.real("median", s.median);
    got.real("ci95_low", s.ci95_low);
    got.real("ci95_high", s.ci95_high);
    got
}

fn paired_of(inputs: &mut Inputs) -> Computed {
    let distribution = match inputs.setting("wilcoxon").as_str() {
        Some("exact") => Distribution::Exact,
        Some("normal") => Distribution::Normal,
        other => panic!("{}: unknown wilcoxon {other:?}", inputs.case),
    };
    let (a, b) = (inputs.reals("a"), inputs.reals("b"));
    let t = paired::t_test(&a, &b).unwrap();
    let w = paired::wilcoxon(&a, &b, distribution).unwrap();
    assert_eq!(t.pairs, w.pairs);
    let mut got = Computed::default();
    got.count("pairs", w.pairs);
    got.count("nonzero_pairs", w.nonzero_pairs);
    got.real("mean_difference", t.mean_difference);
    got.real("t", t.t);
    got.real("t_p", t.p);
    got.real("wilcoxon", w.statistic);
    got.real("wilcoxon_p", w.p);
    got
}

fn mcnemar_of(inputs: &mut Inputs) -> Computed {
    let test = McNemar::new(&inputs.bools("correct_a"), &inputs.bools("correct_b")).unwrap();
    let mut got = Computed::default();
    got.count("both", test.both);
    got.count("only_a", test.only_a);
    got.count("only_b", test.only_b);
    got.count("neither", test.neither);
    got.real("p", test.p);
    got
}

fn bootstrap_of(inputs: &mut Inputs) -> Computed {
    let level = inputs.setting("level").as_f64().unwrap();
    let mut values = inputs.reals("values");
    if inputs.has("other") {
        values = paired::differences(&values, &inputs.reals("other")).unwrap();
    }
    let b = Bootstrap::from_resamples(&values, &inputs.integers("indices"), level).unwrap();
    let mut got = Computed::default();
    got.reals("means", b.means);
    got.real("estimate", b.estimate);
    got.real("std", b.std);
    got.real("low", b.low);
    got.real("high", b.high);
    got
}

/// Compares with every expected value; returns the mismatches and the number of values.
fn check(case: &Case) -> (Vec<String>, usize) {
    assert_eq!(case.meta["format"], "stillhouse-golden-metric-1", "{case}: unknown format");
    let got = compute(case);
    let expected = case.meta["expected"].as_object().unwrap_or_else(|| panic!("{case}: no `expected`"));
    assert!(!expected.is_empty(), "{case}: expects nothing");
    let (mut mismatches, mut seen) = (Vec::new(), 0);
    for (name, kind) in expected {
        let computed =
            got.0.get(key(name)).unwrap_or_else(|| panic!("{case}: unknown expected key `{name}`"));
        let tensor = format!("expected.{name}");
        let shape: Vec<usize> = serde_json::from_value(kind["shape"].clone()).unwrap();
        assert_eq!(case.shape(&tensor), shape, "{case}: {name}: shape");
        let tolerance = &case.meta["tolerance"][name];
        match (computed, kind["dtype"].as_str()) {
            (Values::Counts(got), Some("i64")) => {
                assert_eq!(*tolerance, serde_json::json!({"exact": true}), "{case}: {name}: tolerance");
                let want = case.i64s(&tensor);
                seen += want.len();
                if *got != want {
                    mismatches.push(format!("{case}: {name}: got {got:?}, want {want:?}"));
                }
            }
            (Values::Reals(got), Some("f64")) => {
                let number = |key: &str| {
                    tolerance[key].as_f64().unwrap_or_else(|| panic!("{case}: {name}: tolerance {tolerance}"))
                };
                let (rtol, atol) = (number("rtol"), number("atol"));
                let want = case.f64s(&tensor);
                seen += want.len();
                let close = |g: f64, w: f64| {
                    if w.is_nan() { g.is_nan() } else { (g - w).abs() <= atol + rtol * w.abs() }
                };
                if got.len() != want.len() || got.iter().zip(&want).any(|(g, w)| !close(*g, *w)) {
                    mismatches.push(format!("{case}: {name}: got {got:?}, want {want:?}"));
                }
            }
            (_, dtype) => panic!("{case}: {name}: unexpected dtype {dtype:?}"),
        }
    }
    for name in case.tensors.keys().filter_map(|n| n.strip_prefix("expected.")) {
        assert!(expected.contains_key(name), "{case}: tensor `expected.{name}` is not in the metadata");
    }
    (mismatches, seen)
}

#[test]
fn matches_golden_values() {
    let (mut mismatches, mut values, mut families) = (Vec::new(), 0, BTreeMap::<String, usize>::new());
    let cases = golden::require("metrics");
    for case in &cases {
        let (wrong, seen) = check(case);
        mismatches.extend(wrong);
        values += seen;
        *families.entry(case.meta["family"].as_str().unwrap_or_default().to_string()).or_default() += 1;
    }
    println!("checked {} golden cases of metrics, {values} values: {families:?}", cases.len());
    assert!(mismatches.is_empty(), "{} mismatches:\n{}", mismatches.len(), mismatches.join("\n"));
}

/// Tests the comparison itself: a perturbation of any expected value must be detected.
#[test]
fn detects_perturbed_values() {
    use candle_core::{DType, Device, Tensor};
    let mut perturbed = 0;
    for case in &golden::require("metrics") {
        for name in case.meta["expected"].as_object().unwrap().keys() {
            let tensor = format!("expected.{name}");
            let shape = case.shape(&tensor);
            for i in 0..shape.iter().product::<usize>().min(30) {
                let mut other = case.clone();
                let changed = if case.tensor(&tensor).dtype() == DType::I64 {
                    let mut values = case.i64s(&tensor);
                    values[i] += 1;
                    Tensor::from_vec(values, shape.clone(), &Device::Cpu)
                } else {
                    let mut values = case.f64s(&tensor);
                    let v = values[i];
                    values[i] = if v.is_nan() { 0.0 } else { v + 1e-6 * v.abs() + 1e-9 };
                    Tensor::from_vec(values, shape.clone(), &Device::Cpu)
                };
                other.tensors.insert(tensor.clone(), changed.unwrap());
                let (mismatches, _) = check(&other);
                assert_eq!(mismatches.len(), 1, "{case}: {name}: perturbed value {i} was not detected");
                perturbed += 1;
            }
        }
    }
    println!("{perturbed} perturbed values, all detected");
}
