//! Builder of a training step.

use std::collections::BTreeSet;

use stillhouse_core::data::Task;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::optim::{Ema, Optimizer};
use stillhouse_ops::{Mode, Param, ParamKind};

use super::connect::connect;
use super::methods::{BoundMethod, MethodSpec};
use super::phases::{build_phases, check_trainable};
use super::step_metrics::MetricsBuffer;
use super::{ParamGroups, TrainStep, is_student_param};
use crate::experiment::PhaseConfig;
use crate::teacher::Teacher;
use crate::{Error, Network, Result};

/// Training data as far as the methods depend on it.
#[derive(Debug, Clone, Copy)]
pub struct InputInfo {
    /// Kind of the labels.
    pub task: Task,
    /// Height and width of the training images in pixels.
    pub size: (usize, usize),
    /// Images of the smallest batch or micro-batch of an epoch.
    pub smallest_batch: usize,
    /// Training images.
    pub samples: usize,
}

/// Builds a [`TrainStep`]; [`Self::new`] fills in defaults for all public fields but the first.
pub struct TrainStepBuilder {
    /// The network to train.
    pub student: Network,
    /// The frozen teacher.
    pub teacher: Option<Teacher>,
    /// Methods, including the cross-entropy.
    pub methods: Vec<MethodSpec>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Weight decay, frozen parameters and learning rate factors.
    pub param_groups: ParamGroups,
    /// Phases of each step; empty: a single phase that trains everything.
    pub phases: Vec<PhaseConfig>,
    /// Whether batch norms keep their running statistics.
    pub frozen_bn: bool,
    /// Whether activations within blocks are recomputed in the backward pass to save memory.
    pub gradient_checkpointing: bool,
    /// Maximum norm of the gradients; larger gradients are scaled down.
    pub clip_norm: Option<f64>,
    /// Images per micro-batch; `None`: the whole batch.
    pub micro_batch: Option<usize>,
    /// Decay of the moving average of the student's weights.
    pub ema: Option<f64>,
    /// Steps whose metrics are read from the device together. `None`: 1 on the CPU, more on a GPU.
    pub buffered_steps: Option<u64>,
    /// Root of the random numbers of connectors, methods and dropout.
    pub rng: Rng,
    /// Source of the settings in error messages.
    pub origin: String,
}

impl TrainStepBuilder {
    /// A student without teacher and methods.
    pub fn new(student: Network, optimizer: Optimizer) -> Self {
        Self {
            student,
            teacher: None,
            methods: Vec::new(),
            optimizer,
            param_groups: ParamGroups::default(),
            phases: Vec::new(),
            frozen_bn: false,
            gradient_checkpointing: false,
            clip_norm: None,
            micro_batch: None,
            ema: None,
            buffered_steps: None,
            rng: Rng::new(0),
            origin: "training step".into(),
        }
    }

    /// Creates the connectors and builds the step.
    ///
    /// # Errors
    /// If student, teacher and methods are incompatible, or a pattern matches no parameter.
    pub fn build(self, input: &InputInfo) -> Result<TrainStep> {
        let Self { student, mut teacher, param_groups, origin, rng, .. } = self;
        let phase_count = self.phases.len();
        let bind = |spec| BoundMethod::new(spec, phase_count, rng);
        let mut methods: Vec<BoundMethod> = self.methods.into_iter().map(bind).collect();
        let phases = build_phases(&origin, &self.phases, &methods, student.model.as_ref())?;
        let teacher_network = teacher.as_ref().map(|teacher| &teacher.network);
        connect(&mut methods, &student, teacher_network, input, rng.stream("init"))?;

        let required = methods.iter().flat_map(|m| m.distiller.required_features().teacher);
        let required: BTreeSet<String> = required.collect();
        if let Some(teacher) = &mut teacher {
            teacher.tape.select_features(&required.into_iter().collect::<Vec<_>>());
        }
        let all = student.params.all();
        let trainable =
            |p: &&Param| p.kind == ParamKind::Weight && p.trainable && param_groups.hyper(p, 1.0).is_some();
        let connectors = all.iter().filter(|p| !is_student_param(&p.name)).filter(trainable);
        let connectors = connectors.map(|p| p.name.clone()).collect();
        let names: Vec<String> = all.into_iter().map(|p| p.name).collect();
        if let Some(pattern) = param_groups.unmatched(&names).first() {
            let first = names.first().map_or("", |n| n);
            let message = format!("`{pattern}` matches no parameter; the first parameter is `{first}`");
            return Err(Error::config(format!("{origin} train.freeze, train.lr_scale"), message));
        }
        check_trainable(&origin, &phases, &student.params, &param_groups)?;
        let ema = self.ema.map(|decay| Ema::new(decay, &student.params, |p| is_student_param(&p.name)));
        let ema = ema.transpose()?;
        let mode = if self.frozen_bn { Mode::TrainFrozenBn } else { Mode::Train };
        let mut tape = Tape::new(&student.params, mode)?;
        tape.set_gradient_checkpointing(self.gradient_checkpointing);
        if let Some(teacher) = &mut teacher {
            teacher.tape.share_memory(&tape);
        }
        let metrics = MetricsBuffer::new(self.buffered_steps, student.params.device());
        Ok(TrainStep {
            student,
            tape,
            teacher,
            methods,
            phases,
            param_groups,
            connectors,
            optimizer: self.optimizer,
            ema,
            clip_norm: self.clip_norm,
            micro_batch: self.micro_batch,
            rng: rng.stream("step"),
            metrics,
            trained_connectors: BTreeSet::new(),
        })
    }
}
