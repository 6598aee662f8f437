//! The subset of Thrift's compact protocol that parquet's footer and page headers use.

use super::Parsed;

/// Limit for the elements of a list and for all values.
const MAX_VALUES: usize = 1 << 22;
/// Limit for nested structures.
const MAX_DEPTH: usize = 24;

/// A value.
#[derive(Debug)]
pub(super) enum Thrift {
    /// An integer, or a boolean as 0 and 1.
    Int(i64),
    Double,
    Bytes(Vec<u8>),
    List(Vec<Thrift>),
    Struct(Vec<(i16, Thrift)>),
}

impl Thrift {
    pub(super) fn field(&self, id: i16) -> Option<&Self> {
        let Self::Struct(fields) = self else { return None };
        fields.iter().find(|(i, _)| *i == id).map(|(_, v)| v)
    }

    pub(super) fn int(&self) -> Option<i64> {
        if let Self::Int(v) = self { Some(*v) } else { None }
    }

    pub(super) fn bytes(&self) -> Option<&[u8]> {
        if let Self::Bytes(v) = self { Some(v) } else { None }
    }

    pub(super) fn list(&self) -> Option<&[Self]> {
        if let Self::List(v) = self { Some(v) } else { None }
    }
}

/// Parses a structure at the start of the bytes.
pub(super) fn parse(bytes: &mut &[u8]) -> Parsed<Thrift> {
    let mut count = 0;
    structure(bytes, 0, &mut count)
}

fn byte(bytes: &mut &[u8]) -> Parsed<u8> {
    let (&first, rest) = bytes.split_first().ok_or("a description is cut off")?;
    *bytes = rest;
    Ok(first)
}

pub(super) fn varint(bytes: &mut &[u8]) -> Parsed<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let b = byte(bytes)?;
        value |= u64::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Ok(value);
        }
    }
    Err("a number of more than 64 bits".to_string())
}

fn zigzag(bytes: &mut &[u8]) -> Parsed<i64> {
    let v = varint(bytes)?;
    Ok((v >> 1) as i64 ^ -((v & 1) as i64))
}

fn structure(bytes: &mut &[u8], depth: usize, count: &mut usize) -> Parsed<Thrift> {
    if depth > MAX_DEPTH {
        return Err(format!("a description nested more than {MAX_DEPTH} deep"));
    }
    let mut fields = Vec::new();
    let mut id = 0i16;
    loop {
        let head = byte(bytes)?;
        if head == 0 {
            return Ok(Thrift::Struct(fields));
        }
        id = match head >> 4 {
            0 => i16::try_from(zigzag(bytes)?).map_err(|_| "a field of no number")?,
            step => id.checked_add(i16::from(step)).ok_or("a field of no number")?,
        };
        let value = match head & 15 {
            1 => Thrift::Int(1),
            2 => Thrift::Int(0),
            kind => value(bytes, kind, depth, count)?,
        };
        fields.push((id, value));
    }
}

fn value(bytes: &mut &[u8], kind: u8, depth: usize, count: &mut usize) -> Parsed<Thrift> {
    *count += 1;
    if *count > MAX_VALUES {
        return Err(format!("a description of more than {MAX_VALUES} values"));
    }
    let take = |n: u64, bytes: &mut &[u8]| {
        let n = usize::try_from(n).map_err(|_| "a description is cut off")?;
        let (head, rest) = bytes.split_at_checked(n).ok_or("a description is cut off")?;
        *bytes = rest;
        Ok::<Vec<u8>, String>(head.to_vec())
    };
    Ok(match kind {
        // In a list, booleans are bytes.
        1..=3 => Thrift::Int(i64::from(byte(bytes)? == 1)),
        4..=6 => Thrift::Int(zigzag(bytes)?),
        7 => {
            take(8, bytes)?;
            Thrift::Double
        }
        8 => {
            let length = varint(bytes)?;
            Thrift::Bytes(take(length, bytes)?)
        }
        9 | 10 => {
            let head = byte(bytes)?;
            let length = if head >> 4 == 15 { varint(bytes)? } else { u64::from(head >> 4) };
            // Each element takes at least one byte.
            if length > bytes.len() as u64 {
                return Err("a list is cut off".to_string());
            }
            let all = (0..length).map(|_| match head & 15 {
                12 => structure(bytes, depth + 1, count),
                kind => value(bytes, kind, depth + 1, count),
            });
            Thrift::List(all.collect::<Parsed<_>>()?)
        }
        12 => structure(bytes, depth + 1, count)?,
        other => return Err(format!("a description with a value of the kind {other}")),
    })
}
