//! Grad-CAM (Selvaraju et al., ICCV 2017).

use std::path::Path;

use candle_core::{D, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::Labels;
use stillhouse_ops::graph::resize_bilinear;
use stillhouse_ops::{Mode, Tape};

use super::{denormalize, open_test_images};
use crate::{Context, Error, Network, Result, RunInfo};

/// Grad-CAM of one test image.
#[derive(Debug, Clone)]
pub struct GradCam {
    /// Dataset index.
    pub id: u64,
    /// True class.
    pub label: u32,
    /// Predicted class.
    pub predicted: u32,
    /// Probability of the predicted class.
    pub probability: f32,
    /// Side of image and maps in pixels.
    pub size: usize,
    /// The network's input: R, G, B in [0, 1], `size * size * 3` values.
    pub image: Vec<f32>,
    /// Map at each feature by its name, in [0, 1], `size * size` values.
    pub maps: Vec<(String, Vec<f32>)>,
}

/// Returns the features to compute maps at: `F4`, and the two stages before it if the network has early exits.
fn cam_features(network: &Network) -> &'static [&'static str] {
    let exits = network.model.features().iter().any(|feature| feature.name.starts_with("exit"));
    if exits { &["F2", "F3", "F4"] } else { &["F4"] }
}

/// Computes Grad-CAM of at most `max_images` test images of a finished run:
/// `relu(sum over channels of (mean gradient of the predicted class's logit) x map)`, resized to the image and
/// divided by its maximum.
pub fn grad_cam(folder: &Path, max_images: usize, context: &Context) -> Result<(RunInfo, Vec<GradCam>)> {
    let (info, network, mut loader) = open_test_images(folder, max_images, 1, context)?;
    let mut tape = Tape::new(&network.params, Mode::EvalWithGrad)?;
    let features = cam_features(&network);
    tape.select_features(&[features, &["logits"]].concat());
    let mut all = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        let Labels::Classes(label) = &batch.labels else { break };
        tape.begin(Rng::new(0), 0);
        let images = batch.images.to_device(&context.device)?;
        let outputs = network.model.forward(&images, &mut tape)?;
        let logits = outputs.logits()?.clone();
        let predicted = logits.argmax(D::Minus1)?.to_vec1::<u32>()?[0];
        let exp = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?.detach();
        let probability = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        let probability = probability.to_vec2::<f32>()?[0][predicted as usize];
        let gradients = tape.backward(&logits.narrow(1, predicted as usize, 1)?.sum_all()?)?;
        let (_, _, size, _) = batch.images.dims4()?;
        let mut maps = Vec::new();
        for feature in features {
            let Some(gradient) = gradients.feature(feature) else {
                let reason = format!("`{}` has no gradient at `{feature}`", info.run.student.model);
                return Err(Error::folder(folder, reason));
            };
            maps.push(((*feature).to_string(), activation_map(outputs.get(feature)?, gradient, size)?));
        }
        all.push(GradCam {
            id: batch.ids[0],
            label: label.to_vec1::<u32>()?[0],
            predicted,
            probability,
            size,
            image: denormalize(&batch.images, &info)?,
            maps,
        });
    }
    Ok((info, all))
}

/// Returns the class activation map of a feature map `[1, C, h, w]` and its gradient, `size * size` values.
fn activation_map(map: &Tensor, gradient: &Tensor, size: usize) -> Result<Vec<f32>> {
    let weights = gradient.mean_keepdim((2, 3))?; // [1, C, 1, 1]
    let map = map.detach().broadcast_mul(&weights)?.sum_keepdim(1)?.relu()?;
    let map = resize_bilinear(&map, (size, size), false)?.flatten_all()?.to_vec1::<f32>()?;
    let max = map.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    Ok(map.iter().map(|v| v / max).collect())
}
