//! The training step of a cell, from its configuration.

use std::sync::Arc;

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, Split};
use stillhouse_runs::{CellResult, RunDir, TEACHERS_DIR, TeacherSummary};

use crate::experiment::{CellConfig, NetworkConfig, WeightSchedule, losses};
use crate::plan::{PRETRAIN, teacher_folder};
use crate::teacher::Teacher;
use crate::train_step::{InputInfo, MethodSpec, ParamGroups, TrainStep, TrainStepBuilder};
use crate::{Cell, Context, Error, Network, Observer, Result, RunInfo};

/// Builds student, teacher, methods and optimizer of a cell.
pub(crate) fn build_train_step(
    cell: &Cell,
    config: &CellConfig,
    context: &Context,
    dataset: &Arc<dyn Dataset>,
    split: &Split,
    rng: Rng,
    observer: &mut dyn Observer,
) -> Result<(TrainStep, Option<TeacherSummary>)> {
    let (classes, train) = (dataset.info().classes.len(), &config.train);
    let student = Network::new(context, &config.student, classes, rng.stream("init"))?;
    for note in student.load_pretrained(context, &config.student, train.epochs > 0)? {
        observer.message(cell, &format!("initial weights: {note}"));
    }
    if train.epochs == 0 {
        let names = &dataset.info().classes;
        let names = match &names[..] {
            [first, second, .., last] => format!("{first}, {second}, ... {last}"),
            few => few.join(", "),
        };
        observer.message(cell, &format!("taken as it is; its outputs must be in the order {names}"));
    }
    let mut methods = Vec::new();
    for loss in &config.loss {
        methods.push(MethodSpec {
            name: loss.method.clone(),
            distiller: losses::build(&context.registries, loss)?,
            phase: loss.phase.unwrap_or(1) - 1,
            schedule: WeightSchedule {
                warmup: loss.warmup_epochs.unwrap_or(0.0),
                decay: loss.decay.clone(),
                epochs: train.epochs,
            },
        });
    }
    let (teacher, summary) = open_teacher(cell, config, context, classes)?.unzip();
    let step = TrainStepBuilder {
        teacher,
        methods,
        param_groups: ParamGroups::from_config(train),
        phases: train.phase.clone(),
        frozen_bn: train.frozen_bn,
        gradient_checkpointing: train.gradient_checkpointing,
        clip_norm: train.clip_norm,
        micro_batch: train.micro_batch,
        ema: train.ema,
        buffered_steps: context.buffered_steps,
        rng,
        origin: cell.name.clone(),
        ..TrainStepBuilder::new(student, train.optimizer.build())
    };
    let samples = split.train.len();
    let step = step.build(&InputInfo {
        task: dataset.info().task,
        size: config.data.size(),
        smallest_batch: train.smallest_batch(samples),
        samples,
    })?;
    Ok((step, summary))
}

/// Describes the initial weights of a network; those of a pretraining with its images and epochs.
fn describe_init(network: &NetworkConfig, context: &Context) -> Result<String> {
    let Some(name) = &network.pretraining else { return Ok(network.init.to_string()) };
    let run = RunDir::new(context.runs.join(TEACHERS_DIR).join(name));
    let Some(CellResult { summary, .. }) = run.result()? else { return Ok(network.init.to_string()) };
    let epochs = if summary.epochs == 1 { "1 epoch".into() } else { format!("{} epochs", summary.epochs) };
    Ok(format!("{PRETRAIN}: {}, {} images, {epochs}", summary.title, summary.train_images))
}

/// Opens the teacher from its own run folder.
fn open_teacher(
    cell: &Cell,
    config: &CellConfig,
    context: &Context,
    classes: usize,
) -> Result<Option<(Teacher, TeacherSummary)>> {
    let Some(reference) = &config.teacher else { return Ok(None) };
    let run = RunDir::new(teacher_folder(context, reference));
    let Some(result) = run.result()? else {
        return Err(Error::NoTeacher {
            cell: cell.name.clone(),
            teacher: reference.cell.clone(),
            reason: format!("{} does not exist; run the teacher's cell first", run.result_path().display()),
        });
    };
    let info: RunInfo = run.info()?;
    let network = Network::new(context, &info.run.student, classes, Rng::new(0))?;
    network.load(context, &run.student_path())?;
    let summary = TeacherSummary {
        model: reference.model.clone(),
        cell: reference.cell.clone(),
        init: describe_init(&info.run.student, context)?,
        epochs: result.epochs,
        correct: result.correct,
        total: result.total,
        scores: result.scores,
    };
    let mut teacher = Teacher::new(network, reference.precision)?;
    let (own, other) = (&config.data, &info.run.data);
    if (own.mean, own.std) != (other.mean, other.std) {
        // The student's input x = (v - own.mean) / own.std of an image v; the teacher's is
        // (v - other.mean) / other.std.
        let factor: Vec<f32> = (0..3).map(|c| own.std[c] / other.std[c]).collect();
        let offset: Vec<f32> = (0..3).map(|c| (own.mean[c] - other.mean[c]) / other.std[c]).collect();
        let tensor = |values| Tensor::from_vec(values, (1, 3, 1, 1), &context.device);
        teacher.renormalize(tensor(factor)?, tensor(offset)?);
    }
    Ok(Some((teacher, summary)))
}
