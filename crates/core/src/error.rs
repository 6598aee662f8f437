//! The error type that crosses crate boundaries.

use std::path::{Path, PathBuf};

/// Errors of the traits in this crate. Crates with their own error enum wrap it in
/// [`Error::Other`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An invalid configuration.
    #[error("{origin}: {message}")]
    Config {
        /// File and line, or command-line argument.
        origin: String,
        /// Field, expected and found values, nearest name.
        message: String,
    },
    /// A name that is not registered.
    #[error("unknown {kind} `{name}`{}; known: {known}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownName {
        /// Kind of the component: "method", "dataset", ...
        kind: &'static str,
        /// The unknown name.
        name: String,
        /// The nearest known name, if any is close.
        nearest: Option<String>,
        /// All known names, comma-separated.
        known: String,
    },
    /// A failed file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A method, model or dataset that is incompatible with the others of a run.
    #[error("{component}: {reason}")]
    Incompatible {
        /// Name of the component.
        component: String,
        /// Reason, with expected and found values.
        reason: String,
    },
    /// A feature that the model does not have.
    #[error("unknown feature `{name}`; known: {known}")]
    UnknownFeature {
        /// The unknown name.
        name: String,
        /// The features of the model, comma-separated.
        known: String,
    },
    /// An error from the tensor operations.
    #[error(transparent)]
    Ops(#[from] stillhouse_ops::Error),
    /// An error from candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An error of another crate of the workspace.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps an I/O error with its path.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Creates [`Error::Incompatible`].
    pub fn incompatible(component: impl ToString, reason: impl ToString) -> Self {
        Self::Incompatible { component: component.to_string(), reason: reason.to_string() }
    }

    /// Creates [`Error::Config`].
    pub fn config(origin: impl ToString, message: impl ToString) -> Self {
        Self::Config { origin: origin.to_string(), message: message.to_string() }
    }

    /// Wraps an error of another crate.
    pub fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
