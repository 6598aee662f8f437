//! MATLAB 5 files (`.mat`): cells, structures, characters and real numbers, with or without zlib.
//!
//! Layout: "MAT-File Format", MathWorks, level 5. Files are untrusted: depth, counts and inflated
//! bytes are limited, and inconsistent sizes are errors.

use std::io::Read;
use std::path::Path;

use flate2::read::ZlibDecoder;

use crate::{Error, Result};

/// Limit for the inflated bytes of a file.
const MAX_INFLATED: usize = 1 << 28;
/// Limit for nested cells.
const MAX_DEPTH: usize = 8;
/// Limit for the values of all arrays of a file.
const MAX_VALUES: usize = 1 << 25;

/// An array.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Real numbers in column-major order, with the dimensions.
    Numbers(Vec<usize>, Vec<f64>),
    /// Text in column-major order; names and paths have one row.
    Text(String),
    /// Arrays in column-major order.
    Cells(Vec<Value>),
    /// Fields of the first structure.
    Fields(Vec<(String, Value)>),
}

impl Value {
    /// Returns the numbers of a numeric array.
    pub(crate) fn numbers(&self) -> Option<&[f64]> {
        match self {
            Self::Numbers(_, all) => Some(all),
            _ => None,
        }
    }

    /// Returns the text of each cell of a cell array of text.
    pub(crate) fn texts(&self) -> Option<Vec<&str>> {
        let Self::Cells(cells) = self else { return None };
        cells
            .iter()
            .map(|c| match c {
                Self::Text(text) => Some(text.as_str()),
                // Some writers nest a cell in a cell.
                Self::Cells(inner) => match inner.as_slice() {
                    [Self::Text(text)] => Some(text.as_str()),
                    _ => None,
                },
                _ => None,
            })
            .collect()
    }

    /// Returns a field of a structure.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        let Self::Fields(fields) = self else { return None };
        fields.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
}

/// Limit for the bytes of a file.
const MAX_FILE: u64 = 1 << 26;

/// Reads all named arrays of a file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<(String, Value)>> {
    let name = path.display().to_string();
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length > MAX_FILE {
        let message = format!("expected at most {MAX_FILE} bytes, found {length}");
        return Err(Error::Decode { name, format: "MAT", message });
    }
    read(&std::fs::read(path).map_err(Error::io(path))?, &name)
}

/// Parses all named arrays. Unsupported kinds (sparse, objects) are left out. `name` is for messages.
pub(crate) fn read(bytes: &[u8], name: &str) -> Result<Vec<(String, Value)>> {
    let invalid = |message: String| Error::Decode { name: name.to_string(), format: "MAT", message };
    let header = bytes.get(..128).ok_or_else(|| invalid("truncated header".to_string()))?;
    let big = match &header[126..] {
        b"IM" => false,
        b"MI" => true,
        other => {
            let text = String::from_utf8_lossy(&header[..20]).escape_debug().to_string();
            return Err(invalid(format!(
                "byte order mark {other:02x?} after `{text}`, expected a MATLAB 5.0 MAT-file"
            )));
        }
    };
    let mut reader = Reader { big, inflated: 0, values: 0 };
    reader.file(&bytes[128..]).map_err(invalid)
}

type Parsed<T> = std::result::Result<T, String>;

struct Reader {
    big: bool,
    inflated: usize,
    values: usize,
}

/// An element: its type, its data and the remaining bytes.
struct Element<'a> {
    kind: u32,
    data: &'a [u8],
    rest: &'a [u8],
}

const MI_UINT32: u32 = 6;
const MI_MATRIX: u32 = 14;
const MI_COMPRESSED: u32 = 15;

impl Reader {
    fn u32(&self, bytes: &[u8]) -> u32 {
        let four = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if self.big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    }

