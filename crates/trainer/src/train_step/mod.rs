//! One training step: teacher, student, loss terms, gradients, update.

mod builder;
mod connect;
mod methods;
mod param_groups;
mod phases;
mod step_metrics;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use stillhouse_core::data::{Batch, Target};
use stillhouse_core::distiller::LossContext;
use stillhouse_core::model::Features;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::optim::{Ema, Optimizer};
use stillhouse_ops::{EngineKind, Gradients, Param};

use crate::epoch_stats::EpochStats;
use crate::evaluate::{correct_count, to_device};
use crate::teacher::Teacher;
use crate::{Error, Network, Result};

pub use builder::{InputInfo, TrainStepBuilder};
pub use methods::MethodSpec;
use methods::{BoundMethod, weighted_sum};
pub use param_groups::ParamGroups;
use phases::Phase;
pub use step_metrics::{LossTerm, StepMetrics};
use step_metrics::{MetricsBuffer, StepRef};

/// Name prefix of all connector parameters: `connector.<method>.<name>` in the student's store.
pub(crate) const CONNECTOR_PREFIX: &str = "connector.";

/// Returns whether a parameter belongs to the student rather than to a connector.
pub(crate) fn is_student_param(name: &str) -> bool {
    !name.starts_with(CONNECTOR_PREFIX)
}

/// Returns whether a parameter belongs to the adversary of a method: `connector.<method>.d.<name>`.
fn is_adversary_param(name: &str) -> bool {
    let below_method = name.strip_prefix(CONNECTOR_PREFIX).and_then(|rest| rest.split_once('.'));
    let own = below_method.and_then(|(_, own)| own.strip_prefix(stillhouse_core::distiller::ADVERSARY));
    own.is_some_and(|rest| rest.starts_with('.'))
}

/// A training step with everything that it reads and updates, except the batch. [`TrainStepBuilder`] builds
/// it.
pub struct TrainStep {
    pub(crate) student: Network,
    pub(crate) tape: Tape,
    pub(crate) teacher: Option<Teacher>,
    methods: Vec<BoundMethod>,
    phases: Vec<Phase>,
    param_groups: ParamGroups,
    /// Names of the trainable connector weights.
    connectors: Vec<String>,
    pub(crate) optimizer: Optimizer,
    /// Moving average of the student's weights.
    pub(crate) ema: Option<Ema>,
    /// Maximum norm of the gradients of a phase.
    clip_norm: Option<f64>,
    /// Images per micro-batch.
    micro_batch: Option<usize>,
    /// Random numbers of dropout and similar layers, addressed by step.
    rng: Rng,
    metrics: MetricsBuffer,
    /// Connectors that had a gradient in this epoch; their gradients are not inspected again.
    pub(crate) trained_connectors: BTreeSet<String>,
}

/// Position of a step in the training, and its learning rate.
#[derive(Debug, Clone, Copy)]
pub struct StepInfo {
    /// Optimizer steps done before.
    pub step: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    /// Learning rate.
    pub lr: f64,
}

impl TrainStep {
    /// Trains on one batch, whose labels are in host memory. The metrics are buffered: see
    /// [`Self::take_metrics`].
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a loss term or a gradient is not finite, possibly of an earlier step.
    pub fn train_batch(&mut self, batch: &Batch, at: StepInfo) -> Result<()> {
        let result = self.run_phases(batch, at);
        // The values that failed may come from an earlier step with buffered metrics: report that one.
        if result.is_err()
            && let Err(earlier @ Error::NonFinite { .. }) = self.metrics.take(true)
        {
            return Err(earlier);
        }
        result
    }

    /// Returns the metrics of finished steps in order and removes them: `all` of them, or none until the
    /// buffer is full.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a loss term or a gradient of one of these steps is not finite.
    pub fn take_metrics(&mut self, all: bool) -> Result<Vec<StepMetrics>> {
        let metrics = self.metrics.take(all)?;
        self.trained_connectors.extend(metrics.iter().flat_map(|m| m.trained_connectors.iter().cloned()));
        Ok(metrics)
    }

