//! Experiments, their cells, and the loop that trains one.
//!
//! An [`Experiment`] file names parts; [`plan`] turns it into [`Cell`]s, each with a resolved
//! [`CellConfig`] and a folder of its own; [`run_cell`] trains one of them in that folder, or goes
//! on where it was stopped; [`run_plan`] runs them all. The parts themselves come in a [`Context`]:
//! this crate names no dataset, network, method or metric.
//!
//! A run folder holds `config.toml` (the resolved configuration), `split.json`, `log.jsonl`,
//! `events/` for TensorBoard, checkpoints while it runs, then `student.safetensors`, `predictions.safetensors` and, last,
//! `result.json`. A run that is killed at any moment and started again ends with the same bytes in
//! `student.safetensors` as one that was never stopped.

mod assemble;
mod checkpoint;
mod config;
mod connect;
mod context;
mod dense;
mod error;
mod evaluate;
mod events;
mod experiment;
mod extends;
mod groups;
mod look;
mod losses;
mod network;
mod plan;
mod readings;
mod run;
mod schedule;
mod speed;
mod step;
mod steps;
mod teacher;

pub use config::{
    AdamConfig, CellConfig, DataConfig, EvalConfig, Every, LossConfig, LrScale, NetworkConfig,
    OptimizerConfig, Precision, StepConfig, TeacherRef, TrainConfig, View,
};
pub use context::{Context, Observer};
pub use dense::{MOST_PIXELS, label_map};
pub use error::{Error, Result};
pub use evaluate::{Evaluation, evaluate};
pub use experiment::Experiment;
pub use look::{Looked, Mapped, Seen, features, grad_cam, label_maps};
pub use network::{Network, open_run};
pub use plan::{Cell, Plan, plan, plan_single};
pub use run::{Outcome, run_cell, run_plan};
pub use schedule::Schedule;

/// `config.toml` of a run folder with its typed configuration.
pub type RunInfo = stillhouse_runs::RunInfo<CellConfig>;
