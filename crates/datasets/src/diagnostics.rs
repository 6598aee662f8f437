//! Diagnostics about a dataset's files: collected, or returned as an error at the first one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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
    /// An image in a format without decoder.
    Unsupported,
    /// A file among the images that is none.
    NotImage,
    /// A dead link, or a file or folder that may not be read.
    Inaccessible,
    /// A file name that is not UTF-8.
    NameEncoding,
    /// An image without mask, or a mask without image.
    Unpaired,
    /// An image that is not stored as 8-bit RGB, and is converted.
    NotRgb,
    /// 16-bit images whose values leave the upper bit unused.
    SmallRange,
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
            Self::Unsupported => "unsupported format",
            Self::NotImage => "not an image",
            Self::Inaccessible => "inaccessible",
            Self::NameEncoding => "file name",
            Self::Unpaired => "no counterpart",
            Self::NotRgb => "not RGB",
            Self::SmallRange => "small range",
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

/// How problems of a dataset's files are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The first error ends the reading.
    Strict,
    /// Invalid samples are left out; a dataset that is unusable as a whole is an error.
    Skipping,
    /// Everything is collected.
    Collecting,
}

/// Errors and warnings of opening a dataset.
#[derive(Debug)]
pub(crate) struct Diagnostics {
    mode: Mode,
    pub(crate) found: Vec<Diagnostic>,
    /// What a user of the dataset should know, one message per subject.
    told: Vec<String>,
    /// Errors that invalidated samples.
    errors: usize,
    /// Their messages by kind, if they are skipped.
    skipped: BTreeMap<Kind, Vec<String>>,
}

impl Diagnostics {
    /// Returns the first error to the caller.
    pub(crate) fn strict() -> Self {
        Self { mode: Mode::Strict, found: Vec::new(), told: Vec::new(), errors: 0, skipped: BTreeMap::new() }
    }

    /// Leaves invalid samples out.
    pub(crate) fn skipping() -> Self {
        Self { mode: Mode::Skipping, ..Self::strict() }
    }

    /// Collects all errors; the affected samples are left out.
    pub(crate) fn collecting() -> Self {
        Self { mode: Mode::Collecting, ..Self::strict() }
    }

    /// Reports a problem that invalidates samples.
    pub(crate) fn error(&mut self, kind: Kind, error: Error) -> Result<()> {
        if self.mode == Mode::Strict {
            return Err(error);
        }
        self.errors += 1;
        if self.mode == Mode::Skipping {
            self.skipped.entry(kind).or_default().push(error.to_string());
        }
        self.found.push(Diagnostic::error(kind, error));
        Ok(())
    }

    /// Reports a problem that makes the dataset unusable, even if invalid samples are left out.
    pub(crate) fn fatal(&mut self, kind: Kind, error: Error) -> Result<()> {
        if self.mode != Mode::Collecting {
            return Err(error);
        }
        self.found.push(Diagnostic::error(kind, error));
        Ok(())
    }

    /// Reports a problem that use ignores, and that fails a check unless the manifest allows it.
    pub(crate) fn warning(&mut self, kind: Kind, message: impl ToString) {
        self.found.push(Diagnostic::error(kind, message));
    }

    /// Reports how ambiguous files were understood; users are told, and a check does not fail.
    pub(crate) fn note(&mut self, kind: Kind, message: impl ToString) {
        let message = message.to_string();
        self.told.push(message.clone());
        self.found.push(Diagnostic { kind, message, is_error: false });
    }

    /// Reports files that are left out: counted by group to the user, one by one by a check. Those
    /// that look like samples are an error, unless samples may be skipped.
    pub(crate) fn left_out(&mut self, folder: &Path, files: &[LeftOut]) -> Result<()> {
        let (errors, ignored): (Vec<&LeftOut>, Vec<&LeftOut>) = files.iter().partition(|f| f.is_error);
        if !errors.is_empty() && self.mode == Mode::Strict {
            return Err(Error::UnusableFiles {
                folder: folder.to_path_buf(),
                summary: summary(folder, &errors),
            });
        }
        self.errors += errors.len();
        for (list, verb) in [(errors, "skipped"), (ignored, "ignored")] {
            if !list.is_empty() {
                self.told.push(format!("{}: {verb} {}", folder.display(), summary(folder, &list)));
            }
        }
        for file in files {
            let message = format!("{}: {}", file.path.display(), file.group);
            self.found.push(Diagnostic::error(file.kind, message));
        }
        Ok(())
    }

    /// Returns the number of errors of single samples.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Warns once per process of what a user of the dataset should know.
    pub(crate) fn tell(&self) {
        self.told.iter().for_each(|message| warn_once(message));
        for (kind, messages) in &self.skipped {
            warn_once(&format!("skipped {} samples ({kind}): {}", messages.len(), examples(messages)));
        }
    }
}

/// A file that is left out of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    /// What it is, in the plural: "dead links".
    pub(crate) group: String,
    /// Whether it looks like a sample of the dataset.
    pub(crate) is_error: bool,
}

/// Counts files of a folder by group, with the first names of each: `12 HEIC images (a/1.heic, ...)`.
fn summary(folder: &Path, files: &[&LeftOut]) -> String {
    let mut groups = BTreeMap::<&str, Vec<String>>::new();
    for file in files {
        let below = file.path.strip_prefix(folder).unwrap_or(&file.path);
        groups.entry(&file.group).or_default().push(below.display().to_string());
    }
    let texts = groups.iter().map(|(group, paths)| format!("{} {group} ({})", paths.len(), examples(paths)));
    texts.collect::<Vec<_>>().join(", ")
}

/// Returns the first few of a list of names.
pub(crate) fn examples(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, ...") } else { shown }
}

/// Logs a warning, unless this process has logged the same one: a dataset is opened once per cell.
pub(crate) fn warn_once(message: &str) {
    static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.insert(message.to_string()) {
        tracing::warn!("{message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(n: usize, is_error: bool) -> Vec<LeftOut> {
        let file = |i| LeftOut {
            path: format!("a/{i}.avif").into(),
            kind: Kind::Unsupported,
            group: "AVIF images".to_string(),
            is_error,
        };
        (0..n).map(file).collect()
    }

    #[test]
    fn counts_files_that_are_left_out() {
        let folder = Path::new("own");
        let e = Diagnostics::strict().left_out(folder, &files(4, true)).unwrap_err().to_string();
        assert!(e.contains("own: 4 AVIF images (a/0.avif, a/1.avif, a/2.avif, ...)"), "{e}");
        assert!(e.contains("on_error") && e.contains("data check"), "{e}");
        for mut diagnostics in [Diagnostics::skipping(), Diagnostics::collecting()] {
            diagnostics.left_out(folder, &files(4, true)).unwrap();
            assert_eq!((diagnostics.found.len(), diagnostics.told.len()), (4, 1));
        }
        let mut diagnostics = Diagnostics::strict();
        diagnostics.left_out(folder, &files(2, false)).unwrap();
        assert_eq!(diagnostics.told, ["own: ignored 2 AVIF images (a/0.avif, a/1.avif)"]);
        assert!(diagnostics.found.iter().all(|d| d.is_error));
    }

    #[test]
    fn refuses_unusable_datasets_unless_checking() {
        let error = || Error::setting("set", "unusable");
        assert!(Diagnostics::strict().fatal(Kind::Layout, error()).is_err());
        assert!(Diagnostics::skipping().fatal(Kind::Layout, error()).is_err());
        assert!(Diagnostics::skipping().error(Kind::Layout, error()).is_ok());
        assert!(Diagnostics::collecting().fatal(Kind::Layout, error()).is_ok());
    }
}
