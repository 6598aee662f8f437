//! Diagnostics about a dataset's files: collected, or returned as an error at the first one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Kind of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Folders or files outside of the official layout.
    Layout,
    /// A class of the official dataset without folder or image.
    MissingClass,
    /// A folder of no class of the official dataset.
    ExtraClass,
    /// A missing file that a list or the layout requires.
    MissingFile,
    /// An invalid line of a list.
    ListLine,
    /// A list with a byte order mark or carriage returns, which are skipped.
    TextForm,
    /// A file with the name or label of another class.
    Mislabeled,
    /// A label out of range, or a constant offset of all labels.
    LabelRange,
    /// An image count that differs from the official one.
    Count,
    /// An image or mask that cannot be decoded.
    Broken,
    /// An image that is not stored as 8-bit RGB, and is converted.
    NotRgb,
    /// A file with the extension of another format.
    Extension,
    /// A mask whose size differs from its image.
    MaskSize,
    /// A mask value that belongs to no class.
    MaskValue,
    /// Identical images of one class and one split.
    Duplicate,
    /// Identical images of different classes.
    DuplicateAcrossClasses,
    /// Identical images of different official splits.
    DuplicateAcrossSplits,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layout => "layout",
            Self::MissingClass => "missing class",
            Self::ExtraClass => "extra class",
            Self::MissingFile => "missing file",
            Self::ListLine => "list line",
            Self::TextForm => "text encoding",
            Self::Mislabeled => "wrong label",
            Self::LabelRange => "label range",
            Self::Count => "count",
            Self::Broken => "unreadable",
            Self::NotRgb => "not RGB",
            Self::Extension => "extension",
            Self::MaskSize => "mask size",
            Self::MaskValue => "mask value",
            Self::Duplicate => "duplicate",
            Self::DuplicateAcrossClasses => "duplicate across classes",
            Self::DuplicateAcrossSplits => "duplicate across splits",
        })
    }
}

/// One problem of a dataset's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Kind.
    pub kind: Kind,
    /// Location, found and expected values.
    pub message: String,
    /// Whether the check fails because of it; known peculiarities of the official files are warnings.
    pub is_error: bool,
}

impl Diagnostic {
    pub(crate) fn error(kind: Kind, message: impl ToString) -> Self {
        Self { kind, message: message.to_string(), is_error: true }
    }
}

/// Errors and warnings of opening a dataset: the first error ends it, or all are collected.
#[derive(Debug)]
pub(crate) struct Diagnostics {
    collecting: bool,
    pub(crate) found: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Returns the first error to the caller.
    pub(crate) fn strict() -> Self {
        Self { collecting: false, found: Vec::new() }
    }

    /// Collects all errors; the affected samples are left out.
    pub(crate) fn collecting() -> Self {
        Self { collecting: true, found: Vec::new() }
    }

    /// Reports a problem that invalidates samples.
    pub(crate) fn error(&mut self, kind: Kind, error: Error) -> Result<()> {
        if !self.collecting {
            return Err(error);
        }
        self.found.push(Diagnostic::error(kind, error));
        Ok(())
    }

    /// Reports a problem that use ignores, and that fails a check unless the manifest allows it.
    pub(crate) fn warning(&mut self, kind: Kind, message: impl ToString) {
        self.found.push(Diagnostic::error(kind, message));
    }
}
