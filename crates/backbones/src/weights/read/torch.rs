//! PyTorch files: a zip archive (since 1.6), or consecutive pickles followed by the storages (before).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use safetensors::Dtype;
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use super::pickle::{Element, Pickle, TensorRef};
use super::state_dicts::{self, PickledDict};
use super::{StateDict, StoredTensor};

/// Maximum number of records of an archive. Real archives have one per tensor and a few more.
const MAX_RECORDS: usize = 100_000;

/// Reads the state dicts of an archive.
pub(super) fn read_zip(file: &File) -> Result<Vec<StateDict>, String> {
    // PyTorch's archives start at offset 0; detecting the offset misreads some of them.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let archive = ZipArchive::with_config(config, BufReader::new(file));
    let mut archive = archive.map_err(|e| format!("truncated or damaged zip archive: {e}"))?;
    if archive.len() > MAX_RECORDS {
        return Err(format!("{} records (limit {MAX_RECORDS})", archive.len()));
    }
    let names = archive.file_names().map(|name| name.map(|name| name.into_owned()));
    let names: Vec<String> =
        names.collect::<Result<_, _>>().map_err(|e| format!("invalid zip archive: {e}"))?;
    let below = |name: &str| name.split_once('/').map_or(String::new(), |(_, below)| below.to_string());
    if names.iter().any(|name| below(name) == "constants.pkl") {
        return Err(
            "a TorchScript program, not a state dict; save it by torch.save(model.state_dict(), ...)".into(),
        );
    }
    if !names.iter().any(|name| below(name) == "data.pkl") {
        return Err(describe_archive(&names));
    }
    let (mut storages, mut pickle) = (HashMap::new(), None);
    for i in 0..archive.len() {
        let record = archive.by_index_raw(i).map_err(|e| format!("invalid zip archive: {e}"))?;
        let name = record.name().map_err(|e| format!("invalid zip archive: {e}"))?.into_owned();
        if record.encrypted() || record.size() != record.compressed_size() {
            return Err(format!(
                "record `{name}` is compressed or encrypted; PyTorch stores records uncompressed"
            ));
        }
        let start = record.data_start().ok_or_else(|| format!("record `{name}` has no offset"))?;
        // `<archive>/data.pkl`, `<archive>/data/<key>`, `<archive>/byteorder`
        match below(&name).as_str() {
            "data.pkl" if pickle.is_some() => return Err("duplicate data.pkl".into()),
            "data.pkl" => pickle = Some((start, record.size())),
            "byteorder" => check_byte_order(record)?,
            below => {
                if let Some(key) = below.strip_prefix("data/") {
                    storages.insert(key.to_string(), (start, record.size()));
                }
            }
        }
    }
    let (start, size) = pickle.ok_or("zip archive without data.pkl")?;
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let pickle = Pickle::read(&mut reader.take(size))?;
    resolve_all(&pickle, &storages)
}

/// Describes a zip archive that `torch.save` did not write.
fn describe_archive(names: &[String]) -> String {
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    let what = if ends(".weights.h5") {
        "a Keras model"
    } else if ends(".npy") {
        "an archive of NumPy arrays"
    } else if names.iter().any(|name| name.contains("archive_format")) {
        "an exported PyTorch program (torch.export), not a state dict"
    } else {
        let shown: Vec<String> = names.iter().take(3).map(|n| format!("`{}`", n.escape_debug())).collect();
        let more = if names.len() > 3 { ", ..." } else { "" };
        return format!(
            "a zip archive that torch.save did not write (no data.pkl among {} files: {}{more}); unpack it first",
            names.len(),
            shown.join(", ")
        );
    };
    what.into()
}

/// Resolves the tensors of a pickle. `storages` has the byte offset and size of each storage.
fn resolve_all(pickle: &Pickle, storages: &HashMap<String, (u64, u64)>) -> Result<Vec<StateDict>, String> {
    let resolve_one = |(name, at): (String, TensorRef)| {
        let (start, size) =
            *storages.get(&at.storage).ok_or_else(|| format!("`{name}`: missing storage {}", at.storage))?;
        resolve(name, &at, start, size)
    };
    let resolve_dict = |PickledDict { key, tensors, unsupported }| {
        let tensors: Vec<StoredTensor> =
            tensors.into_iter().map(resolve_one).collect::<Result<_, String>>()?;
        Ok(StateDict { key, tensors, unsupported })
    };
    state_dicts::find(pickle)?.into_iter().map(resolve_dict).collect()
}

