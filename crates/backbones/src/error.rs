//! The crate's errors: weights that are not there, not the right ones, or do not fit.

use std::path::PathBuf;

/// What can be wrong with weights. Networks themselves report misfits as
/// [`stillhouse_core::Error`]; there this one comes as `Other`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No manifest has these weights.
    #[error(
        "no weights `{name}` for {arch}{}; there are: {known}; a path that ends in .safetensors is taken as it is",
        suggest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
    )]
    UnknownWeights {
        /// The network.
        arch: String,
        /// The name that was asked for.
        name: String,
        /// The closest name, if any is close.
        suggest: Option<String>,
        /// All weights, as `arch.name`.
        known: String,
    },
    /// The file of a manifest is in none of the folders.
    #[error("weights {weights}: no file {file} in {looked}. {get} Then set STILLHOUSE_WEIGHTS to its folder")]
    NoFile {
        /// `arch.name`.
        weights: String,
        /// The file's name.
        file: String,
        /// The folders that were searched.
        looked: String,
        /// How to get it.
        get: String,
    },
    /// A file of the right name that is another file.
    #[error(
        "{}: is not the file of weights {weights}: expected {expected}, found {found}. {get} To use this \
         file all the same, give its path in place of the name",
        path.display()
    )]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// `arch.name`.
        weights: String,
        /// Size or hash of the manifest.
        expected: String,
        /// Size or hash of the file.
        found: String,
        /// How to get the right one.
        get: String,
    },
    /// A file that is no file of weights, a damaged one, or one that asks for more than weights need.
    #[error("{}: is no whole file of weights (safetensors, or PyTorch's state dict): {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file whose tensors are not those of the network.
    #[error("{}: does not fit the network: {}", path.display(), misfits(missing, unexpected, misshapen))]
    Misfit {
        /// The file.
        path: PathBuf,
        /// Names that the network has and the file has not.
        missing: Vec<String>,
        /// Names that the file has and the network has not.
        unexpected: Vec<String>,
        /// Names whose shape or element type cannot be used, with found and expected.
        misshapen: Vec<String>,
    },
    /// A file whose head is for another number of classes.
    #[error(
        "{}: its head `{name}` is for {found} classes, the network has {expected}; let the head be replaced, \
         or build the network with {found} classes",
        path.display()
    )]
    Classes {
        /// The file.
        path: PathBuf,
        /// The parameter.
        name: String,
        /// Classes of the network.
        expected: usize,
        /// Classes of the file.
        found: usize,
    },
}

impl From<Error> for stillhouse_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// One sentence that lists what does not fit, the first ten names of each kind.
fn misfits(missing: &[String], unexpected: &[String], misshapen: &[String]) -> String {
    [("missing", missing), ("unexpected", unexpected), ("of another shape or type", misshapen)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| {
            let shown = names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if names.len() > 10 { ", ..." } else { "" };
            format!("{} {what} ({shown}{more})", names.len())
        })
        .collect::<Vec<_>>()
        .join("; ")
}
