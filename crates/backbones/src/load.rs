//! Weights from safetensors files into a network.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use stillhouse_core::{Error as CoreError, Params, Result};
use stillhouse_ops::Param;

use crate::Error;

/// A header describes some hundred tensors; anything longer than this is not one.
const MAX_HEADER: u64 = 16 << 20;

/// Loads a safetensors file into parameters by name; f16, bf16, f32 and f64 are converted.
///
/// Every entry of `params` must be in the file with its shape, and nothing else may be
/// (`num_batches_tracked` aside): what does not fit is reported at once, and nothing is loaded. The
/// names in `head` may be missing or have another number of classes if `replace_head` is set; then
/// they stay as they are. Returns what was left so, a sentence each, for the log.
///
/// The file is read tensor by tensor: memory for one tensor is needed besides the network's own,
/// whatever the file's header claims.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Misfit`] and [`Error::Classes`], inside
/// [`stillhouse_core::Error::Other`]; I/O errors with the path.
pub fn load_weights(
    path: &Path,
    params: &Params,
    head: &[String],
    replace_head: bool,
) -> Result<Vec<String>> {
    let mut file = Archive::open(path)?;
    let entries = params.all();
    let (mut missing, mut misshapen, mut left, mut take) = (vec![], vec![], vec![], vec![]);
    let mut classes = None;
    for param in &entries {
        let replaceable = replace_head && head.contains(&param.name);
        let Some(info) = file.header.info(&param.name).cloned() else {
            if replaceable {
                left.push(format!("{}: not in the file, stays new", param.name));
            } else {
                missing.push(param.name.clone());
            }
            continue;
        };
        let (found, expected) = (&info.shape, &param.shape);
        if found == expected && dtype(info.dtype).is_some() {
            take.push((param, info));
        } else if replaceable {
            left.push(format!("{}: {} in the file, stays new {expected:?}", param.name, shown(&info)));
        } else if head.contains(&param.name) && only_classes_differ(found, expected) {
            let (path, name) = (path.to_path_buf(), param.name.clone());
            classes.get_or_insert(Error::Classes { path, name, expected: expected[0], found: found[0] });
        } else {
            misshapen.push(format!("{}: {}, expected {expected:?}", param.name, shown(&info)));
        }
    }
    let known: HashSet<&str> = entries.iter().map(|p| p.name.as_str()).collect();
    let unexpected: Vec<String> = file
        .header
        .offset_keys()
        .into_iter()
        .filter(|name| !known.contains(name.as_str()) && !name.ends_with("num_batches_tracked"))
        .collect();
    if !(missing.is_empty() && unexpected.is_empty() && misshapen.is_empty()) {
        return Err(Error::Misfit { path: path.to_path_buf(), missing, unexpected, misshapen }.into());
    }
    if let Some(error) = classes {
        return Err(error.into());
    }
    take.sort_by_key(|(_, info)| info.data_offsets);
    for (param, info) in take {
        file.read_into(params, param, &info)?;
    }
    Ok(left)
}

fn shown(info: &TensorInfo) -> String {
    format!("{:?} {:?}", info.dtype, info.shape)
}

fn only_classes_differ(found: &[usize], expected: &[usize]) -> bool {
    found.len() == expected.len() && found.first() != expected.first() && found[1..] == expected[1..]
}

/// The element types that weights come in.
fn dtype(found: Dtype) -> Option<DType> {
    match found {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

/// An open file whose header was checked: offsets, sizes and shapes agree with each other and with
/// the file's length.
struct Archive<'a> {
    path: &'a Path,
    file: File,
    header: Metadata,
    data: u64,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let mut file = File::open(path).map_err(CoreError::io(path))?;
        let length = file.metadata().map_err(CoreError::io(path))?.len();
        let malformed = |what: String| Error::Malformed { path: path.to_path_buf(), what };
        if length < 8 {
            return Err(malformed(format!("{length} bytes long")).into());
        }
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(CoreError::io(path))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size > length - 8 {
            let what =
                format!("a header of {size} bytes in a file of {length}; at most {MAX_HEADER} are read");
            return Err(malformed(what).into());
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(CoreError::io(path))?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|e| malformed(format!("its header: {e}")))?;
        let (expected, data) = (header.data_len() as u64, 8 + size);
        if expected != length - data {
            let what =
                format!("expected {expected} bytes of values after its header, found {}", length - data);
            return Err(malformed(what).into());
        }
        Ok(Self { path, file, header, data })
    }

    /// Reads one tensor, whose shape is that of `param`.
    fn read_into(&mut self, params: &Params, param: &Param, info: &TensorInfo) -> Result<()> {
        let (Some(id), Some(dtype)) = (params.id(&param.name), dtype(info.dtype)) else {
            return Ok(());
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(CoreError::io(self.path))?;
        let values = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?;
        Ok(params.import(id, &values)?)
    }
}
