//! `predictions.safetensors`: logits and labels of the test images.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Error, Result, tensors};

/// Largest file that is read: 2 GiB are half a million images of a thousand classes.
const MAX_BYTES: u64 = 2 << 30;

/// True and predicted class of every test image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predictions {
    /// Dataset indices.
    pub indices: Vec<i64>,
    /// True classes.
    pub labels: Vec<u32>,
    /// Predicted classes: the first of the largest logits.
    pub predicted: Vec<u32>,
    /// Number of classes.
    pub classes: usize,
}

impl Predictions {
    /// Returns whether each image is classified correctly.
    pub fn correct(&self) -> Vec<bool> {
        self.labels.iter().zip(&self.predicted).map(|(l, p)| l == p).collect()
    }

    /// Writes dataset indices and, for classification, logits `[n, classes]` and labels `[n]`.
    pub(crate) fn write(
        path: &Path,
        ids: &[u64],
        logits: Option<&Tensor>,
        labels: Option<&Tensor>,
    ) -> Result<()> {
        let ids: Vec<i64> = ids.iter().map(|i| *i as i64).collect();
        let mut all = vec![("indices".to_string(), Tensor::new(ids, &Device::Cpu)?)];
        all.extend(logits.map(|t| ("logits".to_string(), t.clone())));
        all.extend(labels.map(|t| ("labels".to_string(), t.clone())));
        tensors::write(path, &all)?;
        Ok(())
    }

    /// Reads a file; `None` if it does not exist or holds no logits.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(stillhouse_core::Error::io(path)(e).into()),
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                let reason = format!("expected at most {MAX_BYTES} bytes, found {}", metadata.len());
                return Err(Error::invalid(path, reason));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(path).map_err(stillhouse_core::Error::io(path))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::invalid(path, format!("not a valid safetensors file: {e}")))?;
        let names = file.names();
        if !names.contains(&"logits") || !names.contains(&"labels") {
            return Ok(None);
        }
        let get = |name: &str, dtype: Dtype| -> Result<TensorView<'_>> {
            let view = file.tensor(name).map_err(|e| Error::invalid(path, format!("`{name}`: {e}")))?;
            if view.dtype() != dtype {
                let reason = format!("`{name}`: expected {dtype:?}, found {:?}", view.dtype());
                return Err(Error::invalid(path, reason));
            }
            Ok(view)
        };
        let (logits, labels, indices) =
            (get("logits", Dtype::F32)?, get("labels", Dtype::U32)?, get("indices", Dtype::I64)?);
        let (count, classes) = match logits.shape() {
            [n, c] if *c > 0 && labels.shape() == [*n] && indices.shape() == [*n] => (*n, *c),
            other => {
                let reason = format!(
                    "expected logits [n, classes], labels [n], indices [n], found {other:?}, {:?}, {:?}",
                    labels.shape(),
                    indices.shape()
                );
                return Err(Error::invalid(path, reason));
            }
        };
        let values: Vec<f32> = words(logits.data()).map(f32::from_le_bytes).collect();
        let predicted = values.chunks_exact(classes).map(argmax).collect();
        let this = Self {
            indices: words(indices.data()).map(i64::from_le_bytes).collect(),
            labels: words(labels.data()).map(u32::from_le_bytes).collect(),
            predicted,
            classes,
        };
        if let Some(label) = this.labels.iter().find(|l| **l as usize >= classes) {
            return Err(Error::invalid(path, format!("label {label} of {classes} classes, {count} images")));
        }
        Ok(Some(this))
    }
}

/// Splits the bytes of a tensor into elements.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (class, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = class;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, labels: &[u32], logits: &[f32], classes: usize) {
        let ids: Vec<u64> = (0..labels.len() as u64).collect();
        let logits = Tensor::from_slice(logits, (logits.len() / classes, classes), &Device::Cpu).unwrap();
        let labels = Tensor::new(labels, &Device::Cpu).unwrap();
        Predictions::write(path, &ids, Some(&logits), Some(&labels)).unwrap();
    }

    #[test]
    fn reads_what_was_written_and_rejects_malformed_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.safetensors");
        let error = || Predictions::read(&path).unwrap_err().to_string();
        assert_eq!(Predictions::read(&path).unwrap(), None);
        write(&path, &[1, 0, 2], &[0.0, 1.0, 0.5, 3.0, 3.0, 1.0, 0.1, 0.2, 0.0], 3);
        let read = Predictions::read(&path).unwrap().unwrap();
        assert_eq!((read.predicted.as_slice(), read.indices.as_slice()), (&[1, 0, 1][..], &[0, 1, 2][..]));
        assert_eq!(read.correct(), [true, true, false]);
        write(&path, &[1, 3], &[0.0; 6], 3);
        assert!(error().contains("label 3 of 3 classes"));
        write(&path, &[1], &[0.0; 6], 3);
        assert!(error().contains("expected logits [n, classes]"));
        fs::write(&path, b"{").unwrap();
        assert!(error().contains("not a valid safetensors file"));
    }
}
