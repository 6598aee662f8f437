//! Reader of safetensors and PyTorch files, one tensor at a time.
//!
//! The kind of a file is that of its content, whatever its name is. Headers are validated against the
//! length of the file before any allocation, so a malformed file costs neither memory nor time.

mod detect;
mod pickle;
mod safetensors;
mod shards;
mod state_dicts;
mod torch;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use candle_core::{DType, Device, Tensor};
use stillhouse_core::fs::{sha256, sha256_file};
use stillhouse_core::{Error as CoreError, Result};

use self::detect::{Content, HEAD, detect};
use crate::Error;

/// A tensor in a weights file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Index of the file, of a checkpoint in several.
    file: usize,
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

    /// Returns where the values are: file and byte offset.
    pub(crate) fn location(&self) -> (usize, u64) {
        (self.file, self.offset)
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
    /// JSON index of files next to it.
    Shards,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::PyTorch => "PyTorch",
            Self::LegacyPyTorch => "PyTorch before 1.6",
            Self::Shards => "index of shards",
        })
    }
}

/// Named tensors of a file. A training checkpoint may have several: the model, its moving average, a
/// teacher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDict {
    /// Dotted path in the file (`state_dict`, `model.ema`); empty if it is the whole file.
    pub key: String,
    /// Tensors in the order of the file.
    pub tensors: Vec<StoredTensor>,
    /// Tensors of types that are not read (quantized, sparse), with the reason.
    pub unsupported: Vec<String>,
}

/// An open weights file with a validated header.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    /// The file, or the shards of an index.
    files: Vec<(PathBuf, File)>,
    format: Format,
    state_dicts: Vec<StateDict>,
    metadata: BTreeMap<String, String>,
}

