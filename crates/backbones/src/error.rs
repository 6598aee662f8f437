//! Errors of weights.

use std::path::{Path, PathBuf};

use crate::weights::MAX_EXAMPLES;

/// Errors of weights. In a [`stillhouse_core::Error`] they are wrapped in `Other`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Weights without a manifest.
    #[error(
        "unknown weights `{name}` for {arch}: no manifest of this name, and no such file{}; known: {known}; or \
         the path of a safetensors or PyTorch file",
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
    #[error("invalid weights file: {}: {reason} (expected safetensors or a PyTorch checkpoint)", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file whose tensors do not match the parameters of the model.
    #[error(
        "weights do not match the model: {}: {matched} of {total} parameters fit; {}{}{}",
        path.display(),
        mismatches(missing, unexpected, mismatched),
        looks_like(similar),
        if is_shard(path) { "; the file is one of several: give their index, *.index.json" } else { "" }
    )]
    Mismatch {
        /// Path of the file.
        path: PathBuf,
        /// Number of parameters of the model that are in the file.
        matched: usize,
        /// Number of parameters of the model.
        total: usize,
        /// Models that the file fits.
        similar: Vec<String>,
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
    /// A file with several state dicts that fit equally well.
    #[error(
        "several state dicts: {}: `{}`; choose one by its key, as in \
         {{ file = {path:?}, key = {first:?} }} or --key {first}",
        path.display(),
        keys.join("`, `"),
        first = keys.first().map_or("", String::as_str)
    )]
    Ambiguous {
        /// Path of the file.
        path: PathBuf,
        /// The keys.
        keys: Vec<String>,
    },
    /// A key that the file does not have.
    #[error("unknown key `{key}`: {}: found {}", path.display(), known.join(", "))]
    UnknownKey {
        /// Path of the file.
        path: PathBuf,
        /// The unknown key.
        key: String,
        /// The state dicts of the file.
        known: Vec<String>,
    },
    /// Weights that are NaN or infinite.
    #[error(
        "weights are not finite: {}: {}{}; the training that wrote them diverged, or the file is damaged",
        path.display(),
        tensors.iter().take(MAX_EXAMPLES).map(String::as_str).collect::<Vec<_>>().join("; "),
        match tensors.len().saturating_sub(MAX_EXAMPLES) {
            0 => String::new(),
            more => format!("; and {more} more tensors"),
        }
    )]
    NonFinite {
        /// Path of the file.
        path: PathBuf,
        /// Tensors with counts and kinds.
        tensors: Vec<String>,
    },
}

impl From<Error> for stillhouse_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// Names the models that a file fits.
fn looks_like(models: &[String]) -> String {
    match models {
        [] => String::new(),
        [model] => format!("; apart from its head, the file fits `{model}`"),
        models => format!("; apart from its head, the file fits `{}`", models.join("`, `")),
    }
}

/// Returns whether a file is named like one of several, `model-00001-of-00002.safetensors`.
fn is_shard(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("-of-0"))
}

/// Lists the mismatches, with the first names of each kind.
fn mismatches(missing: &[String], unexpected: &[String], mismatched: &[String]) -> String {
    [("missing", missing), ("unexpected", unexpected), ("of a different shape or type", mismatched)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| {
            let (count, examples) = (names.len(), &names[..names.len().min(MAX_EXAMPLES)]);
            let more = if count > MAX_EXAMPLES { ", ..." } else { "" };
            format!("{count} {what} ({}{more})", examples.join(", "))
        })
        .collect::<Vec<_>>()
        .join("; ")
}
