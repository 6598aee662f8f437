//! Golden values of `tests/golden/models` (timm 1.0.31, PyTorch 2.15.0 in f64; tolerances from
//! two f32 runs; see its README): structure, evaluation and training of every network.
//!
//! Every file is selected by its `kind`, `arch` and `options`, never by its name. Heavy cases run with
//!
//! ```text
//! cargo test --release -p stillhouse-backbones --test golden -- --include-ignored
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{D, DType, Device, Tensor};
use serde_json::Value;
use stillhouse_backbones::{count, registry};
use stillhouse_core::model::{Features, Model, ModelSpec};
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::optim::{Hyper, Sgd};
use stillhouse_ops::{Gradients, Mode, ParamId, ParamKind};
use stillhouse_testkit::generator;
use stillhouse_testkit::golden::{self, Case};

/// Maximum cost of an f64 case in the short tests: multiply-accumulates of the batch, or ten times the
/// parameters. About ten seconds on two cores in a debug build.
const MAX_COST: u64 = 1_000_000_000;

/// Key of the optimizer's settings in the golden files.
const OPTIMIZER: &str = "optimiser";

/// Features of the golden files whose name differs here.
const FEATURES: &[(&str, &str)] = &[
    ("low", "F1"),
    ("high", "F4"),
    ("S3", "F3"),
    ("S4", "F4"),
    ("opm3", "exit3.feat"),
    ("opm4", "exit4.feat"),
    ("logits3", "exit3.logits"),
    ("logits4", "exit4.logits"),
];

fn feature_name(golden: &str) -> &str {
    FEATURES.iter().find(|(name, _)| *name == golden).map_or(golden, |(_, feature)| feature)
}

/// Random layers, which are disabled in all golden values.
const DISABLED: &[(&str, &str)] =
    &[("deeplabv3plus", "dropout"), ("swin_", "drop_path"), ("mksmt", "drop_path")];

/// Returns all cases of a kind.
fn cases(kind: &str) -> Vec<Case> {
    let mut cases = golden::require("models");
    cases.retain(|case| {
        assert_eq!(case.meta["format"], "stillhouse-golden-model-1", "{case}");
        match text(&case.meta["kind"]) {
            "generator" => return false, // checked by the testkit
            "model" | "eval" | "train" => {}
            other => panic!("{case}: unknown kind `{other}`"),
        }
        registry().get(text(&case.meta["arch"])).unwrap_or_else(|e| panic!("{case}: {e}"));
        case.meta["kind"] == kind
    });
    cases
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("expected text, found {value}"))
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("expected a list, found {value}"))
}

fn shape(value: &Value) -> Vec<usize> {
    list(value).iter().map(|d| real(d) as usize).collect()
}

fn reals(value: &Value) -> Vec<f64> {
    list(value).iter().map(real).collect()
}

fn table(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().unwrap_or_else(|| panic!("expected a table, found {value}")).iter()
}

/// Returns the model of a case. All options except the number of classes are its variant.
fn request(case: &Case) -> ModelSpec {
    let name = text(&case.meta["arch"]).to_string();
    let mut variant = toml::Table::new();
    for (key, value) in table(&case.meta["options"]).filter(|(key, _)| *key != "num_classes") {
        variant.insert(key.clone(), toml::Value::try_from(value).unwrap());
    }
    for (_, key) in DISABLED.iter().filter(|(arch, _)| name.starts_with(arch)) {
        variant.insert(key.to_string(), 0.0.into());
    }
    let classes = real(&case.meta["options"]["num_classes"]) as usize;
    ModelSpec { name, classes, variant }
}

fn build(case: &Case, params: &ParamStore) -> Box<dyn Model> {
    let request = request(case);
    let entry = *registry().get(&request.name).unwrap();
    (entry.build)(&request, &params.builder(Rng::new(1))).unwrap_or_else(|e| panic!("{case}: {e}"))
}

