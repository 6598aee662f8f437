//! Uncompressed BMP: 8-bit palette, 24-bit, 32-bit.

use super::{Decoded, Input, PixelFormat, RGB, collect};
use crate::Result;

const PALETTE: &str = "palette";

/// Returns whether a file that begins with BMP's two letters, as text may, has a header of a known size.
pub(super) fn has_header(bytes: &[u8]) -> bool {
    matches!(bytes.get(14..18), Some([12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
}

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let bytes = input.bytes;
    let short = || input.corrupt("truncated header");
    let u16_at =
        |at: usize| bytes.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]])).ok_or_else(short);
    let u32_at = |at: usize| Ok(u32::from(u16_at(at)?) | u32::from(u16_at(at + 2)?) << 16);
    let (start, header) = (u32_at(10)? as usize, u32_at(14)? as usize);
    if header < 40 {
        return Err(input.unsupported(format!("a header of {header} bytes"), "at least 40 bytes"));
    }
    let (width, height) = (u32_at(18)? as i32, u32_at(22)? as i32);
    let (bits, compression) = (u16_at(28)?, u32_at(30)?);
    if !matches!((bits, compression), (8 | 24 | 32, 0) | (32, 3)) {
        return Err(input.unsupported(
            format!("{bits} bits with compression {compression}"),
            "8, 24 or 32 bits without compression",
        ));
    }
    if width < 0 {
        return Err(input.corrupt(format!("a width of {width}")));
    }
    let size = input.checked_size(width as u64, height.unsigned_abs().into())?;
    let line = (size.0 * usize::from(bits / 8)).next_multiple_of(4);
    let Some(body) = bytes.get(start..).and_then(|b| b.get(..line * size.1)) else {
        return Err(input.corrupt("truncated before the last row"));
    };
    let rows: Vec<&[u8]> = body.chunks_exact(line).collect();
    let ordered: Box<dyn Iterator<Item = &&[u8]>> =
        if height > 0 { Box::new(rows.iter().rev()) } else { Box::new(rows.iter()) };
    if bits == 8 {
        let indices: Vec<u8> = ordered.flat_map(|r| &r[..size.0]).copied().collect();
        if to == PixelFormat::Index {
            return Ok(Decoded {
                buffer: collect(input, size, 1, indices, to)?,
                orientation: 1,
                stored: PALETTE,
            });
        }
        let palette = bytes.get((14 + header).min(start)..start).unwrap_or_default();
        let mut colors = Vec::with_capacity(indices.len() * 3);
        for i in indices {
            let at = usize::from(i) * 4;
            let Some(c) = palette.get(at..at + 3) else {
                return Err(input.corrupt(format!("index {i} in a palette of {}", palette.len() / 4)));
            };
            colors.extend([c[2], c[1], c[0]]);
        }
        return Ok(Decoded { buffer: collect(input, size, 3, colors, to)?, orientation: 1, stored: PALETTE });
    }
    let step = usize::from(bits / 8);
    let colors = ordered
        .flat_map(|r| r[..size.0 * step].chunks_exact(step).flat_map(|p| [p[2], p[1], p[0]]))
        .collect();
    let stored = if bits == 32 { "RGB with alpha" } else { RGB };
    Ok(Decoded { buffer: collect(input, size, 3, colors, to)?, orientation: 1, stored })
}
