//! Our side: one step of a case, with the parts that the trainer uses.

use candle_core::{DType, Device, Tensor};
use stillhouse_core::data::{Target, Task};
use stillhouse_core::distiller::{Distiller, Shapes, Step};
use stillhouse_core::network::{Backbone, BackboneRequest, Features};
use stillhouse_core::{Params, Rng, Tape};
use stillhouse_ops::optim::{Hyper, Sgd};
use stillhouse_ops::{Mode, Precision};

use crate::cases::{Case, Work};

/// Classes of the heads (UC Merced's).
const CLASSES: usize = 21;

struct Network {
    backbone: Box<dyn Backbone>,
    params: Params,
}

fn network(name: &str, seed: u64) -> anyhow::Result<Network> {
    let params = Params::new(DType::F32, &Device::Cpu)?;
    // Nothing is dropped, on either side.
    let variant = match name {
        "deeplabv3plus" => toml::from_str("dropout = 0.0")?,
        _ if name.starts_with("swin_") => toml::from_str("drop_path = 0.0")?,
        _ => toml::Table::new(),
    };
    let request = BackboneRequest { name: name.into(), classes: CLASSES, variant };
    let row = *stillhouse_backbones::registry().get(name)?;
    let backbone = (row.build)(&request, &params.builder(Rng::new(seed)))?;
    Ok(Network { backbone, params })
}

/// A step that can be run again and again.
pub(crate) fn make(case: &Case) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<f64>>> {
    if case.work == Work::Load {
        return crate::load::make(case);
    }
    let mut draw = Rng::new(7).at(0, 0);
    let len = case.batch * 3 * case.size * case.size;
    let pixels: Vec<f32> = (0..len).map(|_| draw.normal() as f32).collect();
    let images = Tensor::from_vec(pixels, (case.batch, 3, case.size, case.size), &Device::Cpu)?;
    // Four images a class, as a class-balanced batch has.
    let labels = Tensor::from_vec(
        (0..case.batch as u32).map(|i| i / 4).collect::<Vec<_>>(),
        (case.batch, 1, 1),
        &Device::Cpu,
    )?;
    let target = if case.is_dense() {
        Target::Mask(labels.broadcast_as((case.batch, case.size, case.size))?.contiguous()?)
    } else {
        Target::Classes(labels.flatten_all()?)
    };
    match case.work {
        Work::Frozen | Work::FrozenBf16 => {
            let net = network(case.network, 1)?;
            let mut tape = Tape::new(&net.params, Mode::Frozen)?;
            if case.work == Work::FrozenBf16 {
                tape.set_precision(Precision::Bf16)?;
            }
            Ok(Box::new(move || {
                tape.begin(Rng::new(0), 0);
                let features = net.backbone.forward(&images, &mut tape)?;
                Ok(f64::from(features.logits()?.flatten_all()?.get(0)?.to_scalar::<f32>()?))
            }))
        }
        Work::Train => train(case, None, images, target),
        Work::Distil(method) => train(case, Some(method), images, target),
        Work::Load => anyhow::bail!("the loader needs no network"),
    }
}

fn train(
    case: &Case,
    method: Option<&str>,
    images: Tensor,
    target: Target,
) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<f64>>> {
    let student = network(case.network, 1)?;
    let mut methods = vec![build("ce")?];
    let mut teacher = None;
    if let Some(method) = method {
        methods.push(build(method)?);
        teacher = Some(network("resnet50", 2)?);
    }
    let needs = |of: fn(&dyn Distiller) -> Vec<String>| {
        let mut taps: Vec<String> = methods.iter().flat_map(|m| of(m.as_ref())).collect();
        taps.push("logits".into());
        taps.sort();
        taps.dedup();
        taps
    };
    let mut tape = Tape::new(&student.params, Mode::Train)?;
    tape.want(&needs(|m| m.needs().student));
    let mut teacher = teacher
        .map(|net| {
            let mut tape = Tape::new(&net.params, Mode::Frozen)?;
            tape.want(&needs(|m| m.needs().teacher));
            Ok::<_, anyhow::Error>((net, tape))
        })
        .transpose()?;
    let look = |net: &Network, tape: &mut Tape| -> anyhow::Result<Features> {
        tape.begin(Rng::new(0), 0);
        Ok(net.backbone.forward(&images, tape)?)
    };
    let of_student = look(&student, &mut tape)?.shapes();
    let of_teacher = match &mut teacher {
        Some((net, tape)) => look(net, tape)?.shapes(),
        None => Default::default(),
    };
    let shapes = Shapes {
        student: of_student,
        teacher: of_teacher,
        classes: CLASSES,
        batch: case.batch,
        samples: 1680,
        task: if case.is_dense() { Task::Segmentation } else { Task::Classification },
        ..Default::default()
    };
    let builder = student.params.builder(Rng::new(3)).pp("connector");
    for method in &mut methods {
        method.connect(&shapes, &builder)?;
    }
    let mut sgd = Sgd::new(0.9, false);
    let (nothing, ids) = (Features::default(), (0..case.batch as u64).collect::<Vec<_>>());
    let mut step = 0;
    Ok(Box::new(move || {
        let of_teacher = match &mut teacher {
            Some((net, tape)) => {
                tape.begin(Rng::new(0), 0);
                net.backbone.forward(&images, tape)?
            }
            None => Features::default(),
        };
        tape.begin(Rng::new(0), step);
        let features = student.backbone.forward(&images, &mut tape)?;
        let moment = Step {
            student: &features,
            teacher: &of_teacher,
            target: &target,
            images: &images,
            ids: &ids,
            given: &nothing,
            epoch: 0.0,
            step,
            train: true,
            rng: Rng::new(0),
        };
        let mut total: Option<Tensor> = None;
        for method in &methods {
            for term in method.terms(&moment)? {
                let weighted = (term.value * term.weight)?;
                total = Some(match total {
                    Some(total) => (total + weighted)?,
                    None => weighted,
                });
            }
        }
        let Some(total) = total else { anyhow::bail!("no term") };
        let gradients = tape.backward(&total)?;
        sgd.step(&student.params, &gradients, |_| Some(Hyper { lr: 1e-3, weight_decay: 1e-4 }))?;
        step += 1;
        Ok(f64::from(total.to_scalar::<f32>()?))
    }))
}

fn build(name: &str) -> anyhow::Result<Box<dyn Distiller>> {
    let row = *stillhouse_losses::registry().get(name)?;
    Ok((row.build)(&toml::Table::new())?)
}