impl WeightsFile {
    /// Opens a safetensors or PyTorch file, or an index of such files, and validates its header.
    ///
    /// # Errors
    /// [`Error::Malformed`], or an I/O error.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, true)
    }

    fn open_with(path: &Path, may_be_index: bool) -> Result<Self> {
        let malformed = |reason: String| Error::Malformed { path: path.to_path_buf(), reason };
        let mut file = File::open(path).map_err(CoreError::io(path))?;
        let info = file.metadata().map_err(CoreError::io(path))?;
        if info.is_dir() {
            return Err(malformed(describe_folder(path)).into());
        }
        let length = info.len();
        let (head, tail) = ends(&mut file, length).map_err(CoreError::io(path))?;
        let content = detect(&head, &tail, length).map_err(malformed)?;
        let mut metadata = BTreeMap::new();
        let (format, found) = match content {
            Content::Zip => (Format::PyTorch, torch::read_zip(&file)),
            Content::LegacyPyTorch => (Format::LegacyPyTorch, torch::read_legacy(&file, length)),
            Content::Safetensors => (Format::Safetensors, safetensors::read(&file, length, &mut metadata)),
            Content::Json if may_be_index => return Self::open_shards(path, &file, length),
            Content::Json => return Err(malformed("JSON, not weights".into()).into()),
        };
        let mut state_dicts = found.map_err(malformed)?;
        for dict in &state_dicts {
            let mut names = HashSet::new();
            if let Some(duplicate) = dict.tensors.iter().find(|t| !names.insert(t.name.as_str())) {
                return Err(malformed(format!("duplicate tensor `{}`", duplicate.name)).into());
            }
        }
        // Metrics and states of random generators.
        let largest = state_dicts.iter().map(|dict| dict.tensors.len()).max().unwrap_or(0);
        state_dicts.retain(|dict| dict.tensors.len() * 10 >= largest);
        let files = vec![(path.to_path_buf(), file)];
        Ok(Self { path: path.to_path_buf(), files, format, state_dicts, metadata })
    }

    /// Opens the files of an index as one.
    fn open_shards(path: &Path, index: &File, length: u64) -> Result<Self> {
        let malformed = |reason: String| Error::Malformed { path: path.to_path_buf(), reason };
        let shards = shards::read_index(path, index, length).map_err(malformed)?;
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for shard in shards {
            let opened = Self::open_with(&shard.path, false)?;
            let names: HashSet<String> = shard.tensors.into_iter().collect();
            let expected = names.len();
            let dict = opened.state_dicts.into_iter().max_by_key(|dict| dict.tensors.len());
            let mut found: Vec<StoredTensor> = dict.map(|dict| dict.tensors).unwrap_or_default();
            found.retain(|t| names.contains(&t.name));
            if found.len() != expected {
                let reason = format!(
                    "the index has {expected} tensors in `{}`, found {} of them",
                    shard.path.display(),
                    found.len()
                );
                return Err(malformed(reason).into());
            }
            for tensor in &mut found {
                tensor.file = files.len();
            }
            tensors.append(&mut found);
            files.extend(opened.files);
        }
        let state_dicts = vec![StateDict { key: String::new(), tensors, unsupported: Vec::new() }];
        let (format, metadata) = (Format::Shards, BTreeMap::new());
        Ok(Self { path: path.to_path_buf(), files, format, state_dicts, metadata })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the format of the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the state dicts of the file.
    pub fn state_dicts(&self) -> &[StateDict] {
        &self.state_dicts
    }

    /// Returns the state dict of a key, or the only one.
    ///
    /// # Errors
    /// [`Error::UnknownKey`], [`Error::Ambiguous`].
    pub fn state_dict(&self, key: Option<&str>) -> Result<&StateDict> {
        let found: Vec<&StateDict> =
            self.state_dicts.iter().filter(|dict| key.is_none_or(|key| dict.key == key)).collect();
        match (found.as_slice(), key) {
            ([dict], _) => Ok(dict),
            ([], Some(key)) => {
                let known = self.state_dicts.iter().map(StateDict::title).collect();
                Err(Error::UnknownKey { path: self.path.clone(), key: key.into(), known }.into())
            }
            _ => {
                let keys = self.state_dicts.iter().map(|dict| dict.key.clone()).collect();
                Err(Error::Ambiguous { path: self.path.clone(), keys }.into())
            }
        }
    }

    /// Returns the metadata of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns the SHA-256 of the file; of an index with its shards, that of the list of theirs.
    ///
    /// # Errors
    /// An I/O error.
    pub fn sha256(&self) -> Result<String> {
        match self.format {
            Format::Shards => {
                let all = std::iter::once(&self.path).chain(self.files.iter().map(|(path, _)| path));
                let hashes: Vec<String> = all.map(|path| sha256_file(path)).collect::<Result<_>>()?;
                Ok(sha256(hashes.join("\n").as_bytes()))
            }
            _ => sha256_file(&self.path),
        }
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// An element type other than floating point, or an I/O error.
    pub fn read(&self, tensor: &StoredTensor) -> Result<Tensor> {
        let (path, file) = &self.files[tensor.file];
        let Some(dtype) = tensor.float_dtype() else {
            let reason =
                format!("`{}`: expected floating-point values, found {}", tensor.name, tensor.describe());
            return Err(Error::Malformed { path: path.clone(), reason }.into());
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
        let mut file = file;
        file.seek(SeekFrom::Start(tensor.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(CoreError::io(path))?;
        if let Some(strides) = &tensor.strides
            && !is_contiguous(&tensor.shape, strides)
        {
            bytes = to_contiguous(&bytes, size, &tensor.shape, strides);
        }
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, &Device::Cpu)?)
    }
}

impl StateDict {
    /// Returns the key and the number of tensors.
    pub fn title(&self) -> String {
        let key = if self.key.is_empty() { "the whole file".into() } else { format!("`{}`", self.key) };
        format!("{key} ({} tensors)", self.tensors.len())
    }
}

/// Reads the first and the last bytes of a file, and rewinds it.
fn ends(file: &mut File, length: u64) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(length.saturating_sub(8)))?;
    file.by_ref().take(8).read_to_end(&mut tail)?;
    file.rewind()?;
    Ok((head, tail))
}

/// Describes a folder that was given as a file, with the weights in it.
fn describe_folder(path: &Path) -> String {
    let is_weights = |name: &String| {
        let ends = [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".index.json"];
        ends.iter().any(|end| name.ends_with(end))
    };
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<String> = names.filter(is_weights).take(1000).collect();
    found.sort();
    match found.as_slice() {
        [] => "a folder, not a file".into(),
        names => format!("a folder; give a file in it: {}", names[..names.len().min(5)].join(", ")),
    }
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
