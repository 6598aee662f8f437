//! Samples, batches, datasets and batch sources.

use candle_core::{Device, Tensor};
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

/// A map of class indices, `height * width` values, with [`IGNORE_INDEX`] for ignored pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Class of each pixel.
    pub labels: Vec<u8>,
}

/// Annotation of one image.
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
    /// Index in the dataset.
    pub id: u64,
    /// The image as decoded, before any transform.
    pub image: Image,
    /// Annotation of the image.
    pub label: Label,
}

/// Label of pixels that no loss and no metric counts (the convention of VOC and Cityscapes).
pub const IGNORE_INDEX: u8 = 255;

/// ImageNet's mean of each channel of images in [0, 1].
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// ImageNet's standard deviation of each channel of images in [0, 1].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Labels of a batch.
#[derive(Debug, Clone)]
pub enum Labels {
    /// `[B]`, u32.
    Classes(Tensor),
    /// `[B, H, W]`, u32, with [`IGNORE_INDEX`] for ignored pixels.
    Mask(Tensor),
}

impl Labels {
    /// Kind of the labels.
    pub fn task(&self) -> Task {
        match self {
            Self::Classes(_) => Task::Classification,
            Self::Mask(_) => Task::Segmentation,
        }
    }

    /// The tensor of either kind.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Classes(t) | Self::Mask(t) => t,
        }
    }

    /// Class labels `[B]`.
    ///
    /// # Errors
    /// If the labels are masks; the error names the component that needs classes.
    pub fn classes(&self, component: &str) -> Result<&Tensor> {
        match self {
            Self::Classes(t) => Ok(t),
            Self::Mask(_) => {
                Err(Error::incompatible(component, "expected one class per image, found label masks"))
            }
        }
    }

    /// Label masks `[B, H, W]`.
    ///
    /// # Errors
    /// If the labels are classes; the error names the component that needs masks.
    pub fn mask(&self, component: &str) -> Result<&Tensor> {
        match self {
            Self::Mask(t) => Ok(t),
            Self::Classes(_) => {
                Err(Error::incompatible(component, "expected label masks, found one class per image"))
            }
        }
    }

    /// Copies the labels to a device; labels that are already there are shared.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|t| t.to_device(device))
    }

    /// Labels of `len` images from `start`.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        self.map(|t| t.narrow(0, start, len))
    }

    fn map(&self, f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Classes(t) => Self::Classes(f(t)?),
            Self::Mask(t) => Self::Mask(f(t)?),
        })
    }
}

/// Labels of a training step, on the device and in host memory. Losses that branch on label values
/// read `host`: reading `device` back would synchronize with the GPU.
#[derive(Debug, Clone)]
pub struct Target {
    /// Labels on the device of the features.
    pub device: Labels,
    /// The same labels in host memory.
    pub host: Labels,
}

impl Target {
    /// Copies labels in host memory to a device.
    pub fn new(host: Labels, device: &Device) -> Result<Self> {
        Ok(Self { device: host.to_device(device)?, host })
    }

    /// Labels of a run on the CPU, where both copies are one.
    pub fn on_cpu(labels: Labels) -> Self {
        Self { device: labels.clone(), host: labels }
    }

    /// Class labels `[B]` on the device; see [`Labels::classes`].
    pub fn classes(&self, component: &str) -> Result<&Tensor> {
        self.device.classes(component)
    }

    /// Label masks `[B, H, W]` on the device; see [`Labels::mask`].
    pub fn mask(&self, component: &str) -> Result<&Tensor> {
        self.device.mask(component)
    }

    /// Class labels `[B]` in host memory; see [`Labels::classes`].
    pub fn host_classes(&self, component: &str) -> Result<&Tensor> {
        self.host.classes(component)
    }

    /// Label masks `[B, H, W]` in host memory; see [`Labels::mask`].
    pub fn host_mask(&self, component: &str) -> Result<&Tensor> {
        self.host.mask(component)
    }
}

/// Images and labels of one training step.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[B, 3, H, W]`, f32, normalized.
    pub images: Tensor,
    /// Labels of the images.
    pub labels: Labels,
    /// Dataset indices of the images.
    pub ids: Vec<u64>,
    /// Hashes of the images' pixels if they repeat ([`BatchSource::repeats_views`]); empty otherwise. The
    /// same image with the same hash has the same pixels.
    pub views: Vec<u64>,
}

