//! Student, teacher, methods and optimizer of one cell, put together.

use std::sync::Arc;

use candle_core::Tensor;
use stillhouse_core::data::{Dataset, Split};
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::optim::Ema;
use stillhouse_ops::{ParamKind, Mode, Param};
use stillhouse_runs::{RunDir, TeacherSummary};

use crate::config::{CellConfig, Precision};
use crate::connect::connect;
use crate::groups::Groups;
use crate::plan::teacher_folder;
use crate::readings::Readings;
use crate::schedule::Course;
use crate::step::{Learner, Method, is_own};
use crate::steps;
use crate::teacher::Teacher;
use crate::{Cell, Context, Error, Network, Observer, Result, RunInfo, losses};

/// Builds student, teacher, methods and optimizer.
pub(crate) fn learner(
    cell: &Cell,
    config: &CellConfig,
    context: &Context,
    dataset: &Arc<dyn Dataset>,
    split: &Split,
    root: Rng,
    observer: &mut dyn Observer,
) -> Result<(Learner, Option<TeacherSummary>)> {
    let classes = dataset.info().classes.len();
    let student = Network::new(context, &config.student, classes, root.stream("init"))?;
    let fresh = student.start(context, &config.student)?;
    if !fresh.is_empty() {
        observer.message(cell, &format!("new, not from the weights: {}", fresh.join(", ")));
    }
    let mut methods = Vec::new();
    let several = config.train.step.len() > 1;
    for loss in &config.loss {
        let step = loss.step.unwrap_or(1);
        // A method may stand in several steps.
        let prefix = if several { format!("step{step}-") } else { String::new() };
        let label = format!("{prefix}{}", loss.method);
        methods.push(Method {
            distiller: losses::build(&context.registries, loss)?,
            course: Course {
                warmup: loss.warmup_epochs.unwrap_or(0.0),
                decay: loss.decay.clone(),
                epochs: config.train.epochs,
            },
            rng: root.stream("method").stream(&label),
            step: step - 1,
            label,
            prefix,
        });
    }
    let plans = steps::plans(&cell.name, config, &methods, student.model.as_ref())?;
    let found = teacher(cell, config, context, classes)?;
    let network = found.as_ref().map(|(teacher, _)| &teacher.network);
    let images = split.train.len();
    let counts = (dataset.info().task, config.train.smallest_batch(images), images);
    connect(&mut methods, &student, network, counts, config.data.size(), root.stream("init"))?;

    let mut of_teacher: Vec<String> =
        methods.iter().flat_map(|m| m.distiller.required_features().teacher).collect();
    of_teacher.sort();
    of_teacher.dedup();
    let (mut teacher, facts) = found.unzip();
    if let Some(teacher) = &mut teacher {
        teacher.tape.select_features(&of_teacher);
    }
    let groups = Groups::new(&config.train);
    let all = student.params.all();
    let moves = |p: &&Param| p.kind == ParamKind::Weight && p.trainable && groups.hyper(p, 1.0).is_some();
    let connectors = all.iter().filter(|p| !is_own(&p.name)).filter(moves).map(|p| p.name.clone()).collect();
    let names: Vec<String> = all.into_iter().map(|p| p.name).collect();
    if let Some(pattern) = groups.unused(&names).first() {
        let what =
            format!("`{pattern}` fits no parameter; the first is `{}`", names.first().map_or("", |n| n));
        return Err(Error::config(format!("{} train.freeze, train.lr_scale", cell.name), what));
    }
    let mode = if config.train.frozen_bn { Mode::TrainFrozenBn } else { Mode::Train };
    steps::check_moves(&cell.name, &plans, &student.params, &groups)?;
    let average = config.train.ema.map(|decay| Ema::new(decay, &student.params, |p| is_own(&p.name)));
    let average = average.transpose()?;
    let mut tape = Tape::new(&student.params, mode)?;
    tape.set_gradient_checkpointing(config.train.checkpointing);
    if let Some(teacher) = &mut teacher {
        teacher.tape.share_memory(&tape);
    }
    let learner = Learner {
        tape,
        student,
        teacher,
        methods,
        plans,
        groups,
        connectors,
        rule: config.train.optimizer.rule(),
        average,
        clip_norm: config.train.clip_norm,
        micro_batch: config.train.micro_batch,
        rng: root.stream("step"),
        readings: Readings::new(context.read_together, &context.device),
    };
    Ok((learner, facts))
}

/// The frozen teacher from its own run folder.
fn teacher(
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
            why: format!("{} is not there; run the teacher's cell first", run.result_path().display()),
        });
    };
    let info: RunInfo = run.info()?;
    let network = Network::new(context, &info.run.student, classes, Rng::new(0))?;
    network.load(context, &run.student_path())?;
    let (own, his) = (&config.data, &info.run.data);
    let renormalize = if (own.mean, own.std) == (his.mean, his.std) {
        None
    } else {
        // x = v * std + mean of the image v that the student sees; the teacher sees (x - m) / s.
        let factor: Vec<f32> = (0..3).map(|c| own.std[c] / his.std[c]).collect();
        let summand: Vec<f32> = (0..3).map(|c| (own.mean[c] - his.mean[c]) / his.std[c]).collect();
        let tensor = |values| Tensor::from_vec(values, (1, 3, 1, 1), &context.device);
        Some((tensor(factor)?, tensor(summand)?))
    };
    let facts = TeacherSummary {
        model: reference.model.clone(),
        cell: reference.cell.clone(),
        init: info.run.student.init.clone(),
        epochs: result.epochs,
        correct: result.correct,
        total: result.total,
        scores: result.scores,
    };
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    if reference.precision == Precision::Bf16 {
        tape.set_precision(stillhouse_ops::Precision::Bf16)?;
    }
    tape.release_weights();
    Ok(Some((Teacher::new(network, tape, renormalize), facts)))
}
