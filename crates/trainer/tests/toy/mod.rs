//! Tiny components for the trainer's tests: a dataset of striped images, a network of two layers, a metric, and
//! methods with connectors and state.

#![allow(dead_code, unreachable_pub)]

mod dense;
pub mod stairs;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use stillhouse_core::data::*;
use stillhouse_core::distiller::*;
use stillhouse_core::metric::{Metric, MetricBuild, Score};
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::*;
use stillhouse_core::weights::{LoadOptions, WeightsSource};
use stillhouse_core::{Error, ParamBuilder, ParamStore, Result, Rng, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear, ParamId};
use stillhouse_runs::{CellResult, EpochLog};
use stillhouse_trainer::{Context, Experiment, Outcome};

pub const SIZE: usize = 6;
pub const CLASSES: usize = 3;
const IMAGES: usize = 40;

pub struct Stripes(DatasetInfo);

impl Dataset for Stripes {
    fn info(&self) -> &DatasetInfo {
        &self.0
    }
    fn len(&self) -> usize {
        IMAGES
    }
    fn key(&self, index: usize) -> String {
        index.to_string()
    }
    fn class(&self, index: usize) -> Option<u32> {
        (self.0.task == Task::Classification).then_some((index % CLASSES) as u32)
    }
    fn sample(&self, index: usize) -> Result<Sample> {
        let pixels = vec![(index * 5 % 256) as u8; SIZE * SIZE * 3];
        let image = Image { width: SIZE, height: SIZE, pixels };
        let label = match self.0.task {
            Task::Classification => Label::Class((index % CLASSES) as u32),
            Task::Segmentation => {
                Label::Mask(Mask { width: SIZE, height: SIZE, labels: vec![0; SIZE * SIZE] })
            }
        };
        Ok(Sample { id: index as u64, image, label })
    }
    fn fingerprint(&self) -> Result<String> {
        Ok(format!("{}-1", self.0.name))
    }
}

fn stripes(request: &DatasetRequest) -> Result<Arc<dyn Dataset>> {
    if request.name == "absent" {
        return Err(Error::incompatible("absent", "not found"));
    }
    if request.name == "broken" {
        return Err(Error::incompatible("broken", "class `x` is empty"));
    }
    Ok(Arc::new(Stripes(DatasetInfo {
        name: request.name.clone(),
        title: "stripes (synthetic)".into(),
        classes: (0..CLASSES).map(|c| format!("c{c}")).collect(),
        task: if request.name == "fields" { Task::Segmentation } else { Task::Classification },
        synthetic: true,
    })))
}

fn split(dataset: &dyn Dataset, spec: &SplitSpec) -> Result<Split> {
    let mut order: Vec<usize> = (0..dataset.len()).collect();
    Rng::new(spec.seed).stream("split").at(0, 0).shuffle(&mut order);
    let (train, test) = order.split_at((spec.ratio * dataset.len() as f64) as usize);
    let (mut train, mut test) = (train.to_vec(), test.to_vec());
    train.sort_unstable();
    test.sort_unstable();
    Ok(Split { train, test })
}

/// Shuffled or sequential batches with noise by epoch and index.
struct Loader {
    dataset: Arc<dyn Dataset>,
    spec: LoaderSpec,
    at: Position,
}

impl Loader {
    fn batch(&self) -> usize {
        match self.spec.sampler {
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => batch,
            Sampler::ClassBalanced { classes, per_class } => classes * per_class,
        }
    }
}

