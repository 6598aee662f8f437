//! Image decoders. The format is detected by the first bytes, not by the extension.
//!
//! Files are untrusted: sizes are limited before anything is allocated, truncated and corrupt files
//! are errors, nothing panics.

mod bmp;
mod exif;
mod gif;
mod jpeg;
pub(crate) mod mat;
mod png;
mod tiff;
mod webp;

use std::path::Path;

use stillhouse_core::data::{Image, Mask};

use crate::image_buffer::{ImageBuffer, luma};
use crate::transforms::rot90;
use crate::{Error, Result};

/// Limit for the pixels per side.
pub const MAX_SIDE: usize = 32_768;
/// Limit for the total number of pixels.
pub const MAX_PIXELS: usize = 1 << 26;
/// Limit for the bytes of a file.
pub const MAX_FILE: u64 = 1 << 29;

/// Target format of a decoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// Three channels: alpha is dropped, gray repeated, palettes and CMYK are converted.
    Rgb,
    /// One channel: color becomes luma.
    Luma,
    /// One channel: stored palette indices or gray values.
    Index,
}

/// Result of a decoder.
struct Decoded {
    buffer: ImageBuffer,
    orientation: u8,
    /// Stored color type: [`RGB`], gray, palette, ...
    stored: &'static str,
}

/// [`Stored::colors`] of 8-bit RGB, which needs no conversion.
pub const RGB: &str = "RGB";

/// Storage format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// JPEG, PNG, TIFF, BMP, WebP or GIF.
    pub format: &'static str,
    /// [`RGB`], or the stored color type.
    pub colors: &'static str,
}

/// Names a color type by its channels and bits.
fn colors(channels: usize, bits: usize) -> &'static str {
    match (channels, bits) {
        (1, 16) => "16-bit gray",
        (1, _) => "gray",
        (2, _) => "gray with alpha",
        (3, 16) => "16-bit RGB",
        (3, _) => RGB,
        _ => "RGB with alpha",
    }
}

/// Content of a file, its name for messages, and the 16-bit value that becomes white.
#[derive(Clone, Copy)]
struct Input<'a> {
    bytes: &'a [u8],
    name: &'a str,
    format: &'static str,
    white: Option<u16>,
}

impl Input<'_> {
    fn corrupt(&self, message: impl ToString) -> Error {
        Error::Decode { name: self.name.to_string(), format: self.format, message: message.to_string() }
    }

    fn unsupported(&self, found: impl ToString, expected: &'static str) -> Error {
        let (name, format) = (self.name.to_string(), self.format);
        Error::Unsupported { name, format, found: found.to_string(), expected }
    }

    /// Reduces 16-bit values to bytes: by the white level, or to the upper byte. Label masks keep their values.
    fn narrowed(&self, values: impl Iterator<Item = u16>, to: PixelFormat) -> Result<Vec<u8>> {
        if to == PixelFormat::Index {
            let byte = |value: u16| {
                u8::try_from(value).map_err(|_| {
                    self.unsupported(format!("the 16-bit value {value}"), "label values up to 255")
                })
            };
            return values.map(byte).collect();
        }
        Ok(match self.white.map(u32::from) {
            None => values.map(|value| (value >> 8) as u8).collect(),
            Some(white) => {
                let scaled =
                    |value: u16| ((u32::from(value).min(white) * 255 + white / 2) / white.max(1)) as u8;
                values.map(scaled).collect()
            }
        })
    }

    /// Checks the sides against the limits.
    fn checked_size(&self, width: u64, height: u64) -> Result<(usize, usize)> {
        let side = MAX_SIDE as u64;
        if width == 0 || height == 0 {
            return Err(self.corrupt(format!("{width}x{height} pixels")));
        }
        if width > side || height > side || width * height > MAX_PIXELS as u64 {
            return Err(Error::TooLarge { name: self.name.to_string(), width, height });
        }
        Ok((width as usize, height as usize))
    }
}

/// Decodes an image. With `orient` the EXIF orientation is applied; training pipelines do not. `name`
/// is for messages.
pub fn decode(bytes: &[u8], name: &str, to: PixelFormat, orient: bool) -> Result<ImageBuffer> {
    let (format, decoder) = sniff(bytes, name)?;
    let Decoded { buffer, orientation, .. } = decoder(&Input { bytes, name, format, white: None }, to)?;
    debug_assert_eq!(buffer.channels, if to == PixelFormat::Rgb { 3 } else { 1 });
    Ok(if orient { oriented(&buffer, orientation) } else { buffer })
}

/// Decodes a 16-bit gray PNG into width, height and values.
pub fn decode_u16(bytes: &[u8], name: &str) -> Result<(usize, usize, Vec<u16>)> {
    match sniff(bytes, name)?.0 {
        "PNG" => png::decode_u16(&Input { bytes, name, format: "PNG", white: None }),
        format => {
            Err(Input { bytes, name, format, white: None }.unsupported("8-bit values", "16-bit gray PNG"))
        }
    }
}

/// Reads an image file as RGB. 16-bit values from 0 to `white` become 0 to 255, larger ones 255; without it the
/// upper byte is taken.
pub fn read_image(path: &Path, white: Option<u16>) -> Result<Image> {
    Ok(inspect_image(path, white)?.0)
}

/// Reads an image file as [`read_image`] does, and returns its storage format.
pub fn inspect_image(path: &Path, white: Option<u16>) -> Result<(Image, Stored)> {
    let (bytes, name) = (read_file(path)?, path.display().to_string());
    let (format, decoder) = sniff(&bytes, &name)?;
    let decoded = decoder(&Input { bytes: &bytes, name: &name, format, white }, PixelFormat::Rgb)?;
    Ok((decoded.buffer.into_image(), Stored { format, colors: decoded.stored }))
}

