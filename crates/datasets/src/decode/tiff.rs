//! TIFF with the `tiff` crate: 8 or 16 bits, gray, RGB, CMYK or palette, strips or tiles.

use std::borrow::Cow;
use std::io::Cursor;

use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::{Decoded, Input, MAX_PIXELS, PixelFormat, collect, colors};
use crate::Result;

/// What can be decoded.
const SUPPORTED: &str = "gray, RGB or CMYK of 8 or 16 bits, or a palette of 8 bits; not compressed, or by Deflate, \
                         LZW, PackBits, fax or JPEG";
/// The tag of the photometric interpretation, and two of its values.
const PHOTOMETRIC: u16 = 262;
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;

/// An image as stored.
struct Stored {
    size: (usize, usize),
    color: ColorType,
    /// Colors of the indices: all reds, then all greens, then all blues; none without a palette.
    palette: Option<Vec<u16>>,
    orientation: u8,
    values: DecodingResult,
    planes: usize,
}

fn read(input: &Input) -> Result<Stored> {
    let fault = |e: TiffError| match e {
        TiffError::UnsupportedError(what) => input.unsupported(what, SUPPORTED),
        other => input.corrupt(other),
    };
    // The crate reads no palettes. As gray values, their indices are read.
    let (bytes, has_palette) = match palette_entry(input.bytes) {
        Some(at) => {
            let mut bytes = input.bytes.to_vec();
            let gray =
                if bytes[0] == b'I' { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
            bytes[at..at + 2].copy_from_slice(&gray);
            (Cow::Owned(bytes), true)
        }
        None => (Cow::Borrowed(input.bytes), false),
    };
    let mut limits = Limits::default();
    limits.decoding_buffer_size = 8 * MAX_PIXELS;
    limits.intermediate_buffer_size = 8 * MAX_PIXELS;
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(fault)?.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(fault)?;
    let size = input.checked_size(width.into(), height.into())?;
    let color = decoder.colortype().map_err(fault)?;
    if !matches!(color.bit_depth(), 8 | 16) || has_palette && color != ColorType::Gray(8) {
        return Err(input.unsupported(format!("{color:?}"), SUPPORTED));
    }
    let palette = has_palette.then(|| decoder.get_tag_u16_vec(Tag::ColorMap)).transpose().map_err(fault)?;
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten().unwrap_or(1);
    let mut values = DecodingResult::U8(Vec::new());
    let planes = decoder.read_image_to_buffer(&mut values).map_err(fault)?.planes;
    Ok(Stored { size, color, palette, orientation, values, planes })
}

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let Stored { size, color, palette, orientation, values, planes } = read(input)?;
    let (channels, depth) = match color {
        ColorType::Gray(d) => (1, d),
        ColorType::GrayA(d) => (2, d),
        ColorType::RGB(d) => (3, d),
        ColorType::RGBA(d) | ColorType::CMYK(d) => (4, d),
        other => return Err(input.unsupported(format!("{other:?}"), SUPPORTED)),
    };
    let mut values = match values {
        DecodingResult::U8(values) => values,
        DecodingResult::U16(values) => input.narrowed(values.into_iter(), to)?,
        _ => {
            return Err(input.unsupported(format!("{color:?} of signed or floating-point values"), SUPPORTED));
        }
    };
    if planes > 1 {
        values = interleave(&values, planes);
    }
    let stored = match (color, &palette) {
        (_, Some(_)) => "palette",
        (ColorType::CMYK(_), _) => "CMYK",
        _ => colors(channels, depth.into()),
    };
    let (channels, values) = match (color, palette) {
        (ColorType::CMYK(_), _) => (3, values.chunks_exact(4).flat_map(cmyk).collect()),
        (_, Some(palette)) if to != PixelFormat::Index => (3, look_up(input, &values, &palette)?),
        _ => (channels, values),
    };
    Ok(Decoded { buffer: collect(input, size, channels, values, to)?, orientation, stored })
}

/// Returns the largest value of a 16-bit image.
pub(super) fn max_u16(input: &Input) -> Result<Option<u16>> {
    Ok(match read(input)?.values {
        DecodingResult::U16(values) => values.into_iter().max(),
        _ => None,
    })
}

/// Returns the position of the photometric interpretation of the first image if it is a palette. BigTIFF is
/// left out.
fn palette_entry(bytes: &[u8]) -> Option<usize> {
    let is_little = bytes.starts_with(&[b'I', b'I', 42, 0]);
    if !is_little && !bytes.starts_with(&[b'M', b'M', 0, 42]) {
        return None;
    }
    let u16_at = |at: usize| {
        let pair: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let directory: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let directory =
        if is_little { u32::from_le_bytes(directory) } else { u32::from_be_bytes(directory) } as usize;
    let count = usize::from(u16_at(directory)?);
    // Entries of 12 bytes: tag, type, count, and the value in the first two of the last four bytes.
    let entry = (0..count).map(|i| directory + 2 + 12 * i).find(|at| u16_at(*at) == Some(PHOTOMETRIC))?;
    (u16_at(entry + 8)? == PALETTE).then_some(entry + 8)
}

/// Interleaves planes.
fn interleave(values: &[u8], planes: usize) -> Vec<u8> {
    let length = values.len() / planes;
    (0..length).flat_map(|i| (0..planes).map(move |p| values[p * length + i])).collect()
}

fn cmyk(p: &[u8]) -> [u8; 3] {
    let k = 255 - u32::from(p[3]);
    [0, 1, 2].map(|c| (((255 - u32::from(p[c])) * k + 127) / 255) as u8)
}

/// Looks up a color map: all reds, then all greens, then all blues, of 16 bits.
fn look_up(input: &Input, indices: &[u8], map: &[u16]) -> Result<Vec<u8>> {
    let n = map.len() / 3;
    let mut colors = Vec::with_capacity(indices.len() * 3);
    for &i in indices {
        if usize::from(i) >= n {
            return Err(input.corrupt(format!("index {i} in a palette of {n} colors")));
        }
        colors.extend([0, 1, 2].map(|c| (map[c * n + usize::from(i)] >> 8) as u8));
    }
    Ok(colors)
}
