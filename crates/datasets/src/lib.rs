#![doc = include_str!("../README.md")]

mod catalog;
pub mod check;
pub mod decode;
mod diagnostics;
mod error;
#[cfg(test)]
mod fake;
pub mod fetch;
mod file_dataset;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod image_buffer;
mod layout;
mod loader;
pub mod manifest;
pub mod palette;
mod split;
pub mod stats;
mod synthetic;
pub mod transforms;

use std::path::PathBuf;

pub use check::{Report, check, require_readable};
pub use diagnostics::{Diagnostic, Kind};
pub use error::{Error, Result};
pub use image_buffer::ImageBuffer;
pub use layout::text_lists::list_field;
pub use loader::sampler::BatchSampler;
pub use loader::{loader, loader_with_threads};
pub use split::split;
use stillhouse_core::registry::{DatasetBuild, Registry};

/// Returns the built-in datasets.
pub fn registry() -> Registry<DatasetBuild> {
    catalog::registry(&[])
}

/// Returns the built-in datasets and those that manifests in the data roots describe.
///
/// An invalid manifest is an entry too: its summary has the reason, and opening it is an error.
pub fn registry_in(roots: &[PathBuf]) -> Registry<DatasetBuild> {
    catalog::registry(roots)
}
