//! A network on a list of images.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::{Batch, BatchSource, Dataset, Labels, LoaderSpec, Sampler, Split, Task};
use stillhouse_core::metric::{Metric, Score};
use stillhouse_core::model::Features;
use stillhouse_ops::{Mode, Tape};
use stillhouse_runs::Predictions;

use crate::config::{CellConfig, View};
use crate::plan::open_dataset;
use crate::{Context, Error, Network, Result, RunInfo, dense, open_run};

/// What a network makes of the test images.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Images.
    pub total: u64,
    /// Images classified correctly; none for label masks.
    pub correct: Option<u64>,
    /// Figures of the metrics.
    pub scores: Vec<Score>,
    /// `[n, classes]`; none for label masks.
    pub logits: Option<Tensor>,
    /// Classes `[n]`; none for label masks.
    pub labels: Option<Tensor>,
    /// Dataset indices of the images.
    pub ids: Vec<u64>,
}

impl Evaluation {
    /// Writes logits, labels and dataset indices.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        Predictions::write(path, &self.ids, self.logits.as_ref(), self.labels.as_ref())?;
        Ok(())
    }

    pub(crate) fn score_map(&self) -> BTreeMap<String, Option<f64>> {
        let finite = |s: &Score| (s.name.clone(), Some(s.value).filter(|v| v.is_finite()));
        self.scores.iter().map(finite).collect()
    }
}

/// Tests a finished run again, on its own test images and with its own transforms. Without names of
/// metrics, all are counted that count its labels. `progress` is told images done and in all.
///
/// The dataset must be the one that it was trained on: another fingerprint is an error.
pub fn evaluate(
    folder: &Path,
    metrics: &[String],
    context: &Context,
    mut progress: impl FnMut(u64, u64),
) -> Result<(RunInfo, Evaluation)> {
    let (info, network) = open_run(folder, context)?;
    let dataset = open_dataset(context, &info.run.data)?;
    let fingerprint = dataset.fingerprint()?;
    if fingerprint != info.fingerprint {
        let what = format!(
            "was trained on `{}` with fingerprint {}, found {fingerprint}: its files have changed",
            info.run.data.dataset, info.fingerprint
        );
        return Err(Error::folder(folder, what));
    }
    let split = (context.registries.split)(dataset.as_ref(), &info.run.data.split_spec(info.run.train.seed))?;
    let mut loader = test_loader(context, dataset.clone(), &split, &info.run)?;
    let total = split.test.len();
    let task = dataset.info().task;
    let metrics = match metrics {
        [] => suitable(context, network.model.classes(), task),
        names => named(names, context, network.model.classes(), task)?,
    };
    let asked = Asked { metrics, taps: &info.run.eval.taps, views: &info.run.eval.views };
    asked.check(&network, task)?;
    let evaluation = test(&network, loader.as_mut(), asked, total, context, &mut progress).map_err(|e| {
        if e.is_interrupted() { Error::Interrupted { step: 0, folder: folder.to_path_buf() } } else { e }
    })?;
    Ok((info, evaluation))
}

/// The loader of the test images.
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

/// All of it where metrics count; on the CPU nothing is copied.
fn on_host(features: Features) -> Result<Features> {
    let all = features.iter().map(|(name, t)| Ok((name.to_string(), t.to_device(&Device::Cpu)?)));
    all.collect::<Result<Features>>()
}

/// The batch on the device of the run.
pub(crate) fn to_device(batch: Batch, device: &Device) -> Result<Batch> {
    let labels = batch.labels.to_device(device)?;
    Ok(Batch { images: batch.images.to_device(device)?, labels, ids: batch.ids })
}

/// How many of the batch are classified right; none for label masks.
fn count_right(logits: &Tensor, labels: &Labels) -> Result<Option<u64>> {
    let count = right(logits, labels)?.map(|count| count.to_scalar::<f64>()).transpose()?;
    Ok(count.map(|count| count as u64))
}

/// The same as an f64 scalar where the logits are; on a card nothing waits for it.
pub(crate) fn right(logits: &Tensor, labels: &Labels) -> Result<Option<Tensor>> {
    let Labels::Classes(classes) = labels else { return Ok(None) };
    let right = logits.detach().argmax(D::Minus1)?.eq(classes)?;
    Ok(Some(right.to_dtype(DType::F64)?.sum_all()?))
}

