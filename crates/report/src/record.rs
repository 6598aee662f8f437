//! A finished run as tables and pages read it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use stillhouse_metrics::ConfusionMatrix;
use stillhouse_runs::{CellResult, EpochLog, Predictions, RunDir, RunInfo};

use crate::{Error, Result};

/// Largest header of a safetensors file, as the format defines it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

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
        let matrix = self.predictions.as_ref().map(matrix).transpose();
        matrix.map_err(|e| Error::unreadable(self.dir.predictions_path().display(), e))
    }

    /// Reads the parameter names of the trained network from the header of `student.safetensors`.
    pub fn parameter_names(&self) -> Result<Vec<String>> {
        let path = self.dir.student_path();
        let io = || stillhouse_core::Error::io(&path);
        let mut file = File::open(&path).map_err(io())?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io())?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            let message = format!("expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}");
            return Err(Error::unreadable(path.display(), message));
        }
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).map_err(io())?;
        let header: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|e| Error::unreadable(path.display(), e))?;
        Ok(header.into_iter().map(|(name, _)| name).collect())
    }
}
