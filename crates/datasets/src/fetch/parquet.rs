//! Reader for the hub's parquet files of images and labels: a struct `image` of `bytes` and `path`, and
//! an integer `label`.
//!
//! Supports flat columns and structs, data pages of both versions, plain and dictionary encoding,
//! snappy, gzip and no compression. Files are untrusted: sizes are limited before anything is
//! allocated, and any inconsistency is an error that names the file.

mod levels;
mod thrift;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};
use levels::hybrid;
use thrift::{Thrift, parse};

/// Limit for the bytes of a footer.
const MAX_FOOTER: u64 = 1 << 26;
/// Limit for the bytes of a column chunk, compressed or not.
const MAX_CHUNK: u64 = 1 << 30;
/// Limit for the ratio of uncompressed to compressed bytes.
const MAX_TIMES: u64 = 64;
const FEW: u64 = 1 << 24;
/// Limit for the rows of a row group.
const MAX_ROWS: u64 = 1 << 22;

type Parsed<T> = std::result::Result<T, String>;

/// Parsed footer.
pub(crate) struct Footer {
    rows: Vec<Vec<Chunk>>,
    /// Names of the labels, if present.
    pub(crate) names: Option<Vec<String>>,
}

/// A column chunk.
struct Chunk {
    path: String,
    kind: i64,
    codec: i64,
    values: usize,
    at: u64,
    length: u64,
    /// Definition level of a present value.
    defined: u32,
}

impl Chunk {
    /// Limit for the uncompressed bytes.
    fn most(&self) -> u64 {
        self.length.saturating_mul(MAX_TIMES).saturating_add(FEW).min(MAX_CHUNK)
    }

    /// Checks the number of values of a page.
    fn fits(&self, count: usize) -> Parsed<()> {
        if count == 0 || count > self.values {
            return Err(format!("a page of {count} values in a column of {}", self.values));
        }
        Ok(())
    }
}

/// Passes the image bytes and label of every row to `take`, in order. Returns the number of rows.
///
/// # Errors
///
/// A corrupt or unsupported file, or one with nulls; errors of `take`.
pub(crate) fn rows(
    path: &Path,
    footer: &Footer,
    mut take: impl FnMut(&[u8], i64) -> Result<()>,
) -> Result<usize> {
    let invalid = |message: String| corrupt(path, message);
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut count = 0;
    for group in &footer.rows {
        let chunk = |name: &str| {
            group.iter().find(|c| c.path == name).ok_or_else(|| {
                let found: Vec<&str> = group.iter().map(|c| c.path.as_str()).collect();
                invalid(format!("no column `{name}`, found {}", found.join(", ")))
            })
        };
        let (image, label) = (chunk("image.bytes")?, chunk("label")?);
        let labels = read_chunk(path, &mut file, label)?;
        let images = read_chunk(path, &mut file, image)?;
        let (Column::Numbers(labels), Column::Bytes(images)) = (labels, images) else {
            return Err(invalid("expected bytes in image.bytes and integers in label".to_string()));
        };
        if labels.len() != images.ranges.len() {
            return Err(invalid(format!("{} images and {} labels", images.ranges.len(), labels.len())));
        }
        for (&(from, to), label) in images.ranges.iter().zip(labels) {
            take(&images.data[from..to], label)?;
            count += 1;
        }
    }
    Ok(count)
}

fn corrupt(path: &Path, message: String) -> Error {
    Error::Decode { name: path.display().to_string(), format: "parquet", message }
}

/// Reads the footer of a file.
///
/// # Errors
///
/// As [`rows`].
pub(crate) fn footer(path: &Path) -> Result<Footer> {
    let invalid = |message: String| corrupt(path, message);
    let mut file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut read = |at: u64, length: u64| -> Result<Vec<u8>> {
        if at.checked_add(length).is_none_or(|end| end > size) {
            return Err(corrupt(path, format!("{length} bytes at {at} of a file of {size}")));
        }
        let mut bytes = vec![0; length as usize];
        file.seek(SeekFrom::Start(at)).map_err(Error::io(path))?;
        file.read_exact(&mut bytes).map_err(Error::io(path))?;
        Ok(bytes)
    };
    if size < 12 || read(0, 4)? != b"PAR1" {
        return Err(invalid("expected PAR1 at the start".to_string()));
    }
    let tail = read(size - 8, 8)?;
    if &tail[4..] != b"PAR1" {
        return Err(invalid("truncated: expected PAR1 at the end".to_string()));
    }
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if length > MAX_FOOTER || length + 12 > size {
        return Err(invalid(format!("a footer of {length} bytes")));
    }
    let bytes = read(size - 8 - length, length)?;
    understand(&parse(&mut bytes.as_slice()).map_err(invalid)?).map_err(invalid)
}

