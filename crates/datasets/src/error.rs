//! Errors of datasets, images and transforms.

use std::path::PathBuf;

/// An error of a dataset, an image or a transform. Messages name the location, the found and the
/// expected value, and a remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An unreadable file or folder.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A file of an unknown format.
    #[error(
        "{name}: not an image: expected the first bytes of JPEG, PNG, TIFF, BMP, WebP or GIF, found {found}; replace or remove the file"
    )]
    UnknownFormat {
        /// The file.
        name: String,
        /// Its first bytes.
        found: String,
    },
    /// A corrupt file.
    #[error("{name}: corrupt {format}: {message}; download the file again or remove it")]
    Decode {
        /// The file.
        name: String,
        /// JPEG, PNG, TIFF, BMP, WebP, GIF, MAT, ...
        format: &'static str,
        /// Cause.
        message: String,
    },
    /// A valid file in an unsupported variant.
    #[error("{name}: unsupported {format}: expected {expected}, found {found}; convert the file")]
    Unsupported {
        /// The file.
        name: String,
        /// The image format.
        format: &'static str,
        /// Found variant.
        found: String,
        /// Supported variants.
        expected: &'static str,
    },
    /// An image beyond the limits for untrusted files.
    #[error(
        "{name}: image too large: expected at most {} pixels per side and {} in total, found {width}x{height}; scale the image down",
        crate::decode::MAX_SIDE,
        crate::decode::MAX_PIXELS
    )]
    TooLarge {
        /// The file.
        name: String,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
    },
    /// A dataset that no data root contains.
    #[error("{dataset} not found: expected the folder {expected} below {searched}; {hint}")]
    MissingDataset {
        /// Its title.
        dataset: String,
        /// The expected folder.
        expected: String,
        /// The searched roots.
        searched: String,
        /// Remedy.
        hint: String,
    },
    /// A class without a folder.
    #[error("{}: no folder of class `{class}`: expected {expected} class folders, found {found}; restore the folder or download the dataset again", path.display())]
    MissingClass {
        /// The folder of the class folders.
        path: PathBuf,
        /// The class.
        class: String,
        /// Number of classes.
        expected: usize,
        /// The found folders.
        found: String,
    },
    /// A class folder without an image.
    #[error("{}: no image of class `{class}`: expected image files, found {found} other files; add images or remove the folder", path.display())]
    EmptyClass {
        /// The class's folder.
        path: PathBuf,
        /// The class.
        class: String,
        /// Number of other files.
        found: usize,
    },
    /// Files of a folder that look like samples and cannot be used.
    #[error("{}: {summary}; convert or remove them, or leave them out with options = {{ on_error = \"skip\" }}; `stillhouse data check` lists all", folder.display())]
    UnusableFiles {
        /// The folder.
        folder: PathBuf,
        /// Counts by kind, with the first names.
        summary: String,
    },
    /// A file outside of the official layout.
    #[error("{}: unexpected file in class `{class}`: expected {expected}; move the file away", path.display())]
    UnexpectedFile {
        /// The file.
        path: PathBuf,
        /// The class.
        class: String,
        /// Expected name.
        expected: String,
    },
    /// An invalid line of a list.
    #[error("{}:{line}: expected {expected}, found `{found}`; fix the line or download the list again", path.display())]
    ListLine {
        /// The list.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// Start of the line.
        found: String,
        /// Expected content.
        expected: String,
    },
    /// A missing file that a list or the layout requires.
    #[error("{}: file not found: required by {listed_by}; download the dataset again or fix the list", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// The list or file that requires it.
        listed_by: String,
    },
    /// A label that contradicts the file's folder or name, or belongs to no class.
    #[error("{location}: wrong label: expected {expected}, found {found}; fix the list or move the file")]
    WrongLabel {
        /// The file, or the list and its line.
        location: String,
        /// The label.
        found: String,
        /// The expected label.
        expected: String,
    },
    /// A folder or name outside of the official layout.
    #[error("{}: expected {expected}, found {found}; fix or remove it", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// Found content.
        found: String,
        /// Expected content.
        expected: String,
    },
    /// A mask whose size differs from its image.
    #[error("{}: mask size: expected the image's {}x{}, found {}x{}; replace the mask", path.display(), expected.0, expected.1, found.0, found.1)]
    MaskSize {
        /// The mask.
        path: PathBuf,
        /// Its width and height.
        found: (usize, usize),
        /// The image's.
        expected: (usize, usize),
    },
    /// A mask value that belongs to no class.
    #[error("{}: mask value at column {x}, row {y}: expected {expected}, found {value}; replace the mask", path.display())]
    MaskValue {
        /// The mask.
        path: PathBuf,
        /// The first such value.
        value: u8,
        /// Its column.
        x: usize,
        /// Its row.
        y: usize,
        /// Valid values.
        expected: String,
    },
    /// Masks whose values do not fit the classes.
    #[error("{}: masks: {message}", path.display())]
    MaskContent {
        /// The folder of the dataset.
        path: PathBuf,
        /// Classes, values, pixel counts and a remedy.
        message: String,
    },
    /// A corrupt or malicious archive.
    #[error("{}: {message}; download it again, or from another source", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The entry and its problem.
        message: String,
    },
    /// A failed download.
    #[error("{source_name}: {message}")]
    Download {
        /// The URL, or the dataset.
        source_name: String,
        /// Cause and remedy.
        message: String,
    },
    /// A dataset that requires manual steps.
    #[error("{dataset} cannot be downloaded automatically: {instructions}")]
    Access {
        /// Its title.
        dataset: String,
        /// Remedy.
        instructions: String,
    },
    /// An invalid setting or parameter.
    #[error("{subject}: {message}")]
    Setting {
        /// Transform, sampler, split or dataset.
        subject: String,
        /// Expected and found value, and a remedy.
        message: String,
    },
    /// An invalid manifest; the message has file, line and field.
    #[error("{0}")]
    Manifest(String),
    /// A panic of a loader thread: a bug.
    #[error("the loader thread panicked: {0}; this is a bug in stillhouse; please report it")]
    LoaderPanic(String),
}

impl Error {
    pub(crate) fn setting(subject: impl ToString, message: impl ToString) -> Self {
        Self::Setting { subject: subject.to_string(), message: message.to_string() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<Error> for stillhouse_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// Result with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