impl BatchSource for Loader {
    fn batches_per_epoch(&self) -> u64 {
        self.spec.indices.len().div_ceil(self.batch()) as u64
    }
    fn next_batch(&mut self) -> Result<Option<Batch>> {
        if self.at.batch == self.batches_per_epoch() {
            self.at = Position { epoch: self.at.epoch + 1, batch: 0 };
            return Ok(None);
        }
        let mut order = self.spec.indices.clone();
        let noisy = !matches!(self.spec.sampler, Sampler::Sequential { .. });
        if noisy {
            self.spec.rng.at(self.at.epoch, 0).shuffle(&mut order);
        }
        let start = self.at.batch as usize * self.batch();
        let ids = &order[start..(start + self.batch()).min(order.len())];
        let masks = self.dataset.info().task == Task::Segmentation;
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for id in ids {
            let class = self.dataset.class(*id).unwrap_or(0);
            let mut draw = self.spec.rng.stream("noise").at(self.at.epoch, *id as u64);
            if masks {
                let noise = || if noisy { 0.3 * draw.normal() } else { 0.0 };
                let (image, mask) = dense::picture(*id, noise);
                values.extend(image);
                labels.extend(mask);
                continue;
            }
            for i in 0..3 * SIZE * SIZE {
                let stripe = if (i / (class as usize + 1)).is_multiple_of(2) { 1.0 } else { -1.0 };
                let noise = if noisy { 0.3 * draw.normal() } else { 0.0 };
                values.push((stripe + noise + 0.01 * *id as f64) as f32);
            }
            labels.push(class);
        }
        self.at.batch += 1;
        let images = Tensor::from_vec(values, (ids.len(), 3, SIZE, SIZE), &Device::Cpu)?;
        let labels = Tensor::new(labels, &Device::Cpu)?;
        let labels = match masks {
            true => Labels::Mask(labels.reshape((ids.len(), SIZE, SIZE))?),
            false => Labels::Classes(labels),
        };
        let ids: Vec<u64> = ids.iter().map(|i| *i as u64).collect();
        Ok(Some(Batch { images, labels, ids, views: Vec::new() }))
    }
    fn position(&self) -> Position {
        self.at
    }
    fn seek(&mut self, position: Position) -> Result<()> {
        self.at = position;
        Ok(())
    }
}

fn loader(dataset: Arc<dyn Dataset>, spec: &LoaderSpec) -> Result<Box<dyn BatchSource>> {
    assert_eq!(spec.transforms.last().and_then(|t| t["op"].as_str()), Some("normalize"));
    Ok(Box::new(Loader { dataset, spec: spec.clone(), at: Position::default() }))
}

/// Convolution, batch norm, ReLU, pooling, dropout, linear: packed weights, buffers, random numbers.
struct Net {
    name: String,
    classes: usize,
    features: Vec<FeatureInfo>,
    conv: ConvBnAct,
    head: Linear,
}

fn net(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    let width = if request.name == "big" { 12 } else { 5 };
    let spec = ConvSpec::new(3, width, 3);
    let conv =
        ConvBnAct::new(spec, "conv1", "bn1", Activation::Relu, Init::kaiming_fan_out(&[width, 3, 3, 3]), p)?;
    let init = Init::fan_in_uniform(width);
    let head = Linear::new(width, request.classes, "fc", init, Some(init), p)?;
    Ok(Box::new(Net {
        name: request.name.clone(),
        classes: request.classes,
        features: vec![FeatureInfo::vector("pooled", width), FeatureInfo::vector("logits", request.classes)],
        conv,
        head,
    }))
}

impl Model for Net {
    fn name(&self) -> &str {
        &self.name
    }
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let x = tape.input(images)?;
        let x = self.conv.forward(&x, tape)?;
        let x = tape.global_avg_pool(&x)?;
        tape.mark_feature("pooled", &x)?;
        let x = tape.dropout(&x, 0.2)?;
        let x = self.head.forward(&x, tape)?;
        tape.mark_feature("logits", &x)?;
        Ok(tape.outputs()?.into_iter().collect())
    }
    fn head(&self) -> Vec<String> {
        vec!["fc.weight".into(), "fc.bias".into()]
    }
    fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok((height * width * 27) as u64)
    }
}

struct Ce {
    weight: f64,
}