/// Builds a model with the parameters of the generator.
fn network(case: &Case, dtype: DType) -> (Box<dyn Model>, ParamStore) {
    let params = ParamStore::new(dtype, &Device::Cpu).unwrap();
    let net = build(case, &params);
    let (gain, bias_shift) = (real(&case.meta["gain"]), real(&case.meta["bias_shift"]));
    for param in params.all() {
        let values = generator::parameter(&param.name, &param.shape, gain, bias_shift);
        let values = Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu).unwrap();
        params.import(params.id(&param.name).unwrap(), &values).unwrap();
    }
    (net, params)
}

fn images(case: &Value, dtype: DType) -> Tensor {
    let shape = shape(&case["shape"]);
    let values = generator::input(text(&case["stream"]), &shape);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Comparison with stored tensors and numbers: the stored tolerances in f32, the rule of the README in
/// f64.
struct Check {
    case: String,
    is_f64: bool,
    compared: usize,
    worst: f64,
    started: std::time::Instant,
    wrong: Vec<String>,
}

impl Check {
    fn new(case: &Case, dtype: DType) -> Self {
        let (case, is_f64) = (format!("{case} in {dtype:?}"), dtype == DType::F64);
        Self { case, is_f64, compared: 0, worst: 0.0, started: std::time::Instant::now(), wrong: Vec::new() }
    }

    /// Compares a number. The f64 rule is relative to `scale`.
    fn number(&mut self, what: &str, got: f64, want: f64, tol: f64, scale: f64) {
        let tol = if self.is_f64 { (1e-7 * tol).max(1e-9 * scale.abs()) } else { tol };
        let off = (got - want).abs();
        self.compared += 1;
        if off > 0.0 {
            self.worst = self.worst.max(off / tol);
        }
        if off.is_nan() || off > tol {
            self.wrong
                .push(format!("{what}: expected {want}, got {got}, off by {off:.3e}, allowed {tol:.3e}"));
        }
    }

    fn scalar(&mut self, what: &str, got: f64, described: &Value) {
        let want = real(&described["value"]);
        self.number(what, got, want, real(&described["tol"]), want);
    }

    fn tensor(&mut self, what: &str, got: &[f64], got_shape: &[usize], described: &Value) {
        let want_shape = shape(&described["shape"]);
        if got_shape != want_shape {
            self.wrong.push(format!("{what}: expected shape {want_shape:?}, got {got_shape:?}"));
            return;
        }
        let (n, values, l2) = (got.len(), reals(&described["values"]), real(&described["l2"]));
        let m = values.len();
        assert_eq!(m, real(&described["samples"]) as usize, "{}: {what}", self.case);
        for (k, want) in values.into_iter().enumerate() {
            let at = (2 * k + 1) * n / (2 * m);
            self.number(&format!("{what}[{at}]"), got[at], want, real(&described["tol"]), l2);
        }
        let norm = got.iter().map(|v| v * v).sum::<f64>().sqrt();
        self.number(&format!("norm of {what}"), norm, l2, real(&described["l2_tol"]), l2);
        if described["mean"].is_null() {
            return;
        }
        let absmax = real(&described["absmax"]);
        let mean = got.iter().sum::<f64>() / n as f64;
        let std = (got.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        self.number(
            &format!("mean of {what}"),
            mean,
            real(&described["mean"]),
            real(&described["mean_tol"]),
            absmax,
        );
        self.number(
            &format!("std of {what}"),
            std,
            real(&described["std"]),
            real(&described["std_tol"]),
            absmax,
        );
    }

    /// Compares a feature in its stored layout.
    fn feature(&mut self, name: &str, got: &Tensor, described: &Value) {
        let got = match described["layout"].as_str() {
            Some("NHWC") => got.permute((0, 2, 3, 1)).unwrap(),
            Some("NCHW" | "NC") | None => got.clone(),
            Some(other) => panic!("{}: unknown layout `{other}`", self.case),
        };
        self.tensor(name, &flat(&got), got.dims(), described);
    }

    fn done(self) {
        let Self { case, compared, worst, wrong, started, .. } = self;
        let seconds = started.elapsed().as_secs_f64();
        println!("{case}: {compared} numbers, the worst at {worst:.3} of its tolerance, {seconds:.1} s");
        let shown = wrong.iter().take(12).cloned().collect::<Vec<_>>().join("\n  ");
        assert!(wrong.is_empty(), "{case}: {} of {compared} numbers are wrong:\n  {shown}", wrong.len());
    }
}

#[test]
fn structure() {
    let cases = cases("model");
    for case in &cases {
        let params = ParamStore::meta();
        let net = build(case, &params);
        let built = |kind: ParamKind| -> Vec<(String, Vec<usize>)> {
            params.all().into_iter().filter(|p| p.kind == kind).map(|p| (p.name, p.shape)).collect()
        };
        let stored = |key: &str| -> Vec<(String, Vec<usize>)> {
            list(&case.meta[key]).iter().map(|p| (text(&p[0]).into(), shape(&p[1]))).collect()
        };
        let (counters, buffers): (Vec<_>, Vec<_>) =
            stored("buffers").into_iter().partition(|(name, _)| name.ends_with("num_batches_tracked"));
        assert_eq!(built(ParamKind::Weight), stored("params"), "{case}");
        assert_eq!(built(ParamKind::Buffer), buffers, "{case}");
        assert_eq!(params.count_weights() as f64, real(&case.meta["param_count"]), "{case}");
        let buffer_values: usize = buffers.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!((buffer_values + counters.len()) as f64, real(&case.meta["buffer_count"]), "{case}");
        for at in list(&case.meta["macs"]) {
            let (height, width) = (real(&at["height"]) as usize, real(&at["width"]) as usize);
            let counts = count(&request(case), height, width).unwrap();
            assert_eq!(counts.macs as f64, real(&at["macs"]), "{case}");
            assert_eq!(counts.macs, net.macs(height, width).unwrap(), "{case}");
            assert_eq!(counts.attention_macs as f64, real(&at["attention_macs"]), "{case}");
        }
        for feature in list(&case.meta["taps"]) {
            let name = feature_name(text(&feature[0]));
            assert!(net.features().iter().any(|f| f.name == name), "{case}: no feature {name}");
        }
    }
    println!("{} structures checked", cases.len());
}

/// Evaluates every pass in two modes: with batch norm folded into the weights, and not folded.
fn evaluate(cases: &[Case], dtype: DType) {
    let mut passes = 0;
    for case in cases {
        let mut check = Check::new(case, dtype);
        let (net, params) = network(case, dtype);
        for mode in [Mode::Inference, Mode::EvalWithGrad] {
            let mut tape = Tape::new(&params, mode).unwrap();
            tape.set_winograd(false); // tolerances are those of direct sums
            for (step, pass) in list(&case.meta["cases"]).iter().enumerate() {
                let names: Vec<&str> = table(&pass["outputs"]).map(|(name, _)| feature_name(name)).collect();
                tape.select_features(&names);
                tape.begin(Rng::new(0), step as u64);
                let features = net.forward(&images(&pass["input"], dtype), &mut tape).unwrap();
                for (name, described) in table(&pass["outputs"]) {
                    check.feature(name, features.get(feature_name(name)).unwrap(), described);
                }
                passes += 1;
            }
        }
        check.done();
    }
    println!("{} networks, {passes} passes checked in {dtype:?}", cases.len());
}

#[test]
fn evaluation_f32() {
    evaluate(&cases("eval"), DType::F32);
}

#[test]
fn evaluation_f64() {
    let (light, heavy) = by_cost(cases("eval"));
    evaluate(&light, DType::F64);
    println!("{} skipped as heavy", heavy.len());
}

#[test]
#[ignore = "takes minutes"]
fn evaluation_f64_heavy() {
    evaluate(&by_cost(cases("eval")).1, DType::F64);
}

/// Mean cross-entropy of rows `[N, classes]`.
fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    let log_sum = logits.log_sum_exp(D::Minus1).unwrap(); // [N]
    let own = logits.gather(&labels.unsqueeze(1).unwrap(), 1).unwrap().squeeze(1).unwrap(); // [N]
    (log_sum - own).unwrap().mean_all().unwrap()
}

/// Loss of a training case.
#[derive(Clone, Copy, PartialEq)]
enum Objective {
    /// Cross-entropy of `logits`; for maps, over the pixels whose label is not ignored.
    Plain,
    /// Cross-entropy of the exit at the third stage.
    Stage1,
    /// Cross-entropy of the exit at the fourth stage, and KL divergence of the third from it, without a
    /// gradient to the fourth.
    Stage2,
}

impl Objective {
    fn new(case: &Case) -> Self {
        match case.meta["stage"].as_u64() {
            None => Self::Plain,
            Some(1) => Self::Stage1,
            Some(2) => Self::Stage2,
            Some(other) => panic!("{case}: unknown stage {other}"),
        }
    }

    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["logits"],
            Self::Stage1 => &["exit3.logits"],
            Self::Stage2 => &["exit4.logits", "exit3.logits"],
        }
    }

    fn loss(self, features: &Features, rows: Option<&Tensor>, labels: &Tensor) -> Tensor {
        let logits = |i: usize| features.get(self.features()[i]).unwrap();
        match self {
            Self::Plain => {
                let mut logits = logits(0).clone();
                if let Some(rows) = rows {
                    logits = logits.permute((0, 2, 3, 1)).unwrap().flatten(0, 2).unwrap(); // [B H W, C]
                    logits = logits.contiguous().unwrap().index_select(rows, 0).unwrap();
                }
                cross_entropy(&logits, labels)
            }
            Self::Stage1 => cross_entropy(logits(0), labels),
            Self::Stage2 => {
                let log_p4 = log_softmax(&logits(0).detach());
                let gap = (&log_p4 - log_softmax(logits(1))).unwrap();
                let kl = (log_p4.exp().unwrap() * gap).unwrap().sum(1).unwrap().mean_all().unwrap();
                (cross_entropy(logits(0), labels) + kl).unwrap()
            }
        }
    }
}

