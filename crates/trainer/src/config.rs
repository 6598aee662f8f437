//! The resolved configuration of one cell: every value stated, none out of range.

mod check;
mod optimizer;

use serde::{Deserialize, Serialize};
use stillhouse_core::data::{IMAGENET_MEAN, IMAGENET_STD, Sampler, SplitMode, SplitSpec};
use toml::Table;

use crate::schedule::Schedule;
use crate::{Error, Result};

pub use optimizer::{AdamConfig, OptimizerConfig};

/// One training run: a network, its data, its loss, its recipe. A teacher's run has the same form;
/// its network stands under `student`, as the one that is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellConfig {
    /// Images.
    pub data: DataConfig,
    /// The network that is trained.
    pub student: NetworkConfig,
    /// The frozen teacher, where a method reads one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherRef>,
    /// Terms of the loss.
    pub loss: Vec<LossConfig>,
    /// How it is trained.
    pub train: TrainConfig,
    /// How it is tested.
    #[serde(default)]
    pub eval: EvalConfig,
}

/// Images, how they are cut into training and test images, how they are transformed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Registry name. `ucm|scenes` stands for the first of the two that is found.
    pub dataset: String,
    /// A folder given by the person, for `folder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<std::path::PathBuf>,
    /// Further settings of the dataset.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub options: Table,
    /// Per cent of the images that train, 1 to 99; 0, the default, with an official split.
    #[serde(default)]
    pub ratio: u32,
    /// Whether each class is cut by itself.
    #[serde(default)]
    pub split: SplitMode,
    /// Keep only this many training and test images of each class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_class: Option<[usize; 2]>,
    /// Side of the square that the transforms end with, in pixels; rows where `image_width` is given.
    pub image_size: usize,
    /// Columns of what the transforms end with, where it is no square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Transforms of training images, as the datasets crate defines them, without normalization.
    pub train_transforms: Vec<Table>,
    /// Transforms of test images.
    pub test_transforms: Vec<Table>,
    /// Mean per channel that is subtracted last; pretrained weights bring their own.
    #[serde(default = "imagenet_mean", serialize_with = "decimals")]
    pub mean: [f32; 3],
    /// Standard deviation per channel that is divided by last.
    #[serde(default = "imagenet_std", serialize_with = "decimals")]
    pub std: [f32; 3],
    /// Decoded images are kept in memory up to this many MiB; so is, apart from them, what a teacher
    /// makes of the images where no transform is random.
    #[serde(default = "default_cache")]
    pub cache_mib: usize,
}

fn imagenet_mean() -> [f32; 3] {
    IMAGENET_MEAN
}

fn imagenet_std() -> [f32; 3] {
    IMAGENET_STD
}

/// The shortest decimals of the values: 0.485, not the 0.48500001430511475 that f32 makes of it.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn decimals<S: serde::Serializer>(values: &[f32; 3], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().map(|v| decimal(*v)))
}

fn default_cache() -> usize {
    1024
}

impl DataConfig {
    /// Rows and columns of what the transforms of training images end with.
    pub fn size(&self) -> (usize, usize) {
        (self.image_size, self.image_width.unwrap_or(self.image_size))
    }

    /// The split of one seed.
    pub fn split_spec(&self, seed: u64) -> SplitSpec {
        SplitSpec { ratio: f64::from(self.ratio) / 100.0, mode: self.split, seed, per_class: self.per_class }
    }

    /// The written transforms with the normalization last: what a loader is given.
    pub fn normalized(&self, written: &[Table]) -> Vec<Table> {
        let values = |v: &[f32; 3]| toml::Value::Array(v.iter().map(|x| decimal(*x).into()).collect());
        let mut all = written.to_vec();
        all.push(Table::from_iter([
            ("op".to_string(), "normalize".into()),
            ("mean".to_string(), values(&self.mean)),
            ("std".to_string(), values(&self.std)),
        ]));
        all
    }
}

/// A network and where its weights start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Registry name.
    pub model: String,
    /// `scratch`, the name of pretrained weights (`imagenet`), or a `.safetensors` file.
    /// `imagenet|scratch` stands for the first of the two that is found.
    #[serde(default = "scratch")]
    pub init: String,
    /// SHA-256 of the weights that it starts from; found out when the plan is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Architecture variant; that of the weights comes first.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub variant: Table,
}

pub(crate) fn scratch() -> String {
    "scratch".into()
}

