//! Our side of the loader's case: batches from JPEG files, as a run has them.

use std::path::PathBuf;

use anyhow::Context;
use candle_core::{Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::{LoaderSpec, Position, Sampler};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{loader_with_threads, registry};

use crate::cases::Case;
use crate::contender::Run;

/// The variable that names a folder of `256x256` and `500x375`, each with class folders of JPEG
/// files of that size (`bench/make_images.py` makes them).
pub(crate) const IMAGES: &str = "STILLHOUSE_BENCH_IMAGES";

/// Batches of a step: what is made ahead of them would else be time that nobody counts.
pub(crate) const BATCHES: usize = 8;

/// Where the files of a case lie.
pub(crate) fn folder(case: &Case) -> anyhow::Result<PathBuf> {
    let root = std::env::var_os(IMAGES).with_context(|| format!("no {IMAGES}"))?;
    Ok(PathBuf::from(root).join(case.network))
}

/// Reads so many batches, decoded anew each time. A step begins with idle workers and ends with
/// them, so that nothing of it is done while others are timed.
pub(crate) fn make(case: &Case) -> anyhow::Result<Run> {
    let path = Some(folder(case)?);
    let name = "folder".to_string();
    let request = DatasetRequest { name, roots: Vec::new(), path, options: toml::Table::new() };
    let set = (registry().get("folder")?.build)(&request)?;
    let size = case.size;
    let tables: toml::Table = toml::from_str(&format!(
        "t = [{{ op = 'random_resized_crop', size = {size}, scale = [0.5, 1.0] }}, {{ op = 'hflip' }}]"
    ))?;
    let transforms =
        tables["t"].as_array().into_iter().flatten().filter_map(|t| t.as_table().cloned()).collect();
    let spec = LoaderSpec {
        // The same number of images whatever the folder holds.
        indices: (0..case.batch * BATCHES).map(|i| i % set.len().max(1)).collect(),
        sampler: Sampler::Shuffle { batch: case.batch, drop_last: true },
        transforms,
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut loader = loader_with_threads(set, &spec, threads)?;
    Ok(Box::new(move || {
        let mut images = 0;
        while let Some(batch) = loader.next_batch()? {
            images += batch.ids.len();
        }
        // Stops what is being made ahead.
        let epoch = loader.position().epoch + 1;
        loader.seek(Position { epoch, batch: 0 })?;
        Ok(Tensor::new(images as f64, &Device::Cpu)?)
    }))
}
