//! What a report can fail with.

/// A report's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that is there but cannot be understood.
    #[error("{path}: {message}")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// A run folder that cannot be read.
    #[error(transparent)]
    Run(#[from] stillhouse_runs::Error),
    /// A file operation or configuration.
    #[error(transparent)]
    Core(#[from] stillhouse_core::Error),
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
