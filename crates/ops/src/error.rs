//! The crate's error type.

/// Error of an operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Incompatible shapes.
    #[error("{op}: expected {expected}, found {found}")]
    Shape {
        /// The operation that failed.
        op: &'static str,
        /// Expected shape or property.
        expected: String,
        /// Shape or value found.
        found: String,
    },
    /// A parameter name that is duplicated, unknown, or of another shape.
    #[error("parameter `{name}`: {what}")]
    Param {
        /// Full name of the parameter.
        name: String,
        /// Description of the error.
        what: String,
    },
    /// A gradient with an infinite value or NaN, found while the parameters were updated: their values are
    /// not usable any more.
    #[error("parameter `{name}`: its gradient is not finite")]
    NonFiniteGradient {
        /// Full name of the parameter.
        name: String,
    },
    /// An invalid call, for example a backward pass without a recorded forward pass.
    #[error("{op}: {what}")]
    Usage {
        /// The call that failed.
        op: &'static str,
        /// Reason.
        what: String,
    },
    /// An error from candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// Builds a shape error.
    pub fn shape(op: &'static str, expected: impl ToString, found: impl std::fmt::Debug) -> Self {
        Self::Shape { op, expected: expected.to_string(), found: format!("{found:?}") }
    }

    /// Builds a usage error.
    pub fn usage(op: &'static str, what: impl ToString) -> Self {
        Self::Usage { op, what: what.to_string() }
    }
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
