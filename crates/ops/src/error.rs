//! The one error type of the crate.

/// What can go wrong in an operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Shapes that do not fit an operation.
    #[error("{op}: expected {expected}, got {got}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// What it can take.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// A parameter name that is taken, missing, or of another shape.
    #[error("parameter `{name}`: {what}")]
    Param {
        /// Full name of the parameter.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A call in the wrong order, for example a backward pass without a recorded forward pass.
    #[error("{op}: {what}")]
    Usage {
        /// The call that refused.
        op: &'static str,
        /// Why.
        what: String,
    },
    /// An error from candle, passed on.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A shape error with displayable sides.
    pub fn shape(op: &'static str, expected: impl ToString, got: impl std::fmt::Debug) -> Self {
        Self::Shape { op, expected: expected.to_string(), got: format!("{got:?}") }
    }

    /// A usage error.
    pub fn usage(op: &'static str, what: impl ToString) -> Self {
        Self::Usage { op, what: what.to_string() }
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
