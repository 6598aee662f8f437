//! All that a page reads of one run folder: its settings, its log, what it predicts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;
use stillhouse_metrics::ConfusionMatrix;

use crate::run::RunResult;
use crate::{Error, Result};

/// Larger files of predictions are refused: 2 GiB are half a million images of a thousand classes.
const MOST_BYTES: u64 = 2 << 30;

/// A finished run.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its folder.
    pub folder: PathBuf,
    /// What `config.toml` says.
    pub about: About,
    /// `config.toml` as it is.
    pub config: String,
    /// What `result.json` says.
    pub result: RunResult,
    /// The epochs of `log.jsonl`.
    pub log: Vec<Epoch>,
    /// What it makes of each test image; none for label masks.
    pub predictions: Option<Predictions>,
}

/// The head of a `config.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct About {
    /// The experiment's name.
    pub experiment: String,
    /// Its profile.
    pub profile: String,
    /// Name of the cell.
    pub cell: String,
    /// Hash of its settings and its data.
    pub hash: String,
    /// `teacher` or `student`.
    pub role: String,
    /// Row of the table.
    pub method: String,
    /// Class names in the order of the logits.
    pub classes: Vec<String>,
    /// The resolved configuration.
    pub run: toml::Table,
}

impl About {
    /// Reads a `config.toml`; `None` if the folder has none.
    pub fn read(folder: &Path) -> Result<Option<(Self, String)>> {
        let path = folder.join("config.toml");
        let Some(text) = text(&path)? else { return Ok(None) };
        let about = toml::from_str(&text).map_err(|e| unreadable(&path, e))?;
        Ok(Some((about, text)))
    }

    fn text(&self, section: &str, key: &str) -> String {
        self.run.get(section).and_then(|s| s.get(key)?.as_str()).unwrap_or_default().to_string()
    }

    fn number(&self, section: &str, key: &str) -> u64 {
        let value = self.run.get(section).and_then(|s| s.get(key)?.as_integer());
        value.and_then(|v| u64::try_from(v).ok()).unwrap_or_default()
    }

    /// Registry id of the network that is trained.
    pub fn student(&self) -> String {
        self.text("student", "model")
    }

    /// Registry id of the network on which the trained one stands; of most the network itself.
    pub fn body(&self) -> String {
        let variant = self.run.get("student").and_then(|s| s.get("variant")?.get("backbone")?.as_str());
        variant.map_or_else(|| self.student(), str::to_string)
    }

    /// Registry id of the dataset.
    pub fn dataset(&self) -> String {
        self.text("data", "dataset")
    }

    /// Training part in percent; 0 with an official split.
    pub fn ratio(&self) -> u64 {
        self.number("data", "ratio")
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.number("train", "seed")
    }
}

/// One line of `log.jsonl`, as far as curves need it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Epoch {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Mean of the weighted sum of all terms.
    pub total: f64,
    /// Part of the training images classified right.
    pub train_accuracy: Option<f64>,
    /// Test images right, where this epoch was tested.
    #[serde(default)]
    pub test_right: Option<u64>,
    /// Figures of the metrics, where this epoch was tested.
    #[serde(default)]
    pub scores: BTreeMap<String, Option<f64>>,
}

/// Truth and prediction of every test image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predictions {
    /// Dataset indices.
    pub indices: Vec<i64>,
    /// True classes.
    pub labels: Vec<u32>,
    /// The class with the largest logit, the first of equal ones.
    pub predicted: Vec<u32>,
    /// Classes.
    pub classes: usize,
}

impl Predictions {
    /// Whether each image is classified rightly.
    pub fn right(&self) -> Vec<bool> {
        self.labels.iter().zip(&self.predicted).map(|(l, p)| l == p).collect()
    }

    /// Truth against prediction.
    pub fn confusion(&self) -> Result<ConfusionMatrix> {
        ConfusionMatrix::of(self.classes, &self.labels, &self.predicted)
            .map_err(|e| Error::Unreadable { path: "predictions.safetensors".into(), message: e.to_string() })
    }

