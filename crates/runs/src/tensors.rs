//! Reproducible safetensors files: no metadata, sorted names, the same bytes for the same values.

use std::io::Write;
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::{Error, Result};

/// Writes a file atomically and without a second copy of the tensors. Returns its SHA-256.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<String> {
    let mut sorted: Vec<(Dtype, &str, Tensor)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::U32 => Dtype::U32,
            DType::I64 => Dtype::I64,
            other => {
                let reason = format!("tensor `{name}`: expected f32, f64, u32 or i64, found {other:?}");
                return Err(Error::invalid(path, reason));
            }
        };
        sorted.push((dtype, name, tensor.to_device(&Device::Cpu)?.contiguous()?));
    }
    // The order of the safetensors library.
    sorted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let header = header(&sorted).map_err(|reason| Error::invalid(path, reason))?;
    Ok(stillhouse_core::fs::write_atomic_hashed(path, |to| {
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(&header)?;
        sorted.iter().try_for_each(|(_, _, tensor)| write_values(tensor, to))
    })?)
}

/// Returns the header of a safetensors file with these tensors in sequence.
fn header(sorted: &[(Dtype, &str, Tensor)]) -> std::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let entries = sorted.iter().map(|(dtype, name, tensor)| {
        let start = end;
        end += tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = TensorInfo { dtype: *dtype, shape: tensor.dims().to_vec(), data_offsets: (start, end) };
        (name.to_string(), info)
    });
    let metadata = Metadata::new(None, entries.collect()).map_err(|e| e.to_string())?;
    let mut bytes = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

/// Writes the values of a contiguous CPU tensor.
fn write_values(tensor: &Tensor, to: &mut dyn Write) -> std::io::Result<()> {
    fn all<T: Copy, const N: usize>(
        values: &[T],
        bytes: fn(T) -> [u8; N],
        to: &mut dyn Write,
    ) -> std::io::Result<()> {
        let mut chunk = Vec::with_capacity(1 << 14);
        for values in values.chunks(1 << 14) {
            chunk.clear();
            chunk.extend(values.iter().map(|v| bytes(*v)));
            to.write_all(chunk.as_flattened())?;
        }
        Ok(())
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(values), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(std::io::Error::other("the tensor is not contiguous CPU memory"));
    };
    match values {
        CpuStorage::F32(v) => all(&v[start..end], f32::to_le_bytes, to),
        CpuStorage::F64(v) => all(&v[start..end], f64::to_le_bytes, to),
        CpuStorage::U32(v) => all(&v[start..end], u32::to_le_bytes, to),
        CpuStorage::I64(v) => all(&v[start..end], i64::to_le_bytes, to),
        _ => Err(std::io::Error::other("unsupported element type")),
    }
}

/// Reads a file; the tensors are sorted by name.
pub fn read(path: &Path, device: &Device) -> Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).map_err(stillhouse_core::Error::io(path))?;
    let map = candle_core::safetensors::load_buffer(&bytes, device)
        .map_err(|e| Error::invalid(path, format!("not a valid safetensors file: {e}")))?;
    let mut tensors: Vec<(String, Tensor)> = map.into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_same_bytes_in_any_order() {
        let a =
            ("a".to_string(), Tensor::new(&[[1f32, -0.0], [f32::MIN_POSITIVE, 4.0]], &Device::Cpu).unwrap());
        let b = ("b".to_string(), Tensor::new(&[1u32, 2, 3], &Device::Cpu).unwrap());
        let c = ("c".to_string(), a.1.t().unwrap());
        let all = [a, b, c];
        let bytes = safetensors::serialize(all.iter().map(|(n, t)| (n, t)), None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let sha256 = write(&path, &order.map(|i| all[i].clone())).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "the library's bytes");
            assert_eq!(sha256, stillhouse_core::fs::sha256(&bytes));
        }
        let back = read(&path, &Device::Cpu).unwrap();
        assert_eq!(back.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(write(&path, &back).unwrap(), stillhouse_core::fs::sha256(&bytes));
        let bf16 = ("h".to_string(), Tensor::zeros(2, DType::BF16, &Device::Cpu).unwrap());
        assert!(
            write(&path, &[bf16])
                .unwrap_err()
                .to_string()
                .contains("tensor `h`: expected f32, f64, u32 or i64, found BF16")
        );
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(read(&path, &Device::Cpu).unwrap_err().to_string().contains("x.safetensors"));
    }
}
