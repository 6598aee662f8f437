//! Requirements on every method of the registry, including new ones, and invariances of single methods.

use candle_core::{DType, Device, Tensor, Var};
use stillhouse_core::data::{Labels, Target, Task};
use stillhouse_core::distiller::{Distiller, DistillerBuild, FeatureShapes, LossContext};
use stillhouse_core::model::Features;
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_losses::registry;

const CPU: Device = Device::Cpu;
const SAMPLES: usize = 20;
const BATCH: usize = 6;

/// Kind of the labels and of the networks' outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    task: Task,
    /// Whether logits are maps.
    dense: bool,
}

const CLASSIFIER: Setting = Setting { task: Task::Classification, dense: false };
const SEGMENTER: Setting = Setting { task: Task::Segmentation, dense: true };
const SETTINGS: [Setting; 4] = [
    CLASSIFIER,
    SEGMENTER,
    Setting { task: Task::Segmentation, dense: false },
    Setting { task: Task::Classification, dense: true },
];

/// Values of the features.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    Random,
    /// Logits of +-1e4.
    Huge,
    Zero,
    /// All images are equal.
    Duplicates,
    /// The teacher's features are the student's.
    Same,
}

/// Labels, classes of the dataset and values of the features of a batch.
struct Batch {
    name: &'static str,
    labels: &'static [u32],
    classes: usize,
    fill: Fill,
    /// Part of the error message with which `connect` may reject the batch.
    rejection: Option<&'static str>,
}

const fn batch(name: &'static str, labels: &'static [u32], classes: usize, fill: Fill) -> Batch {
    Batch { name, labels, classes, fill, rejection: None }
}

const PLAIN: Batch = batch("plain", &[0, 2, 1, 1, 0, 2], 4, Fill::Random);
const SAME: Batch = batch("student is teacher", PLAIN.labels, 4, Fill::Same);
const BATCHES: &[Batch] = &[
    PLAIN,
    SAME,
    batch("large logits", PLAIN.labels, 4, Fill::Huge),
    batch("zero maps", PLAIN.labels, 4, Fill::Zero),
    batch("duplicates", PLAIN.labels, 4, Fill::Duplicates),
    batch("one image of each class", &[3, 5, 0, 1, 4, 2], 6, Fill::Random),
    batch("one class", &[1; BATCH], 4, Fill::Random),
    Batch { rejection: Some("class"), ..batch("two classes", &[0, 1, 1, 0, 0, 1], 2, Fill::Random) },
    Batch { rejection: Some("image"), ..batch("one image", &[2], 4, Fill::Random) },
];

/// Shape of a feature without the batch axis; `wider` adds channels for the teacher.
fn shape(feature: &str, wider: usize, classes: usize, dense: bool) -> Vec<usize> {
    let stage =
        feature.strip_prefix('F').map(|rest| rest.trim_end_matches("_pre")).and_then(|i| i.parse().ok());
    match (feature, stage) {
        (_, Some(stage @ 1..=4)) => {
            let side = [10, 8, 6, 6][stage - 1];
            vec![3 + stage + wider, side, side]
        }
        ("pooled" | "embedding", _) => vec![7 + wider],
        (feature, _) if feature.ends_with("logits") && dense => vec![classes, 8, 8],
        (feature, _) if feature.ends_with("logits") => vec![classes],
        (feature, _) if feature.starts_with("exit") && feature.ends_with(".feat") => vec![7 + wider],
        _ => panic!("unknown feature `{feature}`: add its shape to this test"),
    }
}

/// Values of a feature.
fn values(feature: &str, shape: &[usize], fill: Fill, images: usize, seed: &str) -> Tensor {
    let mut draw = Rng::new(5).stream(seed).stream(feature).at(0, 0);
    let count: usize = shape.iter().product();
    let is_map = feature.starts_with('F');
    let mut one = || -> Vec<f64> {
        let values = (0..count).map(|_| draw.normal());
        match fill {
            Fill::Huge if feature.ends_with("logits") => values.map(|v| 1e4f64.copysign(v)).collect(),
            Fill::Zero => vec![0.0; count],
            _ if is_map => values.map(|v| v.max(0.0)).collect(),
            _ => values.collect(),
        }
    };
    let first = one();
    let mut all = first.clone();
    for _ in 1..images {
        all.extend(if fill == Fill::Duplicates { first.clone() } else { one() });
    }
    Tensor::from_vec(all, [&[images], shape].concat(), &CPU).unwrap()
}

/// A connected method with its inputs.
struct Bench {
    method: Box<dyn Distiller>,
    student: Vec<(String, Var)>,
    teacher: Vec<(String, Var)>,
    target: Target,
    params: ParamStore,
}

