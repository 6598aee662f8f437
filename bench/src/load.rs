//! Our side of the loader's case: batches from JPEG files, as a run has them.

use std::path::PathBuf;

use anyhow::Context;
use stillhouse_core::Rng;
use stillhouse_core::data::{LoaderSpec, Sampler};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{loader_with_threads, registry};

use crate::cases::Case;

/// The variable that names a folder with one folder of JPEG files per class.
pub(crate) const IMAGES: &str = "STILLHOUSE_BENCH_IMAGES";

/// The next batch, decoded anew each time.
pub(crate) fn make(case: &Case) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<f64>>> {
    let path = std::env::var_os(IMAGES).map(PathBuf::from);
    let path =
        path.with_context(|| format!("set {IMAGES} to a folder with a folder of JPEG files per class"))?;
    let name = "folder".to_string();
    let request = DatasetRequest { name, roots: Vec::new(), path: Some(path), options: toml::Table::new() };
    let set = (registry().get("folder")?.build)(&request)?;
    let size = case.size;
    let tables: toml::Table = toml::from_str(&format!(
        "t = [{{ op = 'random_resized_crop', size = {size}, scale = [0.5, 1.0] }}, {{ op = 'hflip' }}]"
    ))?;
    let transforms =
        tables["t"].as_array().into_iter().flatten().filter_map(|t| t.as_table().cloned()).collect();
    let spec = LoaderSpec {
        indices: (0..set.len()).collect(),
        sampler: Sampler::Shuffle { batch: case.batch, drop_last: set.len() >= case.batch },
        transforms,
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let wanted = case.batch;
    let mut loader = loader_with_threads(set, &spec, threads)?;
    Ok(Box::new(move || {
        let mut images = 0;
        // As many images a step whatever the folder holds.
        while images < wanted {
            if let Some(batch) = loader.next_batch()? {
                images += batch.ids.len();
            }
        }
        Ok(images as f64)
    }))
}
