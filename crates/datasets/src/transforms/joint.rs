//! Joint transforms of an image and its mask.

use super::{Filter, crop_with, hflip, resize};
use crate::image_buffer::ImageBuffer;

/// Parameters of [`scale_crop_joint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleCrop {
    /// Width and height after scaling.
    pub scaled: (usize, usize),
    /// Width and height of the result.
    pub crop: (usize, usize),
    /// Left and top of the crop.
    pub at: (i64, i64),
    /// Whether the result is flipped horizontally.
    pub flip: bool,
    /// Color outside of the scaled image.
    pub image_fill: [u8; 3],
    /// Label outside of the scaled image.
    pub mask_fill: u8,
}

/// Scales (image bilinear, mask nearest), pads right and bottom to the size of the crop, crops and
/// flips.
pub fn scale_crop_joint(
    image: &ImageBuffer,
    mask: &ImageBuffer,
    to: ScaleCrop,
) -> (ImageBuffer, ImageBuffer) {
    let one = |buffer: &ImageBuffer, filter: Filter, fill: &[u8]| {
        let (width, height) = to.scaled;
        let scaled = if (buffer.width, buffer.height) == to.scaled {
            buffer.clone()
        } else {
            resize(buffer, width, height, filter)
        };
        let cut = crop_with(&scaled, to.at.0, to.at.1, to.crop.0, to.crop.1, fill);
        if to.flip { hflip(&cut) } else { cut }
    };
    (one(image, Filter::Bilinear, &to.image_fill), one(mask, Filter::Nearest, &[to.mask_fill]))
}