/// Names, values and weights of the terms; gradients of the weighted sum by feature or parameter.
struct Outcome {
    terms: Vec<(String, f64, f64)>,
    gradients: Vec<(String, Vec<f64>)>,
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

impl Bench {
    fn new(
        entry: &Entry<DistillerBuild>,
        options: &str,
        batch: &Batch,
        setting: Setting,
        dtype: DType,
    ) -> Result<Self> {
        let mut method = (entry.build)(&toml::from_str(options).unwrap())?;
        let (needs, images) = (method.required_features(), batch.labels.len());
        let inputs = |names: &[String], wider: usize, seed: &str| -> Vec<(String, Var)> {
            let wider = if batch.fill == Fill::Same { 0 } else { wider };
            let seed = if batch.fill == Fill::Same { "both" } else { seed };
            let var = |feature: &String| {
                let shape = shape(feature, wider, batch.classes, setting.dense);
                let values = values(feature, &shape, batch.fill, images, seed).to_dtype(dtype).unwrap();
                (feature.clone(), Var::from_tensor(&values).unwrap())
            };
            names.iter().map(var).collect()
        };
        let (student, teacher) = (inputs(&needs.student, 0, "student"), inputs(&needs.teacher, 2, "teacher"));
        let labels = Tensor::new(batch.labels, &CPU)?;
        let labels = match setting.task {
            Task::Classification => Labels::Classes(labels),
            Task::Segmentation => {
                Labels::Mask(labels.reshape((images, 1, 1))?.broadcast_as((images, 8, 8))?.contiguous()?)
            }
        };
        let params = ParamStore::new(dtype, &CPU)?;
        let shapes = FeatureShapes {
            student: features(&student).shapes(),
            teacher: features(&teacher).shapes(),
            task: setting.task,
            classes: batch.classes,
            batch: images,
            samples: SAMPLES,
        };
        method.connect(&shapes, &params.builder(Rng::new(3)))?;
        Ok(Self { method, student, teacher, target: Target::on_cpu(labels), params })
    }

