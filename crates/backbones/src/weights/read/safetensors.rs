//! Header of a safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use safetensors::tensor::Metadata;

use super::{StateDict, StoredTensor};

/// Maximum size of a header in bytes. Real headers describe a few hundred tensors.
const MAX_HEADER: u64 = 16 << 20;

/// Reads the tensors of a file, and its metadata.
pub(super) fn read(
    mut file: &File,
    length: u64,
    metadata: &mut BTreeMap<String, String>,
) -> Result<Vec<StateDict>, String> {
    let io = |e: std::io::Error| e.to_string();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| format!("truncated: {length} bytes"))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(format!("header of {size} bytes in a file of {length} bytes (limit {MAX_HEADER})"));
    }
    if size > length - 8 {
        return Err(format!("truncated: header of {size} bytes in a file of {length} bytes"));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&text).map_err(|e| format!("invalid header: {e}"))?;
    let (expected, data) = (header.data_len() as u64, 8 + size);
    let found = length - data;
    if expected != found {
        let what = if found < expected { "truncated: " } else { "" };
        return Err(format!("{what}expected {expected} bytes after the header, found {found}"));
    }
    if let Some(found) = header.metadata() {
        metadata.extend(found.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let tensor = |name: String| {
        let info = header.info(&name)?;
        let offset = data + info.data_offsets.0 as u64;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        Some(StoredTensor { dtype, shape, file: 0, offset, strides: None, name })
    };
    let tensors: Vec<StoredTensor> = header.offset_keys().into_iter().filter_map(tensor).collect();
    if tensors.is_empty() {
        return Err("no tensors".into());
    }
    Ok(vec![StateDict { key: String::new(), tensors, unsupported: Vec::new() }])
}
