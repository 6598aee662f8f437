//! The resolved configuration of one cell: every value is stated and in range.

mod check;
mod optimizer;
mod train;

use serde::{Deserialize, Serialize};
use stillhouse_core::data::{IMAGENET_MEAN, IMAGENET_STD, SplitMode, SplitSpec};
use stillhouse_core::weights::WeightsSource;
use toml::Table;

use super::schedule::Schedule;
use crate::{Error, Result};

pub use optimizer::{AdamConfig, OptimizerConfig};
pub use train::{CheckpointInterval, LrScale, PhaseConfig, TrainConfig};

/// One training run: data, network, losses and recipe. A teacher's run has the same form, with its network
/// under `student`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellConfig {
    /// Images.
    pub data: DataConfig,
    /// The network to train.
    pub student: NetworkConfig,
    /// The frozen teacher, if a method requires one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherRef>,
    /// Methods of the loss.
    pub loss: Vec<LossConfig>,
    /// Training recipe.
    pub train: TrainConfig,
    /// Testing.
    #[serde(default)]
    pub eval: EvalConfig,
}

/// Images, their split and their transforms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Registry id. `a|b` stands for the first of the two that is found.
    pub dataset: String,
    /// Folder of own images, for `folder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<std::path::PathBuf>,
    /// Options of the dataset.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub options: Table,
    /// Training ratio in percent, 1 to 99; 0, the default, with an official split.
    #[serde(default, deserialize_with = "percent")]
    pub ratio: u32,
    /// How the split is drawn.
    #[serde(default)]
    pub split: SplitMode,
    /// Limits of training and test images per class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_class: Option<[usize; 2]>,
    /// Height of the transformed images in pixels; the width too unless `image_width` is set.
    pub image_size: usize,
    /// Width of the transformed images, if they are not square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Transforms of training images, as defined by the datasets crate, without normalization.
    pub train_transforms: Vec<Table>,
    /// Transforms of test images.
    pub test_transforms: Vec<Table>,
    /// Mean per channel of the normalization, which comes last; pretrained weights set their own.
    #[serde(default = "imagenet_mean", serialize_with = "serialize_decimals")]
    pub mean: [f32; 3],
    /// Standard deviation per channel of the normalization.
    #[serde(default = "imagenet_std", serialize_with = "serialize_decimals")]
    pub std: [f32; 3],
    /// Memory limit in MiB for decoded images, and again for cached features of the teacher if no transform
    /// is random.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: usize,
}

/// Reads whole percent; a fraction is answered with the percentage that was probably meant.
fn percent<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<u32, D::Error> {
    let value = f64::deserialize(deserializer)?;
    let whole = value.fract() == 0.0 && (0.0..=100.0).contains(&value);
    if whole {
        return Ok(value as u32);
    }
    let meant = if (0.0..1.0).contains(&value) {
        format!("; did you mean {:.0}?", 100.0 * value)
    } else {
        String::new()
    };
    Err(serde::de::Error::custom(format!("expected whole percent from 1 to 99, found {value}{meant}")))
}

fn imagenet_mean() -> [f32; 3] {
    IMAGENET_MEAN
}

fn imagenet_std() -> [f32; 3] {
    IMAGENET_STD
}

/// Returns the shortest decimal of a value: 0.485 rather than 0.48500001430511475.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn serialize_decimals<S: serde::Serializer>(
    values: &[f32; 3],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|v| shortest_decimal(*v)))
}

fn default_cache_mib() -> usize {
    1024
}

impl DataConfig {
    /// Returns height and width of the transformed training images.
    pub fn size(&self) -> (usize, usize) {
        (self.image_size, self.image_width.unwrap_or(self.image_size))
    }

    /// Returns the split of one seed.
    pub fn split_spec(&self, seed: u64) -> SplitSpec {
        SplitSpec { ratio: f64::from(self.ratio) / 100.0, mode: self.split, seed, per_class: self.per_class }
    }

    /// Appends the normalization to a list of transforms.
    pub fn normalized(&self, transforms: &[Table]) -> Vec<Table> {
        let values =
            |v: &[f32; 3]| toml::Value::Array(v.iter().map(|x| shortest_decimal(*x).into()).collect());
        let mut all = transforms.to_vec();
        all.push(Table::from_iter([
            ("op".to_string(), "normalize".into()),
            ("mean".to_string(), values(&self.mean)),
            ("std".to_string(), values(&self.std)),
        ]));
        all
    }
}

