//! Our side: one step of a case, with the parts that the trainer uses.

use candle_core::{DType, Device, Tensor};
use stillhouse_core::data::{IGNORE_INDEX, Labels, Target, Task};
use stillhouse_core::distiller::{ADVERSARY, Distiller, FeatureShapes, LossContext, Term};
use stillhouse_core::model::{Features, Model, ModelSpec};
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::optim::{Hyper, Sgd};
use stillhouse_ops::{Gradients, Mode, Param};

use crate::cases::{Case, Work};
use crate::device::{device, set_precision};
use crate::worker::StepFn;

/// Classes of the heads (UC Merced's).
const CLASSES: usize = 21;

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
        let params = ParamStore::new(DType::F32, &device())?;
        let (name, variant) = (self.name.clone(), self.variant.clone());
        let row = *stillhouse_backbones::registry().get(&name)?;
        let request = ModelSpec { name, classes: CLASSES, variant };
        let model = (row.build)(&request, &params.builder(Rng::new(seed)))?;
        Ok(Network { model, params })
    }
}

pub(crate) struct Network {
    pub(crate) model: Box<dyn Model>,
    pub(crate) params: ParamStore,
}

/// A step of training.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) student: CaseModel,
    pub(crate) teacher: Option<CaseModel>,
    /// Beside the cross-entropy, unless it brings that itself.
    pub(crate) method: Option<String>,
    /// Settings of the method.
    pub(crate) options: toml::Table,
    pub(crate) batch: usize,
    pub(crate) size: usize,
    /// Labels for every pixel.
    pub(crate) masks: bool,
}

/// A step of a case that can be run again and again.
pub(crate) fn make(case: &Case) -> anyhow::Result<StepFn> {
    // Nothing is dropped, on either side.
    let variant = match case.network {
        "deeplabv3plus" => toml::from_str("dropout = 0.0")?,
        name if name.starts_with("swin_") => toml::from_str("drop_path = 0.0")?,
        _ => toml::Table::new(),
    };
    let student = CaseModel::new(case.network, variant.clone());
    let mut options = toml::Table::new();
    let (method, teacher) = match case.work {
        Work::Load => return crate::loader::build_step(case),
        Work::TwoPhases => return crate::exits::make(case),
        Work::Frozen => {
            let images = images(case.batch, case.size)?;
            let net = student.build(1)?;
            let mut tape = Tape::new(&net.params, Mode::Inference)?;
            tape.release_weights();
            set_precision(&mut tape)?;
            return Ok(Box::new(move || {
                tape.begin(Rng::new(0), 0);
                let features = net.model.forward(&images, &mut tape)?;
                Ok(features.logits()?.flatten_all()?.get(0)?.copy()?)
            }));
        }
        Work::Train => (None, None),
        Work::Distill(method) if case.is_dense() => {
            // Logits before the upsampling, as in FRKDNet's tables.
            options.insert("tap".into(), "logits_low".into());
            let mut variant = variant;
            variant.insert("backbone".into(), "resnet50".into());
            (Some(method.to_string()), Some(CaseModel::new(case.network, variant)))
        }
        Work::Distill(method) => {
            (Some(method.to_string()), Some(CaseModel::new("resnet50", toml::Table::new())))
        }
    };
    let (batch, size, masks) = (case.batch, case.size, case.is_dense());
    train(Setting { student, teacher, method, options, batch, size, masks })
}

/// Noise, `[B, 3, size, size]`.
pub(crate) fn images(batch: usize, size: usize) -> anyhow::Result<Tensor> {
    let mut draw = Rng::new(7).at(0, 0);
    let pixels: Vec<f32> = (0..batch * 3 * size * size).map(|_| draw.normal() as f32).collect();
    Ok(Tensor::from_vec(pixels, (batch, 3, size, size), &device())?)
}

