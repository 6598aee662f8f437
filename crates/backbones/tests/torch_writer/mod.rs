//! Writer of PyTorch files for tests.

use std::io::{Cursor, Write};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// The first three pickles of a file of PyTorch before 1.6.
pub(crate) const LEGACY_HEADER: &[u8] =
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00X\r\x00\x00\x00little_endianq\x01\x88s.";

/// A tensor of a state dict.
#[derive(Clone)]
pub(crate) struct Saved {
    pub(crate) name: String,
    /// `FloatStorage`, `HalfStorage`, ...
    pub(crate) storage: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) offset: usize,
    /// Length of the storage in elements.
    pub(crate) length: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Saved {
    pub(crate) fn floats(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (name, shape) = (name.to_string(), shape.to_vec());
        Self { name, storage: "FloatStorage", shape, strides, offset: 0, length: values.len(), bytes }
    }
}

fn int(value: usize) -> Vec<u8> {
    match i32::try_from(value) {
        Ok(value) => [&b"J"[..], &value.to_le_bytes()].concat(),
        Err(_) => [&b"\x8a\x08"[..], &(value as u64).to_le_bytes()].concat(),
    }
}

fn text(value: &str) -> Vec<u8> {
    [&b"X"[..], &(value.len() as u32).to_le_bytes(), value.as_bytes()].concat()
}

fn tuple(values: &[usize]) -> Vec<u8> {
    let inside: Vec<u8> = values.iter().flat_map(|v| int(*v)).collect();
    [&b"("[..], &inside, b"t"].concat()
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`
pub(crate) fn tensor(saved: &Saved, key: usize) -> Vec<u8> {
    let storage = format!("ctorch\n{}\n", saved.storage);
    [
        &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &text("storage"),
        storage.as_bytes(),
        &text(&key.to_string()),
        &text("cpu"),
        &int(saved.length),
        b"tQ",
        &int(saved.offset),
        &tuple(&saved.shape),
        &tuple(&saved.strides),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

/// Pickles the dictionary of tensors, without header and STOP.
pub(crate) fn dict(tensors: &[Saved]) -> Vec<u8> {
    dict_from(0, tensors)
}

/// Pickles a dictionary of tensors whose storages are numbered from `first`.
pub(crate) fn dict_from(first: usize, tensors: &[Saved]) -> Vec<u8> {
    let mut all = b"ccollections\nOrderedDict\n)R(".to_vec();
    for (i, saved) in tensors.iter().enumerate() {
        all.extend(text(&saved.name));
        all.extend(tensor(saved, first + i));
    }
    all.push(b'u');
    all
}

/// Pickles a dictionary of expressions.
pub(crate) fn table(items: &[(&str, &[u8])]) -> Vec<u8> {
    let inside: Vec<u8> = items.iter().flat_map(|(key, value)| [&text(key), *value].concat()).collect();
    [&b"}("[..], &inside, b"u"].concat()
}

/// Pickles an instance of a class with attributes.
pub(crate) fn object(class: &str, attributes: &[u8]) -> Vec<u8> {
    let (module, name) = class.rsplit_once('.').unwrap();
    [format!("c{module}\n{name}\n").as_bytes(), b")\x81", attributes, b"b"].concat()
}

/// Completes a pickle of one expression.
pub(crate) fn pickle(expression: &[u8]) -> Vec<u8> {
    [&b"\x80\x02"[..], expression, b"."].concat()
}

/// Pickles `{"epoch": 3, key: expression}`.
pub(crate) fn wrapped(key: &str, expression: &[u8]) -> Vec<u8> {
    table(&[("epoch", b"K\x03"), (key, expression)])
}

/// Builds a zip archive.
pub(crate) fn zip(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in records {
        writer.start_file(format!("archive/{name}"), options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Builds a file of `torch.save`.
pub(crate) fn archive(expression: &[u8], tensors: &[Saved]) -> Vec<u8> {
    let pickle = pickle(expression);
    let names: Vec<String> = (0..tensors.len()).map(|key| format!("data/{key}")).collect();
    let mut records: Vec<(&str, &[u8])> = vec![("data.pkl", &pickle), ("byteorder", b"little")];
    records.extend(names.iter().zip(tensors).map(|(name, saved)| (name.as_str(), &saved.bytes[..])));
    records.push(("version", b"3\n"));
    zip(&records)
}

/// Builds a file of `torch.save` before PyTorch 1.6.
pub(crate) fn legacy(expression: &[u8], tensors: &[Saved]) -> Vec<u8> {
    let keys: Vec<u8> = (0..tensors.len()).flat_map(|key| text(&key.to_string())).collect();
    let keys = pickle(&[&b"]("[..], &keys, b"e"].concat());
    let mut file = [LEGACY_HEADER, &pickle(expression), &keys].concat();
    for saved in tensors {
        file.extend((saved.length as u64).to_le_bytes());
        file.extend(&saved.bytes);
    }
    file
}
