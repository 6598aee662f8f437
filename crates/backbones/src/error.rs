//! Errors of weights.

use std::path::PathBuf;

/// Errors of weights. In a [`stillhouse_core::Error`] they are wrapped in `Other`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Weights without a manifest.
    #[error(
        "unknown weights `{name}` for {arch}{}; known: {known}; or a path to a .safetensors, .pth, .pt or .bin file",
        suggest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
    )]
    UnknownWeights {
        /// Name of the model.
        arch: String,
        /// The unknown name.
        name: String,
        /// The nearest known name, if any is close.
        suggest: Option<String>,
        /// All weights as `arch.name`, comma-separated.
        known: String,
    },
    /// A weights file that is in none of the folders.
    #[error(
        "weights not found: {weights}: expected {file} in {searched}. {get} Then set STILLHOUSE_WEIGHTS to its folder"
    )]
    NotFound {
        /// `arch.name`.
        weights: String,
        /// File name.
        file: String,
        /// The searched folders.
        searched: String,
        /// Instructions to get the file.
        get: String,
    },
    /// A file whose size or hash differs from the manifest.
    #[error(
        "wrong weights file: {}: expected {expected} ({weights}), found {found}. {get} To use this file \
         anyway, give its path instead of the name",
        path.display()
    )]
    WrongFile {
        /// Path of the file.
        path: PathBuf,
        /// `arch.name`.
        weights: String,
        /// Size or hash in the manifest.
        expected: String,
        /// Size or hash of the file.
        found: String,
        /// Instructions to get the file.
        get: String,
    },
    /// A file that is not a weights file, is corrupt, or exceeds a limit.
    #[error("invalid weights file: {}: {reason}; expected safetensors or a PyTorch state dict", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file whose tensors do not match the parameters of the model.
    #[error("weights do not match the model: {}: {}", path.display(), mismatches(missing, unexpected, mismatched))]
    Mismatch {
        /// Path of the file.
        path: PathBuf,
        /// Parameters of the model that are not in the file.
        missing: Vec<String>,
        /// Tensors of the file that the model does not have.
        unexpected: Vec<String>,
        /// Tensors of a different shape or an unsupported type, with expected and found.
        mismatched: Vec<String>,
    },
    /// A file whose head has a different number of classes.
    #[error(
        "wrong number of classes: {}: `{name}`: expected {expected}, found {found}; replace the head, or \
         build the model with {found} classes",
        path.display()
    )]
    Classes {
        /// Path of the file.
        path: PathBuf,
        /// Name of the parameter.
        name: String,
        /// Classes of the model.
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

/// Lists the mismatches, with the first ten names of each kind.
fn mismatches(missing: &[String], unexpected: &[String], mismatched: &[String]) -> String {
    [("missing", missing), ("unexpected", unexpected), ("of a different shape or type", mismatched)]
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
