//! Training of one cell in its run folder, from `config.toml` to `result.json`, with exact resume.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_core::data::{BatchSource, Dataset, LoaderSpec, Position, Sampler, Split};
use stillhouse_ops::ParamKind;
use stillhouse_runs::{Best, CellResult, EpochLog, RunDir, RunSummary, TeacherSummary};

use crate::build::build_train_step;
use crate::checkpoint::{Checkpoints, Group, TrainingState};
use crate::epoch_stats::EpochStats;
use crate::evaluate::latency::measure_speed;
use crate::evaluate::{EvalRequest, build_metrics, test, test_loader};
use crate::experiment::{CellConfig, CheckpointInterval};
use crate::plan::open_dataset;
use crate::tensorboard::EventFile;
use crate::train_step::{StepInfo, TrainStep, is_student_param};
use crate::{Cell, Context, Error, Evaluation, Observer, Plan, Result, RunInfo};

/// Minimum duration of an epoch in seconds, and share of it spent waiting for the loader, for a warning.
/// Short epochs are dominated by their first batch.
const SLOW_LOADER: (f64, f64) = (10.0, 0.25);

/// How a cell ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Trained now.
    Trained(Box<CellResult>),
    /// Finished before.
    Finished(Box<CellResult>),
    /// Stopped by an error; its checkpoints are kept.
    Failed(String),
    /// Skipped: the method is not in the registry.
    UnknownMethod,
}

impl Outcome {
    /// Returns the result, if there is one.
    pub fn result(&self) -> Option<&CellResult> {
        match self {
            Self::Trained(result) | Self::Finished(result) => Some(result),
            Self::Failed(_) | Self::UnknownMethod => None,
        }
    }
}

