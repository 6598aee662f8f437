//! Evaluation of a network on the test images of a run.

pub(crate) mod latency;
pub(crate) mod tiled_inference;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::{Batch, BatchSource, Dataset, Labels, LoaderSpec, Sampler, Split, Task};
use stillhouse_core::metric::{Metric, Score};
use stillhouse_core::model::Features;
use stillhouse_ops::{Mode, Tape};
use toml::Table;

use crate::experiment::{CellConfig, View};
use crate::plan::open_dataset;
use crate::{Context, Error, Network, Result, RunInfo, open_run};

/// Scores and outputs of a network on the test images.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Images.
    pub total: u64,
    /// Images classified correctly; none for label masks.
    pub correct: Option<u64>,
    /// Scores of the metrics.
    pub scores: Vec<Score>,
    /// `[n, classes]`; none for label masks.
    pub logits: Option<Tensor>,
    /// Classes `[n]`; none for label masks.
    pub labels: Option<Tensor>,
    /// Dataset indices of the images.
    pub ids: Vec<u64>,
}

impl Evaluation {
    /// Returns the scores by name; `None` where a score is undefined.
    pub(crate) fn score_map(&self) -> BTreeMap<String, Option<f64>> {
        let finite = |s: &Score| (s.name.clone(), Some(s.value).filter(|v| v.is_finite()));
        self.scores.iter().map(finite).collect()
    }
}

/// Tests a finished run again on its own test images and transforms. `overrides` replaces settings of `data`
/// and `eval`, such as the path of moved images; without names of metrics, all that support the labels are
/// used. `progress` receives the images done and in total.
///
/// # Errors
/// If the dataset has changed since the training: its fingerprint differs.
pub fn evaluate(
    folder: &Path,
    metrics: &[String],
    overrides: &Table,
    context: &Context,
    mut progress: impl FnMut(u64, u64),
) -> Result<(RunInfo, Evaluation)> {
    let (mut info, network) = open_run(folder, context)?;
    info.run = info.run.with_overrides(overrides)?;
    let (dataset, split) = open_trained_data(folder, &info, context)?;
    let mut loader = test_loader(context, dataset.clone(), &split, &info.run)?;
    let total = split.test.len();
    let task = dataset.info().task;
    let metrics = match metrics {
        [] => supporting_metrics(context, network.model.classes(), task),
        names => build_metrics(names, context, network.model.classes(), task)?,
    };
    let request = EvalRequest { metrics, features: &info.run.eval.features, views: &info.run.eval.views };
    request.check(&network, task)?;
    let evaluation = test(&network, loader.as_mut(), request, total, context, &mut progress)
        .map_err(|e| e.interrupted_in(folder))?;
    Ok((info, evaluation))
}

/// Opens the dataset and the split of a run.
///
/// # Errors
/// If the dataset's fingerprint differs from that of the run.
pub(crate) fn open_trained_data(
    folder: &Path,
    info: &RunInfo,
    context: &Context,
) -> Result<(Arc<dyn Dataset>, Split)> {
    let dataset = open_dataset(context, &info.run.data)?;
    let fingerprint = dataset.fingerprint()?;
    if fingerprint != info.fingerprint {
        let reason = format!(
            "the files of `{}` have changed since the training: expected fingerprint {}, found {fingerprint}",
            info.run.data.dataset, info.fingerprint
        );
        return Err(Error::folder(folder, reason));
    }
    let split = (context.registries.split)(dataset.as_ref(), &info.run.data.split_spec(info.run.train.seed))?;
    Ok((dataset, split))
}

/// Builds the loader of the test images.
pub(crate) fn test_loader(
    context: &Context,
    dataset: Arc<dyn Dataset>,
    split: &Split,
    config: &CellConfig,
) -> Result<Box<dyn BatchSource>> {
    let spec = LoaderSpec {
        indices: split.test.clone(),
        sampler: Sampler::Sequential { batch: config.eval.batch },
        transforms: config.data.normalized(&config.data.test_transforms),
        rng: Rng::new(config.train.seed).stream("test"),
        cache_bytes: config.data.cache_mib << 20,
    };
    Ok((context.registries.loader)(dataset, &spec)?)
}

/// Moves features to host memory, where the metrics run.
fn to_host(features: Features) -> Result<Features> {
    let all = features.iter().map(|(name, t)| Ok((name.to_string(), t.to_device(&Device::Cpu)?)));
    all.collect::<Result<Features>>()
}

/// Moves a batch to a device.
pub(crate) fn to_device(batch: Batch, device: &Device) -> Result<Batch> {
    let labels = batch.labels.to_device(device)?;
    Ok(Batch { images: batch.images.to_device(device)?, labels, ids: batch.ids, views: batch.views })
}