    /// Returns the student, its parameters and those of the connectors.
    pub fn student(&self) -> &Network {
        &self.student
    }

    /// Returns the trained student, for example to freeze it as a [`Teacher`].
    pub fn into_student(self) -> Network {
        self.student
    }

    /// Returns the weights of all terms by name.
    pub fn term_weights(&self) -> BTreeMap<String, f64> {
        self.methods.iter().flat_map(BoundMethod::term_weights).collect()
    }

    /// Runs `f` with the student's weights replaced by their moving average, if there is one.
    pub fn with_ema<T>(&mut self, f: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.swap_ema()?;
        let result = f(self);
        self.swap_ema()?;
        result
    }

    fn swap_ema(&mut self) -> Result<()> {
        match &mut self.ema {
            Some(ema) => Ok(ema.swap(&self.student.params)?),
            None => Ok(()),
        }
    }

    /// Lists terms and connectors without effect in an epoch (from 1): terms without a value, or whose value
    /// was always 0, and connectors without a gradient. Terms whose configured weight is 0 are left out.
    pub(crate) fn unused_terms(&self, epoch: u64, stats: &EpochStats) -> Vec<String> {
        let mut unused = Vec::new();
        for method in &self.methods {
            let decayed = method.schedule.factor(epoch.saturating_sub(1)) == 0.0;
            let reason = if decayed { "its weight has decayed to 0" } else { "no step had a value for it" };
            let enabled = method.distiller.term_weights().into_iter().filter(|(_, weight)| *weight != 0.0);
            let name = &method.display_name;
            for (term, _) in enabled {
                let path = method.term_path(&term);
                if !stats.active_terms.contains(&path) {
                    unused.push(format!("term `{term}` of `{name}` was not used: {reason}"));
                } else if !stats.nonzero_terms.contains(&path) {
                    unused.push(format!("term `{term}` of `{name}` has no effect: it was 0 in every step"));
                }
            }
            if decayed {
                continue; // its connectors have no gradient either
            }
            let prefix = format!("{CONNECTOR_PREFIX}{}.", method.label);
            let own = self.connectors.iter().filter(|c| c.starts_with(&prefix));
            let untrained = own.filter(|c| !stats.trained_connectors.contains(*c));
            unused.extend(untrained.map(|c| format!("`{c}` is not trained: it had no gradient")));
        }
        unused
    }

    fn run_phases(&mut self, batch: &Batch, at: StepInfo) -> Result<()> {
        let micro_batches = self.micro_batches(batch, at)?;
        let has_logits = |phase: &Phase| phase.features.iter().any(|name| name == "logits");
        let counted = self.phases.iter().position(has_logits);
        for index in 0..self.phases.len() {
            self.run_phase(index, &micro_batches, at, counted == Some(index))?;
        }
        if let Some(ema) = &mut self.ema {
            ema.update(&self.student.params)?;
        }
        self.metrics.end_step(at.lr, batch.ids.len() as u64)
    }

    /// Splits the batch and moves it to the device, with the teacher's features.
    fn micro_batches(&mut self, batch: &Batch, at: StepInfo) -> Result<Vec<MicroBatch>> {
        let images = batch.ids.len();
        let size = self.micro_batch.unwrap_or(images).clamp(1, images.max(1));
        let mut micro_batches = Vec::new();
        for start in (0..images).step_by(size) {
            let len = size.min(images - start);
            let host = batch.labels.narrow(start, len)?;
            let ids = batch.ids[start..start + len].to_vec();
            let views = batch.views.get(start..start + len).unwrap_or_default().to_vec();
            let own_images = batch.images.narrow(0, start, len)?;
            let labels = host.clone();
            let batch =
                to_device(Batch { images: own_images, labels, ids, views }, self.student.params.device())?;
            let target = Target { device: batch.labels.clone(), host };
            let step_ref = StepRef::new(at.step, &batch);
            let teacher = match &mut self.teacher {
                Some(teacher) => teacher.forward(&batch)?,
                None => Features::default(),
            };
            let share = len as f64 / images as f64;
            micro_batches.push(MicroBatch { batch, target, step_ref, teacher, share });
        }
        Ok(micro_batches)
    }

