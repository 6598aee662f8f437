//! The error that crosses crate borders.

use std::path::{Path, PathBuf};

/// What the contracts can report. Crates with an error enum of their own hand it on as
/// [`Error::Other`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that cannot be read or does not fit.
    #[error("{origin}: {message}")]
    Config {
        /// File, or where the value came from.
        origin: String,
        /// What is wrong: field, found, allowed, nearest name.
        message: String,
    },
    /// A name that no registry row has.
    #[error("unknown {kind} `{name}`{}; known: {known}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownName {
        /// What was looked up: "method", "dataset", ...
        kind: &'static str,
        /// The name that was asked for.
        name: String,
        /// The closest known name, if any is close.
        nearest: Option<String>,
        /// All known names.
        known: String,
    },
    /// A file operation that failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A method, model or dataset that does not fit what it is combined with.
    #[error("{who}: {why}")]
    Incompatible {
        /// Who refuses.
        who: String,
        /// Why, with expected and found, and what to do.
        why: String,
    },
    /// A tap that a network does not give.
    #[error("no tap `{name}`; this network gives: {known}")]
    UnknownFeature {
        /// The tap that was asked for.
        name: String,
        /// What there is.
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
    /// An I/O error with its path.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// A misfit, in words.
    pub fn incompatible(who: impl ToString, why: impl ToString) -> Self {
        Self::Incompatible { who: who.to_string(), why: why.to_string() }
    }

    /// A configuration error, in words.
    pub fn config(origin: impl ToString, message: impl ToString) -> Self {
        Self::Config { origin: origin.to_string(), message: message.to_string() }
    }

    /// Wraps another crate's error.
    pub fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