impl Distiller for Ce {
    fn name(&self) -> &str {
        "ce"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: Vec::new() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        Ok(vec![Term::new("ce", cross_entropy(context)?, self.weight)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("ce".into(), self.weight)]
    }
}

fn cross_entropy(context: &LossContext) -> Result<Tensor> {
    let logits = context.student.logits()?;
    if let Labels::Mask(mask) = &context.target.device {
        return dense::cross_entropy(logits, mask);
    }
    let max = logits.max_keepdim(1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let normalizer = shifted.exp()?.sum_keepdim(1)?.log()?;
    let log = shifted.broadcast_sub(&normalizer)?;
    let labels = context.target.classes("ce")?.unsqueeze(1)?;
    Ok(log.gather(&labels, 1)?.mean_all()?.neg()?)
}

/// A connector from the student's pooled feature to the teacher's, and a running mean of the teacher's feature
/// that enters the loss.
struct Memory {
    weight: f64,
    connector: Option<Tensor>,
    memory: Option<(ParamId, Tensor)>,
}

impl Distiller for Memory {
    fn name(&self) -> &str {
        "memory"
    }
    fn required_features(&self) -> RequiredFeatures {
        let pooled = || vec!["pooled".to_string()];
        RequiredFeatures { student: pooled(), teacher: pooled() }
    }
    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let (own, other) = (shapes.student["pooled"][0], shapes.teacher["pooled"][0]);
        assert_eq!((shapes.student.len(), shapes.classes), (1, CLASSES));
        self.connector = Some(params.var("map", &[own, other], Init::fan_in_uniform(own))?);
        let id = params.buffer("mean", &[1, other], Init::Constant(0.0))?;
        self.memory = Some((id, params.params().get(id).var().as_tensor().clone()));
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (Some(map), Some((_, mean))) = (&self.connector, &self.memory) else {
            return Err(Error::incompatible("memory", "not connected"));
        };
        let teacher = context.teacher.get("pooled")?.detach().broadcast_add(&mean.copy()?)?;
        // Random numbers of the method enter the loss too.
        let noise = context.rng.at(context.step, 0).normal() * 0.01;
        let value = (context.student.get("pooled")?.matmul(map)? - teacher)?.affine(1.0, noise)?;
        Ok(vec![Term::new("memory", value.sqr()?.mean_all()?, self.weight)])
    }
    fn after_step(&mut self, context: &LossContext, params: &ParamStore) -> Result<()> {
        if let Some((id, mean)) = &self.memory {
            let now = context.teacher.get("pooled")?.mean_keepdim(0)?;
            params.import(*id, &((mean.copy()? * 0.9)? + (now * 0.1)?)?)?;
        }
        Ok(())
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("memory".into(), self.weight)]
    }
}

/// Adversarial loss against a linear adversary, which trains unless frozen.
struct Rival {
    weight: f64,
    frozen: bool,
    adversary: Option<Tensor>,
}

impl Rival {
    fn score(&self, logits: &Tensor) -> Result<Tensor> {
        let Some(adversary) = &self.adversary else {
            return Err(Error::incompatible("rival", "not connected"));
        };
        // One row per pixel of a map.
        let rows = match logits.rank() {
            4 => logits.permute((0, 2, 3, 1))?.reshape(((), CLASSES))?,
            _ => logits.clone(),
        };
        Ok(rows.matmul(adversary)?.mean_all()?)
    }
}

