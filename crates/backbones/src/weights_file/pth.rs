//! Weights as PyTorch saves them: a zip archive (since 1.6), or a row of pickles followed by the
//! values (before).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use safetensors::Dtype;
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use super::Stored;
use super::pickle::{Element, Pickled, TensorAt};

/// A real archive has a record for each tensor and half a dozen more.
const MOST_RECORDS: usize = 100_000;

/// The tensors of an archive.
pub(super) fn of_zip(file: &File) -> Result<Vec<Stored>, String> {
    // PyTorch's archives begin with the file; looking for a later beginning misreads some of them.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let archive = ZipArchive::with_config(config, BufReader::new(file));
    let mut archive = archive.map_err(|e| format!("its zip archive: {e}"))?;
    if archive.len() > MOST_RECORDS {
        return Err(format!("{} records; at most {MOST_RECORDS} are read", archive.len()));
    }
    let (mut places, mut pickle) = (HashMap::new(), None);
    for i in 0..archive.len() {
        let record = archive.by_index_raw(i).map_err(|e| format!("its zip archive: {e}"))?;
        let name = record.name().map_err(|e| format!("its zip archive: {e}"))?.into_owned();
        if record.encrypted() || record.size() != record.compressed_size() {
            return Err(format!("its record `{name}` is compressed; PyTorch stores them as they are"));
        }
        let start = record.data_start().ok_or_else(|| format!("its record `{name}` begins nowhere"))?;
        // `<archive>/data.pkl`, `<archive>/data/<key>`, `<archive>/byteorder`
        match name.split_once('/').map_or("", |(_, below)| below) {
            "data.pkl" if pickle.is_some() => return Err("it has two data.pkl".into()),
            "data.pkl" => pickle = Some((start, record.size())),
            "constants.pkl" => return Err("it is a TorchScript program, not a state dict".into()),
            below => {
                if let Some(key) = below.strip_prefix("data/") {
                    places.insert(key.to_string(), (start, record.size()));
                } else if below == "byteorder" {
                    byte_order(record)?;
                }
            }
        }
    }
    let (start, size) = pickle.ok_or("it is a zip archive without data.pkl, not one of PyTorch")?;
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let pickled = Pickled::read(&mut reader.take(size))?;
    all_stored(pickled, &places)
}

/// The tensors of a pickle, whose storages begin at these places and have these sizes.
fn all_stored(pickled: Pickled, places: &HashMap<String, (u64, u64)>) -> Result<Vec<Stored>, String> {
    let tensors = pickled.tensors()?.into_iter();
    let found = tensors.map(|(name, at)| {
        let (start, size) = *places
            .get(&at.storage)
            .ok_or_else(|| format!("`{name}` lies in storage {}, which is not there", at.storage))?;
        stored(name, &at, start, size)
    });
    found.collect()
}

fn byte_order(mut record: impl Read) -> Result<(), String> {
    let mut order = String::new();
    let read = record.by_ref().take(16).read_to_string(&mut order);
    if read.is_err() || order.trim() != "little" {
        return Err(format!("its byte order is `{}`; little is read", order.trim().escape_debug()));
    }
    Ok(())
}

/// The tensors of a file of before 1.6: magic number, version, machine, tensors, keys, then every
/// storage with its length before it.
pub(super) fn of_row(file: &File, length: u64) -> Result<Vec<Stored>, String> {
    let mut reader = BufReader::new(file);
    for _ in 0..3 {
        Pickled::read(&mut reader)?;
    }
    let pickled = Pickled::read(&mut reader)?;
    let elements: HashMap<String, (Element, u64)> =
        pickled.storages.iter().map(|(key, element, length)| (key.clone(), (*element, *length))).collect();
    let keys = Pickled::read(&mut reader)?;
    let keys = keys.texts().ok_or("it has no list of storages")?;
    let mut places = HashMap::new();
    let mut at = reader.stream_position().map_err(|e| e.to_string())?;
    for key in keys {
        let (element, expected) =
            *elements.get(key).ok_or_else(|| format!("its storage {key} belongs to no tensor"))?;
        let mut found = [0; 8];
        reader.read_exact(&mut found).map_err(|_| format!("it ends before storage {key}"))?;
        let found = u64::from_le_bytes(found);
        let size = found.checked_mul(element.bytes() as u64);
        let size = size.filter(|_| found == expected);
        let size =
            size.ok_or_else(|| format!("its storage {key} has {found} values, expected {expected}"))?;
        at += 8;
        if size > length.saturating_sub(at) {
            return Err(format!("it ends inside of storage {key}"));
        }
        places.insert(key.to_string(), (at, size));
        at += size;
        reader.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
    }
    all_stored(pickled, &places)
}

/// A tensor whose storage begins at `start` and has `size` bytes: refused where it reaches outside of
/// it, or is larger than it.
fn stored(name: String, at: &TensorAt, start: u64, size: u64) -> Result<Stored, String> {
    let bytes = at.element.bytes() as u64;
    let outside = || format!("`{name}` reaches outside of its storage of {size} bytes");
    let count = at.shape.iter().try_fold(1_u64, |n, side| n.checked_mul(*side as u64));
    let count = count.ok_or_else(outside)?;
    let mut last = at.offset;
    for (side, stride) in at.shape.iter().zip(&at.strides).filter(|_| count > 0) {
        let reach = (*side as u64 - 1).checked_mul(*stride as u64);
        last = reach.and_then(|r| last.checked_add(r)).ok_or_else(outside)?;
    }
    let end = last.checked_add(u64::from(count > 0)).and_then(|n| n.checked_mul(bytes));
    // A stride of 0 repeats values: then there are more of them than in the storage.
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
    Ok(Stored {
        name,
        dtype,
        shape: at.shape.clone(),
        start: start + at.offset * bytes,
        strides: Some(at.strides.clone()),
    })
}
