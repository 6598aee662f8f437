//! Weights as a safetensors file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Serialize;
use stillhouse_core::fs::write_atomic_with;
use stillhouse_core::{Error as CoreError, ParamStore, Result};

/// Header of the format. The writer of the `safetensors` crate keeps metadata in a hash map, whose
/// order differs between runs.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// Element type of a saved file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: half the size, about three significant digits.
    F16,
}

/// Saves all weights and buffers as f32 in PyTorch's layout with timm's names, for timm and for
/// [`load_weights`](super::load_weights).
///
/// Names are sorted, so the same values and metadata give the same bytes. The write is atomic.
///
/// # Errors
/// An I/O error.
pub fn save(params: &ParamStore, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    save_as(params, path, metadata, Precision::F32)
}

/// Saves the weights as [`save`] does, with a given element type.
///
/// # Errors
/// An I/O error, or a value that overflows f16.
pub fn save_as(
    params: &ParamStore,
    path: &Path,
    metadata: &BTreeMap<String, String>,
    precision: Precision,
) -> Result<()> {
    let mut entries = params.all();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let (mut tensors, mut offset) = (BTreeMap::new(), 0);
    for param in &entries {
        let (dtype, bytes) = match precision {
            Precision::F32 => (Dtype::F32, 4),
            Precision::F16 => (Dtype::F16, 2),
        };
        let end = offset + bytes * param.count();
        let info = TensorInfo { dtype, shape: param.shape.clone(), data_offsets: (offset, end) };
        tensors.insert(param.name.as_str(), info);
        offset = end;
    }
    let mut header = serde_json::to_vec(&Header { metadata, tensors }).map_err(CoreError::other)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomic_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for param in &entries {
            let values = floats(params, &param.name).map_err(std::io::Error::other)?;
            let bytes: Vec<u8> = match precision {
                Precision::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Precision::F16 => to_f16(&param.name, &values)?,
            };
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

fn to_f16(name: &str, values: &[f32]) -> std::io::Result<Vec<u8>> {
    let converted = values.iter().map(|v| half::f16::from_f32(*v));
    if let Some((v, _)) = values.iter().zip(converted.clone()).find(|(v, h)| v.is_finite() && !h.is_finite())
    {
        return Err(std::io::Error::other(format!("f16 overflow: `{name}`: {v}; use f32")));
    }
    Ok(converted.flat_map(half::f16::to_le_bytes).collect())
}

/// Returns the values of a parameter in PyTorch's layout.
pub(crate) fn floats(params: &ParamStore, name: &str) -> Result<Vec<f32>> {
    let Some(id) = params.id(name) else { return Ok(Vec::new()) };
    let values = params.export(id)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(values.flatten_all()?.to_vec1()?)
}
