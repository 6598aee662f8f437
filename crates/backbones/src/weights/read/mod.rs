//! Reader of safetensors and PyTorch files, one tensor at a time.
//!
//! The header is validated against the length of the file before any allocation, so a malformed file
//! costs neither memory nor time.

mod pickle;
mod torch;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use stillhouse_core::{Error as CoreError, Result};

use crate::Error;

/// Maximum size of a safetensors header in bytes. Real headers describe a few hundred tensors.
const MAX_HEADER: u64 = 16 << 20;

/// A tensor in a weights file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Byte offset in the file.
    offset: u64,
    /// Strides in elements; contiguous if `None`.
    strides: Option<Vec<usize>>,
}

impl StoredTensor {
    /// Returns candle's type of floating-point values; `None` for integers.
    pub fn float_dtype(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F32 => Some(DType::F32),
            Dtype::F64 => Some(DType::F64),
            _ => None,
        }
    }

    /// Formats type and shape.
    pub(crate) fn describe(&self) -> String {
        format!("{:?} {:?}", self.dtype, self.shape)
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Format of a weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save`, a zip archive.
    PyTorch,
    /// `torch.save` before PyTorch 1.6.
    LegacyPyTorch,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::PyTorch => "PyTorch",
            Self::LegacyPyTorch => "PyTorch before 1.6",
        })
    }
}

/// An open weights file with a validated header.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    file: File,
    format: Format,
    tensors: Vec<StoredTensor>,
    metadata: BTreeMap<String, String>,
}

impl WeightsFile {
    /// Opens a safetensors or PyTorch file and validates its header.
    ///
    /// # Errors
    /// [`Error::Malformed`], or an I/O error.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(CoreError::io(path))?;
        let length = file.metadata().map_err(CoreError::io(path))?.len();
        let malformed = |reason: String| Error::Malformed { path: path.to_path_buf(), reason };
        if length < 8 {
            return Err(malformed(format!("expected at least 8 bytes, found {length}")).into());
        }
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(CoreError::io(path))?;
        file.rewind().map_err(CoreError::io(path))?;
        let mut metadata = BTreeMap::new();
        let (format, tensors) = if head.starts_with(b"PK\x03\x04") {
            (Format::PyTorch, torch::read_zip(&file))
        } else if head.starts_with(&[0x80, 2, 0x8a]) {
            (Format::LegacyPyTorch, torch::read_legacy(&file, length))
        } else {
            (Format::Safetensors, read_safetensors(&mut file, length, &mut metadata))
        };
        let mut tensors = tensors.map_err(malformed)?;
        let mut names = HashSet::new();
        if let Some(duplicate) = tensors.iter().find(|t| !names.insert(t.name.as_str())) {
            return Err(malformed(format!("duplicate tensor `{}`", duplicate.name)).into());
        }
        // Prefix of PyTorch's `DataParallel`.
        if tensors.iter().all(|t| t.name.starts_with("module.")) {
            for tensor in &mut tensors {
                tensor.name.drain(.."module.".len());
            }
        }
        Ok(Self { path: path.to_path_buf(), file, format, tensors, metadata })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the format of the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the tensors in the order of the header.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// Returns the metadata of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// An element type other than floating point, or an I/O error.
    pub fn read(&mut self, tensor: &StoredTensor) -> Result<Tensor> {
        let Some(dtype) = tensor.float_dtype() else {
            let reason =
                format!("`{}`: expected floating-point values, found {}", tensor.name, tensor.describe());
            return Err(Error::Malformed { path: self.path.clone(), reason }.into());
        };
        let size = dtype.size_in_bytes();
        // A permuted tensor spans the same bytes; expanded tensors were rejected by `open`.
        let span = match &tensor.strides {
            Some(strides) if tensor.count() > 0 => {
                1 + tensor.shape.iter().zip(strides).map(|(side, stride)| (side - 1) * stride).sum::<usize>()
            }
            _ => tensor.count(),
        };
        let mut bytes = vec![0; span * size];
        self.file
            .seek(SeekFrom::Start(tensor.offset))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(CoreError::io(&self.path))?;
        if let Some(strides) = &tensor.strides
            && !is_contiguous(&tensor.shape, strides)
        {
            bytes = to_contiguous(&bytes, size, &tensor.shape, strides);
        }
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, &Device::Cpu)?)
    }
}

fn read_safetensors(
    file: &mut File,
    length: u64,
    metadata: &mut BTreeMap<String, String>,
) -> std::result::Result<Vec<StoredTensor>, String> {
    let io = |e: std::io::Error| e.to_string();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(io)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > length - 8 {
        return Err(format!("header of {size} bytes in a file of {length} bytes (limit {MAX_HEADER})"));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&text).map_err(|e| format!("invalid header: {e}"))?;
    let (expected, data) = (header.data_len() as u64, 8 + size);
    if expected != length - data {
        return Err(format!("expected {expected} bytes after the header, found {}", length - data));
    }
    if let Some(found) = header.metadata() {
        metadata.extend(found.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let tensor = |name: String| {
        let info = header.info(&name)?;
        let offset = data + info.data_offsets.0 as u64;
        Some(StoredTensor { dtype: info.dtype, shape: info.shape.clone(), offset, strides: None, name })
    };
    Ok(header.offset_keys().into_iter().filter_map(tensor).collect())
}

/// Returns whether the strides are those of row-major order.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (side, stride) in shape.iter().zip(strides).rev() {
        if *side != 1 && *stride != expected {
            return false;
        }
        expected *= side;
    }
    true
}

/// Copies strided values into row-major order.
fn to_contiguous(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let mut rows = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let from = index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>() * size;
        rows.extend_from_slice(&bytes[from..from + size]);
        for (i, side) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *side {
                break;
            }
            *i = 0;
        }
    }
    rows
}