/// Counts the correctly classified images of a batch, as an f64 scalar on the device of the logits. `None`
/// for label masks.
pub(crate) fn correct_count(logits: &Tensor, labels: &Labels) -> Result<Option<Tensor>> {
    let Labels::Classes(classes) = labels else { return Ok(None) };
    let correct = logits.detach().argmax(D::Minus1)?.eq(classes)?;
    Ok(Some(correct.to_dtype(DType::F64)?.sum_all()?))
}

fn count_correct(logits: &Tensor, labels: &Labels) -> Result<Option<u64>> {
    let count = correct_count(logits, labels)?.map(|count| count.to_scalar::<f64>()).transpose()?;
    Ok(count.map(|count| count as u64))
}

/// Adds the correctly classified images of a batch for each of several logits.
fn count_features(features: &Features, labels: &Labels, names: &[String], sums: &mut [u64]) -> Result<()> {
    for (name, sum) in names.iter().zip(sums) {
        *sum += count_correct(features.get(name)?, labels)?.unwrap_or(0);
    }
    Ok(())
}

/// Builds all metrics that support a kind of labels.
fn supporting_metrics(context: &Context, classes: usize, task: Task) -> Vec<Box<dyn Metric>> {
    let all = context.registries.metrics.entries().iter().map(|entry| (entry.build)(classes));
    all.filter(|metric| metric.supports(task)).collect()
}

/// Builds metrics by name.
///
/// # Errors
/// If a metric does not support the labels.
pub(crate) fn build_metrics(
    names: &[String],
    context: &Context,
    classes: usize,
    task: Task,
) -> Result<Vec<Box<dyn Metric>>> {
    let mut metrics = Vec::new();
    for name in names {
        let metric = (context.registries.metrics.get(name)?.build)(classes);
        if !metric.supports(task) {
            let labels = match task {
                Task::Classification => "one class per image",
                Task::Segmentation => "label masks",
            };
            let others = supporting_metrics(context, classes, task);
            let others: Vec<&str> = others.iter().map(|m| m.name()).collect();
            let message =
                format!("metric `{name}` does not support {labels}: expected one of {}", others.join(", "));
            return Err(Error::config("eval.metrics", message));
        }
        metrics.push(metric);
    }
    Ok(metrics)
}

/// Contents of a test.
pub(crate) struct EvalRequest<'a> {
    pub(crate) metrics: Vec<Box<dyn Metric>>,
    /// Further logits to test.
    pub(crate) features: &'a [String],
    /// Views of the images to test in addition.
    pub(crate) views: &'a [View],
}

impl EvalRequest<'_> {
    /// Checks that all features are logits of the network, and that label masks have neither features nor
    /// views.
    pub(crate) fn check(&self, network: &Network, task: Task) -> Result<()> {
        if task == Task::Segmentation && !(self.features.is_empty() && self.views.is_empty()) {
            let message = "`features` and `views` require one class per image; this dataset has label masks";
            return Err(Error::config("eval", message));
        }
        let (classes, all) = (network.model.classes(), network.model.features());
        let is_logits =
            |name: &str| all.iter().any(|t| t.name == name && t.stride == 0 && t.channels == classes);
        if let Some(name) = self.features.iter().find(|name| !is_logits(name)) {
            let known: Vec<&str> =
                all.iter().map(|t| t.name.as_str()).filter(|name| is_logits(name)).collect();
            let message = format!(
                "invalid feature for `{}`: expected logits ({}), found `{name}`",
                network.model.name(),
                known.join(", ")
            );
            return Err(Error::config("eval.features", message));
        }
        Ok(())
    }
}

/// Returns the score of a feature: `exit3.accuracy` for `exit3.logits`.
fn accuracy_name(feature: &str) -> String {
    format!("{}.accuracy", feature.trim_end_matches(".logits"))
}

