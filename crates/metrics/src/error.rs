//! What can be wrong with what is counted.

/// Values that do not fit together. "Not defined" is no error: it is NaN.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Two lists that belong together have different lengths.
    #[error("{what}: {left} values against {right}; both lists must be of one length")]
    Lengths {
        /// Which lists.
        what: &'static str,
        /// Length of the first.
        left: usize,
        /// Length of the second.
        right: usize,
    },
    /// An index that is not below its limit.
    #[error("{what} {found}: expected below {limit}")]
    OutOfRange {
        /// What the index is.
        what: &'static str,
        /// The index.
        found: u64,
        /// What it must be below.
        limit: usize,
    },
    /// A setting outside its range.
    #[error("{what} is {found}: expected {expected}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
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

/// Refuses lists of different lengths.
pub(crate) fn same_length(what: &'static str, left: usize, right: usize) -> Result<()> {
    if left == right { Ok(()) } else { Err(Error::Lengths { what, left, right }) }
}
