//! JPEG with `stillhouse-jpeg`, to the pixels of libjpeg, which Pillow and torchvision use.
//!
//! A file that lacks coded pixels is an error; the decoder would fill them. Bytes that no pixel depends
//! on are skipped.

use stillhouse_jpeg::{Color, Decoder, Image};

use super::{Decoded, Input, PixelFormat, RGB, collect, exif};
use crate::{Error, Result};

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let decoder = Decoder::new(input.bytes).map_err(|e| error(input, e))?;
    input.checked_size(decoder.width() as u64, decoder.height() as u64)?;
    if to == PixelFormat::Index && decoder.color() != Color::Luma {
        return Err(input.unsupported("colors", "a label mask of palette indices or gray values"));
    }
    let orientation = decoder.exif().map_or(1, exif::orientation);
    let image = pulp::Arch::new().dispatch(Vectorized(decoder)).map_err(|e| error(input, e))?;
    if let Some(warning) = image.warnings.iter().find(|warning| warning.loses_pixels()) {
        return Err(input.corrupt(warning));
    }
    let size = (image.width, image.height);
    let (channels, stored, pixels) = match image.color {
        Color::Luma => (1, "gray", image.pixels),
        Color::Rgb => (3, RGB, image.pixels),
        Color::Cmyk => (3, "CMYK", image.into_rgb()),
    };
    Ok(Decoded { buffer: collect(input, size, channels, pixels, to)?, orientation, stored })
}

fn error(input: &Input, error: stillhouse_jpeg::Error) -> Error {
    match error {
        stillhouse_jpeg::Error::Unsupported(found) => input.unsupported(
            found,
            "baseline or progressive coding, 8 bits, gray, RGB or CMYK: convert the file, for example to PNG",
        ),
        stillhouse_jpeg::Error::Corrupt(reason) => input.corrupt(reason),
        stillhouse_jpeg::Error::Truncated => input.corrupt("truncated before the pixels"),
        other => input.corrupt(other),
    }
}

/// Decodes with the instruction set that [`pulp`] detects at run time.
struct Vectorized<'a>(Decoder<'a>);

impl pulp::WithSimd for Vectorized<'_> {
    type Output = std::result::Result<Image, stillhouse_jpeg::Error>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        self.0.decode()
    }
}
