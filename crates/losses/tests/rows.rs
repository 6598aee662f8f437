//! What must hold for every row of the registry: no method is named here, a new row is walked as all
//! others are. Below it, what single methods do not notice.

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

/// What the networks give and what the labels are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    task: Task,
    /// Logits for every position of a map.
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

/// What is in the taps.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    Random,
    /// Logits of +-1e4.
    Huge,
    Zero,
    /// All images are the same.
    Duplicates,
    /// The teacher's taps are the student's.
    Same,
}

/// A batch: its labels, the classes of the dataset, what the networks give.
struct Batch {
    name: &'static str,
    labels: &'static [u32],
    classes: usize,
    fill: Fill,
    /// A word of the reason for which a method may refuse it before the first step.
    refusal: Option<&'static str>,
}

const fn batch(name: &'static str, labels: &'static [u32], classes: usize, fill: Fill) -> Batch {
    Batch { name, labels, classes, fill, refusal: None }
}

const PLAIN: Batch = batch("plain", &[0, 2, 1, 1, 0, 2], 4, Fill::Random);
const SAME: Batch = batch("the teacher is the student", PLAIN.labels, 4, Fill::Same);
const BATCHES: &[Batch] = &[
    PLAIN,
    SAME,
    batch("huge logits", PLAIN.labels, 4, Fill::Huge),
    batch("zero maps", PLAIN.labels, 4, Fill::Zero),
    batch("duplicates", PLAIN.labels, 4, Fill::Duplicates),
    batch("one image of each class", &[3, 5, 0, 1, 4, 2], 6, Fill::Random),
    batch("one class", &[1; BATCH], 4, Fill::Random),
    Batch { refusal: Some("class"), ..batch("two classes", &[0, 1, 1, 0, 0, 1], 2, Fill::Random) },
    Batch { refusal: Some("image"), ..batch("one image", &[2], 4, Fill::Random) },
];

/// The shape of a tap without the batch; the teacher is wider.
fn shape(tap: &str, wider: usize, classes: usize, dense: bool) -> Vec<usize> {
    let stage = tap.strip_prefix('F').map(|rest| rest.trim_end_matches("_pre")).and_then(|i| i.parse().ok());
    match (tap, stage) {
        (_, Some(stage @ 1..=4)) => {
            let side = [10, 8, 6, 6][stage - 1];
            vec![3 + stage + wider, side, side]
        }
        ("pooled" | "embedding", _) => vec![7 + wider],
        (tap, _) if tap.ends_with("logits") && dense => vec![classes, 8, 8],
        (tap, _) if tap.ends_with("logits") => vec![classes],
        (tap, _) if tap.starts_with("exit") && tap.ends_with(".feat") => vec![7 + wider],
        _ => panic!("this test knows no tap `{tap}`: give it a shape"),
    }
}