/// Four images a class, as a class-balanced batch has, or more where there are not enough classes; masks
/// of squares, one corner ignored. They lie in the host's memory.
pub(crate) fn labels(batch: usize, size: usize, masks: bool) -> anyhow::Result<Labels> {
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

/// A training step that can be run again and again: a frozen teacher, the student, the terms, the
/// gradients, the update, then an adversary's and what a method's state does.
pub(crate) fn train(setting: Setting) -> anyhow::Result<StepFn> {
    let Setting { batch, size, .. } = setting;
    let images = images(batch, size)?;
    let target = Target::new(labels(batch, size, setting.masks)?, &device())?;
    let student = setting.student.build(1)?;
    let mut methods = Vec::new();
    if let Some(name) = &setting.method {
        methods.push(build(name, &setting.options)?);
    }
    let brings_ce = |m: &dyn Distiller| m.term_weights().iter().any(|(name, _)| name.starts_with("ce"));
    if !methods.iter().any(|method| brings_ce(method.as_ref())) {
        methods.insert(0, build("ce", &toml::Table::new())?);
    }
    // As the trainer: the student's logits are always kept, a teacher's only for a method that reads them.
    let needs = |of: fn(&dyn Distiller) -> Vec<String>| {
        let mut taps: Vec<String> = methods.iter().flat_map(|m| of(m.as_ref())).collect();
        taps.sort();
        taps.dedup();
        taps
    };
    let of_student = [needs(|m| m.required_features().student), vec!["logits".into()]].concat();
    let mut tape = Tape::new(&student.params, Mode::Train)?;
    tape.select_features(&of_student);
    set_precision(&mut tape)?;
    let mut teacher = setting
        .teacher
        .map(|model| {
            let net = model.build(2)?;
            let mut teaching = Tape::new(&net.params, Mode::Inference)?;
            teaching.select_features(&needs(|m| m.required_features().teacher));
            set_precision(&mut teaching)?;
            teaching.release_weights();
            teaching.share_memory(&tape);
            Ok::<_, anyhow::Error>((net, teaching))
        })
        .transpose()?;
    // The maps go back before another network runs, as they do at the end of a step.
    let look = |net: &Network, tape: &mut Tape| -> anyhow::Result<_> {
        tape.begin(Rng::new(0), 0);
        let shapes = net.model.forward(&images, tape)?.shapes();
        tape.begin(Rng::new(0), 0);
        Ok(shapes)
    };
    let of_student = look(&student, &mut tape)?;
    let of_teacher = match &mut teacher {
        Some((net, tape)) => look(net, tape)?,
        None => Default::default(),
    };
    let shapes = FeatureShapes {
        student: of_student,
        teacher: of_teacher,
        classes: CLASSES,
        batch,
        samples: SAMPLES,
        task: if setting.masks { Task::Segmentation } else { Task::Classification },
    };
    let builder = student.params.builder(Rng::new(3)).pp("connector");
    for method in &mut methods {
        method.connect(&shapes, &builder.pp(method.name().to_string()))?;
    }
    let mut sgd = Sgd::new(0.9, false);
    let mut step = 0;
    Ok(Box::new(move || {
        let of_teacher = match &mut teacher {
            Some((net, tape)) => {
                tape.begin(Rng::new(0), 0);
                net.model.forward(&images, tape)?
            }
            None => Features::default(),
        };
        tape.begin(Rng::new(0), step);
        let features = student.model.forward(&images, &mut tape)?;
        let ids: Vec<u64> = (0..batch as u64).map(|i| (step * batch as u64 + i) % SAMPLES as u64).collect();
        let moment = LossContext {
            images: Some(&images),
            ids: &ids,
            step,
            ..LossContext::new(&features, &of_teacher, &target)
        };
        let hyper = Hyper { lr: 1e-3, weight_decay: 1e-4 };
        let mut terms = Vec::new();
        for method in &methods {
            terms.extend(method.terms(&moment)?);
        }
        let total = add_up(terms)?.ok_or_else(|| anyhow::anyhow!("no term"))?;
        let gradients = tape.backward(&total)?;
        sgd.step(&student.params, &gradients, |p| (!is_opponents(p)).then_some(hyper))?;
        let mut terms = Vec::new();
        for method in &methods {
            terms.extend(method.adversary_terms(&moment)?);
        }
        if let Some(total) = add_up(terms)? {
            let gradients = Gradients::from_graph(&student.params, &total)?;
            // It stays as it is: against a teacher of random weights, whose logits are huge, it would
            // run away. The step costs the same.
            let hyper = Hyper { lr: 0.0, ..hyper };
            sgd.step(&student.params, &gradients, |p| is_opponents(p).then_some(hyper))?;
        }
        for method in &mut methods {
            method.after_step(&moment, &student.params)?;
        }
        step += 1;
        Ok(total.detach())
    }))
}

/// Training images of UC Merced at 80 %.
const SAMPLES: usize = 1680;

/// The weighted sum.
pub(crate) fn add_up(terms: Vec<Term>) -> anyhow::Result<Option<Tensor>> {
    let mut total: Option<Tensor> = None;
    for term in terms {
        let weighted = (term.value * term.weight)?;
        total = Some(match total {
            Some(total) => (total + weighted)?,
            None => weighted,
        });
    }
    Ok(total)
}

/// Whether it is `connector.<method>.d.<name>`.
fn is_opponents(param: &Param) -> bool {
    param.name.starts_with("connector.") && param.name.split('.').nth(2) == Some(ADVERSARY)
}

/// A method by its name, with what differs from its defaults.
pub(crate) fn build(name: &str, options: &toml::Table) -> anyhow::Result<Box<dyn Distiller>> {
    let row = *stillhouse_losses::registry().get(name)?;
    Ok((row.build)(options)?)
}
