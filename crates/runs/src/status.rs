//! Status of a run.

use serde::{Deserialize, Serialize};

/// Status of a run, or of all runs of a table cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Finished.
    Done,
    /// Stopped by an error.
    Failed,
    /// Locked by a running process.
    Running,
    /// Not started, or interrupted.
    Pending,
    /// The method is not in the registry.
    UnknownMethod,
}

impl std::fmt::Display for RunStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Running => "running",
            Self::Pending => "pending",
            Self::UnknownMethod => "unknown method",
        })
    }
}
