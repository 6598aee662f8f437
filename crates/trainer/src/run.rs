//! One cell in its folder: from `config.toml` to `result.json`, stopped and continued at will.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_core::data::{BatchSource, Dataset, LoaderSpec, Position, Sampler, Split};
use stillhouse_ops::ParamKind;
use stillhouse_runs::{Best, CellResult, EpochLog, RunDir, RunSummary, TeacherSummary};

use crate::assemble::learner;
use crate::checkpoint::{Checkpoints, Group, State, Tally};
use crate::config::{CellConfig, Every};
use crate::evaluate::{Asked, named, test, test_loader};
use crate::events::{Events, now};
use crate::plan::open_dataset;
use crate::readings::Told;
use crate::speed::speed;
use crate::step::{Learner, Moment, is_own};
use crate::{Cell, Context, Error, Evaluation, Observer, Plan, Result, RunInfo};

/// How a cell ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was trained now.
    Trained(Box<CellResult>),
    /// It was finished before.
    Finished(Box<CellResult>),
    /// An error stopped it; its checkpoints are kept.
    Failed(String),
    /// Its method has no registry row.
    NotBuilt,
}

impl Outcome {
    /// The result, if there is one.
    pub fn result(&self) -> Option<&CellResult> {
        match self {
            Self::Trained(result) | Self::Finished(result) => Some(result),
            Self::Failed(_) | Self::NotBuilt => None,
        }
    }
}