fn log_softmax(logits: &Tensor) -> Tensor {
    let log_sum = logits.log_sum_exp(D::Minus1).unwrap().unsqueeze(1).unwrap(); // [N, 1]
    logits.broadcast_sub(&log_sum).unwrap()
}

/// A model in training with its batch.
struct Training {
    net: Box<dyn Model>,
    params: ParamStore,
    tape: Tape,
    images: Tensor,
    objective: Objective,
    /// Labeled pixels, for masks.
    rows: Option<Tensor>,
    labels: Tensor,
}

impl Training {
    fn new(case: &Case, dtype: DType) -> Self {
        let (net, params) = network(case, dtype);
        let objective = Objective::new(case);
        let mut tape = Tape::new(&params, Mode::Train).unwrap();
        tape.set_winograd(false); // tolerances are those of direct sums
        tape.select_features(objective.features());
        let images = images(&case.meta["input"], dtype);
        let target = &case.meta["target"];
        let (stream, shape) = (text(&target["stream"]), shape(&target["shape"]));
        let mut labels = match shape.len() {
            1 => generator::labels(stream, shape[0], net.classes()),
            _ => generator::mask(stream, &shape, net.classes()),
        };
        let stored = if target["values"].is_null() { &target["first"] } else { &target["values"] };
        let first: Vec<f64> = labels.iter().map(|l| f64::from(*l)).take(reals(stored).len()).collect();
        assert_eq!(first, reals(stored), "{case}");
        let mut rows = None;
        if let Some(ignored) = target["ignore_index"].as_u64() {
            assert_eq!(shape.len(), 3, "{case}: ignored labels of a classifier");
            let kept: Vec<u32> =
                (0..labels.len() as u32).filter(|i| u64::from(labels[*i as usize]) != ignored).collect();
            labels.retain(|l| u64::from(*l) != ignored);
            rows = Some(Tensor::new(kept, &Device::Cpu).unwrap());
        }
        let labels = Tensor::new(labels, &Device::Cpu).unwrap();
        Self { net, params, tape, images, objective, rows, labels }
    }

