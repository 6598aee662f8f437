//! Pretrained and trained weights.
//!
//! - [`manifests`], [`find_weights`]: known weights and their files.
//! - [`WeightsFile`], [`load_weights`]: safetensors and PyTorch files in the names of several
//!   collections, verified before they are read.
//! - [`save`], [`export`], [`onnx`]: files for other programs.

mod export;
mod key_mapping;
mod load;
mod manifest;
pub mod onnx;
mod read;
mod save;

pub use export::{ModelCard, export};
pub use load::{LoadReport, compare_weights, load_weights};
pub use manifest::{HubFile, Manifest, find_weights, manifests};
pub use read::{Format, StoredTensor, WeightsFile};
pub use save::{Precision, save, save_as};