/// Returns the largest value of a 16-bit image; `None` for 8 bits.
pub(crate) fn max_u16(path: &Path) -> Result<Option<u16>> {
    let (bytes, name) = (read_file(path)?, path.display().to_string());
    let (format, _) = sniff(&bytes, &name)?;
    let input = Input { bytes: &bytes, name: &name, format, white: None };
    match format {
        "PNG" => png::max_u16(&input),
        "TIFF" => tiff::max_u16(&input),
        _ => Ok(None),
    }
}

/// Reads a label mask of palette indices or gray values.
pub fn read_mask(path: &Path) -> Result<Mask> {
    Ok(decode(&read_file(path)?, &path.display().to_string(), PixelFormat::Index, false)?.into_mask())
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length > MAX_FILE {
        return Err(Error::setting(
            path.display(),
            format!(
                "expected an image file of at most {MAX_FILE} bytes, found {length}; scale the image down"
            ),
        ));
    }
    std::fs::read(path).map_err(Error::io(path))
}

/// Detects the format by the first bytes, of which 18 suffice: JPEG, PNG, TIFF, BMP, WebP or GIF.
pub fn format(bytes: &[u8]) -> Option<&'static str> {
    sniff(bytes, "").ok().map(|(format, _)| format)
}

type Decoder = fn(&Input, PixelFormat) -> Result<Decoded>;

fn sniff(bytes: &[u8], name: &str) -> Result<(&'static str, Decoder)> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Ok(("JPEG", jpeg::decode)),
        [0x89, b'P', b'N', b'G', ..] => Ok(("PNG", png::decode)),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(("TIFF", tiff::decode)),
        [b'B', b'M', ..] if bmp::has_header(bytes) => Ok(("BMP", bmp::decode)),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(("WebP", webp::decode)),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(("GIF", gif::decode)),
        _ => {
            let found = if bytes.is_empty() {
                "an empty file".to_string()
            } else {
                let hex: Vec<String> = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
                format!("bytes {}", hex.join(" "))
            };
            Err(Error::UnknownFormat { name: name.to_string(), found })
        }
    }
}

/// Converts interleaved values (1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha) to a format that is
/// not [`PixelFormat::Index`] for color.
fn collect(
    input: &Input,
    size: (usize, usize),
    channels: usize,
    pixels: Vec<u8>,
    to: PixelFormat,
) -> Result<ImageBuffer> {
    let (width, height) = size;
    if pixels.len() != width * height * channels {
        return Err(input.corrupt(format!("{} values for {width}x{height}x{channels}", pixels.len())));
    }
    let pixels = match (to, channels) {
        (PixelFormat::Rgb, 3) | (PixelFormat::Luma | PixelFormat::Index, 1) => pixels,
        (PixelFormat::Rgb, 1 | 2) => pixels.chunks_exact(channels).flat_map(|p| [p[0]; 3]).collect(),
        (PixelFormat::Rgb, _) => pixels.chunks_exact(channels).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        (PixelFormat::Luma | PixelFormat::Index, 2) => pixels.into_iter().step_by(2).collect(),
        (PixelFormat::Luma, _) => pixels.chunks_exact(channels).map(luma).collect(),
        (PixelFormat::Index, _) => {
            return Err(input.unsupported("colors", "a label mask of palette indices or gray values"));
        }
    };
    Ok(ImageBuffer { width, height, channels: if to == PixelFormat::Rgb { 3 } else { 1 }, pixels })
}

/// Applies an EXIF orientation (1 to 8).
fn oriented(image: &ImageBuffer, orientation: u8) -> ImageBuffer {
    use crate::transforms::hflip;
    match orientation {
        2 => hflip(image),
        3 => rot90(image, 2),
        4 => hflip(&rot90(image, 2)),
        5 => hflip(&rot90(image, 3)),
        6 => rot90(image, 3),
        7 => hflip(&rot90(image, 1)),
        8 => rot90(image, 1),
        _ => image.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_unknown_formats() {
        let e = decode(b"<html>", "a/b.jpg", PixelFormat::Rgb, false).unwrap_err().to_string();
        assert!(e.contains("a/b.jpg") && e.contains("3c 68 74 6d") && e.contains("JPEG"), "{e}");
        let e = decode(b"", "x.png", PixelFormat::Rgb, false).unwrap_err().to_string();
        assert!(e.contains("empty file"), "{e}");
        let folder = tempfile::tempdir().unwrap();
        let e = read_image(&folder.path().join("absent.jpg"), None).unwrap_err().to_string();
        assert!(e.contains("absent.jpg"), "{e}");
    }

    #[test]
    fn rejects_large_images_before_allocation() {
        let input = Input { bytes: &[], name: "x", format: "PNG", white: None };
        assert_eq!(input.checked_size(256, 256).unwrap(), (256, 256));
        for (w, h) in [(0, 5), (40_000, 10), (32_768, 32_768), (u64::MAX, u64::MAX)] {
            assert!(input.checked_size(w, h).is_err());
        }
    }

    #[test]
    fn applies_exif_orientations() {
        // Stored position of the first upright pixel of a 2x3 image, by orientation.
        let at = [(1, 0, 0), (2, 1, 0), (3, 1, 2), (4, 0, 2), (5, 0, 0), (6, 0, 2), (7, 1, 2), (8, 1, 0)];
        for (orientation, x, y) in at {
            let mut image = ImageBuffer::filled(2, 3, 1, 0);
            image.pixels[y * 2 + x] = 9;
            let upright = oriented(&image, orientation);
            assert_eq!(upright.pixels[0], 9, "orientation {orientation}");
            let turned = orientation > 4;
            assert_eq!((upright.width, upright.height), if turned { (3, 2) } else { (2, 3) });
        }
    }
}