    fn forward(&mut self, step: u64) -> (Features, Tensor) {
        self.tape.begin(Rng::new(0), step);
        let features = self.net.forward(&self.images, &mut self.tape).unwrap();
        let loss = self.objective.loss(&features, self.rows.as_ref(), &self.labels);
        (features, loss)
    }

    fn value(&self, name: &str) -> (Vec<f64>, Vec<usize>) {
        let value = self.params.export(self.params.id(name).unwrap()).unwrap();
        (flat(&value), value.dims().to_vec())
    }
}

/// Optimizer of a case: the SGD of `ops`, or a plain AdamW as in PyTorch.
struct Optimizer {
    settings: Value,
    sgd: Sgd,
    adamw: HashMap<String, [Vec<f64>; 2]>,
    steps: i32,
}

impl Optimizer {
    fn new(settings: &Value) -> Self {
        let momentum = settings["momentum"].as_f64().unwrap_or(0.0);
        let sgd = Sgd::new(momentum, settings["nesterov"] == true);
        Self { settings: settings.clone(), sgd, adamw: HashMap::new(), steps: 0 }
    }

    fn step(&mut self, params: &ParamStore, grads: &Gradients) {
        let (lr, weight_decay) = (real(&self.settings["lr"]), real(&self.settings["weight_decay"]));
        match text(&self.settings["name"]) {
            "sgd" => self.sgd.step(params, grads, |_| Some(Hyper { lr, weight_decay })).unwrap(),
            "adamw" => self.adamw(params, grads, lr, weight_decay),
            other => panic!("unknown optimizer `{other}`"),
        }
    }

