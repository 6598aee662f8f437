//! Errors of the metrics.

/// Invalid inputs. An undefined score is NaN, not an error.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Paired lists of different lengths.
    #[error("different lengths: {what}: {left} and {right}")]
    Lengths {
        /// Names of the lists.
        what: &'static str,
        /// Length of the first.
        left: usize,
        /// Length of the second.
        right: usize,
    },
    /// An index out of range.
    #[error("{what} out of range: expected less than {limit}, found {found}")]
    OutOfRange {
        /// Kind of the index.
        what: &'static str,
        /// The index.
        found: u64,
        /// Exclusive upper bound.
        limit: usize,
    },
    /// A setting out of range.
    #[error("invalid {what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Value of the setting.
        found: String,
        /// Allowed values.
        expected: &'static str,
    },
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl From<Error> for stillhouse_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// Returns an error for lists of different lengths.
pub(crate) fn same_length(what: &'static str, left: usize, right: usize) -> Result<()> {
    if left == right { Ok(()) } else { Err(Error::Lengths { what, left, right }) }
}