fn understand(meta: &Thrift) -> Parsed<Footer> {
    let depth = defined_depths(meta.field(2).and_then(Thrift::list).ok_or("no schema")?)?;
    let mut groups = Vec::new();
    for group in meta.field(4).and_then(Thrift::list).ok_or("no row groups")? {
        let mut chunks = Vec::new();
        for column in group.field(1).and_then(Thrift::list).ok_or("a row group without columns")? {
            let meta = column.field(3).ok_or("a column without a description")?;
            let int = |id: i16| meta.field(id).and_then(Thrift::int);
            let unsigned = |id: i16, what: &str| {
                int(id).and_then(|v| u64::try_from(v).ok()).ok_or_else(|| format!("a column without {what}"))
            };
            let path: Vec<String> = meta
                .field(3)
                .and_then(Thrift::list)
                .ok_or("a column without a name")?
                .iter()
                .map(|p| p.bytes().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default())
                .collect();
            let path = path.join(".");
            let data = unsigned(9, "an offset")?;
            let at =
                int(11).and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).map_or(data, |d| d.min(data));
            let length = unsigned(7, "a length")?;
            if length > MAX_CHUNK {
                return Err(format!("the column {path} with {length} bytes, expected at most {MAX_CHUNK}"));
            }
            let values = unsigned(5, "a count")?;
            if values > MAX_ROWS {
                return Err(format!("the column {path} with {values} values, expected at most {MAX_ROWS}"));
            }
            let Some((_, defined)) = depth.iter().find(|(p, _)| *p == path) else {
                return Err(format!("the column {path}, which the schema does not have"));
            };
            chunks.push(Chunk {
                kind: int(1).unwrap_or(-1),
                codec: int(4).unwrap_or(-1),
                values: values as usize,
                at,
                length,
                defined: *defined,
                path,
            });
        }
        groups.push(chunks);
    }
    let entries = meta.field(5).and_then(Thrift::list).unwrap_or_default();
    let text = |entry: &Thrift, id: i16| entry.field(id).and_then(Thrift::bytes).map(<[u8]>::to_vec);
    let info =
        entries.iter().find(|e| text(e, 1).as_deref() == Some(b"huggingface")).and_then(|e| text(e, 2));
    let names = info.and_then(|json| {
        let json: serde_json::Value = serde_json::from_slice(&json).ok()?;
        let names = json["info"]["features"]["label"]["names"].as_array()?;
        names.iter().map(|n| n.as_str().map(String::from)).collect()
    });
    Ok(Footer { rows: groups, names })
}

/// Returns the definition level of each leaf; leaves below a repeated field are left out.
fn defined_depths(schema: &[Thrift]) -> Parsed<Vec<(String, u32)>> {
    let mut leaves = Vec::new();
    // Name, remaining children, level, repeated.
    let mut open: Vec<(String, i64, u32, bool)> = Vec::new();
    for (index, element) in schema.iter().enumerate() {
        let name = element.field(4).and_then(Thrift::bytes).map(|b| String::from_utf8_lossy(b).into_owned());
        let name = name.ok_or("a field without a name")?;
        let children = element.field(5).and_then(Thrift::int).unwrap_or(0);
        let repetition = element.field(3).and_then(Thrift::int).unwrap_or(0);
        let (above, level, repeated) = match open.last() {
            Some((above, _, level, repeated)) => (above.as_str(), *level, *repeated),
            None => ("", 0, false),
        };
        let path = if index == 0 || above.is_empty() { name } else { format!("{above}.{name}") };
        let (level, repeated) = if index == 0 {
            (0, false)
        } else {
            (level + u32::from(repetition > 0), repeated || repetition == 2)
        };
        if let Some(parent) = open.last_mut() {
            parent.1 -= 1;
        }
        if children > 0 {
            if open.len() > 16 {
                return Err("fields nested more than 16 deep".to_string());
            }
            open.push((if index == 0 { String::new() } else { path }, children, level, repeated));
        } else if !repeated {
            leaves.push((path, level));
        }
        while open.last().is_some_and(|o| o.1 <= 0) {
            open.pop();
        }
    }
    Ok(leaves)
}

/// Concatenated byte strings and their ranges.
#[derive(Default, Clone)]
struct Strings {
    data: Vec<u8>,
    ranges: Vec<(usize, usize)>,
}

impl Strings {
    fn push(&mut self, value: &[u8], most: u64) -> Parsed<()> {
        let from = self.data.len();
        if (from + value.len()) as u64 > most {
            return Err(format!("more than {most} bytes"));
        }
        self.data.extend_from_slice(value);
        self.ranges.push((from, self.data.len()));
        Ok(())
    }
}

enum Column {
    Numbers(Vec<i64>),
    Bytes(Strings),
}

