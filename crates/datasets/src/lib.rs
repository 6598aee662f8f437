#![doc = include_str!("../README.md")]

pub mod check;
mod error;
#[cfg(test)]
mod fake;
mod folder;
pub mod image;
mod listing;
mod loader;
pub mod manifest;
pub mod pipeline;
mod raster;
mod sampler;
mod scenes;
mod split;
pub mod transform;
mod ucm;

pub use check::{Report, check};
pub use error::{Error, Result};
pub use loader::{loader, loader_with_threads};
pub use raster::Raster;
pub use sampler::Order;
pub use split::split;
use stillhouse_core::registry::{DatasetBuild, Registry};

/// All datasets; a row stands beside its implementation.
pub fn registry() -> Registry<DatasetBuild> {
    Registry::new("dataset", &[ucm::ENTRY, folder::ENTRY, scenes::ENTRY])
}
