//! Inspection of a trained network on its test images: features, Grad-CAM, label maps.

mod features;
mod grad_cam;
mod masks;

use std::path::Path;

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_core::data::{BatchSource, LoaderSpec, Sampler};

pub use features::{FeatureSet, extract_features};
pub use grad_cam::{GradCam, grad_cam};
pub use masks::{LabelMap, label_maps};

use crate::evaluate::open_trained_data;
use crate::{Context, Network, Result, RunInfo, open_run};

/// Opens a finished run with a loader of at most `max_images` of its test images, evenly spaced.
fn open_test_images(
    folder: &Path,
    max_images: usize,
    batch: usize,
    context: &Context,
) -> Result<(RunInfo, Network, Box<dyn BatchSource>)> {
    let (info, network) = open_run(folder, context)?;
    let (dataset, split) = open_trained_data(folder, &info, context)?;
    let (all, count) = (split.test.len(), split.test.len().min(max_images));
    let spec = LoaderSpec {
        indices: (0..count).map(|i| split.test[i * all / count.max(1)]).collect(),
        sampler: Sampler::Sequential { batch },
        transforms: info.run.data.normalized(&info.run.data.test_transforms),
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let loader = (context.registries.loader)(dataset, &spec)?;
    Ok((info, network, loader))
}

/// Reverts the normalization of an image `[1, 3, H, W]`: interleaved R, G, B in [0, 1].
fn denormalize(images: &Tensor, info: &RunInfo) -> Result<Vec<f32>> {
    let values = images.squeeze(0)?.permute((1, 2, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
    let (mean, std) = (info.run.data.mean, info.run.data.std);
    Ok(values.iter().enumerate().map(|(i, v)| (v * std[i % 3] + mean[i % 3]).clamp(0.0, 1.0)).collect())
}