/// A network and its initial weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Registry id.
    pub model: String,
    /// Initial weights; random by default.
    #[serde(default = "WeightsSource::scratch")]
    pub init: WeightsSource,
    /// Folder, below that of the teachers, of the run whose weights are the initial ones (`init =
    /// "pretrain"`); set by the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretraining: Option<String>,
    /// SHA-256 of the initial weights, set by the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Architecture variant, laid over that of the weights.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub variant: Table,
}

/// The teacher of a student's cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherRef {
    /// Registry id.
    pub model: String,
    /// Name and hash of its cell: its folder below `teachers/`.
    pub cell: String,
    /// Run folder of an existing run; not part of the hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<std::path::PathBuf>,
    /// Numeric precision.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

/// Numeric precision of a frozen teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// That of the run, f32 by default.
    #[default]
    F32,
    /// Convolutions in bf16 with f32 sums.
    Bf16,
}

impl Precision {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One method of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossConfig {
    /// Registry id.
    pub method: String,
    /// Phase of the training step, from 1, if `[[train.phase]]` has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<usize>,
    /// Epochs of linear warm-up of the method's weights, except its cross-entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// Schedule of the same weights over the epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<Schedule>,
    /// Hyper-parameters; in a resolved configuration all of them, defaults included.
    #[serde(flatten)]
    pub options: Table,
}

/// Testing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Images per batch.
    #[serde(default = "default_eval_batch")]
    pub batch: usize,
    /// Interval of tests in epochs, besides the last epoch; 0 tests only at the end.
    #[serde(default)]
    pub every_epochs: u64,
    /// Registry ids of the metrics.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Further logits to test: `exit3.logits` gives the score `exit3.accuracy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Views of the test images to test at the end: `vflip` gives the score `vflip.accuracy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<View>,
}

/// A view of the test images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// Mirrored horizontally.
    Hflip,
    /// Mirrored vertically.
    Vflip,
}

impl View {
    /// Returns its name in configurations and scores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hflip => "hflip",
            Self::Vflip => "vflip",
        }
    }
}

fn default_eval_batch() -> usize {
    64
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            batch: default_eval_batch(),
            every_epochs: 0,
            metrics: Vec::new(),
            features: Vec::new(),
            views: Vec::new(),
        }
    }
}

impl CellConfig {
    /// Replaces settings of `data` and `eval`, which a test of the finished network may change.
    pub(crate) fn with_overrides(&self, overrides: &Table) -> Result<Self> {
        if let Some(key) = overrides.keys().find(|key| !["data", "eval"].contains(&key.as_str())) {
            let message = format!("`{key}` belongs to the training: expected settings of `data` or `eval`");
            return Err(Error::config("test of a finished run", message));
        }
        let mut table = Table::try_from(self).map_err(|e| Error::config("configuration", e))?;
        merge(&mut table, overrides);
        let config: Self = stillhouse_core::config::from_table(&table, "test of a finished run")?;
        config.check("test of a finished run")?;
        Ok(config)
    }

    /// Serializes to TOML with sorted keys: the text that is hashed.
    pub fn to_toml(&self) -> Result<String> {
        let table = Table::try_from(self).map_err(|e| Error::config("configuration", e))?;
        toml::to_string(&table).map_err(|e| Error::config("configuration", e))
    }
}

/// Merges `over` into `base` as [`stillhouse_core::config::merge`] does, except that a table of another `kind`
/// replaces the whole table: a shuffling sampler has no settings of a class-balanced one.
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
    fn another_kind_replaces_the_table() {
        let table = |text| toml::from_str::<Table>(text).unwrap_or_default();
        let mut base = table("s = { kind = 'a', x = 1 }\nt = { x = 1, y = 1 }");
        merge(&mut base, &table("s = { kind = 'b', z = 2 }\nt = { y = 2 }"));
        assert_eq!(base, table("s = { kind = 'b', z = 2 }\nt = { x = 1, y = 2 }"));
        merge(&mut base, &table("s = { z = 3 }"));
        assert_eq!(base, table("s = { kind = 'b', z = 3 }\nt = { x = 1, y = 2 }"));
    }
}