    fn element<'a>(&self, bytes: &'a [u8]) -> Parsed<Element<'a>> {
        let tag = bytes.get(..8).ok_or("truncated element tag")?;
        let first = self.u32(tag);
        // A small element stores its length in the upper half of the type.
        if first >> 16 != 0 {
            let length = (first >> 16) as usize;
            if length > 4 {
                return Err(format!("a small element of {length} bytes"));
            }
            return Ok(Element { kind: first & 0xffff, data: &tag[4..4 + length], rest: &bytes[8..] });
        }
        let length = self.u32(&tag[4..]) as usize;
        let body = &bytes[8..];
        let Some(data) = body.get(..length) else {
            return Err(format!("an element of {length} bytes with {} remaining", body.len()));
        };
        // Elements are aligned to eight bytes, except after compressed ones.
        let end = if first == MI_COMPRESSED { length } else { length.next_multiple_of(8).min(body.len()) };
        Ok(Element { kind: first, data, rest: &body[end..] })
    }

    fn file(&mut self, mut bytes: &[u8]) -> Parsed<Vec<(String, Value)>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let element = self.element(bytes)?;
            bytes = element.rest;
            let found = match element.kind {
                MI_COMPRESSED => {
                    let inner = self.inflate(element.data)?;
                    let element = self.element(&inner)?;
                    if element.kind != MI_MATRIX {
                        continue;
                    }
                    self.matrix(element.data, 0)?
                }
                MI_MATRIX => self.matrix(element.data, 0)?,
                _ => continue,
            };
            if let (name, Some(value)) = found {
                all.push((name, value));
            }
        }
        Ok(all)
    }

    fn inflate(&mut self, data: &[u8]) -> Parsed<Vec<u8>> {
        let left = MAX_INFLATED - self.inflated;
        let mut inner = Vec::new();
        let mut limited = ZlibDecoder::new(data).take(left as u64 + 1);
        limited.read_to_end(&mut inner).map_err(|e| format!("compressed data: {e}"))?;
        if inner.len() > left {
            return Err(format!("compressed data of more than {MAX_INFLATED} bytes"));
        }
        self.inflated += inner.len();
        Ok(inner)
    }

    /// Parses an array and its name; `None` for unsupported kinds.
    fn matrix(&mut self, data: &[u8], depth: usize) -> Parsed<(String, Option<Value>)> {
        if data.is_empty() {
            return Ok((String::new(), Some(Value::Numbers(vec![0, 0], Vec::new()))));
        }
        if depth > MAX_DEPTH {
            return Err(format!("arrays nested more than {MAX_DEPTH} deep"));
        }
        let flags = self.element(data)?;
        if flags.kind != MI_UINT32 || flags.data.len() != 8 {
            return Err(format!("array flags of type {} and {} bytes", flags.kind, flags.data.len()));
        }
        let word = self.u32(flags.data);
        let (class, complex) = (word & 0xff, word & 0x800 != 0);
        let dims = self.element(flags.rest)?;
        let sides: Vec<usize> = dims.data.chunks_exact(4).map(|d| self.u32(d) as usize).collect();
        let count = sides.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        let Some(count) = count.filter(|n| *n <= MAX_VALUES && sides.len() >= 2) else {
            return Err(format!("an array of dimensions {sides:?}, expected at most {MAX_VALUES} values"));
        };
        let name = self.element(dims.rest)?;
        let title = String::from_utf8_lossy(name.data).into_owned();
        let rest = name.rest;
        let value = match class {
            1 => {
                let mut rest = rest;
                let mut cells = Vec::new();
                for _ in 0..count {
                    let element = self.element(rest)?;
                    rest = element.rest;
                    self.count(1)?;
                    cells.push(self.inner(&element, depth)?);
                }
                Some(Value::Cells(cells))
            }
            2 => Some(self.structure(rest, count, depth)?),
            4 => {
                let codes = self.element(rest)?;
                self.count(count)?;
                Some(Value::Text(self.text(&codes, count)?))
            }
            6..=15 if !complex => {
                let real = self.element(rest)?;
                self.count(count)?;
                let numbers = self.numbers(&real)?;
                if numbers.len() != count {
                    return Err(format!("{} numbers for an array of {sides:?}", numbers.len()));
                }
                Some(Value::Numbers(sides, numbers))
            }
            _ => None,
        };
        Ok((title, value))
    }

    fn inner(&mut self, element: &Element, depth: usize) -> Parsed<Value> {
        if element.kind != MI_MATRIX {
            return Err(format!("an element of type {} where an array is expected", element.kind));
        }
        // Unsupported cells keep their position.
        Ok(self.matrix(element.data, depth + 1)?.1.unwrap_or(Value::Cells(Vec::new())))
    }

    fn structure(&mut self, bytes: &[u8], count: usize, depth: usize) -> Parsed<Value> {
        let length = self.element(bytes)?;
        let width = if length.data.len() == 4 { self.u32(length.data) as usize } else { 0 };
        if !(1..=1024).contains(&width) {
            return Err(format!("field names of {width} bytes"));
        }
        let names = self.element(length.rest)?;
        let names_of: Vec<String> = names
            .data
            .chunks_exact(width)
            .map(|n| String::from_utf8_lossy(n.split(|b| *b == 0).next().unwrap_or(n)).into_owned())
            .collect();
        let mut rest = names.rest;
        let mut fields = Vec::new();
        if count > 0 {
            for name in names_of {
                let element = self.element(rest)?;
                rest = element.rest;
                self.count(1)?;
                fields.push((name, self.inner(&element, depth)?));
            }
        }
        Ok(Value::Fields(fields))
    }

    fn count(&mut self, more: usize) -> Parsed<()> {
        self.values += more;
        if self.values > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values in all"));
        }
        Ok(())
    }

    fn text(&self, codes: &Element, count: usize) -> Parsed<String> {
        let text: String = match codes.kind {
            // miUTF8
            16 => String::from_utf8(codes.data.to_vec()).map_err(|_| "text that is not UTF-8")?,
            // miUINT16, miUTF16
            4 | 17 => {
                let units = codes.data.chunks_exact(2).map(|b| {
                    if self.big { u16::from_be_bytes([b[0], b[1]]) } else { u16::from_le_bytes([b[0], b[1]]) }
                });
                char::decode_utf16(units)
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|_| "text that is not UTF-16")?
            }
            // miINT8, miUINT8: Latin-1
            1 | 2 => codes.data.iter().map(|b| char::from(*b)).collect(),
            other => return Err(format!("text of element type {other}")),
        };
        if text.chars().count() > count {
            return Err(format!("{} characters for an array of {count}", text.chars().count()));
        }
        Ok(text)
    }

    fn numbers(&self, real: &Element) -> Parsed<Vec<f64>> {
        macro_rules! all {
            ($t:ty) => {
                real.data
                    .chunks_exact(size_of::<$t>())
                    .map(|b| {
                        let mut bytes = [0; size_of::<$t>()];
                        bytes.copy_from_slice(b);
                        (if self.big { <$t>::from_be_bytes(bytes) } else { <$t>::from_le_bytes(bytes) })
                            as f64
                    })
                    .collect()
            };
        }
        Ok(match real.kind {
            1 => all!(i8),
            2 => all!(u8),
            3 => all!(i16),
            4 => all!(u16),
            5 => all!(i32),
            6 => all!(u32),
            7 => all!(f32),
            9 => all!(f64),
            12 => all!(i64),
            13 => all!(u64),
            other => return Err(format!("numbers of element type {other}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&[u8]; 2] =
        [include_bytes!("../../tests/data/scipy.mat"), include_bytes!("../../tests/data/scipy_zlib.mat")];

    #[test]
    fn reads_files_of_scipy() {
        for bytes in FILES {
            let arrays = read(bytes, "lists").unwrap();
            let named = |name: &str| &arrays.iter().find(|(n, _)| n == name).unwrap().1;
            let expected =
                ["n02085620-Chihuahua/n02085620_100.jpg", "n02085782-Japanese_spaniel/n02085782_100.jpg"];
            assert_eq!(named("file_list").texts().unwrap(), expected);
            assert_eq!(named("labels").numbers().unwrap(), [1.0, 2.0]);
        }
        let arrays = read(include_bytes!("../../tests/data/scipy_labels.mat"), "labels").unwrap();
        let labels = arrays[0].1.field("Segmentation").unwrap();
        let by_columns = [0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0];
        assert_eq!(*labels, Value::Numbers(vec![3, 4], by_columns.to_vec()));
    }

    #[test]
    fn rejects_inconsistent_sizes() {
        let error = |bytes: &[u8]| read(bytes, "x.mat").unwrap_err().to_string();
        assert!(error(b"MATLAB").contains("header"));
        assert!(error(&[b' '; 200]).contains("MATLAB 5.0"));
        let whole = FILES[0];
        for cut in (129..whole.len()).step_by(7) {
            match read(&whole[..cut], "x.mat") {
                Ok(arrays) => assert!(arrays.len() < 3, "{cut}"),
                Err(e) => assert!(e.to_string().contains("x.mat"), "{cut}: {e}"),
            }
        }
        // An array of four billion values.
        let mut large = whole.to_vec();
        let dims = whole.windows(8).position(|w| w == [5, 0, 0, 0, 8, 0, 0, 0]).unwrap() + 8;
        large[dims..dims + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(error(&large).contains("dimensions"));
        // A decompression bomb.
        let mut bomb = whole[..128].to_vec();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        for _ in 0..300 {
            std::io::Write::write_all(&mut zlib, &[0; 1 << 20]).unwrap();
        }
        let data = zlib.finish().unwrap();
        bomb.extend(15u32.to_le_bytes());
        bomb.extend((data.len() as u32).to_le_bytes());
        bomb.extend(data);
        assert!(error(&bomb).contains("more than"));
    }
}
