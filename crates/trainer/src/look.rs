//! Looking into a trained network: its features of test images, and what moves it (Grad-CAM).

use std::path::Path;

use candle_core::{D, Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::{BatchSource, Labels, LoaderSpec, Sampler};
use stillhouse_ops::graph::resize_bilinear;
use stillhouse_ops::{Mode, Tape};

use crate::dense::label_map;
use crate::plan::open_dataset;
use crate::{Context, Error, Network, Result, RunInfo, open_run};

/// Features of some test images of a run.
#[derive(Debug, Clone)]
pub struct Looked {
    /// What the run says about itself.
    pub info: RunInfo,
    /// Dataset indices of the images.
    pub ids: Vec<u64>,
    /// True classes.
    pub labels: Vec<u32>,
    /// The tap that was asked for, `[n, D]`, row by row.
    pub features: Vec<Vec<f32>>,
}

/// One test image and where it moved the network.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Dataset index.
    pub id: u64,
    /// True class.
    pub label: u32,
    /// Predicted class.
    pub predicted: u32,
    /// Its probability.
    pub probability: f32,
    /// Side of image and map in pixels.
    pub size: usize,
    /// The image as the network sees it, R, G, B from 0 to 1, `size * size * 3` values.
    pub image: Vec<f32>,
    /// Grad-CAM at each tap by its name, from 0 to 1, `size * size` values.
    pub maps: Vec<(String, Vec<f32>)>,
}

/// The test images of a run in batches, at most `most` of them, evenly spread over the list.
fn some_test_images(
    folder: &Path,
    most: usize,
    batch: usize,
    context: &Context,
) -> Result<(RunInfo, Network, Box<dyn BatchSource>)> {
    let (info, network) = open_run(folder, context)?;
    let dataset = open_dataset(context, &info.run.data)?;
    if dataset.fingerprint()? != info.fingerprint {
        return Err(Error::folder(folder, "was trained on other files than are there now"));
    }
    let split = (context.registries.split)(dataset.as_ref(), &info.run.data.split_spec(info.run.train.seed))?;
    let (all, take) = (split.test.len(), split.test.len().min(most));
    let spec = LoaderSpec {
        indices: (0..take).map(|i| split.test[i * all / take.max(1)]).collect(),
        sampler: Sampler::Sequential { batch },
        transforms: info.run.data.normalized(&info.run.data.test_transforms),
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let loader = (context.registries.loader)(dataset, &spec)?;
    Ok((info, network, loader))
}

/// A vector tap (`pooled`) of at most `most` test images of a finished run.
pub fn features(folder: &Path, tap: &str, most: usize, context: &Context) -> Result<Looked> {
    let (info, network, mut loader) = some_test_images(folder, most, 32, context)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&[tap]);
    let mut looked = Looked { info, ids: Vec::new(), labels: Vec::new(), features: Vec::new() };
    while let Some(batch) = loader.next_batch()? {
        if context.stopped() {
            return Err(Error::Interrupted { step: 0, folder: folder.to_path_buf() });
        }
        tape.begin(Rng::new(0), 0);
        let found = network.model.forward(&batch.images.to_device(&context.device)?, &mut tape)?;
        looked.features.extend(found.get(tap)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?);
        looked.labels.extend(batch.labels.classes("features")?.to_vec1::<u32>()?);
        looked.ids.extend(batch.ids);
    }
    Ok(looked)
}

/// The maps at which Grad-CAM is shown: of a network with exits those of the last three stages.
fn cam_taps(network: &Network) -> &'static [&'static str] {
    let exits = network.model.features().iter().any(|tap| tap.name.starts_with("exit"));
    if exits { &["F2", "F3", "F4"] } else { &["F4"] }
}

