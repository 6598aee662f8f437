//! The error type of the crate.

/// Errors of reading papers and run folders.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file with unexpected content.
    #[error("{path}: {message}")]
    Unreadable {
        /// The file.
        path: String,
        /// Expected and found.
        message: String,
    },
    /// A run folder that cannot be read.
    #[error(transparent)]
    Run(#[from] stillhouse_runs::Error),
    /// A file operation or configuration error.
    #[error(transparent)]
    Core(#[from] stillhouse_core::Error),
}

impl Error {
    /// A file with unexpected content.
    pub(crate) fn unreadable(path: impl ToString, message: impl ToString) -> Self {
        Self::Unreadable { path: path.to_string(), message: message.to_string() }
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
