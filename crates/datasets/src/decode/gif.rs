//! GIF with the `gif` crate: the first frame.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::{Decoded, Input, MAX_PIXELS, PixelFormat, collect};
use crate::Result;

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.check_lzw_end_code(true);
    if let Some(limit) = NonZeroU64::new(MAX_PIXELS as u64) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(input.bytes).map_err(|e| input.corrupt(e))?;
    let size = input.checked_size(decoder.width().into(), decoder.height().into())?;
    let background = decoder.bg_color().and_then(|index| u8::try_from(index).ok()).unwrap_or(0);
    let Some(frame) = decoder.read_next_frame().map_err(|e| input.corrupt(e))? else {
        return Err(input.corrupt("no frame"));
    };
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    if width == 0 || left + width > size.0 || top + height > size.1 {
        return Err(input.corrupt(format!(
            "a first frame of {width}x{height} at {left}, {top} in an image of {}x{}",
            size.0, size.1
        )));
    }
    // The frame may cover a part of the image only.
    let mut indices = vec![background; size.0 * size.1];
    for (from, to) in frame.buffer.chunks_exact(width).zip(indices.chunks_exact_mut(size.0).skip(top)) {
        to[left..left + width].copy_from_slice(from);
    }
    let local = frame.palette.clone();
    let decoded = |channels, values| {
        Ok(Decoded { buffer: collect(input, size, channels, values, to)?, orientation: 1, stored: "palette" })
    };
    if to == PixelFormat::Index {
        return decoded(1, indices);
    }
    let palette = match &local {
        Some(palette) => palette.as_slice(),
        None => decoder.global_palette().ok_or_else(|| input.corrupt("no palette"))?,
    };
    let mut colors = Vec::with_capacity(indices.len() * 3);
    for index in indices {
        let at = usize::from(index) * 3;
        let Some(color) = palette.get(at..at + 3) else {
            return Err(input.corrupt(format!("index {index} in a palette of {} colors", palette.len() / 3)));
        };
        colors.extend_from_slice(color);
    }
    decoded(3, colors)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use crate::decode::{PixelFormat, decode, format};

    /// A 3x2 GIF whose frames are 2x1 at column 1, row 1.
    fn encode(frames: &[[u8; 2]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, 3, 2, &[9, 8, 7, 10, 20, 30, 40, 50, 60]).unwrap();
        for indices in frames {
            let frame = gif::Frame {
                left: 1,
                top: 1,
                width: 2,
                height: 1,
                buffer: Cow::Borrowed(indices),
                ..gif::Frame::default()
            };
            encoder.write_frame(&frame).unwrap();
        }
        drop(encoder);
        bytes
    }

    #[test]
    fn reads_the_first_frame() {
        let bytes = encode(&[[1, 2], [2, 2]]);
        assert_eq!(format(&bytes), Some("GIF"));
        let image = decode(&bytes, "x", PixelFormat::Rgb, false).unwrap();
        assert_eq!((image.width, image.height), (3, 2));
        assert_eq!(image.pixels[..12], [9, 8, 7, 9, 8, 7, 9, 8, 7, 9, 8, 7]);
        assert_eq!(image.pixels[12..], [10, 20, 30, 40, 50, 60]);
        let mask = decode(&bytes, "x", PixelFormat::Index, false).unwrap();
        assert_eq!(mask.pixels, [0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn rejects_corrupt_files() {
        let bytes = encode(&[[1, 2]]);
        for length in 6..bytes.len() - 4 {
            assert!(decode(&bytes[..length], "x", PixelFormat::Rgb, false).is_err(), "{length}");
        }
        assert!(decode(&encode(&[]), "x", PixelFormat::Rgb, false).is_err());
    }
}