    fn adamw(&mut self, params: &ParamStore, grads: &Gradients, lr: f64, weight_decay: f64) {
        let (betas, eps) = (reals(&self.settings["betas"]), real(&self.settings["eps"]));
        self.steps += 1;
        let fix = [1.0 - betas[0].powi(self.steps), 1.0 - betas[1].powi(self.steps)];
        for param in params.all() {
            let Some(g) = grads.param(&param.name).unwrap() else { continue };
            let id = params.id(&param.name).unwrap();
            let (mut p, g) = (flat(&params.export(id).unwrap()), flat(&g));
            let zeros = || [vec![0.0; p.len()], vec![0.0; p.len()]];
            let [m, v] = self.adamw.entry(param.name.clone()).or_insert_with(zeros);
            for i in 0..p.len() {
                m[i] = betas[0] * m[i] + (1.0 - betas[0]) * g[i];
                v[i] = betas[1] * v[i] + (1.0 - betas[1]) * g[i] * g[i];
                p[i] *= 1.0 - lr * weight_decay;
                p[i] -= lr * (m[i] / fix[0]) / ((v[i] / fix[1]).sqrt() + eps);
            }
            params.import(id, &Tensor::from_vec(p, param.shape.as_slice(), &Device::Cpu).unwrap()).unwrap();
        }
    }
}