/// Runs all cells of a plan in order. Finished ones are skipped, a failed one does not stop the
/// others, a student whose teacher failed fails with it. The outcomes stand in the order of the
/// cells.
///
/// # Errors
/// [`Error::Interrupted`] if the run was asked to stop; nothing else.
pub fn run_plan(plan: &Plan, context: &Context, observer: &mut dyn Observer) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for cell in &plan.cells {
        let failed = cell.teacher.and_then(|t| match &outcomes[t] {
            Outcome::Failed(why) => Some((t, why.clone())),
            _ => None,
        });
        let result = match failed {
            Some((t, why)) => {
                Err(Error::NoTeacher { cell: cell.name.clone(), teacher: plan.cells[t].name.clone(), why })
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

/// Runs one cell, or goes on with it where it was stopped; a finished one is only read. Its teacher
/// must be finished. [`Observer::cell_finished`] is not called: that is the caller's to do. Why it
/// failed, if it did, is also in the folder's `failure.txt`, which a new start removes.
pub fn run_cell(cell: &Cell, context: &Context, observer: &mut dyn Observer) -> Result<Outcome> {
    let Some(config) = &cell.config else { return Ok(Outcome::NotBuilt) };
    let folder = RunDir::new(&cell.folder);
    let _lock = folder.lock()?;
    folder.claim(&cell.name, &cell.hash)?;
    let result = run_claimed(cell, config, context, &folder, observer);
    if let Err(e) = &result
        && !e.is_interrupted()
    {
        // Only a note for tables: a disk too full for it is in the error already.
        let _ = folder.write_failure(e);
    }
    result
}

fn run_claimed(
    cell: &Cell,
    config: &CellConfig,
    context: &Context,
    folder: &RunDir,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    if let Some(result) = folder.result()? {
        // A process may have been killed between the result and the end of its checkpoints.
        Checkpoints::new(folder.path(), &cell.hash).clear()?;
        return Ok(Outcome::Finished(Box::new(result)));
    }
    folder.clear_failure()?;
    let dataset = open_dataset(context, &config.data)?;
    folder.write_info(&info(cell, config, &dataset.info().classes))?;
    let mut run = Run::prepare(cell, config, context, folder.clone(), dataset, observer)?;
    let result = run.train(observer)?;
    Ok(Outcome::Trained(Box::new(result)))
}

struct Run<'a> {
    cell: &'a Cell,
    config: &'a CellConfig,
    context: &'a Context,
    folder: RunDir,
    checkpoints: Checkpoints,
    dataset: Arc<dyn Dataset>,
    split: Split,
    loader: Box<dyn BatchSource>,
    learner: Learner,
    teacher: Option<TeacherSummary>,
    state: State,
    events: Events,
    /// Warnings that this process has told; the log has them in every epoch.
    warned: BTreeSet<String>,
    per_epoch: u64,
    /// Steps that the observer knows of; on a card some less than are done.
    told: u64,
}

impl<'a> Run<'a> {
    fn prepare(
        cell: &'a Cell,
        config: &'a CellConfig,
        context: &'a Context,
        folder: RunDir,
        dataset: Arc<dyn Dataset>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let fingerprint = dataset.fingerprint()?;
        if fingerprint != cell.fingerprint {
            let what =
                format!("data changed since the plan was made: {} is now {fingerprint}", cell.fingerprint);
            return Err(Error::folder(folder.path(), what));
        }
        let root = Rng::new(config.train.seed);
        let split = (context.registries.split)(dataset.as_ref(), &config.data.split_spec(config.train.seed))?;
        folder.write_split(&split)?;
        let loader = (context.registries.loader)(
            dataset.clone(),
            &LoaderSpec {
                indices: split.train.clone(),
                sampler: config.train.sampler.clone(),
                transforms: config.data.normalized(&config.data.train_transforms),
                rng: root.stream("loader"),
                cache_bytes: config.data.cache_mib << 20,
            },
        )?;
        let per_epoch = loader.batches_per_epoch();
        if per_epoch == 0 {
            let what = format!(
                "{} training images make no batch of {}",
                split.train.len(),
                config.train.batch_size()
            );
            return Err(Error::folder(folder.path(), what));
        }
        let (mut learner, teacher) = learner(cell, config, context, &dataset, &split, root, observer)?;
        if let Some(teacher) = &mut learner.teacher
            && loader.is_deterministic()
        {
            teacher.keep(config.data.cache_mib << 20);
        }
        let checkpoints = Checkpoints::new(folder.path(), &cell.hash);
        let events = Events::open(folder.path(), &[], 0)?;
        let mut run = Self {
            cell,
            config,
            context,
            folder,
            checkpoints,
            dataset,
            split,
            loader,
            learner,
            teacher,
            state: State::default(),
            events,
            warned: BTreeSet::new(),
            per_epoch,
            told: 0,
        };
        // What does not fit is told before the first step.
        run.asked(true)?.check(&run.learner.student, run.dataset.info().task)?;
        run.resume(observer)?;
        Ok(run)
    }

    /// Goes on from the newest valid checkpoint, if there is one.
    fn resume(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let mut tell = |text: String| observer.message(self.cell, &text);
        if let Some(loaded) = self.checkpoints.load(&self.context.device, &mut tell)? {
            let params = &self.learner.student.params;
            let values = loaded.group("student").iter().chain(loaded.group("connectors"));
            let mut count = 0;
            for (name, value) in values {
                let Some(id) = params.id(name) else {
                    return Err(Error::folder(
                        self.folder.path(),
                        format!("checkpoint has the unknown `{name}`"),
                    ));
                };
                params.import(id, value)?;
                count += 1;
            }
            if count != params.len() {
                let what = format!("checkpoint has {count} parameters, the network {}", params.len());
                return Err(Error::folder(self.folder.path(), what));
            }
            self.learner.rule.load_state(params, loaded.group("optimizer"))?;
            if let Some(average) = &mut self.learner.average {
                average.load_state(params, loaded.group("average"))?;
            }
            self.state = loaded.state;
            self.told = self.state.step;
        }
        let here = self.context.computes_on();
        if self.state.computed_on.last() != Some(&here) {
            self.state.computed_on.push(here);
        }
        let lines = self.folder.rewind_log(self.state.step)?;
        self.events = Events::open(self.folder.path(), &lines, self.split.test.len() as u64)?;
        self.loader.seek(self.state.position)?;
        Ok(())
    }

    fn train(&mut self, observer: &mut dyn Observer) -> Result<CellResult> {
        let total = self.config.train.epochs * self.per_epoch;
        observer.cell_started(self.cell, self.state.step, total);
        loop {
            if self.context.stopped() {
                return self.interrupt(observer);
            }
            if self.state.tally.steps > 0 && self.state.step.is_multiple_of(self.per_epoch) {
                let last = match self.end_epoch(observer) {
                    Err(e) if e.is_interrupted() => return self.interrupt(observer),
                    other => other?,
                };
                if let Some((line, evaluation)) = last {
                    return self.finish(&line, &evaluation);
                }
                if self.checkpoint_is_due() {
                    self.save(observer)?;
                }
            }
            self.train_batch(total, observer)?;
            let inside = !self.state.step.is_multiple_of(self.per_epoch);
            if inside && self.checkpoint_is_due() {
                self.save(observer)?;
            }
        }
    }

    fn interrupt(&mut self, observer: &mut dyn Observer) -> Result<CellResult> {
        self.save(observer)?;
        Err(Error::Interrupted { step: self.state.step, folder: self.folder.path().to_path_buf() })
    }

    fn train_batch(&mut self, total: u64, observer: &mut dyn Observer) -> Result<()> {
        let begun = Instant::now();
        let Some(batch) = self.loader.next_batch()? else {
            let what = format!("the loader ended before its {} batches", self.per_epoch);
            return Err(stillhouse_core::Error::incompatible("loader", what).into());
        };
        self.state.tally.waited += begun.elapsed().as_secs_f64();
        let step = self.state.step;
        let at = Moment { step, per_epoch: self.per_epoch, lr: self.lr(step) };
        self.learner.learn(&batch, at, &self.state.tally.moved)?;
        let step = step + 1;
        self.state.step = step;
        self.state.position = Position { epoch: step / self.per_epoch, batch: step % self.per_epoch };
        let ends = step.is_multiple_of(self.per_epoch);
        self.tell(ends, begun, observer)?;
        if ends && step < total && self.loader.next_batch()?.is_some() {
            let what = format!("the loader gave more than its {} batches", self.per_epoch);
            return Err(stillhouse_core::Error::incompatible("loader", what).into());
        }
        Ok(())
    }

    /// Tells the steps that are over, `all` of them or as many as have been read, and takes the time
    /// since `begun`.
    fn tell(&mut self, all: bool, begun: Instant, observer: &mut dyn Observer) -> Result<()> {
        let read = self.learner.readings.told(all)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.state.tally.seconds += seconds;
        self.state.seconds.train += seconds;
        let total = self.config.train.epochs * self.per_epoch;
        for told in read {
            self.state.tally.add(&told);
            self.told += 1;
            observer.step(self.cell, self.told, total, told.total, told.lr);
        }
        Ok(())
    }

    fn lr(&self, step: u64) -> f64 {
        let train = &self.config.train;
        train.optimizer.lr() * train.schedule.factor(step, train.epochs, self.per_epoch)
    }

    fn checkpoint_is_due(&self) -> bool {
        match self.config.train.checkpoint {
            Every::Steps(n) => self.state.step.is_multiple_of(n),
            Every::Epochs(n) => self.state.step.is_multiple_of(n.saturating_mul(self.per_epoch)),
        }
    }

    /// What a test is to count, nothing counted yet; views only in the last one.
    fn asked(&self, is_last: bool) -> Result<Asked<'a>> {
        let (eval, classes) = (&self.config.eval, self.learner.student.model.classes());
        let metrics = named(&eval.metrics, self.context, classes, self.dataset.info().task)?;
        Ok(Asked { metrics, taps: &eval.taps, views: if is_last { &eval.views } else { &[] } })
    }

    /// Writes a checkpoint, once all that the steps up to it have computed is known to be finite.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.tell(true, Instant::now(), observer)?;
        let params = &self.learner.student.params;
        let own = || Ok(params.export_named(is_own)?);
        let connectors = || Ok(params.export_named(|name| !is_own(name))?);
        let optimizer = || Ok(self.learner.rule.state(params)?);
        let average = self.learner.average.as_ref().map(|average| || Ok(average.state(params)?));
        let mut groups: Vec<Group> =
            vec![("student", &own), ("connectors", &connectors), ("optimizer", &optimizer)];
        if let Some(average) = &average {
            groups.push(("average", average));
        }
        self.checkpoints.save(&self.state, &groups)
    }

    /// Tests where it is time to, and logs. The last epoch gives its line and its test.
    fn end_epoch(&mut self, observer: &mut dyn Observer) -> Result<Option<(EpochLog, Evaluation)>> {
        let lr = self.lr(self.state.step - 1);
        let train = &self.config.train;
        let epoch = self.state.step / self.per_epoch;
        let (is_last, every) = (epoch == train.epochs, self.config.eval.every_epochs);
        let mut evaluation = None;
        if is_last || (every > 0 && epoch.is_multiple_of(every)) {
            let begun = Instant::now();
            let asked = self.asked(is_last)?;
            let mut loader = test_loader(self.context, self.dataset.clone(), &self.split, self.config)?;
            let cell = self.cell;
            let mut progress = |done, total| observer.testing(cell, done, total);
            let (count, context) = (self.split.test.len(), self.context);
            let tested = self.learner.averaged(|learner| {
                test(&learner.student, loader.as_mut(), asked, count, context, &mut progress)
            })?;
            self.state.seconds.test += begun.elapsed().as_secs_f64();
            if let Some(correct) = tested.correct
                && self.state.best.is_none_or(|best| correct > best.correct)
            {
                self.state.best = Some(Best { epoch, correct });
            }
            evaluation = Some(tested);
        }
        let tally = std::mem::take(&mut self.state.tally);
        let warnings = self.learner.idle(epoch, &tally.ran, &tally.moved);
        for warning in &warnings {
            if self.warned.insert(warning.clone()) {
                observer.message(self.cell, &format!("warning: epoch {epoch}: {warning}"));
            }
        }
        // Short epochs are ruled by their first batch.
        let part = tally.waited / tally.seconds.max(f64::MIN_POSITIVE);
        if tally.seconds > 10.0 && part > 0.25 && self.warned.insert("loader".to_string()) {
            let what = format!(
                "warning: epoch {epoch}: training waited {:.0} % of its time for images; the loader holds it up: \
                 raise `data.cache_mib` or --threads, or store smaller images",
                100.0 * part
            );
            observer.message(self.cell, &what);
        }
        let test_correct = evaluation.as_ref().and_then(|e| e.correct);
        let scores = evaluation.as_ref().map(Evaluation::score_map).unwrap_or_default();
        let line = EpochLog { warnings, test_correct, scores, ..tally.line(epoch, self.state.step, lr) };
        self.folder.append_log(&line)?;
        self.events.add(&line, self.split.test.len() as u64)?;
        observer.epoch(self.cell, &line);
        Ok(if is_last { evaluation.map(|e| (line, e)) } else { None })
    }

    /// Writes what is left, `result.json` last, and removes the checkpoints.
    fn finish(&mut self, line: &EpochLog, evaluation: &Evaluation) -> Result<CellResult> {
        let own: Vec<(String, Tensor)> = self.learner.averaged(|learner| {
            let all = learner.student.params.export_all()?;
            Ok(all.into_iter().filter(|(name, _)| is_own(name)).collect())
        })?;
        let params = &self.learner.student.params;
        let student_sha256 = self.folder.write_student(&own)?;
        evaluation.write(&self.folder.predictions_path())?;
        let (cell, config, (height, width)) = (self.cell, self.config, self.config.data.size());
        let weights = params.all().into_iter().filter(|p| p.kind == ParamKind::Weight && is_own(&p.name));
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
            weights: self.learner.weights(),
            epochs: config.train.epochs,
            steps: self.state.step,
            seconds: self.state.seconds,
            parameters: weights.map(|p| p.count() as u64).sum(),
            macs: self.learner.student.model.macs(height, width)?,
            speed: speed(&self.learner.student, height, self.dataset.info().task, self.context)?,
            student_sha256,
            summary: self.summary(),
        };
        self.folder.write_result(&result)?;
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
            device: self.state.computed_on.join("; then "),
            init: config.student.init.clone(),
            teacher: self.teacher.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            environment: self.context.environment.clone(),
        }
    }
}