/// All metrics that count such labels.
fn suitable(context: &Context, classes: usize, task: Task) -> Vec<Box<dyn Metric>> {
    let all = context.registries.metrics.entries().iter().map(|row| (row.build)(classes));
    all.filter(|metric| metric.supports(task)).collect()
}

/// The metrics of those names; one that does not count such labels is refused.
pub(crate) fn named(
    names: &[String],
    context: &Context,
    classes: usize,
    task: Task,
) -> Result<Vec<Box<dyn Metric>>> {
    let mut found = Vec::new();
    for name in names {
        let metric = (context.registries.metrics.get(name)?.build)(classes);
        if !metric.supports(task) {
            let labels = match task {
                Task::Classification => "one class per image",
                Task::Segmentation => "label masks",
            };
            let others = suitable(context, classes, task);
            let others: Vec<&str> = others.iter().map(|m| m.name()).collect();
            let what = format!(
                "metric `{name}` does not count {labels}, which this dataset has; take: {}",
                others.join(", ")
            );
            return Err(Error::config("eval.metrics", what));
        }
        found.push(metric);
    }
    Ok(found)
}

/// What a test is to count.
pub(crate) struct Asked<'a> {
    pub(crate) metrics: Vec<Box<dyn Metric>>,
    /// Further logits.
    pub(crate) taps: &'a [String],
    /// Further views of the images.
    pub(crate) views: &'a [View],
}

impl Asked<'_> {
    /// Refuses taps that the network does not have or that are no logits, and either for label masks.
    pub(crate) fn check(&self, network: &Network, task: Task) -> Result<()> {
        if task == Task::Segmentation && !(self.taps.is_empty() && self.views.is_empty()) {
            let what = "`taps` and `views` count images classified right, but this dataset has label masks";
            return Err(Error::config("eval", what));
        }
        let (classes, all) = (network.model.classes(), network.model.features());
        let logits =
            |name: &str| all.iter().any(|t| t.name == name && t.stride == 0 && t.channels == classes);
        if let Some(tap) = self.taps.iter().find(|tap| !logits(tap)) {
            let known: Vec<&str> = all.iter().map(|t| t.name.as_str()).filter(|name| logits(name)).collect();
            let what = format!(
                "`{tap}` is not among the logits of `{}`; there are: {}",
                network.model.name(),
                known.join(", ")
            );
            return Err(Error::config("eval.taps", what));
        }
        Ok(())
    }
}

/// `exit3.accuracy` for `exit3.logits`.
fn accuracy_of(tap: &str) -> String {
    format!("{}.accuracy", tap.trim_end_matches(".logits"))
}

