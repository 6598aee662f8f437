//! Rows of named parts.

use std::path::PathBuf;
use std::sync::Arc;

use crate::data::{BatchSource, Dataset, LoaderSpec, Split, SplitSpec};
use crate::distiller::DistillerBuild;
use crate::metric::MetricBuild;
use crate::model::ModelBuild;
use crate::{Error, Result, suggest};

/// A named part: it stands beside its implementation.
#[derive(Debug, Clone, Copy)]
pub struct Entry<B: 'static> {
    /// The name that configurations use.
    pub name: &'static str,
    /// One line for `list`.
    pub summary: &'static str,
    /// Paper and equation, or where the data comes from.
    pub source: &'static str,
    /// Defaults as TOML text, one `key = value  # source` a line.
    pub defaults: fn() -> String,
    /// Its constructor.
    pub build: B,
}

/// The rows of one kind.
#[derive(Debug, Clone)]
pub struct Registry<B: 'static> {
    kind: &'static str,
    rows: Vec<Entry<B>>,
}

impl<B: Copy> Registry<B> {
    /// Rows in the order of listing.
    pub fn new(kind: &'static str, rows: &[Entry<B>]) -> Self {
        Self { kind, rows: rows.to_vec() }
    }

    /// All rows.
    pub fn entries(&self) -> &[Entry<B>] {
        &self.rows
    }

    /// What the rows are.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The row of that name; an unknown one is answered with the nearest.
    pub fn get(&self, name: &str) -> Result<&Entry<B>> {
        self.rows.iter().find(|r| r.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.rows.iter().map(|r| r.name).collect();
            Error::UnknownName {
                kind: self.kind,
                name: name.to_string(),
                nearest: suggest(name, names.iter().copied()),
                known: names.join(", "),
            }
        })
    }
}

/// What is asked of a dataset's constructor.
#[derive(Debug, Clone)]
pub struct DatasetRequest {
    /// Registry name.
    pub name: String,
    /// Folders that may hold it, in order (`STILLHOUSE_DATA`, then `datasets/`).
    pub roots: Vec<PathBuf>,
    /// A folder given by the person, for `folder`.
    pub path: Option<PathBuf>,
    /// Further settings of the dataset.
    pub options: toml::Table,
}

/// Opens a dataset.
pub type DatasetBuild = fn(&DatasetRequest) -> Result<Arc<dyn Dataset>>;

/// What is known of pretrained weights before a network is built.
#[derive(Debug, Clone)]
pub struct WeightsInfo {
    /// The checked file.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Architecture variant that the weights were trained in.
    pub variant: toml::Table,
    /// Input mean per channel.
    pub mean: [f32; 3],
    /// Input standard deviation per channel.
    pub std: [f32; 3],
}

/// The concrete parts, handed to the trainer by the binary: nothing else names them.
#[derive(Clone)]
pub struct Registries {
    /// Datasets.
    pub datasets: Registry<DatasetBuild>,
    /// Networks.
    pub models: Registry<ModelBuild>,
    /// Methods.
    pub losses: Registry<DistillerBuild>,
    /// Metrics.
    pub metrics: Registry<MetricBuild>,
    /// Cuts a dataset.
    pub split: fn(&dyn Dataset, &SplitSpec) -> Result<Split>,
    /// Makes a loader.
    pub loader: LoaderBuild,
    /// Finds pretrained weights.
    pub weights: FindWeights,
    /// Loads a weights file into a network's parameters; heads of another class count stay new.
    pub load_weights: LoadWeights,
}

/// Makes a loader over a dataset.
pub type LoaderBuild = fn(Arc<dyn Dataset>, &LoaderSpec) -> Result<Box<dyn BatchSource>>;

/// Finds pretrained weights: architecture, its variant, weights' name (`imagenet`) or file, folders.
pub type FindWeights = fn(&str, &toml::Table, &str, &[PathBuf]) -> Result<WeightsInfo>;

/// Loads a file of weights into parameters; the named head parameters may be missing or of
/// another shape when `replace_head` is set. Returns what was left out, for the log.
pub type LoadWeights = fn(
    &std::path::Path,
    &stillhouse_ops::ParamStore,
    head: &[String],
    replace_head: bool,
) -> Result<Vec<String>>;
