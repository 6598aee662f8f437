//! Feature vectors of test images.

use std::path::Path;

use candle_core::Device;
use stillhouse_core::Rng;
use stillhouse_ops::{Mode, Tape};

use super::open_test_images;
use crate::{Context, Error, Result, RunInfo};

/// Features of some test images of a run.
#[derive(Debug, Clone)]
pub struct FeatureSet {
    /// `config.toml` of the run.
    pub info: RunInfo,
    /// Dataset indices of the images.
    pub ids: Vec<u64>,
    /// True classes.
    pub labels: Vec<u32>,
    /// The feature, `[n, D]`, row by row.
    pub features: Vec<Vec<f32>>,
}

/// Returns a vector feature (`pooled`) of at most `max_images` test images of a finished run; none if the
/// network does not have it.
pub fn extract_features(
    folder: &Path,
    feature: &str,
    max_images: usize,
    context: &Context,
) -> Result<Option<FeatureSet>> {
    let (info, network, mut loader) = open_test_images(folder, max_images, 32, context)?;
    if network.model.features().iter().all(|known| known.name != feature) {
        return Ok(None);
    }
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&[feature]);
    let mut set = FeatureSet { info, ids: Vec::new(), labels: Vec::new(), features: Vec::new() };
    while let Some(batch) = loader.next_batch()? {
        if context.stopped() {
            return Err(Error::interrupted().interrupted_in(folder));
        }
        tape.begin(Rng::new(0), 0);
        let outputs = network.model.forward(&batch.images.to_device(&context.device)?, &mut tape)?;
        set.features.extend(outputs.get(feature)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?);
        set.labels.extend(batch.labels.classes("features")?.to_vec1::<u32>()?);
        set.ids.extend(batch.ids);
    }
    Ok(Some(set))
}
