//! WebP with the `image-webp` crate: lossy and lossless, the first frame of an animation.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::{Decoded, Input, PixelFormat, collect, colors, exif};
use crate::Result;

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let mut decoder = WebPDecoder::new(Cursor::new(input.bytes)).map_err(|e| input.corrupt(e))?;
    let (width, height) = decoder.dimensions();
    let size = input.checked_size(width.into(), height.into())?;
    // A damaged EXIF block does not invalidate the pixels.
    let exif = decoder.exif_metadata().ok().flatten();
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; size.0 * size.1 * channels];
    decoder.read_image(&mut pixels).map_err(|e| input.corrupt(e))?;
    Ok(Decoded {
        buffer: collect(input, size, channels, pixels, to)?,
        orientation: exif.map_or(1, |block| exif::orientation(&block)),
        stored: colors(channels, 8),
    })
}

#[cfg(test)]
mod tests {
    use crate::decode::{PixelFormat, decode, format};

    fn encode(color: image_webp::ColorType, pixels: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        image_webp::WebPEncoder::new(&mut bytes).encode(pixels, 2, 1, color).unwrap();
        bytes
    }

    #[test]
    fn reads_lossless_images_and_drops_alpha() {
        let bytes = encode(image_webp::ColorType::Rgb8, &[1, 2, 3, 200, 100, 50]);
        assert_eq!(format(&bytes), Some("WebP"));
        let image = decode(&bytes, "x", PixelFormat::Rgb, false).unwrap();
        assert_eq!((image.width, image.height, image.pixels), (2, 1, vec![1, 2, 3, 200, 100, 50]));
        let bytes = encode(image_webp::ColorType::Rgba8, &[1, 2, 3, 128, 200, 100, 50, 255]);
        let image = decode(&bytes, "x", PixelFormat::Rgb, false).unwrap();
        assert_eq!(image.pixels, [1, 2, 3, 200, 100, 50]);
        let e = decode(&bytes, "x", PixelFormat::Index, false).unwrap_err().to_string();
        assert!(e.contains("label mask"), "{e}");
    }

    #[test]
    fn rejects_truncated_files() {
        let bytes = encode(image_webp::ColorType::Rgb8, &[1, 2, 3, 200, 100, 50]);
        for length in 12..bytes.len() - 2 {
            assert!(decode(&bytes[..length], "x", PixelFormat::Rgb, false).is_err(), "{length}");
        }
    }
}