/// The teacher of a student's cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherRef {
    /// Registry name.
    pub model: String,
    /// Name and hash of its cell, a folder below `teachers/`.
    pub cell: String,
    /// Its run folder, where it is one that was there before; changes no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<std::path::PathBuf>,
    /// What it computes in while it teaches.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

/// What a frozen teacher computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bf16 feature maps; requires a GPU.
    Bf16,
}

impl Precision {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One method among the terms of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossConfig {
    /// Registry name.
    pub method: String,
    /// Which training step of the batch it belongs to, from 1, where `[[train.step]]` has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The terms of the method, except its cross-entropy, grow linearly over these epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// How the weights of the same terms fall over the training, in the words of a learning rate's
    /// schedule, epoch by epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<Schedule>,
    /// Hyper-parameters; in a resolved configuration all of them, defaults included.
    #[serde(flatten)]
    pub options: Table,
}

/// The recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Epochs, at least 1.
    pub epochs: u64,
    /// Seed of the split, the start, the order, the augmentation and the methods.
    #[serde(default)]
    pub seed: u64,
    /// How batches are drawn.
    pub sampler: Sampler,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// The training steps of a batch, one after the other; one that moves everything where there are
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub step: Vec<StepConfig>,
    /// Each step's gradients are added up over parts of the batch of so many images before its update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Inner values of blocks are computed again on the way back, where the network has such blocks:
    /// less memory, more time, the same numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpointing: bool,
    /// Batch norms keep their running statistics.
    #[serde(default)]
    pub frozen_bn: bool,
    /// Parameters that do not move: patterns as `layer1.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Parameters with another learning rate; the first pattern that fits counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lr_scale: Vec<LrScale>,
    /// The largest norm of all gradients together; larger ones are scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// The student is tested and saved as the moving average of its weights over the steps; this share
    /// of the average stays at every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// When checkpoints are written.
    #[serde(default)]
    pub checkpoint: Every,
}

/// One of several training steps of a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    /// The deepest exit that runs; its losses read nothing that lies deeper. All run where it is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<usize>,
    /// The student's parameters that move: patterns as `layer1.*`, all where there are none. The
    /// connectors of its losses move in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<String>,
}

/// Another learning rate for some parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrScale {
    /// Parameter names, `*` stands for anything.
    pub pattern: String,
    /// Factor on the learning rate.
    pub factor: f64,
}

/// An interval of training, written `2 epochs` or `50 steps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Every {
    /// At the end of every so many epochs.
    Epochs(u64),
    /// After every so many steps.
    Steps(u64),
}

impl Default for Every {
    fn default() -> Self {
        Self::Epochs(1)
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (n, unit) = match self {
            Self::Epochs(n) => (n, "epoch"),
            Self::Steps(n) => (n, "step"),
        };
        write!(f, "{n} {unit}{}", if *n == 1 { "" } else { "s" })
    }
}

impl From<Every> for String {
    fn from(every: Every) -> Self {
        every.to_string()
    }
}

impl TryFrom<String> for Every {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let wrong = || format!("invalid interval `{text}`, expected for example `2 epochs` or `50 steps`");
        let (n, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let n = n.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
        match unit.trim() {
            "epoch" | "epochs" => Ok(Self::Epochs(n)),
            "step" | "steps" => Ok(Self::Steps(n)),
            _ => Err(wrong()),
        }
    }
}

/// Testing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Images per batch.
    #[serde(default = "eval_batch")]
    pub batch: usize,
    /// Test after every so many epochs besides the last; 0 tests only at the end.
    #[serde(default)]
    pub every_epochs: u64,
    /// Registry names of the metrics that are counted at the end.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Taps of further logits that are tested: `exit3.logits` gives the score `exit3.accuracy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taps: Vec<String>,
    /// Views of the test images that are tested as well at the end: `vflip` gives `vflip.accuracy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<View>,
}

/// The test images otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// Mirrored, left to right.
    Hflip,
    /// Upside down.
    Vflip,
}

impl View {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hflip => "hflip",
            Self::Vflip => "vflip",
        }
    }
}

fn eval_batch() -> usize {
    64
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            batch: eval_batch(),
            every_epochs: 0,
            metrics: Vec::new(),
            taps: Vec::new(),
            views: Vec::new(),
        }
    }
}

impl CellConfig {
    /// As TOML with sorted keys: the text that is hashed.
    pub fn to_toml(&self) -> Result<String> {
        to_toml(self)
    }
}

