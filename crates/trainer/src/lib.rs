//! Experiments, their cells, and the training of one cell.
//!
//! [`Experiment::load`] reads a file. [`plan()`] resolves it to [`Cell`]s, each with a [`CellConfig`] and a run
//! folder. [`run_cell`] trains one of them or resumes it; [`run_plan`] runs all. Datasets, networks, methods
//! and metrics come from the registries of a [`Context`]: this crate names none of them.
//!
//! [`TrainStep`] is the training step alone, without experiments and run folders.
//!
//! A run that is killed at any moment and resumed ends with the same bytes in `student.safetensors` as an
//! uninterrupted one.

mod build;
mod cell_runner;
mod checkpoint;
mod context;
mod device;
mod epoch_stats;
mod error;
mod evaluate;
mod experiment;
mod feature_cache;
mod inspect;
mod network;
mod plan;
mod plan_check;
mod teacher;
mod tensorboard;
mod train_step;

pub use cell_runner::{Outcome, run_cell, run_plan};
pub use context::{Context, Observer};
pub use device::{DeviceArg, PrecisionArg, cpu_uses_graph_engine, gpu_memory_in_use, gpu_name, open_device};
pub use error::{Error, Result};
pub use evaluate::tiled_inference::{MAX_PIXELS, label_map};
pub use evaluate::{Evaluation, evaluate};
pub use experiment::{
    AdamConfig, CellConfig, CheckpointInterval, DataConfig, EvalConfig, Experiment, LossConfig, LrScale,
    NetworkConfig, OptimizerConfig, PhaseConfig, Precision, Schedule, TeacherRef, TrainConfig, View,
    WeightSchedule,
};
pub use feature_cache::FeatureCache;
pub use inspect::{FeatureSet, GradCam, LabelMap, extract_features, grad_cam, label_maps};
pub use network::{Network, open_run};
pub use plan::{Cell, Plan, plan, plan_single};
pub use plan_check::{PlanProblem, check_cell, check_plan};
pub use teacher::Teacher;
pub use train_step::{
    InputInfo, LossTerm, MethodSpec, ParamGroups, StepInfo, StepMetrics, TrainStep, TrainStepBuilder,
};

/// `config.toml` of a run folder with its typed configuration.
pub type RunInfo = stillhouse_runs::RunInfo<CellConfig>;
