//! The error type of the crate.

use std::path::PathBuf;

/// Errors of reading and writing run folders.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder with unexpected content.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// Expected and found, and how to fix it.
        reason: String,
    },
    /// A file operation or configuration error.
    #[error(transparent)]
    Core(#[from] stillhouse_core::Error),
    /// A tensor operation that failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An unexpected file or folder.
    pub fn invalid(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Invalid { path: path.into(), reason: reason.to_string() }
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