impl Distiller for Rival {
    fn name(&self) -> &str {
        "rival"
    }
    fn required_features(&self) -> RequiredFeatures {
        let logits = || vec!["logits".to_string()];
        RequiredFeatures { student: logits(), teacher: logits() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let adversary = params.pp(ADVERSARY).var("weight", &[CLASSES, 1], Init::fan_in_uniform(CLASSES))?;
        self.adversary = Some(adversary);
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let score = self.score(context.student.logits()?)?;
        Ok(vec![Term::new("adversarial", score.neg()?, self.weight)])
    }
    fn adversary_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        if self.frozen {
            return Ok(Vec::new());
        }
        // Not detached on purpose: the trainer must update the adversary alone.
        let fake = self.score(context.student.logits()?)?;
        let noise = context.rng.at(context.step, 0).normal() * 0.01;
        let real = self.score(&context.teacher.logits()?.detach().affine(1.0, noise)?)?;
        Ok(vec![Term::new("real", real.neg()?, 1.0), Term::new("fake", fake, 1.0)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("adversarial".into(), self.weight)]
    }
}

/// A second cross-entropy, or a term that is NaN from step `at` on, and an error from step `gone` on.
struct Odd {
    gone: u64,
    ce_weight: f64,
    silent: bool,
    at: u64,
}

impl Distiller for Odd {
    fn name(&self) -> &str {
        "odd"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: Vec::new() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        if context.step >= self.gone {
            return Err(Error::incompatible("odd", "has no term"));
        }
        let mut terms = Vec::new();
        if self.ce_weight > 0.0 {
            terms.push(Term::new("ce", cross_entropy(context)?, self.ce_weight));
        }
        let value = if context.step >= self.at { f64::NAN } else { 0.0 };
        terms.push(Term::new("odd", (context.student.logits()?.mean_all()? * value)?, 1.0));
        Ok(terms)
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        if self.silent { Vec::new() } else { vec![("ce".into(), self.ce_weight)] }
    }
}

/// A term that never has a value, and a connector that no term uses.
struct Idle {
    used: Option<Tensor>,
}

impl Distiller for Idle {
    fn name(&self) -> &str {
        "idle"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["pooled".into()], teacher: Vec::new() }
    }
    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        self.used = Some(params.var("used", &[shapes.student["pooled"][0]], Init::Constant(0.1))?);
        params.var("unused", &[2], Init::Constant(0.1))?;
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let used = self.used.as_ref().ok_or_else(|| Error::incompatible("idle", "not connected"))?;
        let value = context.student.get("pooled")?.broadcast_mul(used)?.sqr()?.mean_all()?;
        Ok(vec![Term::new("runs", value, 0.1)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        [("runs", 0.1), ("never", 0.2), ("off", 0.0)].map(|(name, w)| (name.to_string(), w)).to_vec()
    }
}

fn number(table: &toml::Table, key: &str, default: f64) -> f64 {
    let value = table.get(key);
    value.and_then(|v| v.as_float().or(v.as_integer().map(|i| i as f64))).unwrap_or(default)
}

const METHODS: &[Entry<DistillerBuild>] = &[
    Entry {
        name: "ce",
        summary: "",
        source: "",
        defaults: || "weight = 1.0  # all\n".into(),
        build: |t| Ok(Box::new(Ce { weight: number(t, "weight", 1.0) })),
    },
    Entry {
        name: "memory",
        summary: "",
        source: "",
        defaults: || "weight = 0.5\nwarmup_epochs = 2\n".into(),
        build: |t| {
            assert!(!t.contains_key("warmup_epochs"), "the trainer removes it");
            Ok(Box::new(Memory { weight: number(t, "weight", 0.5), connector: None, memory: None }))
        },
    },
    Entry {
        name: "at_exit",
        summary: "",
        source: "",
        defaults: || "feature = 'exit1.logits'\n".into(),
        build: |t| {
            let feature = t.get("feature").and_then(|f| f.as_str()).unwrap_or("exit1.logits");
            Ok(Box::new(stairs::AtExit(feature.to_string())))
        },
    },
    Entry {
        name: "fuse",
        summary: "",
        source: "",
        defaults: String::new,
        build: |_| Ok(Box::new(stairs::Fuse)),
    },
    Entry {
        name: "idle",
        summary: "",
        source: "",
        defaults: String::new,
        build: |_| Ok(Box::new(Idle { used: None })),
    },
    Entry {
        name: "rival",
        summary: "",
        source: "",
        defaults: || "weight = 0.1\nasleep = 0\n".into(),
        build: |t| {
            let frozen = number(t, "frozen", 0.0) > 0.0;
            Ok(Box::new(Rival { weight: number(t, "weight", 0.1), frozen, adversary: None }))
        },
    },
    Entry {
        name: "odd",
        summary: "",
        source: "",
        defaults: || "ce_weight = 0.0\nat = 1000\ngone = 1000\nsilent = 0\n".into(),
        build: |t| {
            let (ce_weight, silent) = (number(t, "ce_weight", 0.0), number(t, "silent", 0.0) > 0.0);
            let [at, gone] = ["at", "gone"].map(|key| number(t, key, 1000.0) as u64);
            Ok(Box::new(Odd { gone, ce_weight, at, silent }))
        },
    },
];

struct Count(u64);

impl Metric for Count {
    fn name(&self) -> &str {
        "count"
    }
    fn supports(&self, task: Task) -> bool {
        task == Task::Classification
    }
    fn update(&mut self, logits: &Tensor, _labels: &Labels) -> Result<()> {
        self.0 += logits.dims()[0] as u64;
        Ok(())
    }
    fn merge(&mut self, _other: &dyn Metric) -> Result<()> {
        Ok(())
    }
    fn scores(&self) -> Vec<Score> {
        let score = |name: &str, value| Score { name: name.into(), value };
        vec![score("count", self.0 as f64), score("undefined", f64::NAN)]
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn entry<B>(name: &'static str, build: B) -> Entry<B> {
    Entry { name, summary: "", source: "", defaults: String::new, build }
}

fn weights(
    _arch: &str,
    _variant: &toml::Table,
    source: &WeightsSource,
    roots: &[PathBuf],
) -> Result<WeightsInfo> {
    let name = source.to_string();
    let path = roots.iter().map(|r| r.join(format!("{name}.safetensors"))).find(|p| p.is_file());
    let path = path.ok_or_else(|| Error::incompatible(&name, "not found"))?;
    let sha256 = stillhouse_core::fs::sha256_file(&path)?;
    Ok(WeightsInfo { path, sha256, key: None, variant: toml::Table::new(), mean: [0.5; 3], std: [0.25; 3] })
}

fn load_weights(
    path: &Path,
    params: &ParamStore,
    head: &[String],
    options: &LoadOptions<'_>,
) -> Result<Vec<String>> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let mut new = Vec::new();
    for param in params.all() {
        let id = params.id(&param.name).expect("its own name");
        match tensors.get(&param.name) {
            Some(t) if t.dims() == param.shape => params.import(id, t)?,
            _ if options.replace_head && head.contains(&param.name) => new.push(param.name),
            _ => return Err(Error::incompatible(path.display(), format!("no `{}`", param.name))),
        }
    }
    Ok(new)
}

/// Returns the registries, with runs below `folder`.
pub fn context(folder: &Path) -> Context {
    let build: DatasetBuild = stripes;
    let network: ModelBuild = net;
    let count: MetricBuild = |_| Box::new(Count(0));
    let pixels: MetricBuild = |_| Box::new(dense::Pixels::default());
    let maps: ModelBuild = dense::net;
    let registries = Registries {
        datasets: Registry::new(
            "dataset",
            &["stripes", "fields", "other", "absent", "broken"].map(|name| entry(name, build)),
        ),
        models: Registry::new(
            "network",
            &[
                entry("big", network),
                entry("small", network),
                entry("dense_big", maps),
                entry("dense", maps),
                entry("stairs", stairs::net as ModelBuild),
            ],
        ),
        losses: Registry::new("method", METHODS),
        metrics: Registry::new("metric", &[entry("count", count), entry("pixels", pixels)]),
        split,
        loader,
        weights,
        load_weights,
    };
    let mut context = Context::new(registries, folder.join("runs"));
    context.weight_roots = vec![folder.join("weights")];
    context.missing = |e| e.to_string().contains("not found");
    context
}

/// 32 training images in batches of 6: six steps an epoch, three epochs.
pub const TOY: &str = r#"
[data]
dataset = "stripes"
ratio = 80
image_size = 6
train_transforms = []
test_transforms = []

[teacher]
model = "big"
[teacher.train]
epochs = 2
sampler = { kind = "shuffle", batch = 8 }
optimizer = { kind = "sgd", lr = 0.05, momentum = 0.9 }
schedule = { kind = "cosine", warmup_epochs = 1 }

[student]
model = "small"

[[loss]]
method = "memory"

[train]
epochs = 3
sampler = { kind = "shuffle", batch = 6 }
optimizer = { kind = "sgd", lr = 0.1, momentum = 0.9, nesterov = true, weight_decay = 1e-3, decay_norm_and_bias = false }
schedule = { kind = "multistep", at = [0.67], factor = 0.1 }
checkpoint = "2 steps"

[eval]
batch = 5
every_epochs = 1
metrics = ["count"]
"#;

pub fn experiment(sets: &[&str]) -> Experiment {
    let mut experiment = Experiment::parse(TOY, "toy.toml", "toy").expect("a valid experiment");
    for set in sets {
        experiment.set(set).expect("a valid setting");
    }
    experiment
}

/// Writes pretrained weights for `big`, with a head for other classes.
pub fn write_weights(folder: &Path) {
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let request = ModelSpec { name: "big".into(), classes: 7, ..Default::default() };
    net(&request, &params.builder(Rng::new(77))).unwrap();
    let map = params.export_all().unwrap().into_iter().collect();
    std::fs::create_dir_all(folder.join("weights")).unwrap();
    candle_core::safetensors::save(&map, folder.join("weights/imagenet.safetensors")).unwrap();
}

/// Returns the result of a trained cell.
pub fn trained(outcome: Outcome) -> CellResult {
    match outcome {
        Outcome::Trained(result) => *result,
        other => panic!("expected a trained cell, got {other:?}"),
    }
}

/// Reads the log without its times.
pub fn log(folder: &Path) -> Vec<EpochLog> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let line = |l: &str| EpochLog {
        seconds: 0.0,
        data_seconds: 0.0,
        time: 0.0,
        images_per_second: 0.0,
        ..serde_json::from_str(l).unwrap()
    };
    text.lines().map(line).collect()
}
