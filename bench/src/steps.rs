//! Training and inference steps of the benchmark.

use candle_core::{DType, Device, Tensor};
use stillhouse_core::data::{Batch, IGNORE_INDEX, Labels, Task};
use stillhouse_core::distiller::ADVERSARY;
use stillhouse_core::model::ModelSpec;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::Mode;
use stillhouse_ops::optim::{Optimizer, Sgd};
use stillhouse_trainer::{
    InputInfo, LrScale, MethodSpec, Network, ParamGroups, Precision, StepInfo, Teacher, TrainStepBuilder,
};

use crate::cases::{Case, Work};
use crate::device::{device, precision};
use crate::worker::StepFn;

/// Classes of UC Merced.
const CLASSES: usize = 21;
/// Methods with an adversary.
const ADVERSARY_METHODS: [&str; 2] = ["skdd", "skd_holistic"];
/// Training images of UC Merced at a ratio of 80 %.
const SAMPLES: usize = 1680;

/// A network by name and variant.
#[derive(Debug, Clone)]
pub(crate) struct CaseModel {
    name: String,
    variant: toml::Table,
}

impl CaseModel {
    pub(crate) fn new(name: &str, variant: toml::Table) -> Self {
        Self { name: name.into(), variant }
    }

    pub(crate) fn build(&self, seed: u64) -> anyhow::Result<Network> {
        let params = ParamStore::new(DType::F32, &device())?.with_precision(precision())?;
        let (name, variant) = (self.name.clone(), self.variant.clone());
        let entry = *stillhouse_backbones::registry().get(&name)?;
        let spec = ModelSpec { name, classes: CLASSES, variant };
        let model = (entry.build)(&spec, &params.builder(Rng::new(seed)))?;
        Ok(Network { model, params })
    }
}

/// Models, method and batch of a training step.
#[derive(Debug)]
pub(crate) struct StepSpec {
    pub(crate) student: CaseModel,
    pub(crate) teacher: Option<CaseModel>,
    /// Method in addition to the cross-entropy; one that includes a cross-entropy replaces it.
    pub(crate) method: Option<String>,
    /// Settings of the method.
    pub(crate) options: toml::Table,
    pub(crate) batch: usize,
    pub(crate) size: usize,
    /// Whether the labels are masks.
    pub(crate) masks: bool,
}

/// Builds the repeatable step of a case.
pub(crate) fn build_step(case: &Case) -> anyhow::Result<StepFn> {
    // No dropout on either side.
    let variant = match case.network {
        "deeplabv3plus" => toml::from_str("dropout = 0.0")?,
        name if name.starts_with("swin_") => toml::from_str("drop_path = 0.0")?,
        _ => toml::Table::new(),
    };
    let student = CaseModel::new(case.network, variant.clone());
    let mut options = toml::Table::new();
    let (method, teacher) = match case.work {
        Work::Load => return crate::loader::build_step(case),
        Work::TwoPhases => return crate::exits::build_step(case),
        Work::Frozen => return build_inference_step(&student, case),
        Work::Train => (None, None),
        Work::Distill(method) if case.is_dense() => {
            // Logits before the upsampling, as in FRKDNet's tables.
            options.insert("feature".into(), "logits_low".into());
            let mut variant = variant;
            variant.insert("backbone".into(), "resnet50".into());
            (Some(method.to_string()), Some(CaseModel::new(case.network, variant)))
        }
        Work::Distill(method) => {
            (Some(method.to_string()), Some(CaseModel::new("resnet50", toml::Table::new())))
        }
    };
    let (batch, size, masks) = (case.batch, case.size, case.is_dense());
    build_train_step(&StepSpec { student, teacher, method, options, batch, size, masks })
}

fn build_inference_step(model: &CaseModel, case: &Case) -> anyhow::Result<StepFn> {
    let images = images(case.batch, case.size)?;
    let net = model.build(1)?;
    let mut tape = Tape::new(&net.params, Mode::Inference)?;
    tape.release_weights();
    Ok(Box::new(move || {
        tape.begin(Rng::new(0), 0);
        let features = net.model.forward(&images, &mut tape)?;
        Ok(features.logits()?.flatten_all()?.get(0)?.copy()?)
    }))
}