/// Kind of a dataset's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One class per image.
    #[default]
    Classification,
    /// One class per pixel.
    Segmentation,
}

/// Setting of a dataset with its white level ([`Dataset::white_level`]).
pub const WHITE_LEVEL: &str = "white_level";

/// Description of a dataset.
#[derive(Debug, Clone)]
pub struct DatasetInfo {
    /// Registry name.
    pub name: String,
    /// One line for captions: "UC Merced Land Use, 2100 images" or "scenes (synthetic, procedural)".
    pub title: String,
    /// Class names in the order of the class indices.
    pub classes: Vec<String>,
    /// Kind of the labels.
    pub task: Task,
    /// Whether the program generates the images, so that no file is needed.
    pub synthetic: bool,
}

/// Indexed images with labels. Implementations decode on demand and are shared between workers.
pub trait Dataset: Send + Sync {
    /// Name, classes, task.
    fn info(&self) -> &DatasetInfo;
    /// Number of samples.
    fn len(&self) -> usize;
    /// Whether the dataset has no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A stable, readable name of a sample, such as its path relative to the dataset's root.
    fn key(&self, index: usize) -> String;
    /// Class of a sample, without decoding it; `None` for segmentation.
    fn class(&self, index: usize) -> Option<u32>;
    /// Decodes one sample.
    fn sample(&self, index: usize) -> Result<Sample>;
    /// Hash of the dataset's content (names and sizes of its files), for run hashes and reports.
    fn fingerprint(&self) -> Result<String>;
    /// Indices of an official split by name, if the dataset has it.
    fn official_split(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }
    /// 16-bit value of the images that becomes white (255), if there are 16-bit images of a smaller range;
    /// otherwise their upper byte is taken.
    fn white_level(&self) -> Option<u16> {
        None
    }
    /// Whether the files themselves are divided into training and test images, so that every
    /// [`SplitMode`] uses the official split.
    fn has_given_split(&self) -> bool {
        false
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

/// A source of batches, such as the loader.
pub trait BatchSource: Send {
    /// Batches in an epoch.
    fn batches_per_epoch(&self) -> u64;
    /// The next batch of the epoch, or `None` at its end (the next call begins the next epoch).
    fn next_batch(&mut self) -> Result<Option<Batch>>;
    /// Position of the next batch.
    fn position(&self) -> Position;
    /// Moves to a position; the batches from there on are those of an uninterrupted run.
    fn seek(&mut self, position: Position) -> Result<()>;
    /// Whether an image has few views, so that the same pixels come again: no transform is random but flips
    /// and quarter turns.
    fn repeats_views(&self) -> bool {
        false
    }
}

/// Sampling strategy of batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampler {
    /// All samples once per epoch, in a new order each epoch.
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
    /// All samples once, in order, for evaluation.
    Sequential {
        /// Samples per batch.
        batch: usize,
    },
}

/// Configuration of a loader.
#[derive(Debug, Clone)]
pub struct LoaderSpec {
    /// Dataset indices to sample from.
    pub indices: Vec<usize>,
    /// Sampling strategy.
    pub sampler: Sampler,
    /// Image transforms in order, each a table as the datasets crate defines them.
    pub transforms: Vec<toml::Table>,
    /// Random number stream of order and transforms.
    pub rng: Rng,
    /// Maximum size of the cache of decoded images, in bytes.
    pub cache_bytes: usize,
}

/// Configuration of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSpec {
    /// Fraction of the training images, in (0, 1); ignored by official splits.
    pub ratio: f64,
    /// Splitting strategy.
    #[serde(default)]
    pub mode: SplitMode,
    /// Random seed.
    pub seed: u64,
    /// Maximum number of training and test images of each class (quick runs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_class: Option<[usize; 2]>,
}

/// Splitting strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitMode {
    /// Each class separately: `floor(ratio * n + 0.5)` training images of `n`.
    #[default]
    Stratified,
    /// All images together.
    GlobalRandom,
    /// The dataset's official lists: `train` for training and `test` for testing, or `val` if `test`
    /// has no labels.
    Official,
}

/// Indices of a split dataset, each list in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Training images.
    pub train: Vec<usize>,
    /// Test images.
    pub test: Vec<usize>,
}