    /// Runs one phase: accumulates the gradients of all micro-batches, updates the parameters, then
    /// adversaries and the methods' own state. Counts correct images if `count_correct`.
    fn run_phase(
        &mut self,
        index: usize,
        micro_batches: &[MicroBatch],
        at: StepInfo,
        count_correct: bool,
    ) -> Result<()> {
        let phase = self.phases[index].clone();
        // These stream names determine the random numbers of a run: they must not change.
        let streams: Vec<Option<String>> = (0..micro_batches.len())
            .map(|i| (index + i > 0).then(|| format!("step {index} part {i}")))
            .collect();
        let stream = |rng: Rng, i: usize| streams[i].as_ref().map_or(rng, |name| rng.stream(name));
        let (mut sum, mut features) = (None, Vec::new());
        self.tape.select_features(&phase.features);
        for (i, micro_batch) in micro_batches.iter().enumerate() {
            self.tape.begin(stream(self.rng, i), at.step);
            let student = self.student.model.forward(&micro_batch.batch.images, &mut self.tape)?;
            let mut terms = Vec::new();
            for method in phase.methods.iter().map(|m| &self.methods[*m]) {
                let context = micro_batch.context(&student, at, stream(method.rng, i));
                terms.extend(method.scheduled_terms(&context, at)?.into_iter().map(|term| (method, term)));
            }
            let loss = micro_batch.share_of(weighted_sum(&terms, micro_batch, &mut self.metrics)?)?;
            let gradients = self.tape.backward(&loss)?;
            self.check_finite(&micro_batch.step_ref, &gradients)?;
            sum = Some(accumulate(sum, gradients)?);
            if count_correct && let Some(count) = correct_count(student.logits()?, &micro_batch.batch.labels)?
            {
                self.metrics.record_correct(&count)?;
            }
            features.push(student);
        }
        self.metrics.end_phase(true)?;
        if let Some(gradients) = sum {
            self.optimizer_step(&phase, gradients, micro_batches, at)?;
        }
        self.adversary_step(&phase, micro_batches, &features, stream, at)?;
        for (i, (micro_batch, student)) in micro_batches.iter().zip(&features).enumerate() {
            for method in &phase.methods {
                let method = &mut self.methods[*method];
                let context = micro_batch.context(student, at, stream(method.rng, i));
                method.distiller.after_step(&context, &self.student.params)?;
            }
        }
        Ok(())
    }

    /// Updates the trainable parameters of a phase, except adversaries.
    fn optimizer_step(
        &mut self,
        phase: &Phase,
        mut gradients: Gradients,
        micro_batches: &[MicroBatch],
        at: StepInfo,
    ) -> Result<()> {
        if let [_, rest @ ..] = micro_batches
            && let Some(last) = rest.last()
        {
            self.check_finite(&last.step_ref, &gradients)?; // a sum of finite gradients may overflow
        }
        self.record_connector_gradients(&gradients)?;
        let groups = &self.param_groups;
        let hyper = |param: &Param| {
            let trainable = phase.is_trainable(&param.name) && !is_adversary_param(&param.name);
            if trainable { groups.hyper(param, at.lr) } else { None }
        };
        let params = &self.student.params;
        if phase.is_partial() && !gradients.ids().any(|id| hyper(&params.get(id)).is_some()) {
            let reason = "the phase trains nothing: its losses have no gradient for its trainable parameters";
            return Err(stillhouse_core::Error::incompatible("train.phase", reason).into());
        }
        if let Some(max_norm) = self.clip_norm {
            gradients.clip_norm(max_norm, |param| hyper(param).is_some())?;
        }
        self.optimizer.step(params, &gradients, hyper).map_err(|e| non_finite(e, micro_batches))
    }

