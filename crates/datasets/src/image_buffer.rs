//! 8-bit images with any number of channels, the input and output of transforms.

use stillhouse_core::data::{Image, Mask};

/// An 8-bit image: 3 channels for color, 1 for gray or labels; `height * width * channels`
/// values, rows from the top, channels interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBuffer {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values per pixel.
    pub channels: usize,
    /// Values.
    pub pixels: Vec<u8>,
}

impl ImageBuffer {
    /// Creates an image of one value.
    pub fn filled(width: usize, height: usize, channels: usize, value: u8) -> Self {
        Self { width, height, channels, pixels: vec![value; width * height * channels] }
    }

    /// Returns the number of values in a row.
    pub(crate) fn stride(&self) -> usize {
        self.width * self.channels
    }

    /// Iterates over the rows from the top.
    pub(crate) fn rows(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.pixels.chunks_exact(self.stride().max(1))
    }

    /// Applies a lookup table to every value.
    pub(crate) fn mapped(&self, table: &[u8; 256]) -> Self {
        let pixels = self.pixels.iter().map(|&v| table[usize::from(v)]).collect();
        Self { pixels, ..*self }
    }

    /// Converts to RGB; gray is repeated.
    pub fn into_image(self) -> Image {
        let pixels = if self.channels == 3 {
            self.pixels
        } else {
            self.pixels.chunks_exact(self.channels.max(1)).flat_map(|p| [p[0]; 3]).collect()
        };
        Image { width: self.width, height: self.height, pixels }
    }

    /// Converts the first channel to labels.
    pub fn into_mask(self) -> Mask {
        let labels = if self.channels == 1 {
            self.pixels
        } else {
            self.pixels.iter().copied().step_by(self.channels.max(1)).collect()
        };
        Mask { width: self.width, height: self.height, labels }
    }
}

impl From<Image> for ImageBuffer {
    fn from(image: Image) -> Self {
        Self { width: image.width, height: image.height, channels: 3, pixels: image.pixels }
    }
}

impl From<Mask> for ImageBuffer {
    fn from(mask: Mask) -> Self {
        Self { width: mask.width, height: mask.height, channels: 1, pixels: mask.labels }
    }
}

/// Computes the luma of a pixel as Pillow does: `(19595 R + 38470 G + 7471 B + 32768) >> 16`.
pub(crate) fn luma(pixel: &[u8]) -> u8 {
    match pixel {
        [r, g, b, ..] => {
            ((19595 * u32::from(*r) + 38470 * u32::from(*g) + 7471 * u32::from(*b) + 32768) >> 16) as u8
        }
        [v, ..] => *v,
        [] => 0,
    }
}