/// Runs all cells of a plan in order. Finished cells are skipped, and a failed one does not stop the others,
/// except the students of a failed teacher. Returns the outcomes in the order of the cells.
///
/// # Errors
/// [`Error::Interrupted`] if the run is stopped; nothing else.
pub fn run_plan(plan: &Plan, context: &Context, observer: &mut dyn Observer) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for cell in &plan.cells {
        let failed = cell.needs.and_then(|t| match &outcomes[t] {
            Outcome::Failed(reason) => Some((t, reason.clone())),
            _ => None,
        });
        let result = match failed {
            Some((t, reason)) => {
                Err(Error::NoTeacher { cell: cell.name.clone(), teacher: plan.cells[t].name.clone(), reason })
            }
            None => run_cell(cell, context, observer),
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(e) if e.is_interrupted() => return Err(e),
            Err(e) => Outcome::Failed(e.to_string()),
        };
        observer.cell_finished(cell, &outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Runs one cell or resumes it; a finished one is only read. Its teacher must be finished. An error is also
/// written to `failure.txt`. The caller notifies [`Observer::cell_finished`].
pub fn run_cell(cell: &Cell, context: &Context, observer: &mut dyn Observer) -> Result<Outcome> {
    let Some(config) = &cell.config else { return Ok(Outcome::UnknownMethod) };
    let run = RunDir::new(&cell.folder);
    let _lock = run.lock()?;
    run.claim(&run_info(cell, config, &[]))?;
    let result = run_claimed(cell, config, context, &run, observer);
    if let Err(e) = &result
        && !e.is_interrupted()
    {
        // Only a note for tables: a full disk is reported by the error already.
        let _ = run.write_failure(e);
    }
    result
}

fn run_claimed(
    cell: &Cell,
    config: &CellConfig,
    context: &Context,
    run: &RunDir,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    if let Some(result) = run.result()? {
        // A process may have been killed after the result, before it removed its checkpoints.
        Checkpoints::new(run.path(), &cell.hash).clear()?;
        return Ok(Outcome::Finished(Box::new(result)));
    }
    run.clear_failure()?;
    let dataset = open_dataset(context, &config.data)?;
    run.write_info(&run_info(cell, config, &dataset.info().classes))?;
    let mut runner = CellRunner::new(cell, config, context, run.clone(), dataset, observer)?;
    let result = runner.train(observer)?;
    Ok(Outcome::Trained(Box::new(result)))
}

/// Returns the contents of a cell's `config.toml`.
pub(crate) fn run_info(cell: &Cell, config: &CellConfig, classes: &[String]) -> RunInfo {
    RunInfo {
        format: RunInfo::FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        experiment: cell.experiment.clone(),
        profile: cell.profile.clone(),
        cell: cell.name.clone(),
        hash: cell.hash.clone(),
        role: cell.role,
        method: cell.method.clone(),
        fingerprint: cell.fingerprint.clone(),
        classes: classes.to_vec(),
        run: config.clone(),
    }
}

/// Training loop of one cell.
struct CellRunner<'a> {
    cell: &'a Cell,
    config: &'a CellConfig,
    context: &'a Context,
    run: RunDir,
    checkpoints: Checkpoints,
    dataset: Arc<dyn Dataset>,
    split: Split,
    loader: Box<dyn BatchSource>,
    train_step: TrainStep,
    teacher: Option<TeacherSummary>,
    state: TrainingState,
    events: EventFile,
    /// Warnings that this process has reported; the log repeats them every epoch.
    reported: BTreeSet<String>,
    steps_per_epoch: u64,
    /// Steps reported to the observer; fewer than done while metrics are buffered.
    reported_steps: u64,
}

impl<'a> CellRunner<'a> {
    fn new(
        cell: &'a Cell,
        config: &'a CellConfig,
        context: &'a Context,
        run: RunDir,
        dataset: Arc<dyn Dataset>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let fingerprint = dataset.fingerprint()?;
        if fingerprint != cell.fingerprint {
            let reason = format!(
                "the data changed since the plan was made: expected fingerprint {}, found {fingerprint}",
                cell.fingerprint
            );
            return Err(Error::folder(run.path(), reason));
        }
        let rng = Rng::new(config.train.seed);
        let split = (context.registries.split)(dataset.as_ref(), &config.data.split_spec(config.train.seed))?;
        run.write_split(&split)?;
        let loader = (context.registries.loader)(
            dataset.clone(),
            &LoaderSpec {
                indices: split.train.clone(),
                sampler: config.train.sampler.clone(),
                transforms: config.data.normalized(&config.data.train_transforms),
                rng: rng.stream("loader"),
                cache_bytes: config.data.cache_mib << 20,
            },
        )?;
        let steps_per_epoch = loader.batches_per_epoch();
        if steps_per_epoch == 0 {
            let reason = format!(
                "too few training images: expected a batch of {}, found {}",
                config.train.batch_size(),
                split.train.len()
            );
            return Err(Error::folder(run.path(), reason));
        }
        let (mut train_step, teacher) =
            build_train_step(cell, config, context, &dataset, &split, rng, observer)?;
        if let Some(teacher) = &mut train_step.teacher
            && let Some(reference) = &config.teacher
            && loader.repeats_views()
        {
            let key = format!("{reference:?} {} {:?}", cell.fingerprint, config.data);
            teacher.set_cache(context.teacher_features.of_teacher(key, config.data.cache_mib << 20));
        }
        let checkpoints = Checkpoints::new(run.path(), &cell.hash);
        let events = EventFile::open(&run, &[], 0)?;
        let mut runner = Self {
            cell,
            config,
            context,
            run,
            checkpoints,
            dataset,
            split,
            loader,
            train_step,
            teacher,
            state: TrainingState::default(),
            events,
            reported: BTreeSet::new(),
            steps_per_epoch,
            reported_steps: 0,
        };
        // Invalid tests fail before the first step.
        runner.eval_request(true)?.check(runner.train_step.student(), runner.dataset.info().task)?;
        runner.resume(observer)?;
        Ok(runner)
    }

    /// Restores the newest valid checkpoint, if there is one.
    fn resume(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let mut report = |text: String| observer.message(self.cell, &text);
        if let Some(loaded) = self.checkpoints.load(&self.context.device, &mut report)? {
            let params = &self.train_step.student.params;
            let values = loaded.group("student").iter().chain(loaded.group("connectors"));
            let mut count = 0;
            for (name, value) in values {
                let Some(id) = params.id(name) else {
                    let reason = format!("unknown parameter in the checkpoint: `{name}`");
                    return Err(Error::folder(self.run.path(), reason));
                };
                params.import(id, value)?;
                count += 1;
            }
            if count != params.len() {
                let reason =
                    format!("incomplete checkpoint: expected {} parameters, found {count}", params.len());
                return Err(Error::folder(self.run.path(), reason));
            }
            self.train_step.optimizer.load_state(params, loaded.group("optimizer"))?;
            if let Some(ema) = &mut self.train_step.ema {
                ema.load_state(params, loaded.group("average"))?;
            }
            self.state = loaded.state;
            self.train_step.trained_connectors = self.state.stats.trained_connectors.clone();
            self.reported_steps = self.state.step;
        }
        let device = self.context.device_label();
        if self.state.devices.last() != Some(&device) {
            self.state.devices.push(device);
        }
        let lines = self.run.rewind_log(self.state.step)?;
        self.events = EventFile::open(&self.run, &lines, self.split.test.len() as u64)?;
        self.loader.seek(self.state.position)?;
        Ok(())
    }

    fn total_steps(&self) -> u64 {
        self.config.train.epochs * self.steps_per_epoch
    }

    fn train(&mut self, observer: &mut dyn Observer) -> Result<CellResult> {
        observer.cell_started(self.cell, self.state.step, self.total_steps());
        if self.config.train.epochs == 0 {
            let evaluation = self.test(0, true, observer)?;
            return self.finish(&EpochStats::default().into_log(0, 0, 0.0), &evaluation);
        }
        loop {
            if self.context.stopped() {
                return self.interrupt(observer);
            }
            if self.state.stats.steps > 0 && self.state.step.is_multiple_of(self.steps_per_epoch) {
                let last = match self.end_epoch(observer) {
                    Err(e) if e.is_interrupted() => return self.interrupt(observer),
                    other => other?,
                };
                if let Some((line, evaluation)) = last {
                    return self.finish(&line, &evaluation);
                }
                if self.checkpoint_is_due() {
                    self.save_checkpoint(observer)?;
                }
            }
            self.train_batch(observer)?;
            let inside_epoch = !self.state.step.is_multiple_of(self.steps_per_epoch);
            if inside_epoch && self.checkpoint_is_due() {
                self.save_checkpoint(observer)?;
            }
        }
    }

    fn interrupt(&mut self, observer: &mut dyn Observer) -> Result<CellResult> {
        self.save_checkpoint(observer)?;
        Err(Error::Interrupted { step: self.state.step, folder: self.run.path().to_path_buf() })
    }

    fn train_batch(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let started = Instant::now();
        let Some(batch) = self.loader.next_batch()? else {
            let reason =
                format!("expected {} batches per epoch, the loader ended early", self.steps_per_epoch);
            return Err(stillhouse_core::Error::incompatible("loader", reason).into());
        };
        self.state.stats.data_seconds += started.elapsed().as_secs_f64();
        let step = self.state.step;
        let at = StepInfo { step, steps_per_epoch: self.steps_per_epoch, lr: self.lr(step) };
        self.train_step.train_batch(&batch, at)?;
        let step = step + 1;
        self.state.step = step;
        self.state.position =
            Position { epoch: step / self.steps_per_epoch, batch: step % self.steps_per_epoch };
        let ends_epoch = step.is_multiple_of(self.steps_per_epoch);
        self.collect_metrics(ends_epoch, started, observer)?;
        if ends_epoch && step < self.total_steps() && self.loader.next_batch()?.is_some() {
            let reason = format!("expected {} batches per epoch, the loader has more", self.steps_per_epoch);
            return Err(stillhouse_core::Error::incompatible("loader", reason).into());
        }
        Ok(())
    }

    /// Adds the metrics of finished steps (`all`, or a full buffer) and the time since `started`.
    fn collect_metrics(&mut self, all: bool, started: Instant, observer: &mut dyn Observer) -> Result<()> {
        let metrics = self.train_step.take_metrics(all)?;
        let seconds = started.elapsed().as_secs_f64();
        self.state.stats.seconds += seconds;
        self.state.seconds.train += seconds;
        let total = self.total_steps();
        for step in metrics {
            self.state.stats.add(&step);
            self.reported_steps += 1;
            observer.step(self.cell, self.reported_steps, total, step.loss, step.lr);
        }
        Ok(())
    }

    fn lr(&self, step: u64) -> f64 {
        let train = &self.config.train;
        train.optimizer.lr() * train.schedule.factor(step, train.epochs, self.steps_per_epoch)
    }

    fn checkpoint_is_due(&self) -> bool {
        let steps = match self.config.train.checkpoint {
            CheckpointInterval::Steps(n) => n,
            CheckpointInterval::Epochs(n) => n.saturating_mul(self.steps_per_epoch),
        };
        self.state.step.is_multiple_of(steps)
    }

    /// Returns the contents of a test; views only in the last one.
    fn eval_request(&self, is_last: bool) -> Result<EvalRequest<'a>> {
        let (eval, classes) = (&self.config.eval, self.train_step.student().model.classes());
        let metrics = build_metrics(&eval.metrics, self.context, classes, self.dataset.info().task)?;
        Ok(EvalRequest { metrics, features: &eval.features, views: if is_last { &eval.views } else { &[] } })
    }

    /// Writes a checkpoint, after all buffered metrics are known to be finite.
    fn save_checkpoint(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.collect_metrics(true, Instant::now(), observer)?;
        let params = &self.train_step.student.params;
        let student = || Ok(params.export_named(is_student_param)?);
        let connectors = || Ok(params.export_named(|name| !is_student_param(name))?);
        let optimizer = || Ok(self.train_step.optimizer.state(params)?);
        let ema = self.train_step.ema.as_ref().map(|ema| || Ok(ema.state(params)?));
        let mut groups: Vec<Group> =
            vec![("student", &student), ("connectors", &connectors), ("optimizer", &optimizer)];
        if let Some(ema) = &ema {
            groups.push(("average", ema));
        }
        self.checkpoints.save(&self.state, &groups)
    }

    /// Tests the student if it is due, and logs the epoch. The last epoch returns its line and its test.
    fn end_epoch(&mut self, observer: &mut dyn Observer) -> Result<Option<(EpochLog, Evaluation)>> {
        let lr = self.lr(self.state.step - 1);
        let epoch = self.state.step / self.steps_per_epoch;
        let (is_last, every) = (epoch == self.config.train.epochs, self.config.eval.every_epochs);
        let evaluation = match is_last || (every > 0 && epoch.is_multiple_of(every)) {
            true => Some(self.test(epoch, is_last, observer)?),
            false => None,
        };
        self.train_step.trained_connectors.clear();
        let stats = std::mem::take(&mut self.state.stats);
        let warnings = self.train_step.unused_terms(epoch, &stats);
        for warning in &warnings {
            if self.reported.insert(warning.clone()) {
                observer.message(self.cell, &format!("warning: epoch {epoch}: {warning}"));
            }
        }
        let (min_seconds, max_share) = SLOW_LOADER;
        if stats.seconds > min_seconds
            && stats.data_share() > max_share
            && self.reported.insert("loader".to_string())
        {
            let text = format!(
                "warning: epoch {epoch}: training waited for the loader {:.0} % of the time; raise \
                 `data.cache_mib` or --threads, or store smaller images",
                100.0 * stats.data_share()
            );
            observer.message(self.cell, &text);
        }
        let test_correct = evaluation.as_ref().and_then(|e| e.correct);
        let scores = evaluation.as_ref().map(Evaluation::score_map).unwrap_or_default();
        let line = EpochLog { warnings, test_correct, scores, ..stats.into_log(epoch, self.state.step, lr) };
        self.run.append_log(&line)?;
        self.events.append(&line, self.split.test.len() as u64)?;
        observer.epoch(self.cell, &line);
        Ok(if is_last { evaluation.map(|e| (line, e)) } else { None })
    }

    /// Tests the student with its moving average, if there is one.
    fn test(&mut self, epoch: u64, is_last: bool, observer: &mut dyn Observer) -> Result<Evaluation> {
        let started = Instant::now();
        let request = self.eval_request(is_last)?;
        let mut loader = test_loader(self.context, self.dataset.clone(), &self.split, self.config)?;
        let (cell, context, count) = (self.cell, self.context, self.split.test.len());
        let mut progress = |done, total| observer.testing(cell, done, total);
        let evaluation = self
            .train_step
            .with_ema(|step| test(step.student(), loader.as_mut(), request, count, context, &mut progress))?;
        self.state.seconds.test += started.elapsed().as_secs_f64();
        if let Some(correct) = evaluation.correct
            && self.state.best.is_none_or(|best| correct > best.correct)
        {
            self.state.best = Some(Best { epoch, correct });
        }
        Ok(evaluation)
    }

    /// Writes the outputs, `result.json` last, and removes the checkpoints.
    fn finish(&mut self, line: &EpochLog, evaluation: &Evaluation) -> Result<CellResult> {
        let student: Vec<(String, Tensor)> = self.train_step.with_ema(|step| {
            let all = step.student().params.export_all()?;
            Ok(all.into_iter().filter(|(name, _)| is_student_param(name)).collect())
        })?;
        let student_sha256 = self.run.write_student(&student)?;
        let (logits, labels) = (evaluation.logits.as_ref(), evaluation.labels.as_ref());
        self.run.write_predictions(&evaluation.ids, logits, labels)?;
        let (cell, config, network) = (self.cell, self.config, self.train_step.student());
        let (height, width) = config.data.size();
        let all = network.params.all();
        let weights = all.iter().filter(|p| p.kind == ParamKind::Weight && is_student_param(&p.name));
        let result = CellResult {
            format: CellResult::FORMAT,
            experiment: cell.experiment.clone(),
            profile: cell.profile.clone(),
            cell: cell.name.clone(),
            hash: cell.hash.clone(),
            role: cell.role,
            method: cell.method.clone(),
            student: cell.student.clone(),
            ratio: cell.ratio,
            seed: cell.seed,
            correct: evaluation.correct,
            total: evaluation.total,
            scores: evaluation.score_map(),
            best: self.state.best,
            terms: line.terms.clone(),
            weights: self.train_step.term_weights(),
            epochs: config.train.epochs,
            steps: self.state.step,
            seconds: self.state.seconds,
            parameters: weights.map(|p| p.count() as u64).sum(),
            macs: network.model.macs(height, width)?,
            speed: measure_speed(network, height, self.dataset.info().task, self.context)?,
            student_sha256,
            summary: self.summary(),
        };
        self.run.write_result(&result)?;
        self.checkpoints.clear()?;
        Ok(result)
    }

    fn summary(&self) -> RunSummary {
        let (config, info) = (self.config, self.dataset.info());
        let train = &config.train;
        let sampler = match &train.sampler {
            Sampler::Shuffle { batch, .. } => format!("{batch} images, shuffled"),
            Sampler::Sequential { batch } => format!("{batch} images, in order"),
            Sampler::ClassBalanced { classes, per_class } => {
                format!("{classes} classes x {per_class} images")
            }
        };
        RunSummary {
            dataset: info.name.clone(),
            title: info.title.clone(),
            synthetic: info.synthetic,
            fingerprint: self.cell.fingerprint.clone(),
            classes: info.classes.len(),
            train_images: self.split.train.len(),
            test_images: self.split.test.len(),
            image_size: config.data.image_size,
            image_width: config.data.image_width,
            epochs: train.epochs,
            schedule: format!("lr {}, {}", train.optimizer.lr(), train.schedule.describe(train.epochs)),
            sampler,
            device: self.state.devices.join("; then "),
            init: config.student.init.to_string(),
            teacher: self.teacher.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            environment: self.context.environment.clone(),
        }
    }
}
