//! Files of weights, whatever wrote them: their tensors by name, read one at a time.
//!
//! The file is believed only after its description was checked against its length: what it claims
//! costs neither memory nor time.

mod pickle;
mod pth;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use stillhouse_core::{Error as CoreError, Result};

use crate::Error;

/// A header describes some hundred tensors; anything longer than this is not one.
const MAX_HEADER: u64 = 16 << 20;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it begins, from the start of the file.
    start: u64,
    /// Elements between neighbors of each direction; row by row where there are none.
    strides: Option<Vec<usize>>,
}

impl Stored {
    /// Its values in candle's words; none for counters and the like.
    pub fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F32 => Some(DType::F32),
            Dtype::F64 => Some(DType::F64),
            _ => None,
        }
    }

    /// Type and shape in words.
    pub(crate) fn shown(&self) -> String {
        format!("{:?} {:?}", self.dtype, self.shape)
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What wrote a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save`, a zip archive.
    Pytorch,
    /// `torch.save` of before PyTorch 1.6.
    PytorchBefore16,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Pytorch => "PyTorch",
            Self::PytorchBefore16 => "PyTorch before 1.6",
        })
    }
}

/// An open file of weights whose description was checked.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    file: File,
    format: Format,
    tensors: Vec<Stored>,
    metadata: BTreeMap<String, String>,
}

impl WeightsFile {
    /// Opens a safetensors file, or one that PyTorch has saved.
    ///
    /// # Errors
    /// [`Error::Malformed`] inside [`stillhouse_core::Error::Other`]; I/O errors with the path.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(CoreError::io(path))?;
        let length = file.metadata().map_err(CoreError::io(path))?.len();
        let malformed = |what: String| Error::Malformed { path: path.to_path_buf(), what };
        if length < 8 {
            return Err(malformed(format!("{length} bytes long")).into());
        }
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(CoreError::io(path))?;
        file.rewind().map_err(CoreError::io(path))?;
        let mut metadata = BTreeMap::new();
        let (format, tensors) = if head.starts_with(b"PK\x03\x04") {
            (Format::Pytorch, pth::of_zip(&file))
        } else if head.starts_with(&[0x80, 2, 0x8a]) {
            (Format::PytorchBefore16, pth::of_row(&file, length))
        } else {
            (Format::Safetensors, of_safetensors(&mut file, length, &mut metadata))
        };
        let mut tensors = tensors.map_err(malformed)?;
        let mut names = HashSet::new();
        if let Some(twin) = tensors.iter().find(|t| !names.insert(t.name.as_str())) {
            return Err(malformed(format!("two tensors `{}`", twin.name)).into());
        }
        // What training scripts put around a network on several devices.
        if tensors.iter().all(|t| t.name.starts_with("module.")) {
            for tensor in &mut tensors {
                tensor.name.drain(.."module.".len());
            }
        }
        Ok(Self { path: path.to_path_buf(), file, format, tensors, metadata })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What wrote it.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its tensors, in the order of the file's description.
    pub fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    /// What a safetensors file says of itself.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads one of its tensors; memory for this one alone is needed.
    ///
    /// # Errors
    /// An element type that no weights have; I/O errors with the path.
    pub fn read(&mut self, tensor: &Stored) -> Result<Tensor> {
        let Some(dtype) = tensor.float() else {
            let what = format!("`{}` is {}, which holds no weights", tensor.name, tensor.shown());
            return Err(Error::Malformed { path: self.path.clone(), what }.into());
        };
        let size = dtype.size_in_bytes();
        // A permuted tensor lies in the same bytes; PyTorch's `expand` was refused.
        let span = match &tensor.strides {
            Some(strides) if tensor.count() > 0 => {
                1 + tensor.shape.iter().zip(strides).map(|(side, stride)| (side - 1) * stride).sum::<usize>()
            }
            _ => tensor.count(),
        };
        let mut bytes = vec![0; span * size];
        self.file
            .seek(SeekFrom::Start(tensor.start))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(CoreError::io(&self.path))?;
        if let Some(strides) = &tensor.strides
            && !in_rows(&tensor.shape, strides)
        {
            bytes = gathered(&bytes, size, &tensor.shape, strides);
        }
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, &Device::Cpu)?)
    }
}

fn of_safetensors(
    file: &mut File,
    length: u64,
    metadata: &mut BTreeMap<String, String>,
) -> std::result::Result<Vec<Stored>, String> {
    let io = |e: std::io::Error| e.to_string();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(io)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > length - 8 {
        return Err(format!("a header of {size} bytes in a file of {length}; at most {MAX_HEADER} are read"));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&text).map_err(|e| format!("its header: {e}"))?;
    let (expected, data) = (header.data_len() as u64, 8 + size);
    if expected != length - data {
        return Err(format!("expected {expected} bytes of values after its header, found {}", length - data));
    }
    if let Some(found) = header.metadata() {
        metadata.extend(found.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let tensor = |name: String| {
        let info = header.info(&name)?;
        let start = data + info.data_offsets.0 as u64;
        Some(Stored { dtype: info.dtype, shape: info.shape.clone(), start, strides: None, name })
    };
    Ok(header.offset_keys().into_iter().filter_map(tensor).collect())
}

/// Whether values lie row by row.
fn in_rows(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (side, stride) in shape.iter().zip(strides).rev() {
        if *side != 1 && *stride != expected {
            return false;
        }
        expected *= side;
    }
    true
}

/// Values row by row from values in another order.
fn gathered(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let mut rows = Vec::with_capacity(count * size);
    let mut at = vec![0; shape.len()];
    for _ in 0..count {
        let from = at.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>() * size;
        rows.extend_from_slice(&bytes[from..from + size]);
        for (i, side) in at.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *side {
                break;
            }
            *i = 0;
        }
    }
    rows
}