/// Returns noise `[B, 3, size, size]`.
pub(crate) fn images(batch: usize, size: usize) -> anyhow::Result<Tensor> {
    let mut draw = Rng::new(7).at(0, 0);
    let pixels: Vec<f32> = (0..batch * 3 * size * size).map(|_| draw.normal() as f32).collect();
    Ok(Tensor::from_vec(pixels, (batch, 3, size, size), &device())?)
}

/// Returns labels in host memory: four images per class, as in a class-balanced batch, or more if there are too
/// few classes; masks of squares with one ignored corner.
fn labels(batch: usize, size: usize, masks: bool) -> anyhow::Result<Labels> {
    if !masks {
        let labels: Vec<u32> = (0..batch as u32).map(|i| i / 4 % CLASSES as u32).collect();
        return Ok(Labels::Classes(Tensor::new(labels, &Device::Cpu)?));
    }
    let label = |image: usize, y: usize, x: usize| match (y / 16, x / 16) {
        (0, 0) => u32::from(IGNORE_INDEX),
        (row, column) => ((image + 3 * row + column) % CLASSES) as u32,
    };
    let pixels = (0..batch * size * size).map(|i| label(i / (size * size), i / size % size, i % size));
    let labels: Vec<u32> = pixels.collect();
    Ok(Labels::Mask(Tensor::from_vec(labels, (batch, size, size), &Device::Cpu)?))
}

/// Builds a training step with SGD.
pub(crate) fn build_train_step(spec: &StepSpec) -> anyhow::Result<StepFn> {
    let mut builder = TrainStepBuilder::new(spec.student.build(1)?, Optimizer::Sgd(Sgd::new(0.9, false)));
    if let Some(teacher) = &spec.teacher {
        builder.teacher = Some(Teacher::new(teacher.build(2)?, Precision::F32)?);
    }
    if let Some(name) = &spec.method {
        builder.methods.push(build_method(name, &spec.options)?);
    }
    let includes_ce =
        |m: &MethodSpec| m.distiller.term_weights().iter().any(|(name, _)| name.starts_with("ce"));
    if !builder.methods.iter().any(includes_ce) {
        builder.methods.insert(0, build_method("ce", &toml::Table::new())?);
    }
    builder.param_groups =
        ParamGroups { weight_decay: 1e-4, decay_norm_and_bias: true, ..ParamGroups::default() };
    // A learning rate of 0 for adversaries: against a teacher with random weights, whose logits are huge, they
    // diverge. The step costs the same.
    if spec.method.as_deref().is_some_and(|name| ADVERSARY_METHODS.contains(&name)) {
        let pattern = format!("connector.*.{ADVERSARY}.*");
        builder.param_groups.lr_scale.push(LrScale { pattern, factor: 0.0 });
    }
    repeat(builder, spec.batch, spec.size, spec.masks, 1e-3)
}

/// Returns a step that trains on the same images again and again, under changing indices.
pub(crate) fn repeat(
    builder: TrainStepBuilder,
    batch: usize,
    size: usize,
    masks: bool,
    lr: f64,
) -> anyhow::Result<StepFn> {
    let task = if masks { Task::Segmentation } else { Task::Classification };
    let input = InputInfo { task, size: (size, size), smallest_batch: batch, samples: SAMPLES };
    let mut train_step = builder.build(&input)?;
    let (images, labels) = (images(batch, size)?, labels(batch, size, masks)?);
    let steps_per_epoch = SAMPLES.div_ceil(batch) as u64;
    let (mut step, mut loss) = (0, 0.0);
    Ok(Box::new(move || {
        let ids = (0..batch as u64).map(|i| (step * batch as u64 + i) % SAMPLES as u64).collect();
        let batch = Batch { images: images.clone(), labels: labels.clone(), ids, views: Vec::new() };
        train_step.train_batch(&batch, StepInfo { step, steps_per_epoch, lr })?;
        step += 1;
        if let Some(last) = train_step.take_metrics(false)?.last() {
            loss = last.loss;
        }
        Ok(Tensor::new(loss, &Device::Cpu)?)
    }))
}

/// Builds a method with settings that differ from its defaults.
pub(crate) fn build_method(name: &str, options: &toml::Table) -> anyhow::Result<MethodSpec> {
    let entry = *stillhouse_losses::registry().get(name)?;
    Ok(MethodSpec::new((entry.build)(options)?))
}
