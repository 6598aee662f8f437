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
mod matching;
pub mod onnx;
mod read;
mod report;
mod save;

pub use export::{ModelCard, Preprocessing, Resize, export};
pub use load::{compare_weights, load_weights, non_finite, similar_models};
pub use manifest::{HubFile, Manifest, find_weights, manifests};
pub use read::{Format, StateDict, StoredTensor, WeightsFile};
pub(crate) use report::MAX_EXAMPLES;
pub use report::{Head, LoadReport};
pub use save::{Precision, save, save_as};
