//! What is wrong with a dataset's files, collected or answered with an error at once.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Folders or files that are not where the official layout has them.
    Layout,
    /// A class of the official set that is not there, or has no image.
    MissingClass,
    /// A class folder that the official set does not have.
    ExtraClass,
    /// A file that a list or the layout names and that is not there.
    MissingFile,
    /// A line of a list that cannot be read.
    ListLine,
    /// A list with a byte order mark or carriage returns, which are read over.
    TextForm,
    /// A file whose name or label is that of another class.
    Mislabeled,
    /// A label out of range, or labels that are all off by the same number.
    LabelRange,
    /// Another number of images than the official set has.
    Count,
    /// An image or mask that cannot be decoded.
    Broken,
    /// An image that is not stored as 8-bit RGB; it is read as RGB all the same.
    NotRgb,
    /// A file whose extension is that of another format.
    Extension,
    /// A mask of another size than its image.
    MaskSize,
    /// A mask with a value that no class has.
    MaskValue,
    /// Images of one class and one split with the same pixels.
    Duplicate,
    /// Images of different classes with the same pixels.
    DuplicateAcrossClasses,
    /// Images of different official splits with the same pixels.
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
            Self::TextForm => "text form",
            Self::Mislabeled => "mislabeled",
            Self::LabelRange => "label range",
            Self::Count => "count",
            Self::Broken => "broken",
            Self::NotRgb => "not RGB",
            Self::Extension => "extension",
            Self::MaskSize => "mask size",
            Self::MaskValue => "mask value",
            Self::Duplicate => "same pixels",
            Self::DuplicateAcrossClasses => "same pixels, other class",
            Self::DuplicateAcrossSplits => "same pixels, other split",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// Where, what was found, what was expected.
    pub message: String,
    /// Whether it makes the check fail: what the official files are known to have does not.
    pub fault: bool,
}

impl Finding {
    pub(crate) fn new(kind: Kind, message: impl ToString) -> Self {
        Self { kind, message: message.to_string(), fault: true }
    }
}

/// How faults of a dataset are met while it is opened: the first one is an error, or all are kept.
#[derive(Debug)]
pub(crate) struct Notes {
    collecting: bool,
    pub(crate) found: Vec<Finding>,
}

impl Notes {
    /// The first fault is an error.
    pub(crate) fn strict() -> Self {
        Self { collecting: false, found: Vec::new() }
    }

    /// All faults are kept, and what they concern is left out.
    pub(crate) fn collecting() -> Self {
        Self { collecting: true, found: Vec::new() }
    }

    /// Something that must not be read over.
    pub(crate) fn fault(&mut self, kind: Kind, error: Error) -> Result<()> {
        if !self.collecting {
            return Err(error);
        }
        self.found.push(Finding::new(kind, error));
        Ok(())
    }

    /// Something that is read over, and that a check reports.
    pub(crate) fn remark(&mut self, kind: Kind, message: impl ToString) {
        self.found.push(Finding::new(kind, message));
    }
}
