#![doc = include_str!("../README.md")]

mod aid;
mod camvid;
pub mod check;
mod cityscapes;
mod class_folders;
mod cub;
mod dogs;
mod error;
#[cfg(test)]
mod fake;
pub mod fetch;
mod findings;
mod folder;
#[doc(hidden)]
pub mod fuzz;
mod id_lists;
pub mod image;
pub mod label_map;
mod listing;
mod lists;
mod loader;
pub mod manifest;
mod mat;
mod nabirds;
mod pairs;
pub mod pipeline;
mod raster;
mod rsc11;
mod rsscn7;
mod sampler;
mod scenes;
mod set;
mod split;
pub mod stats;
pub mod transform;
mod ucm;
mod voc;

pub use check::{Report, check};
pub use error::{Error, Result};
pub use findings::{Finding, Kind};
pub use loader::{loader, loader_with_threads};
pub use raster::Raster;
pub use sampler::Order;
pub use split::split;
use stillhouse_core::registry::{DatasetBuild, Entry, Registry};

/// All datasets; a row stands beside its implementation.
pub fn registry() -> Registry<DatasetBuild> {
    let mut rows: Vec<Entry<DatasetBuild>> = set::ENTRIES.iter().map(|s| s.entry).collect();
    rows.extend([scenes::ENTRY, scenes::fields::ENTRY, scenes::species::ENTRY]);
    Registry::new("dataset", &rows)
}