/// Runs the network in evaluation mode over one epoch of the loader, and over another one for every view.
///
/// Label masks are tested at their full size in bounded memory, see [`tiled_inference`]; logits are resized
/// to the masks (bilinear, half-pixel centers).
///
/// # Errors
/// [`Error::Interrupted`] without folder if the run is stopped.
pub(crate) fn test(
    network: &Network,
    loader: &mut dyn BatchSource,
    request: EvalRequest,
    total: usize,
    context: &Context,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Evaluation> {
    let mut tape = Tape::new(&network.params, Mode::Eval)?;
    let names = request.features;
    let selected: Vec<&str> = std::iter::once("logits").chain(names.iter().map(String::as_str)).collect();
    tape.select_features(&selected);
    let (mut logits, mut labels, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let (mut metrics, mut correct, mut correct_by_feature) = (request.metrics, Some(0), vec![0; names.len()]);
    let all = (total * (1 + request.views.len())) as u64;
    let mut run_epoch =
        |epoch: usize, view: Option<View>, visit: &mut dyn FnMut(&mut Tape, Batch) -> Result<()>| {
            loader.seek(Default::default())?;
            let mut done = 0;
            while let Some(batch) = loader.next_batch()? {
                // Labels stay in host memory, where the metrics run.
                let images = apply_view(view, &batch.images.to_device(&context.device)?)?;
                if context.stopped() {
                    return Err(Error::interrupted());
                }
                done += batch.ids.len();
                visit(&mut tape, Batch { images, ..batch })?;
                progress((epoch * total + done) as u64, all);
            }
            if done != total {
                let reason = format!("expected {total} test images, the loader returned {done}");
                return Err(stillhouse_core::Error::incompatible("evaluation", reason).into());
            }
            Ok(())
        };
    let forward = |tape: &mut Tape, images: &Tensor| -> Result<Features> {
        tape.begin(Rng::new(0), 0);
        to_host(network.model.forward(images, tape)?)
    };
    run_epoch(0, None, &mut |tape, batch| {
        match &batch.labels {
            Labels::Classes(classes) => {
                let features = forward(tape, &batch.images)?;
                let count = count_correct(features.logits()?, &batch.labels)?;
                correct = correct.zip(count).map(|(a, b)| a + b);
                count_features(&features, &batch.labels, names, &mut correct_by_feature)?;
                for metric in &mut metrics {
                    metric.update(features.logits()?, &batch.labels)?;
                }
                // Copied, because the tape reuses the memory of its outputs.
                logits.push(features.logits()?.copy()?);
                labels.push(classes.clone());
            }
            Labels::Mask(mask) => {
                correct = None;
                let (_, _, h, w) = batch.images.dims4()?;
                let expected = [batch.ids.len(), h, w];
                if mask.dims() != expected {
                    let reason = format!("masks: expected {expected:?}, found {:?}", mask.dims());
                    return Err(stillhouse_core::Error::incompatible("evaluation", reason).into());
                }
                tiled_inference::for_each_tile(network, tape, &batch.images, |images, tile, logits| {
                    let own = mask.narrow(0, images.start, images.len())?;
                    let labels = tiled_inference::crop(&own, &tile.output)?.contiguous()?;
                    let (labels, logits) = (Labels::Mask(labels), logits.to_device(&Device::Cpu)?);
                    metrics.iter_mut().try_for_each(|metric| Ok(metric.update(&logits, &labels)?))
                })?;
            }
        }
        ids.extend(batch.ids);
        Ok(())
    })?;
    let mut scores: Vec<Score> = metrics.iter().flat_map(|m| m.scores()).collect();
    let mut add_accuracy = |name: String, correct: u64| {
        scores.push(Score { name, value: correct as f64 / (total as f64).max(1.0) });
    };
    for (name, correct) in names.iter().zip(&correct_by_feature) {
        add_accuracy(accuracy_name(name), *correct);
    }
    for (i, view) in request.views.iter().enumerate() {
        let (mut correct, mut correct_by_feature) = (0, vec![0; names.len()]);
        run_epoch(i + 1, Some(*view), &mut |tape, batch| {
            let features = forward(tape, &batch.images)?;
            correct += count_correct(features.logits()?, &batch.labels)?.unwrap_or(0);
            count_features(&features, &batch.labels, names, &mut correct_by_feature)
        })?;
        add_accuracy(format!("{}.accuracy", view.name()), correct);
        for (name, correct) in names.iter().zip(&correct_by_feature) {
            add_accuracy(format!("{}.{}", view.name(), accuracy_name(name)), *correct);
        }
    }
    let cat = |all: &[Tensor]| if all.is_empty() { Ok(None) } else { Tensor::cat(all, 0).map(Some) };
    let (logits, labels) = (cat(&logits)?, cat(&labels)?);
    Ok(Evaluation { total: total as u64, correct, scores, logits, labels, ids })
}

/// Returns images `[B, C, H, W]` as a view of them.
fn apply_view(view: Option<View>, images: &Tensor) -> Result<Tensor> {
    Ok(match view {
        None => images.clone(),
        Some(View::Hflip) => images.flip(&[3])?,
        Some(View::Vflip) => images.flip(&[2])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_flip_the_right_axis() {
        let image = Tensor::new(&[[[[1f32, 2.], [3., 4.]]]], &Device::Cpu).unwrap();
        let flipped =
            |view| apply_view(view, &image).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flipped(None), [1., 2., 3., 4.]);
        assert_eq!(flipped(Some(View::Hflip)), [2., 1., 4., 3.]);
        assert_eq!(flipped(Some(View::Vflip)), [3., 4., 1., 2.]);
    }
}