impl Tally {
    fn add(&mut self, told: &Told) {
        self.steps += 1;
        self.images += told.images;
        self.total += told.total;
        self.right = told.right.map(|r| r + self.right.unwrap_or(0));
        self.moved.extend(told.moved.iter().cloned());
        for term in &told.terms {
            *self.terms.entry(term.name.clone()).or_default() += term.value;
            self.weights.insert(term.name.clone(), term.weight);
            if term.weight != 0.0 {
                self.ran.insert(term.path.clone());
            }
        }
    }

    fn line(self, epoch: u64, step: u64, lr: f64) -> EpochLog {
        let (steps, images) = (self.steps.max(1) as f64, self.images.max(1) as f64);
        EpochLog {
            epoch,
            step,
            lr,
            terms: self.terms.into_iter().map(|(name, sum)| (name, sum / steps)).collect(),
            weights: self.weights,
            loss: self.total / steps,
            train_accuracy: self.right.map(|r| r as f64 / images),
            test_correct: None,
            scores: BTreeMap::new(),
            images_per_second: if self.seconds > 0.0 { images / self.seconds } else { 0.0 },
            seconds: self.seconds,
            data_seconds: self.waited,
            time: now(),
            warnings: Vec::new(),
        }
    }
}

/// Returns the contents of a cell's `config.toml`.
fn info(cell: &Cell, config: &CellConfig, classes: &[String]) -> RunInfo {
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