impl Column {
    fn new(kind: i64) -> Parsed<Self> {
        match kind {
            1 | 2 => Ok(Self::Numbers(Vec::new())),
            6 => Ok(Self::Bytes(Strings::default())),
            other => Err(format!("a column of the type {other}, expected integers or bytes")),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Numbers(all) => all.len(),
            Self::Bytes(all) => all.ranges.len(),
        }
    }

    /// Appends `count` plain values.
    fn plain(&mut self, kind: i64, mut data: &[u8], count: usize) -> Parsed<()> {
        for _ in 0..count {
            let mut take = |n: usize| {
                let (head, rest) = data.split_at_checked(n).ok_or("truncated value in a page")?;
                data = rest;
                Ok::<&[u8], String>(head)
            };
            match self {
                Self::Numbers(all) if kind == 1 => {
                    let b = take(4)?;
                    all.push(i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])));
                }
                Self::Numbers(all) => {
                    let b = take(8)?;
                    all.push(i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
                }
                Self::Bytes(all) => {
                    let b = take(4)?;
                    let value = take(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)?;
                    all.push(value, MAX_CHUNK)?;
                }
            }
        }
        Ok(())
    }

    /// Appends dictionary values.
    fn looked_up(&mut self, dictionary: &Self, indices: &[u32], most: u64) -> Parsed<()> {
        let wrong = |i: u32| format!("the value {i} of a dictionary of {}", dictionary.len());
        for &index in indices {
            match (&mut *self, dictionary) {
                (Self::Numbers(all), Self::Numbers(d)) => {
                    all.push(*d.get(index as usize).ok_or_else(|| wrong(index))?);
                }
                (Self::Bytes(all), Self::Bytes(d)) => {
                    let &(from, to) = d.ranges.get(index as usize).ok_or_else(|| wrong(index))?;
                    all.push(&d.data[from..to], most)?;
                }
                _ => return Err("a dictionary of a different type".to_string()),
            }
        }
        Ok(())
    }
}

fn read_chunk(path: &Path, file: &mut File, chunk: &Chunk) -> Result<Column> {
    let size = file.metadata().map_err(Error::io(path))?.len();
    if chunk.at.checked_add(chunk.length).is_none_or(|end| end > size) {
        return Err(corrupt(path, format!("the column {} exceeds the file", chunk.path)));
    }
    let mut bytes = vec![0; chunk.length as usize];
    file.seek(SeekFrom::Start(chunk.at)).map_err(Error::io(path))?;
    file.read_exact(&mut bytes).map_err(Error::io(path))?;
    decode(chunk, &bytes).map_err(|e| corrupt(path, format!("column {}: {e}", chunk.path)))
}

fn decode(chunk: &Chunk, mut bytes: &[u8]) -> Parsed<Column> {
    let mut column = Column::new(chunk.kind)?;
    let mut dictionary = None;
    let mut left = chunk.most();
    while column.len() < chunk.values {
        let header = parse(&mut bytes)?;
        let int =
            |of: &Thrift, id: i16| of.field(id).and_then(Thrift::int).and_then(|v| usize::try_from(v).ok());
        let (Some(unpacked), Some(packed)) = (int(&header, 2), int(&header, 3)) else {
            return Err("a page without sizes".to_string());
        };
        left = left
            .checked_sub(unpacked as u64)
            .ok_or_else(|| format!("pages of more than {} bytes", chunk.most()))?;
        let (page, rest) = bytes.split_at_checked(packed).ok_or("a page exceeds its column")?;
        bytes = rest;
        match int(&header, 1) {
            Some(2) => {
                let about = header.field(7).ok_or("a dictionary without a description")?;
                let count = int(about, 1).ok_or("a dictionary without a count")?;
                let data = unpack(chunk.codec, page, unpacked)?;
                let mut values = Column::new(chunk.kind)?;
                values.plain(chunk.kind, &data, count)?;
                dictionary = Some(values);
            }
            Some(0) => {
                let about = header.field(5).ok_or("a page without a description")?;
                let (count, encoding) = (int(about, 1).unwrap_or(0), int(about, 2).unwrap_or(usize::MAX));
                chunk.fits(count)?;
                let data = unpack(chunk.codec, page, unpacked)?;
                let mut rest = data.as_slice();
                if chunk.defined > 0 {
                    let (head, more) = rest.split_at_checked(4).ok_or("a page without levels")?;
                    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
                    let (levels, more) = more.split_at_checked(length).ok_or("levels beyond their page")?;
                    no_nulls(levels, count, chunk.defined)?;
                    rest = more;
                }
                values(&mut column, chunk, dictionary.as_ref(), rest, count, encoding)?;
            }
            Some(3) => {
                let about = header.field(8).ok_or("a page without a description")?;
                let (count, encoding) = (int(about, 1).unwrap_or(0), int(about, 4).unwrap_or(usize::MAX));
                chunk.fits(count)?;
                let (defined, repeated) = (int(about, 5).unwrap_or(0), int(about, 6).unwrap_or(0));
                let start = defined.checked_add(repeated).filter(|n| *n <= page.len().min(unpacked));
                let start = start.ok_or("levels beyond their page")?;
                if chunk.defined > 0 {
                    no_nulls(&page[repeated..start], count, chunk.defined)?;
                }
                let is_packed = about.field(7).and_then(Thrift::int) != Some(0);
                let codec = if is_packed { chunk.codec } else { 0 };
                let data = unpack(codec, &page[start..], unpacked - start)?;
                values(&mut column, chunk, dictionary.as_ref(), &data, count, encoding)?;
            }
            // A page index.
            Some(1) => {}
            other => return Err(format!("a page of the kind {other:?}")),
        }
    }
    if column.len() > chunk.values {
        return Err(format!("{} values, expected {}", column.len(), chunk.values));
    }
    Ok(column)
}