    /// Reads `predictions.safetensors`; `None` if it is not there or holds no logits of images.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("predictions.safetensors");
        match fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(stillhouse_core::Error::io(&path)(e).into()),
            Ok(about) if about.len() > MOST_BYTES => {
                return Err(unreadable(
                    &path,
                    format!("{} bytes, expected at most {MOST_BYTES}", about.len()),
                ));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(stillhouse_core::Error::io(&path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| unreadable(&path, e))?;
        let names = file.names();
        if !names.contains(&"logits") || !names.contains(&"labels") {
            return Ok(None);
        }
        let get = |name: &str, dtype: Dtype| -> Result<TensorView<'_>> {
            let view = file.tensor(name).map_err(|e| unreadable(&path, format!("`{name}`: {e}")))?;
            if view.dtype() != dtype {
                return Err(unreadable(&path, format!("`{name}` is {:?}, expected {dtype:?}", view.dtype())));
            }
            Ok(view)
        };
        let (logits, labels, indices) =
            (get("logits", Dtype::F32)?, get("labels", Dtype::U32)?, get("indices", Dtype::I64)?);
        let (count, classes) = match logits.shape() {
            [n, c] if *c > 0 && labels.shape() == [*n] && indices.shape() == [*n] => (*n, *c),
            other => {
                let what = format!(
                    "logits {other:?}, labels {:?}, indices {:?}, expected [n, classes], [n], [n]",
                    labels.shape(),
                    indices.shape()
                );
                return Err(unreadable(&path, what));
            }
        };
        let values: Vec<f32> = words(logits.data()).map(f32::from_le_bytes).collect();
        let predicted = values.chunks_exact(classes).map(largest).collect();
        let this = Self {
            indices: words(indices.data()).map(i64::from_le_bytes).collect(),
            labels: words(labels.data()).map(u32::from_le_bytes).collect(),
            predicted,
            classes,
        };
        if let Some(label) = this.labels.iter().find(|l| **l as usize >= classes) {
            return Err(unreadable(&path, format!("label {label} of {classes} classes, {count} images")));
        }
        Ok(Some(this))
    }
}

/// The values of a tensor's bytes.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn largest(row: &[f32]) -> u32 {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    best as u32
}

impl Record {
    /// Reads a run folder; `None` if the run has not finished or is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let (Some((about, config)), Some(result)) = (About::read(folder)?, RunResult::read(folder)?) else {
            return Ok(None);
        };
        let predictions = Predictions::read(folder)?;
        let log = log(folder)?;
        Ok(Some(Self { folder: folder.to_path_buf(), about, config, result, log, predictions }))
    }
}

/// The epochs of a log; a line that was cut off by a kill ends it.
fn log(folder: &Path) -> Result<Vec<Epoch>> {
    let text = text(&folder.join("log.jsonl"))?.unwrap_or_default();
    Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect())
}

fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(stillhouse_core::Error::io(path)(e).into()),
    }
}

fn unreadable(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::Unreadable { path: path.display().to_string(), message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, labels: &[u32], logits: &[f32], classes: usize) {
        let bytes = |words: Vec<[u8; 4]>| words.concat();
        let (n, m) = (labels.len(), logits.len() / classes);
        let labels_bytes = bytes(labels.iter().map(|l| l.to_le_bytes()).collect());
        let logits_bytes = bytes(logits.iter().map(|l| l.to_le_bytes()).collect());
        let indices: Vec<u8> = (0..n as i64).flat_map(|i| i.to_le_bytes()).collect();
        let all = [
            ("indices", TensorView::new(Dtype::I64, vec![n], &indices).unwrap()),
            ("labels", TensorView::new(Dtype::U32, vec![n], &labels_bytes).unwrap()),
            ("logits", TensorView::new(Dtype::F32, vec![m, classes], &logits_bytes).unwrap()),
        ];
        fs::write(folder.join("predictions.safetensors"), safetensors::serialize(all, None).unwrap())
            .unwrap();
    }

    #[test]
    fn predictions_are_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(Predictions::read(folder).unwrap(), None);
        write(folder, &[1, 0, 2], &[0.0, 1.0, 0.5, 3.0, 3.0, 1.0, 0.1, 0.2, 0.0], 3);
        let read = Predictions::read(folder).unwrap().unwrap();
        assert_eq!(
            (read.predicted.as_slice(), read.indices.as_slice()),
            ([1, 0, 1].as_slice(), [0, 1, 2].as_slice())
        );
        assert_eq!(read.right(), [true, true, false]);
        assert_eq!(read.confusion().unwrap().right(), 2);
        write(folder, &[1, 3], &[0.0; 6], 3);
        assert!(Predictions::read(folder).unwrap_err().to_string().contains("label 3 of 3 classes"));
        write(folder, &[1], &[0.0; 6], 3);
        assert!(Predictions::read(folder).unwrap_err().to_string().contains("expected [n, classes]"));
        fs::write(folder.join("predictions.safetensors"), b"{").unwrap();
        assert!(Predictions::read(folder).is_err());
    }

    #[test]
    fn a_folder_that_is_no_run() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Record::read(folder.path()).unwrap().is_none());
        fs::write(folder.path().join("config.toml"), "cell = 3").unwrap();
        assert!(Record::read(folder.path()).unwrap_err().to_string().contains("config.toml"));
    }
}
