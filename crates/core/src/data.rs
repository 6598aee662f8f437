//! Samples, batches and where they come from.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Rng};

/// An 8-bit RGB image, rows from the top, `height * width * 3` values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Interleaved R, G, B.
    pub pixels: Vec<u8>,
}

/// A map of class indices, `height * width` values; 255 is "ignore".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Class of each pixel.
    pub labels: Vec<u8>,
}

/// What is to be learned of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// One class for the image.
    Class(u32),
    /// One class for each pixel.
    Mask(Mask),
}

/// One decoded image with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its index in the dataset.
    pub id: u64,
    /// The image as decoded, before any transform.
    pub image: Image,
    /// Its label.
    pub label: Label,
}

/// Labels of a batch.
#[derive(Debug, Clone)]
pub enum Target {
    /// `[B]`, u32.
    Classes(Tensor),
    /// `[B, H, W]`, u32; 255 is "ignore".
    Mask(Tensor),
}

impl Target {
    /// What kind of labels they are.
    pub fn task(&self) -> Task {
        match self {
            Self::Classes(_) => Task::Classification,
            Self::Mask(_) => Task::Segmentation,
        }
    }

    /// The class labels `[B]`, or an error that names who needs them.
    pub fn classes(&self, who: &str) -> Result<&Tensor> {
        match self {
            Self::Classes(t) => Ok(t),
            Self::Mask(_) => {
                Err(Error::incompatible(who, "needs one class per image, this dataset has masks"))
            }
        }
    }

    /// The label masks `[B, H, W]`, or an error that names who needs them.
    pub fn mask(&self, who: &str) -> Result<&Tensor> {
        match self {
            Self::Mask(t) => Ok(t),
            Self::Classes(_) => {
                Err(Error::incompatible(who, "needs label masks, this dataset has one class per image"))
            }
        }
    }
}

/// Images and labels of one step.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[B, 3, H, W]`, f32, normalized.
    pub images: Tensor,
    /// Their labels.
    pub target: Target,
    /// Their indices in the dataset.
    pub ids: Vec<u64>,
}

/// What the labels of a dataset are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One class per image.
    #[default]
    Classification,
    /// One class per pixel.
    Segmentation,
}

/// A dataset in words.
#[derive(Debug, Clone)]
pub struct DatasetInfo {
    /// Registry name.
    pub name: String,
    /// One line for captions: "UC Merced Land Use, 2100 images" or "scenes (synthetic, procedural)".
    pub title: String,
    /// Class names; a class's index is its place here.
    pub classes: Vec<String>,
    /// What the labels are.
    pub task: Task,
    /// Whether the images are made by the program itself and need no file.
    pub synthetic: bool,
}

/// Indexed images with labels. Implementations decode on demand and are shared between workers.
pub trait Dataset: Send + Sync {
    /// Name, classes, task.
    fn info(&self) -> &DatasetInfo;
    /// Number of samples.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A stable, readable name of the sample, such as its path below the dataset's root.
    fn key(&self, index: usize) -> String;
    /// The class of the sample without decoding it; `None` for segmentation.
    fn class(&self, index: usize) -> Option<u32>;
    /// Decodes one sample.
    fn sample(&self, index: usize) -> Result<Sample>;
    /// A hash of what is in the dataset (names and sizes of its files), for run hashes and reports.
    fn fingerprint(&self) -> Result<String>;
    /// The official split lists by name, if the dataset has them.
    fn official_split(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }
}

/// Position in an endless sequence of epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Next batch of that epoch, from 0.
    pub batch: u64,
}

/// Where batches come from; the loader is one.
pub trait BatchSource: Send {
    /// Batches in an epoch.
    fn batches_per_epoch(&self) -> u64;
    /// The next batch of the epoch, or `None` at its end (the next call begins the next epoch).
    fn next_batch(&mut self) -> Result<Option<Batch>>;
    /// Where the next batch stands.
    fn position(&self) -> Position;
    /// Continues there, with the same batches as if it had run up to there.
    fn seek(&mut self, position: Position) -> Result<()>;
    /// Whether an image has the same pixels in every epoch: no transform is random.
    fn is_deterministic(&self) -> bool {
        false
    }
}

/// How batches are drawn from the samples of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampler {
    /// A new order every epoch, all samples once; the uneven last batch is dropped or kept.
    Shuffle {
        /// Samples per batch.
        batch: usize,
        /// Whether an uneven last batch is dropped.
        #[serde(default)]
        drop_last: bool,
    },
    /// `classes` distinct classes with `per_class` distinct images each; an epoch is
    /// `max(1, n / (classes * per_class))` batches (paper 1, Algorithm 1).
    ClassBalanced {
        /// Classes per batch (P); never more than the dataset has.
        classes: usize,
        /// Images per class (K).
        per_class: usize,
    },
    /// In order, all samples once, for evaluation.
    Sequential {
        /// Samples per batch.
        batch: usize,
    },
}

/// What a loader is to do.
#[derive(Debug, Clone)]
pub struct LoaderSpec {
    /// Dataset indices it draws from.
    pub indices: Vec<usize>,
    /// How.
    pub sampler: Sampler,
    /// Image transforms in order, each a table as the datasets crate defines them.
    pub transforms: Vec<toml::Table>,
    /// Random numbers for order and transforms.
    pub rng: Rng,
    /// Decoded images are kept in memory up to this many bytes.
    pub cache_bytes: usize,
}

/// How a dataset is cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSpec {
    /// Part of the images that trains, in (0, 1); without meaning for an official split.
    pub ratio: f64,
    /// `stratified` (per class `floor(ratio * n + 0.5)`), `global_random` or `official`.
    #[serde(default)]
    pub mode: SplitMode,
    /// Seed of the split.
    pub seed: u64,
    /// Keep only this many training and test images of each class (smoke runs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_class: Option<[usize; 2]>,
}

/// Whether each class is cut by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitMode {
    /// Each class by itself.
    #[default]
    Stratified,
    /// All images at once.
    GlobalRandom,
    /// The dataset's own lists: `train` trains; `test` tests, or `val` where `test` has no labels.
    Official,
}

/// Indices of a cut dataset, each list in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Training images.
    pub train: Vec<usize>,
    /// Test images.
    pub test: Vec<usize>,
}
