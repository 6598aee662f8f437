//! The error type of the crate.

use std::path::{Path, PathBuf};

/// Errors of reading, planning and running experiments.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A loss term, the loss or a gradient is not finite. Nothing of that step is saved.
    #[error(
        "loss is not finite: step {step}: `{term}` is {value}, samples {ids:?}\n\n\
         hint: use a smaller learning rate or weight, or a longer warm-up"
    )]
    NonFinite {
        /// Name of the term, `loss`, or `gradient of <parameter>`.
        term: String,
        /// Its value.
        value: f64,
        /// Step, from 0.
        step: u64,
        /// Dataset indices of the batch.
        ids: Vec<u64>,
    },
    /// The weight of the cross-entropy is set by more than one entry of `[[loss]]`.
    #[error(
        "the weight of the cross-entropy (`ce`) is set twice: by `{first}` ({first_weight}) and by `{second}` \
         ({second_weight})\n\nhint: set `ce_weight = 0` in one of them, or remove it"
    )]
    TwoCeWeights {
        /// One of the two.
        first: String,
        /// Its weight.
        first_weight: f64,
        /// The other.
        second: String,
        /// Its weight.
        second_weight: f64,
    },
    /// The run was stopped; a checkpoint holds its state.
    #[error("interrupted after step {step}; run the same command again to continue ({})", folder.display())]
    Interrupted {
        /// Steps done.
        step: u64,
        /// The run folder.
        folder: PathBuf,
    },
    /// A checkpoint could not be written. Earlier ones are intact.
    #[error(
        "cannot write the checkpoint of step {step}: {}: {source}\n\n\
         hint: earlier checkpoints are intact; free {bytes} bytes of disk space and run the same command again",
        folder.display()
    )]
    Checkpoint {
        /// The run folder.
        folder: PathBuf,
        /// The step.
        step: u64,
        /// Size of the checkpoint.
        bytes: u64,
        /// The cause.
        source: Box<Error>,
    },
    /// A cell whose teacher is not trained, or failed.
    #[error("the teacher of `{cell}` is not finished: `{teacher}`: {reason}")]
    NoTeacher {
        /// The student's cell.
        cell: String,
        /// The teacher's cell.
        teacher: String,
        /// Why it is not finished.
        reason: String,
    },
    /// A plan that cannot be run; nothing was trained or written.
    #[error("{}", crate::plan_check::describe(.0))]
    Plan(Vec<crate::PlanProblem>),
    /// A method that is not in the registry.
    #[error("unknown method `{0}`")]
    UnknownMethod(String),
    /// A device that is not available, or does not support the precision.
    #[error("{message}\n\nhint: {hint}")]
    Device {
        /// What is wrong.
        message: String,
        /// How to fix it.
        hint: String,
    },
    /// A run folder with unexpected content.
    #[error(transparent)]
    Run(#[from] stillhouse_runs::Error),
    /// An error of the core crate, or of a crate behind it.
    #[error(transparent)]
    Core(#[from] stillhouse_core::Error),
    /// An error of the tensor operations.
    #[error(transparent)]
    Ops(#[from] stillhouse_ops::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A configuration error.
    pub(crate) fn config(origin: impl ToString, message: impl ToString) -> Self {
        Self::Core(stillhouse_core::Error::config(origin, message))
    }

    /// A file or folder with unexpected content.
    pub(crate) fn folder(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Run(stillhouse_runs::Error::invalid(path, reason))
    }

    /// An interruption outside of the training loop; [`Self::interrupted_in`] adds the folder.
    pub(crate) fn interrupted() -> Self {
        Self::Interrupted { step: 0, folder: PathBuf::new() }
    }

    /// Sets the folder of an interruption.
    pub(crate) fn interrupted_in(self, folder: &Path) -> Self {
        match self {
            Self::Interrupted { step, .. } => Self::Interrupted { step, folder: folder.to_path_buf() },
            other => other,
        }
    }

    /// Returns whether the run was stopped rather than failed.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted { .. })
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