/// Grad-CAM (Selvaraju et al. 2017) of at most `most` test images of a finished run, at the last map
/// `F4` and, where the network has exits, at those of the two stages before:
/// `relu(sum over channels of (mean gradient of the predicted class's last logit) x map)`, brought to
/// the size of the image and divided by its largest value.
pub fn grad_cam(folder: &Path, most: usize, context: &Context) -> Result<(RunInfo, Vec<Seen>)> {
    let (info, network, mut loader) = some_test_images(folder, most, 1, context)?;
    let mut tape = Tape::new(&network.params, Mode::EvalWithGrad)?;
    let taps = cam_taps(&network);
    tape.select_features(&[taps, &["logits"]].concat());
    let mut all = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        let Labels::Classes(label) = &batch.labels else { break };
        tape.begin(Rng::new(0), 0);
        let images = batch.images.to_device(&context.device)?;
        let found = network.model.forward(&images, &mut tape)?;
        let logits = found.logits()?.clone();
        let predicted = logits.argmax(D::Minus1)?.to_vec1::<u32>()?[0];
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?.detach();
        let probability = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
        let probability = probability.to_vec2::<f32>()?[0][predicted as usize];
        let gradients = tape.backward(&logits.narrow(1, predicted as usize, 1)?.sum_all()?)?;
        let (_, _, size, _) = batch.images.dims4()?;
        let mut maps = Vec::new();
        for tap in taps {
            let Some(gradient) = gradients.feature(tap) else {
                let what = format!("`{}` has no gradient at {tap}", info.run.student.model);
                return Err(Error::folder(folder, what));
            };
            maps.push(((*tap).to_string(), cam(found.get(tap)?, gradient, size)?));
        }
        all.push(Seen {
            id: batch.ids[0],
            label: label.to_vec1::<u32>()?[0],
            predicted,
            probability,
            size,
            image: picture(&batch.images, &info)?,
            maps,
        });
    }
    Ok((info, all))
}

/// One test image with its masks.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// Dataset index.
    pub id: u64,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The image as the network sees it, R, G, B from 0 to 1, `height * width * 3` values.
    pub image: Vec<f32>,
    /// True classes, 255 is "ignore".
    pub truth: Vec<u8>,
    /// Predicted classes.
    pub predicted: Vec<u8>,
}

/// What a finished run makes of at most `most` of its test images, whole ones.
///
/// # Errors
/// A dataset with one class per image; other files than it was trained on; those of the network.
pub fn label_maps(folder: &Path, most: usize, context: &Context) -> Result<(RunInfo, Vec<Mapped>)> {
    let (info, network, mut loader) = some_test_images(folder, most, 1, context)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&["logits"]);
    let mut all = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        if context.stopped() {
            return Err(Error::Interrupted { step: 0, folder: folder.to_path_buf() });
        }
        let truth = batch.labels.mask("label maps")?.flatten_all()?.to_vec1::<u32>()?;
        let (_, _, height, width) = batch.images.dims4()?;
        all.push(Mapped {
            id: batch.ids[0],
            width,
            height,
            truth: truth.iter().map(|label| u8::try_from(*label).unwrap_or(u8::MAX)).collect(),
            predicted: label_map(&network, &mut tape, &batch.images.to_device(&context.device)?)?,
            image: picture(&batch.images, &info)?,
        });
    }
    Ok((info, all))
}

/// Grad-CAM of a map `[1, C, h, w]` with its gradient, on a square of that side.
fn cam(map: &Tensor, gradient: &Tensor, size: usize) -> Result<Vec<f32>> {
    let weights = gradient.mean_keepdim((2, 3))?; // [1, C, 1, 1]
    let map = map.detach().broadcast_mul(&weights)?.sum_keepdim(1)?.relu()?;
    let map = resize_bilinear(&map, (size, size), false)?.flatten_all()?.to_vec1::<f32>()?;
    let largest = map.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    Ok(map.iter().map(|v| v / largest).collect())
}

/// The normalized image back in 0 to 1, interleaved.
fn picture(images: &Tensor, info: &RunInfo) -> Result<Vec<f32>> {
    let values = images.squeeze(0)?.permute((1, 2, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
    let (mean, std) = (info.run.data.mean, info.run.data.std);
    Ok(values.iter().enumerate().map(|(i, v)| (v * std[i % 3] + mean[i % 3]).clamp(0.0, 1.0)).collect())
}