fn values(
    column: &mut Column,
    chunk: &Chunk,
    dictionary: Option<&Column>,
    data: &[u8],
    count: usize,
    encoding: usize,
) -> Parsed<()> {
    match encoding {
        0 => column.plain(chunk.kind, data, count),
        2 | 8 => {
            let dictionary = dictionary.ok_or("dictionary values without a dictionary")?;
            let (&bits, data) = data.split_first().ok_or("a page without values")?;
            column.looked_up(dictionary, &hybrid(data, u32::from(bits), count)?, chunk.most())
        }
        other => Err(format!("expected plain or dictionary encoding, found {other}")),
    }
}

fn no_nulls(levels: &[u8], count: usize, defined: u32) -> Parsed<()> {
    let bits = 32 - defined.leading_zeros();
    let nulls = hybrid(levels, bits, count)?.iter().filter(|l| **l != defined).count();
    if nulls > 0 { Err(format!("{nulls} rows without a value")) } else { Ok(()) }
}

fn unpack(codec: i64, page: &[u8], size: usize) -> Parsed<Vec<u8>> {
    let data = match codec {
        0 => page.to_vec(),
        1 => {
            let claims = snap::raw::decompress_len(page).map_err(|e| e.to_string())?;
            if claims != size {
                return Err(format!("a page of {claims} bytes that claims {size}"));
            }
            snap::raw::Decoder::new().decompress_vec(page).map_err(|e| e.to_string())?
        }
        2 => {
            let mut data = Vec::new();
            MultiGzDecoder::new(page)
                .take(size as u64 + 1)
                .read_to_end(&mut data)
                .map_err(|e| e.to_string())?;
            data
        }
        other => return Err(format!("expected no compression, snappy or gzip, found {other}")),
    };
    if data.len() != size {
        return Err(format!("a page of {} bytes that claims {size}", data.len()));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    fn all(path: &Path) -> Result<Vec<(usize, i64)>> {
        let mut found = Vec::new();
        rows(path, &footer(path)?, |bytes, label| {
            let image = crate::decode::decode(bytes, "row", crate::decode::PixelFormat::Rgb, false)?;
            assert_eq!((image.width, image.height), (9, 7));
            found.push((usize::from(image.pixels[0]), label));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn reads_files_of_pyarrow() {
        let expected: Vec<(usize, i64)> = (0..12).map(|i| (i * 37 % 256, i as i64 % 11)).collect();
        for name in ["snappy", "plain", "pages_v2", "gzip"] {
            assert_eq!(all(&data(&format!("{name}.parquet"))).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn rejects_damaged_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.parquet");
        let cases = std::env::var("STILLHOUSE_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
        let mut draw = stillhouse_core::Rng::new(5).at(0, 0);
        for name in ["snappy", "plain", "pages_v2", "gzip"] {
            let whole = std::fs::read(data(&format!("{name}.parquet"))).unwrap();
            for case in 0..cases {
                let mut bytes = whole.clone();
                for _ in 0..=draw.below(6) {
                    // Half of the changes are in the footer.
                    let from = if draw.chance(0.5) { bytes.len() * 3 / 4 } else { 0 };
                    let index = from + draw.below((bytes.len() - from) as u64) as usize;
                    bytes[index] = draw.below(256) as u8;
                }
                if case % 5 == 0 {
                    bytes.truncate(draw.below(bytes.len() as u64) as usize);
                }
                std::fs::write(&path, bytes).unwrap();
                let read = footer(&path).and_then(|f| rows(&path, &f, |_, _| Ok(())));
                if let Err(e) = read {
                    assert!(e.to_string().contains("bad.parquet"), "{e}");
                }
            }
        }
    }
}