    /// Updates the adversaries of the phase's methods.
    fn adversary_step(
        &mut self,
        phase: &Phase,
        micro_batches: &[MicroBatch],
        features: &[Features],
        stream: impl Fn(Rng, usize) -> Rng,
        at: StepInfo,
    ) -> Result<()> {
        let mut sum = None;
        for (i, (micro_batch, student)) in micro_batches.iter().zip(features).enumerate() {
            let mut terms = Vec::new();
            for method in phase.methods.iter().map(|m| &self.methods[*m]) {
                let context = micro_batch.context(student, at, stream(method.rng, i));
                let own = method.distiller.adversary_terms(&context)?;
                terms.extend(own.into_iter().map(|term| (method, term)));
            }
            if terms.is_empty() {
                continue;
            }
            let loss = micro_batch.share_of(weighted_sum(&terms, micro_batch, &mut self.metrics)?)?;
            let gradients = Gradients::from_graph(&self.student.params, &loss)?;
            self.check_finite(&micro_batch.step_ref, &gradients)?;
            sum = Some(accumulate(sum, gradients)?);
        }
        self.metrics.end_phase(false)?; // the logged loss is the student's alone
        let Some(gradients) = sum else { return Ok(()) };
        // Counts as trained even with a zero gradient: the last bias cancels in a difference of scores.
        let names = gradients.names().into_iter().filter(|name| is_adversary_param(name));
        self.metrics.record_trained(names.collect())?;
        let groups = &self.param_groups;
        let hyper = |param: &Param| {
            if is_adversary_param(&param.name) { groups.hyper(param, at.lr) } else { None }
        };
        let result = self.optimizer.step(&self.student.params, &gradients, hyper);
        result.map_err(|e| non_finite(e, micro_batches))
    }

    /// Records whether the gradients are finite. With the kernels, the optimizer checks them as it reads
    /// them.
    fn check_finite(&mut self, step_ref: &StepRef, gradients: &Gradients) -> Result<()> {
        match self.student.params.engine() {
            EngineKind::Kernels => Ok(()),
            EngineKind::Graph => self.metrics.check_finite(step_ref, gradients),
        }
    }

    /// Records the gradient magnitude of connectors not yet known to be trained. Adversaries have an update
    /// of their own.
    fn record_connector_gradients(&mut self, gradients: &Gradients) -> Result<()> {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        let unknown = |name: &&String| !self.trained_connectors.contains(*name) && !is_adversary_param(name);
        for name in self.connectors.iter().filter(unknown) {
            if let Some(max_abs) = gradients.max_abs(name)? {
                names.push(name.clone());
                values.push(max_abs);
            }
        }
        self.metrics.record_max_gradients(names, &values)
    }
}

/// A part of a batch on the device; by default the whole batch.
struct MicroBatch {
    batch: Batch,
    target: Target,
    step_ref: StepRef,
    /// Features of the teacher.
    teacher: Features,
    /// Fraction of the images of the batch.
    share: f64,
}

impl MicroBatch {
    fn context<'a>(&'a self, student: &'a Features, at: StepInfo, rng: Rng) -> LossContext<'a> {
        LossContext {
            images: Some(&self.batch.images),
            ids: &self.batch.ids,
            epoch: at.step as f64 / at.steps_per_epoch as f64,
            step: at.step,
            rng,
            ..LossContext::new(student, &self.teacher, &self.target)
        }
    }

    /// Scales a mean over the micro-batch to its share of the mean over the batch.
    fn share_of(&self, loss: Tensor) -> Result<Tensor> {
        Ok(if self.share == 1.0 { loss } else { (loss * self.share)? })
    }
}

/// Adds step and images to an optimizer's error about a gradient.
fn non_finite(error: stillhouse_ops::Error, micro_batches: &[MicroBatch]) -> Error {
    match (error, micro_batches.last()) {
        (stillhouse_ops::Error::NonFiniteGradient { name }, Some(last)) => {
            last.step_ref.non_finite_gradient(&name)
        }
        (error, _) => error.into(),
    }
}

/// Adds the gradients of another micro-batch.
fn accumulate(sum: Option<Gradients>, gradients: Gradients) -> Result<Gradients> {
    match sum {
        Some(mut sum) => {
            sum.add(gradients)?;
            Ok(sum)
        }
        None => Ok(gradients),
    }
}

#[cfg(test)]
mod tests;