fn check_byte_order(mut record: impl Read) -> Result<(), String> {
    let mut order = String::new();
    let read = record.by_ref().take(16).read_to_string(&mut order);
    if read.is_err() || order.trim() != "little" {
        return Err(format!(
            "unsupported byte order: expected `little`, found `{}`",
            order.trim().escape_debug()
        ));
    }
    Ok(())
}

/// Reads the tensors of a file of PyTorch before 1.6: magic number, version, system information, tensors,
/// keys, then each storage after its length.
pub(super) fn read_legacy(file: &File, length: u64) -> Result<Vec<StateDict>, String> {
    let mut reader = BufReader::new(file);
    for _ in 0..3 {
        Pickle::read(&mut reader)?;
    }
    let pickle = Pickle::read(&mut reader)?;
    let elements: HashMap<String, (Element, u64)> =
        pickle.storages.iter().map(|(key, element, length)| (key.clone(), (*element, *length))).collect();
    let keys = Pickle::read(&mut reader)?;
    let keys = keys.strings().ok_or("missing list of storages")?;
    let mut storages = HashMap::new();
    let mut offset = reader.stream_position().map_err(|e| e.to_string())?;
    for key in keys {
        let (element, expected) = *elements.get(key).ok_or_else(|| format!("unused storage {key}"))?;
        let mut found = [0; 8];
        reader.read_exact(&mut found).map_err(|_| format!("truncated before storage {key}"))?;
        let found = u64::from_le_bytes(found);
        let size = found.checked_mul(element.bytes() as u64);
        let size = size.filter(|_| found == expected);
        let size = size.ok_or_else(|| format!("storage {key}: expected {expected} values, found {found}"))?;
        offset += 8;
        if size > length.saturating_sub(offset) {
            return Err(format!("truncated in storage {key}"));
        }
        storages.insert(key.to_string(), (offset, size));
        offset += size;
        reader.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
    }
    resolve_all(&pickle, &storages)
}

/// Resolves a tensor in a storage at byte offset `start` with `size` bytes. Rejects tensors that exceed
/// the storage.
fn resolve(name: String, at: &TensorRef, start: u64, size: u64) -> Result<StoredTensor, String> {
    let bytes = at.element.bytes() as u64;
    let outside = || format!("`{name}` exceeds its storage of {size} bytes");
    let count = at.shape.iter().try_fold(1_u64, |n, side| n.checked_mul(*side as u64));
    let count = count.ok_or_else(outside)?;
    let mut last = at.offset;
    for (side, stride) in at.shape.iter().zip(&at.strides).filter(|_| count > 0) {
        let reach = (*side as u64 - 1).checked_mul(*stride as u64);
        last = reach.and_then(|r| last.checked_add(r)).ok_or_else(outside)?;
    }
    let end = last.checked_add(u64::from(count > 0)).and_then(|n| n.checked_mul(bytes));
    // A stride of 0 repeats values, so that the tensor is larger than its storage.
    let whole = count.checked_mul(bytes).filter(|b| *b <= size);
    if end.is_none_or(|end| end > size) || whole.is_none() || at.length.checked_mul(bytes) != Some(size) {
        return Err(outside());
    }
    let dtype = match at.element {
        Element::F64 => Dtype::F64,
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::BF16 => Dtype::BF16,
        Element::Other(1) => Dtype::U8,
        Element::Other(2) => Dtype::I16,
        Element::Other(4) => Dtype::I32,
        Element::Other(_) => Dtype::I64,
    };
    Ok(StoredTensor {
        name,
        dtype,
        shape: at.shape.clone(),
        file: 0,
        offset: start + at.offset * bytes,
        strides: Some(at.strides.clone()),
    })
}
