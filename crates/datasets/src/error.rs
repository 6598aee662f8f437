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
    /// A file that its decoder refuses.
    #[error("{name}: broken {format}: {message}; fetch the file again or remove it")]
    Decode {
        /// The file.
        name: String,
        /// JPEG, PNG, TIFF or BMP.
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