    fn run(&mut self, step: u64) -> Result<Outcome> {
        let (student, teacher) = (features(&self.student), features(&self.teacher));
        let images = self.student[0].1.dims()[0];
        let images_of = Tensor::zeros((images, 3, 8, 8), self.params.dtype(), &CPU)?;
        let ids: Vec<u64> = (0..images as u64).map(|i| 3 * i + 1).collect();
        let context = LossContext {
            images: Some(&images_of),
            ids: &ids,
            step,
            rng: Rng::new(11),
            ..LossContext::new(&student, &teacher, &self.target)
        };
        let terms = self.method.terms(&context)?;
        let mut total = Tensor::zeros((), self.params.dtype(), &CPU)?;
        for term in &terms {
            total = (total + (&term.value * term.weight)?)?;
        }
        let store = total.backward()?;
        for (feature, var) in &self.teacher {
            assert!(
                store.get(var).is_none(),
                "{}: the teacher's `{feature}` has a gradient",
                self.method.name()
            );
        }
        let weights = self.params.all().into_iter().filter(|p| p.kind == stillhouse_ops::ParamKind::Weight);
        let weights: Vec<(String, Var)> = weights.map(|p| (p.name.clone(), p.var().clone())).collect();
        let all = self.student.iter().chain(&weights);
        let gradients = all.filter_map(|(name, var)| Some((name.clone(), list(store.get(var)?)))).collect();
        let rival = self.method.adversary_terms(&context)?;
        self.method.after_step(&context, &self.params)?;
        let terms =
            terms.iter().chain(&rival).map(|t| (t.name.clone(), list(&t.value)[0], t.weight)).collect();
        Ok(Outcome { terms, gradients })
    }
}

fn features(inputs: &[(String, Var)]) -> Features {
    inputs.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

/// Methods run on all inputs that `connect` accepts, and accept those of classification or of dense
/// prediction. Errors name the method.
#[test]
fn runs_on_accepted_inputs() {
    for entry in registry().entries() {
        let mut accepted = Vec::new();
        for setting in SETTINGS {
            match Bench::new(entry, "", &PLAIN, setting, DType::F64) {
                Ok(mut bench) => {
                    let outcome = bench.run(0).unwrap_or_else(|e| panic!("{}, {setting:?}: {e}", entry.name));
                    assert!(outcome.terms.iter().all(|(_, value, _)| value.is_finite()));
                    accepted.push(setting);
                }
                // The errors of a preset name one of its methods.
                Err(e) => {
                    let named = registry().entries().iter().any(|r| e.to_string().starts_with(r.name));
                    assert!(named, "{}: the error names no method: {e}", entry.name);
                }
            }
        }
        let supported = accepted.iter().any(|s| [CLASSIFIER, SEGMENTER].contains(s));
        assert!(supported, "`{}` accepts neither task: {accepted:?}", entry.name);
    }
}

/// Entries that accept a classifier.
fn classifier_entries() -> Vec<Entry<DistillerBuild>> {
    let fits = |entry: &Entry<DistillerBuild>| Bench::new(entry, "", &PLAIN, CLASSIFIER, DType::F64).is_ok();
    registry().entries().iter().filter(|entry| fits(entry)).copied().collect()
}

/// Values and gradients are finite in both precisions and in two consecutive steps (with an update of
/// memory banks), unless `connect` rejects the batch.
#[test]
fn is_finite_for_edge_cases_or_rejects_them() {
    for entry in classifier_entries() {
        for batch in BATCHES {
            for dtype in [DType::F32, DType::F64] {
                let at = format!("{}, {}, {dtype:?}", entry.name, batch.name);
                let mut bench = match (Bench::new(&entry, "", batch, CLASSIFIER, dtype), batch.rejection) {
                    (Ok(bench), _) => bench,
                    (Err(e), Some(word)) if e.to_string().contains(word) => continue,
                    (Err(e), _) => panic!("{at}: {e}"),
                };
                for step in 0..2 {
                    let outcome = bench.run(step).unwrap_or_else(|e| panic!("{at}: {e}"));
                    for (term, value, _) in &outcome.terms {
                        assert!(value.is_finite(), "{at}: `{term}` is {value}");
                    }
                    for (name, gradient) in &outcome.gradients {
                        assert!(gradient.iter().all(|g| g.is_finite()), "{at}: the gradient of `{name}`");
                    }
                    let terms: Vec<(String, f64)> =
                        outcome.terms.into_iter().map(|(n, _, w)| (n, w)).collect();
                    assert_eq!(terms, bench.method.term_weights(), "{at}: terms differ from term_weights");
                }
            }
        }
    }
}

/// On random data.
#[test]
fn gradients_reach_student_and_connectors() {
    for entry in classifier_entries() {
        let mut bench = Bench::new(&entry, "", &PLAIN, CLASSIFIER, DType::F64).unwrap();
        let outcome = bench.run(0).unwrap();
        let weights = bench.params.all().into_iter().filter(|p| p.kind == stillhouse_ops::ParamKind::Weight);
        let inputs = bench.student.iter().map(|(feature, _)| feature.clone());
        // In self-distillation the deepest feature is a target without gradient.
        let teaches = |feature: &String| bench.teacher.is_empty() && feature == "embedding";
        for name in inputs.filter(|feature| !teaches(feature)).chain(weights.map(|p| p.name)) {
            let gradient = outcome.gradients.iter().find(|(n, _)| *n == name).map(|(_, g)| g.as_slice());
            let moves = gradient.is_some_and(|g| g.iter().any(|g| *g != 0.0));
            assert!(moves, "{}: `{name}` gets no gradient", entry.name);
        }
    }
}

/// Without connectors, loss and gradient are zero if the student is the teacher.
#[test]
fn vanishes_if_student_is_teacher() {
    let mut compared = 0;
    for entry in classifier_entries() {
        let mut bench = Bench::new(&entry, "", &SAME, CLASSIFIER, DType::F64).unwrap();
        let connected = bench.params.all().iter().any(|p| p.kind == stillhouse_ops::ParamKind::Weight);
        if bench.teacher.is_empty() || connected {
            continue;
        }
        compared += 1;
        let outcome = bench.run(0).unwrap();
        let largest = outcome.terms.iter().map(|(_, _, weight)| weight.abs()).fold(1.0, f64::max);
        for (term, value, _) in &outcome.terms {
            assert!(value.abs() < 1e-10, "{}: `{term}` is {value}", entry.name);
        }
        for (name, gradient) in &outcome.gradients {
            let most = gradient.iter().fold(0f64, |most, g| most.max(g.abs()));
            assert!(most < 1e-7 * largest, "{}: the gradient of `{name}` is {most}", entry.name);
        }
    }
    assert!(compared > 0);
}

/// Transformation of the student's features.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// Adds a constant per image.
    Shift,
    /// Permutes the channels.
    Permute,
    /// Multiplies the channels by an orthogonal matrix.
    Rotate,
    /// Negates some channels.
    Negate,
    /// Multiplies each image by a positive number.
    Scale,
}

impl Change {
    fn apply(self, x: &Tensor) -> Tensor {
        let (images, width) = (x.dims()[0], x.dims()[1]);
        let by_image = |f: &dyn Fn(f64) -> f64| {
            let values: Vec<f64> = (0..images).map(|i| f(i as f64)).collect();
            let mut shape = vec![1; x.rank()];
            shape[0] = images;
            Tensor::from_vec(values, shape, &CPU).unwrap()
        };
        match self {
            Self::Shift => x.broadcast_add(&by_image(&|i| 3.0 * i - 5.0)).unwrap(),
            Self::Scale => x.broadcast_mul(&by_image(&|i| 0.2 + i)).unwrap(),
            Self::Permute => {
                let order: Vec<u32> = (0..width as u32).rev().collect();
                x.index_select(&Tensor::new(order, &CPU).unwrap(), 1).unwrap()
            }
            Self::Rotate | Self::Negate => {
                // A reflection, or a diagonal matrix of signs.
                let entry = |i: usize, j: usize| {
                    let on = f64::from(i == j);
                    let v = |i: usize| (i as f64 + 1.0).sin();
                    let norm: f64 = (0..width).map(|i| v(i) * v(i)).sum();
                    match self {
                        Self::Rotate => on - 2.0 * v(i) * v(j) / norm,
                        _ => on * if i.is_multiple_of(2) { -1.0 } else { 1.0 },
                    }
                };
                let matrix = (0..width * width).map(|k| entry(k / width, k % width)).collect();
                let matrix = Tensor::from_vec(matrix, (width, width), &CPU).unwrap();
                let rows = x.flatten_from(1).unwrap().reshape((images, width, ())).unwrap();
                matrix.broadcast_matmul(&rows).unwrap().reshape(x.dims()).unwrap()
            }
        }
    }
}

/// Method, settings, prefix or suffix of the transformed features, transformation.
const INVARIANCES: &[(&str, &str, &str, Change)] = &[
    ("ce", "", "logits", Change::Shift),
    ("kd", "", "logits", Change::Shift),
    ("kl_cosine", "cosine_on = \"softmax\"", "logits", Change::Shift),
    ("kl_cosine", "cosine_on = \"pooled\"", "logits", Change::Shift),
    ("byot", "", "logits", Change::Shift),
    ("self_kl", "ce_s3_weight = 1.0", "logits", Change::Shift),
    ("at", "", "F", Change::Permute),
    ("at", "", "F", Change::Negate),
    ("at", "p = 3.5", "F", Change::Negate),
    ("at", "p = 1", "F", Change::Scale),
    ("at", "", "F", Change::Scale),
    ("at", "", "F", Change::Rotate), // squared length over the channels
    ("sp", "", "F", Change::Permute),
    ("sp", "", "F", Change::Rotate),
    ("cc", "", "pooled", Change::Permute),
    ("cc", "order = 3", "pooled", Change::Rotate),
    ("cc", "", "pooled", Change::Scale),
    ("pkt", "", "pooled", Change::Permute),
    ("pkt", "", "pooled", Change::Rotate),
    ("pkt", "", "pooled", Change::Negate),
];

#[test]
fn methods_are_invariant() {
    for (name, options, features_of, change) in INVARIANCES {
        let entry = *registry().get(name).unwrap();
        let bench = || Bench::new(&entry, options, &PLAIN, CLASSIFIER, DType::F64).unwrap();
        let (mut plain, mut changed) = (bench(), bench());
        let mut touched = 0;
        for (feature, var) in &changed.student {
            if feature.starts_with(features_of) || feature.ends_with(features_of) {
                touched += 1;
                var.set(&change.apply(var.as_tensor())).unwrap();
            }
        }
        assert!(touched > 0, "{name}: no feature `{features_of}`");
        let (a, b) = (plain.run(0).unwrap(), changed.run(0).unwrap());
        for ((term, a, _), (_, b, _)) in a.terms.iter().zip(&b.terms) {
            assert!(a.abs() > 1e-8, "{name}: `{term}` is {a}, there is nothing to compare");
            assert!((a - b).abs() <= 1e-9 * a.abs(), "{name}, {options}, {change:?}: `{term}` {a} {b}");
        }
    }
}

/// Up to `eps`.
#[test]
fn pkt_is_scale_invariant() {
    let entry = *registry().get("pkt").unwrap();
    let bench = || Bench::new(&entry, "eps = 1e-12", &PLAIN, CLASSIFIER, DType::F64).unwrap();
    let (mut plain, mut scaled) = (bench(), bench());
    let var = &scaled.student[0].1;
    var.set(&Change::Scale.apply(var.as_tensor())).unwrap();
    let (a, b) = (plain.run(0).unwrap().terms[0].1, scaled.run(0).unwrap().terms[0].1);
    assert!((a - b).abs() < 1e-9 * a, "{a} {b}");
}