/// Runs the network in evaluation mode over one epoch of the loader, and over one more for every view.
/// Maps of logits are brought to the size of the masks (bilinear, half-pixel centers); label masks are
/// tested whole and in bounded memory, see [`crate::dense`]. If it is asked to stop, the caller puts
/// step and folder into the error.
pub(crate) fn test(
    network: &Network,
    loader: &mut dyn BatchSource,
    asked: Asked,
    total: usize,
    context: &Context,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Evaluation> {
    let mut tape = Tape::new(&network.params, Mode::Eval)?;
    let taps = asked.taps;
    tape.select_features(
        &std::iter::once("logits").chain(taps.iter().map(String::as_str)).collect::<Vec<_>>(),
    );
    let (mut logits, mut labels, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let (mut metrics, mut right, mut of_taps) = (asked.metrics, Some(0), vec![0; taps.len()]);
    let all = (total * (1 + asked.views.len())) as u64;
    let mut run = |at: usize, view: Option<View>, seen: &mut dyn FnMut(&mut Tape, Batch) -> Result<()>| {
        loader.seek(Default::default())?;
        let mut done = 0;
        while let Some(batch) = loader.next_batch()? {
            // Labels stay on the host, where the metrics count.
            let batch = Batch { images: batch.images.to_device(&context.device)?, ..batch };
            if context.stopped() {
                return Err(Error::Interrupted { step: 0, folder: Default::default() });
            }
            done += batch.ids.len();
            seen(&mut tape, Batch { images: seen_as(view, &batch.images)?, ..batch })?;
            progress((at * total + done) as u64, all);
        }
        if done != total {
            let what = format!("the loader gave {done} of {total} test images");
            return Err(stillhouse_core::Error::incompatible("evaluation", what).into());
        }
        Ok(())
    };
    let look = |tape: &mut Tape, images: &Tensor| -> Result<Features> {
        tape.begin(Rng::new(0), 0);
        on_host(network.model.forward(images, tape)?)
    };
    run(0, None, &mut |tape, batch| {
        match &batch.labels {
            Labels::Classes(classes) => {
                let features = look(tape, &batch.images)?;
                right = right.zip(count_right(features.logits()?, &batch.labels)?).map(|(a, b)| a + b);
                count_taps(&features, &batch.labels, taps, &mut of_taps)?;
                for metric in &mut metrics {
                    metric.update(features.logits()?, &batch.labels)?;
                }
                // Copied: the tape uses the memory of its outputs again.
                logits.push(features.logits()?.copy()?);
                labels.push(classes.clone());
            }
            Labels::Mask(mask) => {
                right = None;
                let (_, _, h, w) = batch.images.dims4()?;
                if mask.dims() != [batch.ids.len(), h, w] {
                    let what = format!("masks {:?} beside images of {h} x {w}", mask.dims());
                    return Err(stillhouse_core::Error::incompatible("evaluation", what).into());
                }
                dense::logits_by_part(network, tape, &batch.images, |images, tile, logits| {
                    let own = mask.narrow(0, images.start, images.len())?;
                    let labels = Labels::Mask(dense::part(&own, &tile.taken)?.contiguous()?);
                    let logits = logits.to_device(&Device::Cpu)?;
                    metrics.iter_mut().try_for_each(|metric| Ok(metric.update(&logits, &labels)?))
                })?;
            }
        }
        ids.extend(batch.ids);
        Ok(())
    })?;
    let mut scores: Vec<Score> = metrics.iter().flat_map(|m| m.scores()).collect();
    let mut tell = |name: String, right: u64| {
        scores.push(Score { name, value: right as f64 / (total as f64).max(1.0) });
    };
    for (tap, right) in taps.iter().zip(&of_taps) {
        tell(accuracy_of(tap), *right);
    }
    for (i, view) in asked.views.iter().enumerate() {
        let (mut right, mut of_taps) = (0, vec![0; taps.len()]);
        run(i + 1, Some(*view), &mut |tape, batch| {
            let features = look(tape, &batch.images)?;
            right += count_right(features.logits()?, &batch.labels)?.unwrap_or(0);
            count_taps(&features, &batch.labels, taps, &mut of_taps)
        })?;
        tell(format!("{}.accuracy", view.name()), right);
        for (tap, right) in taps.iter().zip(&of_taps) {
            tell(format!("{}.{}", view.name(), accuracy_of(tap)), *right);
        }
    }
    let cat = |all: &[Tensor]| if all.is_empty() { Ok(None) } else { Tensor::cat(all, 0).map(Some) };
    Ok(Evaluation { total: total as u64, correct: right, scores, logits: cat(&logits)?, labels: cat(&labels)?, ids })
}

/// The images `[B, C, H, W]` of a view.
fn seen_as(view: Option<View>, images: &Tensor) -> Result<Tensor> {
    Ok(match view {
        None => images.clone(),
        Some(View::Hflip) => images.flip(&[3])?,
        Some(View::Vflip) => images.flip(&[2])?,
    })
}

/// Adds how many of the batch are classified right by each tap.
fn count_taps(features: &Features, labels: &Labels, taps: &[String], sums: &mut [u64]) -> Result<()> {
    for (tap, sum) in taps.iter().zip(sums) {
        *sum += count_right(features.get(tap)?, labels)?.unwrap_or(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_turn_the_right_axis() {
        let image = Tensor::new(&[[[[1f32, 2.], [3., 4.]]]], &Device::Cpu).unwrap();
        let seen = |view| seen_as(view, &image).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(seen(None), [1., 2., 3., 4.]);
        assert_eq!(seen(Some(View::Hflip)), [2., 1., 4., 3.]);
        assert_eq!(seen(Some(View::Vflip)), [3., 4., 1., 2.]);
    }
}
