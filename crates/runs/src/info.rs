//! `config.toml`: identity and resolved configuration of a run.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Newest version of `config.toml` that can be read.
pub(crate) const FORMAT: u32 = 1;

/// What a cell trains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A teacher's network on other images, before it is fine-tuned.
    Pretraining,
    /// Fine-tuned with cross-entropy, then frozen for the students.
    Teacher,
    /// A row of the table.
    #[default]
    Student,
}

/// `config.toml` of a run folder. `C` is the resolved configuration: the trainer's type, or a plain table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo<C = Table> {
    /// Version of the file format.
    pub format: u32,
    /// Version of the program that started the run.
    pub version: String,
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
    /// Method of the table row; `teacher` for a teacher.
    pub method: String,
    /// Fingerprint of the dataset.
    pub fingerprint: String,
    /// Class names in the order of the logits.
    pub classes: Vec<String>,
    /// Resolved configuration.
    pub run: C,
}

impl<C> RunInfo<C> {
    /// Newest format version.
    pub const FORMAT: u32 = FORMAT;
}

impl RunInfo {
    /// Returns the value at a dotted path of the configuration, such as `train.optimizer.lr`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut keys = path.split('.');
        let first = self.run.get(keys.next()?)?;
        keys.try_fold(first, |value, key| value.get(key))
    }

    fn text(&self, path: &str) -> String {
        self.get(path).and_then(Value::as_str).unwrap_or_default().to_string()
    }

    fn number(&self, path: &str) -> u64 {
        let value = self.get(path).and_then(Value::as_integer);
        value.and_then(|v| u64::try_from(v).ok()).unwrap_or_default()
    }

    /// Returns the registry id of the trained network.
    pub fn student(&self) -> String {
        self.text("student.model")
    }

    /// Returns the registry id of the backbone of the trained network; of most, the network itself.
    pub fn backbone(&self) -> String {
        match self.text("student.variant.backbone") {
            backbone if backbone.is_empty() => self.student(),
            backbone => backbone,
        }
    }

    /// Returns the registry id of the dataset.
    pub fn dataset(&self) -> String {
        self.text("data.dataset")
    }

    /// Returns the training ratio in percent; 0 with an official split.
    pub fn ratio(&self) -> u64 {
        self.number("data.ratio")
    }

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.number("train.seed")
    }
}
