//! TIFF with the `tiff` crate: 8 or 16 bits, gray, RGB, CMYK or palette, strips or tiles.

use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::{Decoded, Input, MAX_PIXELS, PixelFormat, collect, colors};
use crate::Result;

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = 8 * MAX_PIXELS;
    limits.intermediate_buffer_size = 8 * MAX_PIXELS;
    let mut decoder =
        Decoder::new(Cursor::new(input.bytes)).map_err(|e| input.corrupt(e))?.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(|e| input.corrupt(e))?;
    let size = input.checked_size(width.into(), height.into())?;
    let color = decoder.colortype().map_err(|e| input.corrupt(e))?;
    let (channels, depth) = match color {
        ColorType::Gray(d) => (1, d),
        ColorType::GrayA(d) => (2, d),
        ColorType::RGB(d) => (3, d),
        ColorType::RGBA(d) | ColorType::CMYK(d) => (4, d),
        ColorType::Palette(d) => (1, d),
        other => return Err(unsupported(input, other)),
    };
    if !matches!(depth, 8 | 16) {
        return Err(unsupported(input, color));
    }
    let palette = match color {
        ColorType::Palette(8) => decoder.get_tag_u16_vec(Tag::ColorMap).map_err(|e| input.corrupt(e))?,
        ColorType::Palette(_) => return Err(unsupported(input, color)),
        _ => Vec::new(),
    };
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten().unwrap_or(1);
    let mut values = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut values).map_err(|e| input.corrupt(e))?;
    let mut values = match values {
        DecodingResult::U8(v) => v,
        DecodingResult::U16(v) => v.into_iter().map(|v| (v >> 8) as u8).collect(),
        _ => return Err(unsupported(input, color)),
    };
    if layout.planes > 1 {
        values = interleave(&values, layout.planes);
    }
    let stored = match color {
        ColorType::CMYK(_) => "CMYK",
        ColorType::Palette(_) => "palette",
        _ => colors(channels, depth.into()),
    };
    let (channels, values) = match color {
        ColorType::CMYK(_) => (3, values.chunks_exact(4).flat_map(cmyk).collect()),
        ColorType::Palette(_) if to != PixelFormat::Index => (3, look_up(input, &values, &palette)?),
        _ => (channels, values),
    };
    Ok(Decoded { buffer: collect(input, size, channels, values, to)?, orientation, stored })
}

fn unsupported(input: &Input, color: ColorType) -> crate::Error {
    input.unsupported(format!("{color:?}"), "gray, RGB, CMYK or palette of 8 bits (or 16, without palette)")
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
