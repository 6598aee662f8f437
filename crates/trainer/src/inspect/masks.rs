//! Label maps of test images.

use std::path::Path;

use stillhouse_ops::{Mode, Tape};

use super::{denormalize, open_test_images};
use crate::evaluate::tiled_inference::label_map;
use crate::{Context, Error, Result, RunInfo};

/// One test image with its true and predicted label map.
#[derive(Debug, Clone)]
pub struct LabelMap {
    /// Dataset index.
    pub id: u64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The network's input: R, G, B in [0, 1], `height * width * 3` values.
    pub image: Vec<f32>,
    /// True classes; 255 is ignored.
    pub truth: Vec<u8>,
    /// Predicted classes.
    pub predicted: Vec<u8>,
}

/// Predicts label maps of at most `max_images` whole test images of a finished run.
///
/// # Errors
/// If the dataset has one class per image, or has changed since the training.
pub fn label_maps(folder: &Path, max_images: usize, context: &Context) -> Result<(RunInfo, Vec<LabelMap>)> {
    let (info, network, mut loader) = open_test_images(folder, max_images, 1, context)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&["logits"]);
    let mut all = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        if context.stopped() {
            return Err(Error::interrupted().interrupted_in(folder));
        }
        let truth = batch.labels.mask("label maps")?.flatten_all()?.to_vec1::<u32>()?;
        let (_, _, height, width) = batch.images.dims4()?;
        all.push(LabelMap {
            id: batch.ids[0],
            width,
            height,
            truth: truth.iter().map(|label| u8::try_from(*label).unwrap_or(u8::MAX)).collect(),
            predicted: label_map(&network, &mut tape, &batch.images.to_device(&context.device)?)?,
            image: denormalize(&batch.images, &info)?,
        });
    }
    Ok((info, all))
}
