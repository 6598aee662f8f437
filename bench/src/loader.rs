//! Data-loading case: batches from JPEG files, through the loader that training uses.

use std::path::PathBuf;

use anyhow::Context;
use candle_core::{Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::{LoaderSpec, Position, Sampler};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{loader_with_threads, registry};

use crate::cases::Case;
use crate::worker::StepFn;

/// Environment variable with a folder that holds `256x256` and `500x375`, each with class folders of
/// JPEG files of that size (`bench/make_images.py` makes them).
pub(crate) const IMAGES: &str = "STILLHOUSE_BENCH_IMAGES";

/// Batches per step. A step is a whole epoch, so that no prefetched batch goes untimed.
pub(crate) const BATCHES: usize = 8;

/// Returns the image folder of a case.
pub(crate) fn image_dir(case: &Case) -> anyhow::Result<PathBuf> {
    let root = std::env::var_os(IMAGES).with_context(|| format!("{IMAGES} is not set"))?;
    Ok(PathBuf::from(root).join(case.network))
}

/// Builds a step that reads [`BATCHES`] batches, decoding every image anew. Workers are idle before and
/// after each step, so that nothing is decoded while another worker is timed.
pub(crate) fn build_step(case: &Case) -> anyhow::Result<StepFn> {
    let path = Some(image_dir(case)?);
    let name = "folder".to_string();
    let request = DatasetRequest { name, roots: Vec::new(), path, options: toml::Table::new() };
    let dataset = (registry().get("folder")?.build)(&request)?;
    let size = case.size;
    let tables: toml::Table = toml::from_str(&format!(
        "t = [{{ op = 'random_resized_crop', size = {size}, scale = [0.5, 1.0] }}, {{ op = 'hflip' }}]"
    ))?;
    let transforms =
        tables["t"].as_array().into_iter().flatten().filter_map(|t| t.as_table().cloned()).collect();
    let spec = LoaderSpec {
        // The same number of images for any folder.
        indices: (0..case.batch * BATCHES).map(|i| i % dataset.len().max(1)).collect(),
        sampler: Sampler::Shuffle { batch: case.batch, drop_last: true },
        transforms,
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut loader = loader_with_threads(dataset, &spec, threads)?;
    Ok(Box::new(move || {
        let mut images = 0;
        while let Some(batch) = loader.next_batch()? {
            images += batch.ids.len();
        }
        // Seeking stops prefetching.
        let epoch = loader.position().epoch + 1;
        loader.seek(Position { epoch, batch: 0 })?;
        Ok(Tensor::new(images as f64, &Device::Cpu)?)
    }))
}
