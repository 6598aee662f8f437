//! PNG with the `png` crate, without expansion of palettes.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::{Decoded, Input, PixelFormat, collect, colors, exif};
use crate::Result;

/// Stored values: one per byte for depths up to 8, big-endian pairs for 16.
struct Stored {
    size: (usize, usize),
    color: ColorType,
    depth: BitDepth,
    bytes: Vec<u8>,
    line: usize,
    palette: Vec<u8>,
    orientation: u8,
}

fn read(input: &Input) -> Result<Stored> {
    let limits = Limits { bytes: 8 * super::MAX_PIXELS };
    let mut decoder = Decoder::new_with_limits(Cursor::new(input.bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(|e| input.corrupt(e))?;
    let size = input.checked_size(header.width.into(), header.height.into())?;
    let mut reader = decoder.read_info().map_err(|e| input.corrupt(e))?;
    let Some(length) = reader.output_buffer_size() else { return Err(input.corrupt("too large")) };
    let mut bytes = vec![0; length];
    let frame = reader.next_frame(&mut bytes).map_err(|e| input.corrupt(e))?;
    if (frame.width as usize, frame.height as usize) != size {
        return Err(input.unsupported(
            format!("a first frame of {}x{}", frame.width, frame.height),
            "a frame of the size of the image",
        ));
    }
    let info = reader.info();
    Ok(Stored {
        size,
        color: frame.color_type,
        depth: frame.bit_depth,
        line: frame.line_size,
        palette: info.palette.as_ref().map(|p| p.to_vec()).unwrap_or_default(),
        orientation: info.exif_metadata.as_ref().map_or(1, |e| exif::orientation(e)),
        bytes,
    })
}

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let mut stored = read(input)?;
    let (size, orientation) = (stored.size, stored.orientation);
    let scale = match (stored.color, to, stored.depth) {
        (ColorType::Indexed, ..) | (_, PixelFormat::Index, _) => 1,
        (_, _, BitDepth::One) => 255,
        (_, _, BitDepth::Two) => 85,
        (_, _, BitDepth::Four) => 17,
        _ => 1,
    };
    let (color, palette) = (stored.color, std::mem::take(&mut stored.palette));
    let bits = stored.depth as usize;
    let values = match stored.depth {
        BitDepth::Sixteen => input.narrowed(values_u16(&stored), to)?,
        _ => unpack(stored, scale),
    };
    let (channels, values) = match color {
        ColorType::Grayscale => (1, values),
        ColorType::GrayscaleAlpha => (2, values),
        ColorType::Rgb => (3, values),
        ColorType::Rgba => (4, values),
        ColorType::Indexed if to == PixelFormat::Index => (1, values),
        ColorType::Indexed => (3, look_up(input, &values, &palette)?),
    };
    let kind = if color == ColorType::Indexed { "palette" } else { colors(channels, bits) };
    Ok(Decoded { buffer: collect(input, size, channels, values, to)?, orientation, stored: kind })
}

/// Unpacks values of up to 8 bits to one byte each, scaled.
fn unpack(stored: Stored, scale: u8) -> Vec<u8> {
    let width = stored.size.0;
    let bits = match stored.depth {
        BitDepth::One => 1,
        BitDepth::Two => 2,
        BitDepth::Four => 4,
        BitDepth::Eight | BitDepth::Sixteen => return stored.bytes,
    };
    let mask = (1u8 << bits) - 1;
    let per_byte = 8 / bits;
    let rows = stored.bytes.chunks_exact(stored.line.max(1));
    rows.flat_map(|row| {
        (0..width).map(move |x| {
            let shift = 8 - bits * (x % per_byte + 1);
            (row[x / per_byte] >> shift & mask) * scale
        })
    })
    .collect()
}

fn look_up(input: &Input, indices: &[u8], palette: &[u8]) -> Result<Vec<u8>> {
    let mut colors = Vec::with_capacity(indices.len() * 3);
    for &i in indices {
        let at = usize::from(i) * 3;
        let Some(color) = palette.get(at..at + 3) else {
            return Err(input.corrupt(format!("index {i} in a palette of {} colors", palette.len() / 3)));
        };
        colors.extend_from_slice(color);
    }
    Ok(colors)
}

fn values_u16(stored: &Stored) -> impl Iterator<Item = u16> + '_ {
    stored.bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

/// Returns the largest value of a 16-bit image.
pub(super) fn max_u16(input: &Input) -> Result<Option<u16>> {
    // The bit depth is in the header, at a fixed position.
    if input.bytes.get(24) != Some(&16) {
        return Ok(None);
    }
    Ok(values_u16(&read(input)?).max())
}

pub(super) fn decode_u16(input: &Input) -> Result<(usize, usize, Vec<u16>)> {
    let stored = read(input)?;
    if (stored.color, stored.depth) != (ColorType::Grayscale, BitDepth::Sixteen) {
        return Err(input.unsupported(
            format!("{:?} of {} bits", stored.color, stored.depth as u8),
            "16-bit gray values",
        ));
    }
    Ok((stored.size.0, stored.size.1, values_u16(&stored).collect()))
}
