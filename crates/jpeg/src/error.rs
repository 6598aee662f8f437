//! Errors and warnings.

use std::fmt;

/// A file that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A malformed file.
    Corrupt(&'static str),
    /// A file that ends before its coded pixels.
    Truncated,
    /// A valid file of a variant that is not supported: arithmetic coding, 12-bit samples, ...
    Unsupported(&'static str),
    /// More pixels than [`Decoder::with_max_pixels`](crate::Decoder::with_max_pixels) allows.
    TooLarge {
        /// Width in the header.
        width: usize,
        /// Height in the header.
        height: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(reason) => write!(f, "corrupt JPEG: {reason}"),
            Self::Truncated => f.write_str("truncated JPEG: no coded pixels"),
            Self::Unsupported(found) => write!(f, "unsupported JPEG: {found}"),
            Self::TooLarge { width, height } => write!(f, "JPEG too large: {width}x{height} pixels"),
        }
    }
}

impl std::error::Error for Error {}

/// A defect in spite of which a file was decoded, as libjpeg does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The file ends before its end marker.
    Truncated,
    /// Coded data ends before its last block; the missing blocks are gray, or lack detail.
    MissingData,
    /// A code that no table has; decoding continued behind it.
    InvalidCode,
    /// A restart marker is missing or out of order.
    LostRestart,
    /// A color component without a scan.
    MissingComponent,
    /// Progressive scans that do not continue each other.
    ScanOrder,
    /// Coded data goes on after its last block, a sign that an earlier byte was damaged.
    ExcessData,
    /// Bytes between the coded data and the next marker, which were skipped.
    ExtraneousBytes,
}

impl Warning {
    /// Whether pixels differ from the encoded ones.
    #[must_use]
    pub fn loses_pixels(self) -> bool {
        self != Self::ExtraneousBytes
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "truncated before the end marker",
            Self::MissingData => "coded data ends before the last block",
            Self::InvalidCode => "invalid Huffman code",
            Self::LostRestart => "missing restart marker",
            Self::MissingComponent => "a component without a scan",
            Self::ScanOrder => "progressive scans that do not continue each other",
            Self::ExcessData => "coded data goes on after the last block",
            Self::ExtraneousBytes => "extraneous bytes before a marker",
        })
    }
}

/// Warnings, each once.
#[derive(Debug, Default)]
pub(crate) struct Warnings(pub(crate) Vec<Warning>);

impl Warnings {
    pub(crate) fn add(&mut self, warning: Warning) {
        if !self.0.contains(&warning) {
            self.0.push(warning);
        }
    }
}