fn train(case: &Case, dtype: DType) {
    let mut check = Check::new(case, dtype);
    let mut t = Training::new(case, dtype);
    let start: HashMap<String, Vec<f64>> =
        table(&case.meta["deltas"]).map(|(name, _)| (name.clone(), t.value(name).0)).collect();
    let mut optimizer = Optimizer::new(&case.meta[OPTIMIZER]);
    let losses = list(&case.meta["step_losses"]);
    for (step, described) in losses.iter().enumerate() {
        let (features, loss) = t.forward(step as u64);
        check.scalar(&format!("loss before step {}", step + 1), flat(&loss)[0], described);
        if step == 0 {
            check.scalar("loss", flat(&loss)[0], &case.meta["loss"]);
            check.feature("logits", features.get(t.objective.features()[0]).unwrap(), &case.meta["logits"]);
            for (name, described) in table(&case.meta["running"]) {
                let (values, shape) = t.value(name);
                check.tensor(name, &values, &shape, described);
            }
        }
        if step + 1 == losses.len() {
            break;
        }
        let grads = t.tape.backward(&loss).unwrap();
        if step == 0 {
            let none: Vec<&str> = list(&case.meta["no_grad"]).iter().map(text).collect();
            let with: HashSet<ParamId> = grads.ids().collect();
            for param in t.params.all().into_iter().filter(|p| p.kind == ParamKind::Weight) {
                let (name, expected) = (param.name.as_str(), !none.contains(&param.name.as_str()));
                let found = t.params.id(name).is_some_and(|id| with.contains(&id));
                assert_eq!(found, expected, "{case}: gradient of {name}");
            }
            for (name, described) in table(&case.meta["grads"]) {
                let grad = grads.param(name).unwrap().unwrap();
                check.tensor(&format!("gradient of {name}"), &flat(&grad), grad.dims(), described);
            }
        }
        optimizer.step(&t.params, &grads);
    }
    for (name, described) in table(&case.meta["deltas"]) {
        let (mut moved, shape) = t.value(name);
        moved.iter_mut().zip(&start[name]).for_each(|(now, then)| *now -= then);
        check.tensor(&format!("change of {name}"), &moved, &shape, described);
    }
    check.done();
}

/// Splits cases into light and heavy ones, by the largest pass.
fn by_cost(cases: Vec<Case>) -> (Vec<Case>, Vec<Case>) {
    let cost = |case: &Case| -> u64 {
        let passes: Vec<&Value> = match case.meta["cases"].as_array() {
            Some(passes) => passes.iter().map(|pass| &pass["input"]).collect(),
            None => vec![&case.meta["input"]],
        };
        let of = |input: &Value| {
            let shape = shape(&input["shape"]);
            let counts = count(&request(case), shape[2], shape[3]).unwrap();
            (counts.macs * shape[0] as u64).max(10 * counts.parameters as u64)
        };
        passes.into_iter().map(of).max().unwrap_or(0)
    };
    cases.into_iter().partition(|case| cost(case) <= MAX_COST)
}

/// Splits cases into small and large models. A training step of a large model takes minutes in a debug
/// build.
fn by_size(cases: Vec<Case>) -> (Vec<Case>, Vec<Case>) {
    const LARGE: usize = 100_000_000;
    cases.into_iter().partition(|case| {
        let params = ParamStore::meta();
        build(case, &params);
        params.count_weights() < LARGE
    })
}

/// Runs two cases at a time, because half of a case is single-threaded.
fn all_of(cases: &[Case], check: impl Fn(&Case) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(case);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

#[test]
fn training_f32() {
    let (small, large) = by_size(cases("train"));
    all_of(&small, |case| train(case, DType::F32));
    println!("{} training cases checked in f32, {} skipped as large or heavy", small.len(), large.len());
}

#[test]
#[ignore = "takes minutes"]
fn training_f32_large() {
    let large = by_size(cases("train")).1;
    large.iter().for_each(|case| train(case, DType::F32));
    println!("{} large training cases checked in f32", large.len());
}

#[test]
fn training_f64() {
    let (light, heavy) = by_cost(cases("train"));
    all_of(&light, |case| train(case, DType::F64));
    println!("{} training cases checked in f64, {} skipped as large or heavy", light.len(), heavy.len());
}

#[test]
#[ignore = "takes minutes"]
fn training_f64_heavy() {
    let heavy = by_cost(cases("train")).1;
    heavy.iter().for_each(|case| train(case, DType::F64));
    println!("{} heavy training cases checked in f64", heavy.len());
}