impl TrainConfig {
    /// Images of one batch.
    pub fn batch_size(&self) -> usize {
        match self.sampler {
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => batch,
            Sampler::ClassBalanced { classes, per_class } => classes * per_class,
        }
    }

    /// Images of the smallest batch, or part of one, of an epoch over so many: the last one may be
    /// uneven.
    pub(crate) fn smallest_batch(&self, images: usize) -> usize {
        let batch = self.batch_size();
        let last = match self.sampler {
            Sampler::ClassBalanced { .. } => batch,
            Sampler::Shuffle { drop_last: true, .. } => batch.min(images),
            _ if images.is_multiple_of(batch) => batch,
            _ => images % batch,
        };
        let rest =
            |images: usize, part: usize| if images.is_multiple_of(part) { part } else { images % part };
        match self.micro_batch {
            Some(part) => rest(last, part.min(last)).min(rest(batch, part.min(batch))),
            None => last,
        }
    }
}

/// Serializes with sorted keys.
pub(crate) fn to_toml<T: Serialize>(value: &T) -> Result<String> {
    let table = Table::try_from(value).map_err(|e| Error::config("configuration", e))?;
    toml::to_string(&table).map_err(|e| Error::config("configuration", e))
}

/// Lays `over` on `base` as [`stillhouse_core::config::merge`] does, except that a table of another `kind` replaces
/// the whole table: settings of one sampler are not those of another.
pub(crate) fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(toml::Value::Table(b)), toml::Value::Table(o))
                if o.get("kind").is_none_or(|kind| b.get("kind") == Some(kind)) =>
            {
                merge(b, o);
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_as_they_are_written() {
        for (text, every) in [("1 epoch", Every::Epochs(1)), ("50 steps", Every::Steps(50))] {
            assert_eq!(Every::try_from(text.to_string()), Ok(every));
            assert_eq!(every.to_string(), text);
        }
        for text in ["0 steps", "3", "epochs", "2 hours", "-1 steps"] {
            assert!(Every::try_from(text.to_string()).unwrap_err().contains("50 steps"), "{text}");
        }
    }

    #[test]
    fn the_last_batch_is_the_smallest() {
        let of = |sampler: &str, images| {
            let text = format!(
                "epochs = 1\nsampler = {{ {sampler} }}\noptimizer = {{ kind = \"sgd\", lr = 0.1 }}\n\
                 schedule = {{ kind = \"constant\" }}"
            );
            stillhouse_core::config::parse::<TrainConfig>(&text, "test").unwrap().smallest_batch(images)
        };
        assert_eq!([65, 64, 63].map(|n| of("kind = \"shuffle\", batch = 32", n)), [1, 32, 31]);
        assert_eq!(of("kind = \"shuffle\", batch = 32", 20), 20);
        assert_eq!(of("kind = \"shuffle\", batch = 32, drop_last = true", 65), 32);
        assert_eq!(of("kind = \"class_balanced\", classes = 3, per_class = 2", 65), 6);
        let parts = |sampler: &str, part, images| {
            let text = format!(
                "epochs = 1\nmicro_batch = {part}\nsampler = {{ {sampler} }}\nschedule = {{ kind = \"constant\" }}\n\
                 optimizer = {{ kind = \"sgd\", lr = 0.1 }}"
            );
            stillhouse_core::config::parse::<TrainConfig>(&text, "test").unwrap().smallest_batch(images)
        };
        let batches = "kind = \"shuffle\", batch = 32";
        assert_eq!(
            [(8, 64), (12, 64), (8, 66), (64, 64)].map(|(part, n)| parts(batches, part, n)),
            [8, 8, 2, 32]
        );
    }

    #[test]
    fn another_kind_replaces_the_table() {
        let table = |text| toml::from_str::<Table>(text).unwrap_or_default();
        let mut base = table("s = { kind = 'a', x = 1 }\nt = { x = 1, y = 1 }");
        merge(&mut base, &table("s = { kind = 'b', z = 2 }\nt = { y = 2 }"));
        assert_eq!(base, table("s = { kind = 'b', z = 2 }\nt = { x = 1, y = 2 }"));
        merge(&mut base, &table("s = { z = 3 }"));
        assert_eq!(base, table("s = { kind = 'b', z = 3 }\nt = { x = 1, y = 2 }"));
    }
}
