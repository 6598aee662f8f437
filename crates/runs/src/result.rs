//! `result.json`: what a finished run measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Role;

/// Newest version of `result.json` that can be read.
pub(crate) const FORMAT: u32 = 1;

/// `result.json`. It is written last: its presence marks a finished run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Version of the file format.
    pub format: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// Profile of the experiment.
    pub profile: String,
    /// Name of the cell.
    pub cell: String,
    /// Hash of the resolved configuration and the data's fingerprint.
    pub hash: String,
    /// Teacher or student.
    pub role: Role,
    /// Method of the table row (`baseline`, `kd`); `teacher` for a teacher.
    pub method: String,
    /// Registry id of the trained network.
    pub student: String,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: u32,
    /// Seed.
    pub seed: u64,
    /// Test images classified correctly after the last epoch; none for label masks.
    pub correct: Option<u64>,
    /// Test images.
    pub total: u64,
    /// Scores of the metrics after the last epoch; null where a score is undefined.
    pub scores: BTreeMap<String, Option<f64>>,
    /// Best test accuracy of all tested epochs, for comparison with the last epoch only.
    pub best: Option<Best>,
    /// Mean of each loss term over the last epoch, unweighted.
    pub terms: BTreeMap<String, f64>,
    /// Weights of the terms in the last epoch.
    pub weights: BTreeMap<String, f64>,
    /// Epochs trained.
    pub epochs: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Time spent.
    pub seconds: Seconds,
    /// Parameters of the trained network, without connectors.
    pub parameters: u64,
    /// Multiply-accumulates per image.
    pub macs: u64,
    /// Inference speed of the trained network; none for label masks.
    pub speed: Option<Speed>,
    /// SHA-256 of `student.safetensors`.
    pub student_sha256: String,
    /// Data, recipe and machine of the run.
    pub summary: RunSummary,
}

/// The best tested epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Best {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Test images classified correctly.
    pub correct: u64,
}

/// Time spent in seconds, summed over interruptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Training, loading included.
    pub train: f64,
    /// Testing.
    pub test: f64,
}

/// Inference speed on the machine and threads of the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Latency of a single image in milliseconds, median of several passes.
    pub latency_ms: f64,
    /// Throughput in batches of 32.
    pub images_per_second: f64,
}

/// Data, recipe and machine of a run, as a table's caption states them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Registry id of the dataset.
    pub dataset: String,
    /// Title of the dataset.
    pub title: String,
    /// Whether the images are procedural.
    pub synthetic: bool,
    /// Fingerprint of the dataset.
    pub fingerprint: String,
    /// Classes.
    pub classes: usize,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// Height of the training images in pixels; the width too unless `image_width` is set.
    pub image_size: usize,
    /// Width of the training images, if they are not square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Epochs.
    pub epochs: u64,
    /// Optimizer, learning rate and schedule as text.
    pub schedule: String,
    /// Batches as text: `8 classes x 8 images`, `64 images, shuffled`.
    pub sampler: String,
    /// `cpu` or `cuda`, with the precision unless it is f32. Lists every device of a run that was continued
    /// on another: `cuda, bf16; then cuda`.
    pub device: String,
    /// Initial weights: `scratch`, or the name of pretrained weights.
    pub init: String,
    /// The teacher, if there is one.
    pub teacher: Option<TeacherSummary>,
    /// Version of the program.
    pub version: String,
    /// Revision of the program, processor, threads and more.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// The teacher of a student.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TeacherSummary {
    /// Registry id of the network.
    pub model: String,
    /// Its cell: the name of its folder below the folder of teachers.
    pub cell: String,
    /// Initial weights: `scratch`, or the name of pretrained weights.
    pub init: String,
    /// Epochs.
    pub epochs: u64,
    /// Test images classified correctly; none for label masks.
    pub correct: Option<u64>,
    /// Test images.
    pub total: u64,
    /// Scores of the metrics; null where a score is undefined.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Option<f64>>,
}

/// The quantity that a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum Measure {
    /// Percentage of test images classified correctly.
    #[default]
    #[serde(rename = "accuracy")]
    Accuracy,
    /// Mean intersection over union of label masks, from one confusion matrix over all pixels of the test
    /// images.
    #[serde(rename = "mean IoU")]
    MeanIou,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accuracy => "accuracy",
            Self::MeanIou => "mean IoU",
        })
    }
}

impl CellResult {
    /// Newest format version.
    pub const FORMAT: u32 = FORMAT;

    /// Returns the fraction of test images classified correctly, in [0, 1]; none for label masks.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.total.max(1) as f64)
    }

    /// Returns the quantity that [`Self::percent`] measures.
    pub fn measure(&self) -> Measure {
        if self.correct.is_some() { Measure::Accuracy } else { Measure::MeanIou }
    }

    /// Returns the accuracy, or for label masks the mean IoU, in percent; none if neither was measured.
    pub fn percent(&self) -> Option<f64> {
        percent(self.correct, self.total, &self.scores)
    }

    /// Returns the IoU of each class in percent; none for a class absent from truth and prediction. Empty
    /// without a segmentation metric.
    pub fn class_iou(&self) -> Vec<Option<f64>> {
        let scores = (0..).map_while(|class| self.scores.get(&format!("iou.{class}")));
        scores.map(|score| score.map(|v| 100.0 * v)).collect()
    }
}

impl TeacherSummary {
    /// Returns the accuracy, or for label masks the mean IoU, in percent; none if neither was measured.
    pub fn percent(&self) -> Option<f64> {
        percent(self.correct, self.total, &self.scores)
    }
}

impl RunSummary {
    /// Returns the size of the training images: `64`, or `512x1024` if they are not square.
    pub fn size(&self) -> String {
        format_size(self.image_size, self.image_width)
    }
}

fn percent(correct: Option<u64>, total: u64, scores: &BTreeMap<String, Option<f64>>) -> Option<f64> {
    match correct {
        Some(correct) => Some(100.0 * correct as f64 / total.max(1) as f64),
        None => mean_iou(scores),
    }
}

/// Formats a size in pixels: `64`, or `512x1024` (rows and columns) if they differ.
pub fn format_size(height: usize, width: Option<usize>) -> String {
    match width {
        Some(width) if width != height => format!("{height}x{width}"),
        _ => height.to_string(),
    }
}

/// Returns the mean IoU in percent among the scores of a segmentation test.
pub fn mean_iou(scores: &BTreeMap<String, Option<f64>>) -> Option<f64> {
    scores.get("miou").copied().flatten().map(|v| 100.0 * v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_accuracy_or_mean_iou() {
        let classified = CellResult { correct: Some(3), total: 4, ..Default::default() };
        assert_eq!((classified.percent(), classified.measure()), (Some(75.0), Measure::Accuracy));
        let mut masks = CellResult { total: 4, ..Default::default() };
        assert_eq!(masks.percent(), None);
        for (name, value) in
            [("miou", Some(0.5)), ("iou.0", Some(1.0)), ("iou.1", None), ("iou.2", Some(0.25))]
        {
            masks.scores.insert(name.into(), value);
        }
        assert_eq!((masks.percent(), masks.measure()), (Some(50.0), Measure::MeanIou));
        assert_eq!(masks.class_iou(), [Some(100.0), None, Some(25.0)]);
    }
}
