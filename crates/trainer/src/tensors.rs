//! safetensors files with the same bytes for the same values: no metadata, names in order.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use stillhouse_core::files;

use crate::{Error, Result};

/// The bytes of a safetensors file.
pub(crate) fn encode(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let mut values = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        let (dtype, bytes): (Dtype, Vec<u8>) = match flat.dtype() {
            DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::F64 => (Dtype::F64, flat.to_vec1::<f64>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::U32 => (Dtype::U32, flat.to_vec1::<u32>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            other => {
                let what = format!("tensor `{name}` is {other:?}, expected f32, f64, u32 or i64");
                return Err(Error::config("safetensors", what));
            }
        };
        values.push((name, dtype, tensor.dims().to_vec(), bytes));
    }
    let views = values
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    // The writer sorts by element type and name.
    views.and_then(|views| safetensors::serialize(views, None)).map_err(|e| Error::config("safetensors", e))
}

/// Writes a file whole or not at all; returns its SHA-256.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<String> {
    let bytes = encode(tensors)?;
    files::write_atomic(path, &bytes)?;
    Ok(files::sha256(&bytes))
}

/// Reads a file in the order of the names.
pub(crate) fn read(path: &Path, device: &Device) -> Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).map_err(stillhouse_core::Error::io(path))?;
    let map = candle_core::safetensors::load_buffer(&bytes, device)
        .map_err(|e| Error::folder(path, format!("is no whole safetensors file: {e}")))?;
    let mut tensors: Vec<(String, Tensor)> = map.into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_values_give_same_bytes_in_any_order() {
        let a =
            ("a".to_string(), Tensor::new(&[[1f32, -0.0], [f32::MIN_POSITIVE, 4.0]], &Device::Cpu).unwrap());
        let b = ("b".to_string(), Tensor::new(&[1u32, 2, 3], &Device::Cpu).unwrap());
        let bytes = encode(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(bytes, encode(&[b.clone(), a.clone()]).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        assert_eq!(write(&path, &[b, a]).unwrap(), files::sha256(&bytes));
        let back = read(&path, &Device::Cpu).unwrap();
        assert_eq!(back.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(encode(&back).unwrap(), bytes);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(read(&path, &Device::Cpu).unwrap_err().to_string().contains("x.safetensors"));
    }
}
