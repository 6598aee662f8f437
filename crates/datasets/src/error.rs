//! What can go wrong with images and folders of them.

use std::path::PathBuf;

/// An error of a dataset, an image or a transform; each says where, what was found, what was
/// expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file whose first bytes are those of no format that is read.
    #[error(
        "{name}: not an image: expected JPEG, PNG, TIFF or BMP by its first bytes, found {found}; replace or remove the file"
    )]
    UnknownFormat {
        /// The file.
        name: String,
        /// Its first bytes.
        found: String,
    },
    /// A file that its decoder or reader refuses.
    #[error("{name}: broken {format}: {message}; fetch the file again or remove it")]
    Decode {
        /// The file.
        name: String,
        /// JPEG, PNG, TIFF, BMP, MAT, ...
        format: &'static str,
        /// What the decoder said.
        message: String,
    },
    /// A sound file in a variant that is not read.
    #[error("{name}: this {format} holds {found}, expected {expected}; convert the file")]
    Unsupported {
        /// The file.
        name: String,
        /// JPEG, PNG, TIFF or BMP.
        format: &'static str,
        /// What it holds.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// An image beyond the limits for untrusted files.
    #[error(
        "{name}: {width}x{height} pixels, expected at most {} a side and {} in all; scale the image down",
        crate::image::MAX_SIDE,
        crate::image::MAX_PIXELS
    )]
    TooLarge {
        /// The file.
        name: String,
        /// Columns that it claims.
        width: u64,
        /// Rows that it claims.
        height: u64,
    },
    /// A dataset that is under none of the roots.
    #[error("{dataset} not found: expected the folder {expected} under {searched}; {hint}")]
    MissingDataset {
        /// Its title.
        dataset: String,
        /// The folder that a root must hold.
        expected: String,
        /// The roots.
        searched: String,
        /// What to do.
        hint: String,
    },
    /// A class without a folder.
    #[error("{}: no folder for class `{class}`; expected {expected} class folders, found {found}; restore the folder or fetch the set again", path.display())]
    MissingClass {
        /// The folder of the class folders.
        path: PathBuf,
        /// The class.
        class: String,
        /// Number of classes.
        expected: usize,
        /// The folders that are there.
        found: String,
    },
    /// A class folder without an image.
    #[error("{}: class `{class}` has no image; expected files with the extension {extensions}, found {found} other files; add images or remove the folder", path.display())]
    EmptyClass {
        /// The class's folder.
        path: PathBuf,
        /// The class.
        class: String,
        /// The extensions that count.
        extensions: String,
        /// Files that do not count.
        found: usize,
    },
    /// A file that the official layout does not have.
    #[error("{}: unexpected file in class `{class}`: expected {expected}; move the file away", path.display())]
    UnexpectedFile {
        /// The file.
        path: PathBuf,
        /// The class.
        class: String,
        /// The layout's pattern.
        expected: String,
    },
    /// A line of a list file that does not read as it should.
    #[error("{}:{line}: found `{found}`, expected {expected}; mend the line or fetch the list again", path.display())]
    ListLine {
        /// The list.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What stands there, shortened.
        found: String,
        /// What should.
        expected: String,
    },
    /// A file that a list or the layout names and that is not there.
    #[error("{}: not there, but {named_by} names it; fetch the set again or mend the list", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// Who names it.
        named_by: String,
    },
    /// A label that contradicts the file's folder or name, or that no class has.
    #[error("{place}: labeled {found}, expected {expected}; mend the list or move the file")]
    WrongLabel {
        /// The file, or the list and its line.
        place: String,
        /// The label.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A folder or name that the layout does not have.
    #[error("{}: found {found}, expected {expected}; move it away or mend it", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A mask that does not have the size of its image.
    #[error("{}: a mask of {}x{}, its image has {}x{}; replace the mask", path.display(), found.0, found.1, expected.0, expected.1)]
    MaskSize {
        /// The mask.
        path: PathBuf,
        /// Its width and height.
        found: (usize, usize),
        /// The image's.
        expected: (usize, usize),
    },
    /// A mask with a value that no class has.
    #[error("{}: value {value} at column {x}, row {y}, expected {expected}; replace the mask", path.display())]
    MaskValue {
        /// The mask.
        path: PathBuf,
        /// The first such value.
        value: u8,
        /// Its column.
        x: usize,
        /// Its row.
        y: usize,
        /// What is allowed.
        expected: String,
    },
    /// An archive that is damaged, hostile or none.
    #[error("{}: {message}; fetch it again, or from elsewhere", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The entry and what is wrong with it.
        message: String,
    },
    /// A download that failed.
    #[error("{what}: {message}")]
    Download {
        /// The address, or the set.
        what: String,
        /// What happened, and what to do.
        message: String,
    },
    /// A set that only a person can get.
    #[error("{dataset} cannot be fetched by the program: {how}")]
    Access {
        /// Its title.
        dataset: String,
        /// What to do.
        how: String,
    },
    /// A setting or parameter out of its range.
    #[error("{what}: {why}")]
    Setting {
        /// Transform, sampler, split or dataset.
        what: String,
        /// Found, allowed, and what to do.
        why: String,
    },
    /// The loader's thread ended by a panic: a bug.
    #[error("the loader's thread died: {0}; this is a bug, please report it")]
    Died(String),
}

impl Error {
    pub(crate) fn setting(what: impl ToString, why: impl ToString) -> Self {
        Self::Setting { what: what.to_string(), why: why.to_string() }
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