/// The values of a tap.
fn values(tap: &str, shape: &[usize], fill: Fill, images: usize, seed: &str) -> Tensor {
    let mut draw = Rng::new(5).stream(seed).stream(tap).at(0, 0);
    let count: usize = shape.iter().product();
    let is_map = tap.starts_with('F');
    let mut one = || -> Vec<f64> {
        let values = (0..count).map(|_| draw.normal());
        match fill {
            Fill::Huge if tap.ends_with("logits") => values.map(|v| 1e4f64.copysign(v)).collect(),
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

/// A method with what it reads, connected.
struct Bench {
    method: Box<dyn Distiller>,
    student: Vec<(String, Var)>,
    teacher: Vec<(String, Var)>,
    target: Target,
    params: ParamStore,
}

/// Terms with their values and weights; gradients of the weighted sum by tap or parameter.
struct Told {
    terms: Vec<(String, f64, f64)>,
    gradients: Vec<(String, Vec<f64>)>,
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

impl Bench {
    fn new(
        row: &Entry<DistillerBuild>,
        options: &str,
        batch: &Batch,
        setting: Setting,
        dtype: DType,
    ) -> Result<Self> {
        let mut method = (row.build)(&toml::from_str(options).unwrap())?;
        let (needs, images) = (method.required_features(), batch.labels.len());
        let taps = |names: &[String], wider: usize, seed: &str| -> Vec<(String, Var)> {
            let wider = if batch.fill == Fill::Same { 0 } else { wider };
            let seed = if batch.fill == Fill::Same { "both" } else { seed };
            let var = |tap: &String| {
                let shape = shape(tap, wider, batch.classes, setting.dense);
                let values = values(tap, &shape, batch.fill, images, seed).to_dtype(dtype).unwrap();
                (tap.clone(), Var::from_tensor(&values).unwrap())
            };
            names.iter().map(var).collect()
        };
        let (student, teacher) = (taps(&needs.student, 0, "student"), taps(&needs.teacher, 2, "teacher"));
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

    fn run(&mut self, step: u64) -> Result<Told> {
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
        for (tap, var) in &self.teacher {
            assert!(store.get(var).is_none(), "{}: the teacher's `{tap}` has a gradient", self.method.name());
        }
        let weights = self.params.all().into_iter().filter(|p| p.kind == stillhouse_ops::ParamKind::Weight);
        let weights: Vec<(String, Var)> = weights.map(|p| (p.name.clone(), p.var().clone())).collect();
        let all = self.student.iter().chain(&weights);
        let gradients = all.filter_map(|(name, var)| Some((name.clone(), list(store.get(var)?)))).collect();
        let rival = self.method.adversary_terms(&context)?;
        self.method.after_step(&context, &self.params)?;
        let terms =
            terms.iter().chain(&rival).map(|t| (t.name.clone(), list(&t.value)[0], t.weight)).collect();
        Ok(Told { terms, gradients })
    }
}

fn features(taps: &[(String, Var)]) -> Features {
    taps.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

/// A row that takes its labels and taps runs on them, and each takes those of a classifier or those
/// of a network for dense prediction. Who refuses says so by name.
#[test]
fn whatever_is_accepted_runs() {
    for row in registry().entries() {
        let mut accepted = Vec::new();
        for setting in SETTINGS {
            match Bench::new(row, "", &PLAIN, setting, DType::F64) {
                Ok(mut bench) => {
                    let told = bench.run(0).unwrap_or_else(|e| panic!("{}, {setting:?}: {e}", row.name));
                    assert!(told.terms.iter().all(|(_, value, _)| value.is_finite()));
                    accepted.push(setting);
                }
                // A preset hands on what one of its methods says.
                Err(e) => {
                    let named = registry().entries().iter().any(|r| e.to_string().starts_with(r.name));
                    assert!(named, "{}: nobody says this: {e}", row.name);
                }
            }
        }
        let home = accepted.iter().any(|s| [CLASSIFIER, SEGMENTER].contains(s));
        assert!(home, "`{}` fits no network: {accepted:?}", row.name);
    }
}

/// Rows that a classifier can carry.
fn carried() -> Vec<Entry<DistillerBuild>> {
    let fits = |row: &Entry<DistillerBuild>| Bench::new(row, "", &PLAIN, CLASSIFIER, DType::F64).is_ok();
    registry().entries().iter().filter(|row| fits(row)).copied().collect()
}

/// Values and gradients are finite at every edge, in both precisions and twice in a row (memories
/// move in between), or the method says before the first step why it cannot.
#[test]
fn edges_are_finite_or_refused() {
    for row in carried() {
        for batch in BATCHES {
            for dtype in [DType::F32, DType::F64] {
                let at = format!("{}, {}, {dtype:?}", row.name, batch.name);
                let mut bench = match (Bench::new(&row, "", batch, CLASSIFIER, dtype), batch.refusal) {
                    (Ok(bench), _) => bench,
                    (Err(e), Some(word)) if e.to_string().contains(word) => continue,
                    (Err(e), _) => panic!("{at}: {e}"),
                };
                for step in 0..2 {
                    let told = bench.run(step).unwrap_or_else(|e| panic!("{at}: {e}"));
                    for (term, value, _) in &told.terms {
                        assert!(value.is_finite(), "{at}: `{term}` is {value}");
                    }
                    for (name, gradient) in &told.gradients {
                        assert!(gradient.iter().all(|g| g.is_finite()), "{at}: the gradient of `{name}`");
                    }
                    let terms: Vec<(String, f64)> = told.terms.into_iter().map(|(n, _, w)| (n, w)).collect();
                    assert_eq!(terms, bench.method.term_weights(), "{at}: terms are not as they are told");
                }
            }
        }
    }
}

/// On plain data the student and every connector learn something.
#[test]
fn gradients_reach_student_and_connectors() {
    for row in carried() {
        let mut bench = Bench::new(&row, "", &PLAIN, CLASSIFIER, DType::F64).unwrap();
        let told = bench.run(0).unwrap();
        let weights = bench.params.all().into_iter().filter(|p| p.kind == stillhouse_ops::ParamKind::Weight);
        let taps = bench.student.iter().map(|(tap, _)| tap.clone());
        // The deepest feature only teaches in self-distillation; elsewhere every tap is read to learn.
        let teaches = |tap: &String| bench.teacher.is_empty() && tap == "embedding";
        for name in taps.filter(|tap| !teaches(tap)).chain(weights.map(|p| p.name)) {
            let gradient = told.gradients.iter().find(|(n, _)| *n == name).map(|(_, g)| g.as_slice());
            let moves = gradient.is_some_and(|g| g.iter().any(|g| *g != 0.0));
            assert!(moves, "{}: nothing moves `{name}`", row.name);
        }
    }
}

/// Where nothing stands between student and teacher, a student that is its teacher has neither loss
/// nor gradient.
#[test]
fn a_student_that_is_its_teacher_is_done() {
    let mut compared = 0;
    for row in carried() {
        let mut bench = Bench::new(&row, "", &SAME, CLASSIFIER, DType::F64).unwrap();
        let connected = bench.params.all().iter().any(|p| p.kind == stillhouse_ops::ParamKind::Weight);
        if bench.teacher.is_empty() || connected {
            continue;
        }
        compared += 1;
        let told = bench.run(0).unwrap();
        let largest = told.terms.iter().map(|(_, _, weight)| weight.abs()).fold(1.0, f64::max);
        for (term, value, _) in &told.terms {
            assert!(value.abs() < 1e-10, "{}: `{term}` is {value}", row.name);
        }
        for (name, gradient) in &told.gradients {
            let most = gradient.iter().fold(0f64, |most, g| most.max(g.abs()));
            assert!(most < 1e-7 * largest, "{}: the gradient of `{name}` is {most}", row.name);
        }
    }
    assert!(compared > 0);
}

/// What is done to the student's taps.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// Another number added to all logits of each image.
    Shift,
    /// Channels or features in another order.
    Order,
    /// Channels or features turned by an orthogonal matrix.
    Turn,
    /// Channels or features with the other sign, some of them.
    Sign,
    /// Each image by a positive number of its own.
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
            Self::Order => {
                let order: Vec<u32> = (0..width as u32).rev().collect();
                x.index_select(&Tensor::new(order, &CPU).unwrap(), 1).unwrap()
            }
            Self::Turn | Self::Sign => {
                // A reflection, or a diagonal of signs.
                let entry = |i: usize, j: usize| {
                    let on = f64::from(i == j);
                    let v = |i: usize| (i as f64 + 1.0).sin();
                    let norm: f64 = (0..width).map(|i| v(i) * v(i)).sum();
                    match self {
                        Self::Turn => on - 2.0 * v(i) * v(j) / norm,
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

/// Method, settings, taps that are changed (by their beginning or end), change.
const INVARIANCES: &[(&str, &str, &str, Change)] = &[
    ("ce", "", "logits", Change::Shift),
    ("kd", "", "logits", Change::Shift),
    ("kl_cosine", "cosine_on = \"softmax\"", "logits", Change::Shift),
    ("kl_cosine", "cosine_on = \"pooled\"", "logits", Change::Shift),
    ("byot", "", "logits", Change::Shift),
    ("self_kl", "ce_s3_weight = 1.0", "logits", Change::Shift),
    ("at", "", "F", Change::Order),
    ("at", "", "F", Change::Sign),
    ("at", "p = 3.5", "F", Change::Sign),
    ("at", "p = 1", "F", Change::Scale),
    ("at", "", "F", Change::Scale),
    ("at", "", "F", Change::Turn), // the squared length over the channels
    ("sp", "", "F", Change::Order),
    ("sp", "", "F", Change::Turn),
    ("cc", "", "pooled", Change::Order),
    ("cc", "order = 3", "pooled", Change::Turn),
    ("cc", "", "pooled", Change::Scale),
    ("pkt", "", "pooled", Change::Order),
    ("pkt", "", "pooled", Change::Turn),
    ("pkt", "", "pooled", Change::Sign),
];

#[test]
fn what_methods_do_not_notice() {
    for (name, options, taps, change) in INVARIANCES {
        let row = *registry().get(name).unwrap();
        let bench = || Bench::new(&row, options, &PLAIN, CLASSIFIER, DType::F64).unwrap();
        let (mut plain, mut changed) = (bench(), bench());
        let mut touched = 0;
        for (tap, var) in &changed.student {
            if tap.starts_with(taps) || tap.ends_with(taps) {
                touched += 1;
                var.set(&change.apply(var.as_tensor())).unwrap();
            }
        }
        assert!(touched > 0, "{name}: no tap `{taps}`");
        let (a, b) = (plain.run(0).unwrap(), changed.run(0).unwrap());
        for ((term, a, _), (_, b, _)) in a.terms.iter().zip(&b.terms) {
            assert!(a.abs() > 1e-8, "{name}: `{term}` is {a}, there is nothing to compare");
            assert!((a - b).abs() <= 1e-9 * a.abs(), "{name}, {options}, {change:?}: `{term}` {a} {b}");
        }
    }
}

/// An image's scale leaves the pkt of a feature only by its eps.
#[test]
fn pkt_notices_a_scale_only_by_its_eps() {
    let row = *registry().get("pkt").unwrap();
    let bench = || Bench::new(&row, "eps = 1e-12", &PLAIN, CLASSIFIER, DType::F64).unwrap();
    let (mut plain, mut scaled) = (bench(), bench());
    let var = &scaled.student[0].1;
    var.set(&Change::Scale.apply(var.as_tensor())).unwrap();
    let (a, b) = (plain.run(0).unwrap().terms[0].1, scaled.run(0).unwrap().terms[0].1);
    assert!((a - b).abs() < 1e-9 * a, "{a} {b}");
}
