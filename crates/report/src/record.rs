//! A finished run as tables and pages read it.

use std::path::Path;

use stillhouse_metrics::ConfusionMatrix;
use stillhouse_runs::{CellResult, EpochLog, Predictions, RunDir, RunInfo};

use crate::{Error, Result};

/// A finished run.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its folder.
    pub dir: RunDir,
    /// `config.toml`.
    pub info: RunInfo,
    /// The text of `config.toml`.
    pub config: String,
    /// `result.json`.
    pub result: CellResult,
    /// `log.jsonl`.
    pub log: Vec<EpochLog>,
    /// `predictions.safetensors`; none for label masks.
    pub predictions: Option<Predictions>,
}

impl Record {
    /// Reads a run folder; `None` if it is not one, or the run is not finished.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let dir = RunDir::new(folder);
        if !dir.is_run() {
            return Ok(None);
        }
        let path = dir.config_path();
        let config = std::fs::read_to_string(&path).map_err(stillhouse_core::Error::io(&path))?;
        let info = RunInfo::parse(&config, &path)?;
        let Some(result) = dir.result()? else { return Ok(None) };
        let (log, predictions) = (dir.log()?, dir.predictions()?);
        Ok(Some(Self { dir, info, config, result, log, predictions }))
    }

    /// Returns the confusion matrix of the test images; none for label masks.
    pub fn confusion(&self) -> Result<Option<ConfusionMatrix>> {
        let matrix = |p: &Predictions| ConfusionMatrix::from_labels(p.classes, &p.labels, &p.predicted);
        self.predictions.as_ref().map(matrix).transpose().map_err(|e| Error::Unreadable {
            path: self.dir.predictions_path().display().to_string(),
            message: e.to_string(),
        })
    }
}
