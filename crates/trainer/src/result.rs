//! What a finished run says about itself: `result.json` and the lines of `log.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Speed};

/// Version of `result.json`; readers refuse a newer one.
pub const RESULT_FORMAT: u32 = 1;

/// Whether a cell trains a teacher or a student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Fine-tuned with cross-entropy, then frozen for the students.
    Teacher,
    /// A row of the table.
    Student,
}

/// `result.json`: written last, its being there means that the cell is finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// [`RESULT_FORMAT`].
    pub format: u32,
    /// The experiment's name.
    pub experiment: String,
    /// Its profile.
    pub profile: String,
    /// Name of the cell.
    pub cell: String,
    /// Hash of the resolved configuration and the data's fingerprint.
    pub hash: String,
    /// Teacher or student.
    pub role: Role,
    /// Method of the row (`baseline`, `kd`); `teacher` for a teacher.
    pub method: String,
    /// Registry name of the network that was trained.
    pub student: String,
    /// Per cent of the images that trained.
    pub ratio: u32,
    /// Seed.
    pub seed: u64,
    /// Test images that the network of the last epoch classifies right; none for label masks.
    pub right: Option<u64>,
    /// Test images.
    pub tested: u64,
    /// Figures of the metrics after the last epoch; none where a figure is not defined.
    pub scores: BTreeMap<String, Option<f64>>,
    /// The best test accuracy of any tested epoch: only to stand beside the last one.
    pub best: Option<Best>,
    /// Mean of each term over the last epoch.
    pub loss: BTreeMap<String, f64>,
    /// Weights of the terms in force.
    pub weights: BTreeMap<String, f64>,
    /// Epochs trained.
    pub epochs: u64,
    /// Steps trained.
    pub steps: u64,
    /// Time taken.
    pub seconds: Seconds,
    /// Weights of the trained network, connectors not counted.
    pub parameters: u64,
    /// Multiply-accumulates of one image.
    pub macs: u64,
    /// How fast the trained network classifies; none for label masks.
    #[serde(default)]
    pub speed: Option<Speed>,
    /// SHA-256 of `student.safetensors`.
    pub student_sha256: String,
    /// What a caption states.
    pub facts: Facts,
}

/// The best tested epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Best {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Test images right.
    pub right: u64,
}

/// Time taken in seconds, all pieces of an interrupted run together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// In training steps, loading included.
    pub train: f64,
    /// In tests.
    pub test: f64,
}

/// What a table's caption has to state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Registry name of the dataset.
    pub dataset: String,
    /// The dataset in words.
    pub title: String,
    /// Whether its images are procedural, made by the program itself.
    pub synthetic: bool,
    /// Hash of its contents.
    pub fingerprint: String,
    /// Classes.
    pub classes: usize,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// Side of the training images in pixels; rows where `image_width` is given.
    pub image_size: usize,
    /// Columns, where they are no squares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Epochs.
    pub epochs: u64,
    /// Learning rate and schedule in words.
    pub schedule: String,
    /// Batches in words: `8 classes x 8 images`, `64 images, shuffled`.
    pub sampler: String,
    /// `cpu` or `cuda`, with the precision if it is not plain f32; all in turn, where a run was continued
    /// on another: `cuda, bf16; then cuda`.
    pub device: String,
    /// What the network started from: `scratch`, or the weights' name.
    pub init: String,
    /// The teacher, where there is one.
    pub teacher: Option<TeacherFacts>,
    /// Version of the program.
    pub version: String,
    /// Its revision, the processor, threads and the like.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// The teacher of a student in a caption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeacherFacts {
    /// Registry name.
    pub model: String,
    /// Its cell.
    pub cell: String,
    /// What it started from: `scratch`, or the weights' name.
    pub init: String,
    /// Its epochs.
    pub epochs: u64,
    /// Its test images right; none for label masks.
    pub right: Option<u64>,
    /// Its test images.
    pub tested: u64,
    /// Figures of the metrics of its test; none where a figure is not defined.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Option<f64>>,
}

impl CellResult {
    /// Reads a `result.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(stillhouse_core::Error::io(path))?;
        let result: Self = serde_json::from_str(&text).map_err(|e| Error::folder(path, e))?;
        if result.format > RESULT_FORMAT {
            let what = format!("format {} is newer than this program's {RESULT_FORMAT}", result.format);
            return Err(Error::folder(path, what));
        }
        Ok(result)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::folder(path, e))?;
        text.push('\n');
        Ok(stillhouse_core::fs::write_atomic(path, text.as_bytes())?)
    }

    /// Part of the test images that is right, in [0, 1].
    pub fn accuracy(&self) -> Option<f64> {
        self.right.map(|right| right as f64 / self.tested.max(1) as f64)
    }
}

/// One line of `log.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Steps done.
    pub step: u64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean of each term, without its weight.
    pub terms: BTreeMap<String, f64>,
    /// Weights of the terms in force, warm-up and decay included.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
    /// Mean of the weighted sum.
    pub total: f64,
    /// Part of the training images classified right while training.
    pub train_accuracy: Option<f64>,
    /// Test images right, where this epoch was tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_right: Option<u64>,
    /// Figures of the metrics, where this epoch was tested; none where a figure is not defined.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Option<f64>>,
    /// Images per second.
    pub images_per_second: f64,
    /// When it ended, in seconds since 1970.
    #[serde(default)]
    pub time: f64,
    /// Seconds of this epoch.
    pub seconds: f64,
    /// Seconds of them in which training waited for the loader.
    #[serde(default)]
    pub waited: f64,
    /// Terms that did not run in this epoch, connectors that got no gradient.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
