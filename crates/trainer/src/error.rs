//! The one error type of the crate.

use std::path::PathBuf;

/// What can go wrong while an experiment is read, planned or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A term of the loss, the loss or its gradient is no longer a number; nothing of that step was
    /// saved.
    #[error(
        "step {step}: `{term}` is {value}; stopped, nothing of it is saved. Samples: {ids:?}. \
         Try a smaller learning rate or weight, or a longer warm-up"
    )]
    NonFinite {
        /// Name of the term, `total`, or `gradient`.
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
        "the weight of the cross-entropy (`ce`) is set twice, by `{first}` ({first_weight}) and `{second}` \
         ({second_weight}): keep one, and set `ce_weight = 0` in the other or remove it"
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
    /// The run was asked to stop; its state is in a checkpoint.
    #[error("interrupted after step {step}; run the same command again to continue ({})", folder.display())]
    Interrupted {
        /// Steps done.
        step: u64,
        /// The run folder.
        folder: PathBuf,
    },
    /// A checkpoint could not be written. Earlier ones are as they were.
    #[error(
        "{}: the checkpoint of step {step} could not be written: {source}. Earlier checkpoints are \
         intact: free some space (it needs {bytes} bytes) and run the same command again", folder.display()
    )]
    Checkpoint {
        /// The run folder.
        folder: PathBuf,
        /// The step.
        step: u64,
        /// Size of the checkpoint.
        bytes: u64,
        /// What the system said.
        source: Box<Error>,
    },
    /// A cell whose teacher has not been trained, or has failed.
    #[error("`{cell}` needs the teacher `{teacher}`, which is not finished: {why}")]
    NoTeacher {
        /// The student's cell.
        cell: String,
        /// The teacher's cell.
        teacher: String,
        /// Why it is not there.
        why: String,
    },
    /// A method that has no registry row.
    #[error("method `{0}` is not built yet")]
    NotBuilt(String),
    /// A run folder with unexpected content.
    #[error(transparent)]
    Run(#[from] stillhouse_runs::Error),
    /// An error of the contracts, or of a part behind them.
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
    pub(crate) fn config(origin: impl ToString, message: impl ToString) -> Self {
        Self::Core(stillhouse_core::Error::config(origin, message))
    }

    /// A file or folder with unexpected content.
    pub(crate) fn folder(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Run(stillhouse_runs::Error::invalid(path, reason))
    }

    /// Whether the run only stopped because it was asked to.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted { .. })
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
