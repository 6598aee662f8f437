//! Registries of named components.

use std::path::PathBuf;
use std::sync::Arc;

use crate::data::{BatchSource, Dataset, LoaderSpec, Split, SplitSpec};
use crate::distiller::DistillerBuild;
use crate::metric::MetricBuild;
use crate::model::ModelBuild;
use crate::weights::{LoadOptions, WeightsSource};
use crate::{Error, Result, suggest};

/// A named component. Each entry is declared next to its implementation.
#[derive(Debug, Clone, Copy)]
pub struct Entry<B: 'static> {
    /// Name in configurations.
    pub name: &'static str,
    /// One line for `stillhouse list`.
    pub summary: &'static str,
    /// Paper and equation, or the origin of the data.
    pub source: &'static str,
    /// Defaults as TOML text, one `key = value  # source` a line.
    pub defaults: fn() -> String,
    /// Constructor.
    pub build: B,
}

/// The entries of one kind, in listing order.
#[derive(Debug, Clone)]
pub struct Registry<B: 'static> {
    kind: &'static str,
    entries: Vec<Entry<B>>,
}

impl<B: Copy> Registry<B> {
    /// Creates a registry from entries in listing order; error messages name the `kind`.
    pub fn new(kind: &'static str, entries: &[Entry<B>]) -> Self {
        Self { kind, entries: entries.to_vec() }
    }

    /// Returns all entries.
    pub fn entries(&self) -> &[Entry<B>] {
        &self.entries
    }

    /// Returns the kind of the entries: "method", "dataset", ...
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Returns the entry of that name.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with the nearest known name.
    pub fn get(&self, name: &str) -> Result<&Entry<B>> {
        self.entries.iter().find(|e| e.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.entries.iter().map(|e| e.name).collect();
            Error::UnknownName {
                kind: self.kind,
                name: name.to_string(),
                nearest: suggest(name, names.iter().copied()),
                known: names.join(", "),
            }
        })
    }
}

/// Input of a dataset's constructor.
#[derive(Debug, Clone)]
pub struct DatasetRequest {
    /// Registry name.
    pub name: String,
    /// Folders to search, in order (`STILLHOUSE_DATA`, then `datasets/`).
    pub roots: Vec<PathBuf>,
    /// Folder of the user's own images, for the dataset `folder`.
    pub path: Option<PathBuf>,
    /// Other settings of the dataset.
    pub options: toml::Table,
}

/// Opens a dataset.
pub type DatasetBuild = fn(&DatasetRequest) -> Result<Arc<dyn Dataset>>;

/// Description of pretrained weights, available before the network is built.
#[derive(Debug, Clone)]
pub struct WeightsInfo {
    /// Path of the verified file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Dotted path of the state dict in the file, if the configuration has one.
    pub key: Option<String>,
    /// Architecture variant of the weights.
    pub variant: toml::Table,
    /// Mean of the input, per channel.
    pub mean: [f32; 3],
    /// Standard deviation of the input, per channel.
    pub std: [f32; 3],
}

/// All components of a build. The binary creates it; no other crate names concrete components.
#[derive(Clone)]
pub struct Registries {
    /// Datasets.
    pub datasets: Registry<DatasetBuild>,
    /// Models.
    pub models: Registry<ModelBuild>,
    /// Distillation methods.
    pub losses: Registry<DistillerBuild>,
    /// Metrics.
    pub metrics: Registry<MetricBuild>,
    /// Splits a dataset.
    pub split: fn(&dyn Dataset, &SplitSpec) -> Result<Split>,
    /// Creates a loader.
    pub loader: LoaderBuild,
    /// Finds pretrained weights.
    pub weights: FindWeights,
    /// Loads a weights file into a model's parameters.
    pub load_weights: LoadWeights,
}

/// Creates a loader over a dataset.
pub type LoaderBuild = fn(Arc<dyn Dataset>, &LoaderSpec) -> Result<Box<dyn BatchSource>>;

/// Finds pretrained weights from the architecture, its variant, their name or file, and the folders to
/// search.
pub type FindWeights = fn(&str, &toml::Table, &WeightsSource, &[PathBuf]) -> Result<WeightsInfo>;

/// Loads a weights file into parameters; `head` are the names of those of the head. Returns notes for
/// the log: what was chosen, left out or keeps its initial values.
pub type LoadWeights = fn(
    &std::path::Path,
    &stillhouse_ops::ParamStore,
    head: &[String],
    &LoadOptions<'_>,
) -> Result<Vec<String>>;
