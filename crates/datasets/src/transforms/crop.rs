//! Cropping and padding.

use crate::image_buffer::ImageBuffer;
use crate::{Error, Result};

/// Content of the padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadMode {
    /// One value per channel; missing values are 0.
    Constant([u8; 3]),
    /// Mirrored without repeating the edge.
    Reflect,
    /// Repeated edge.
    Edge,
}

/// Pixels to add on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Padding {
    pub left: usize,
    pub top: usize,
    pub right: usize,
    pub bottom: usize,
}

/// Pads an image. Reflection requires an image larger than the padding.
pub fn pad(image: &ImageBuffer, by: Padding, mode: PadMode) -> Result<ImageBuffer> {
    let (width, height) = (image.width + by.left + by.right, image.height + by.top + by.bottom);
    let (left, top) = (by.left as i64, by.top as i64);
    let fill = match mode {
        PadMode::Constant(fill) => return Ok(crop_with(image, -left, -top, width, height, &fill)),
        _ => mode,
    };
    let across = by.left.max(by.right);
    let down = by.top.max(by.bottom);
    let least = if fill == PadMode::Reflect { 1 } else { 0 };
    if (fill == PadMode::Reflect && (across >= image.width || down >= image.height))
        || image.width.min(image.height) == 0
    {
        return Err(Error::setting(
            "pad",
            format!(
                "a border of {across}x{down} needs an image of at least {}x{}, found {}x{}; pad less",
                across + least,
                down + least,
                image.width,
                image.height
            ),
        ));
    }
    let at = |i: usize, before: usize, n: usize| {
        let i = i as i64 - before as i64;
        let last = n as i64 - 1;
        let i = if fill == PadMode::Reflect { last - (last - i.abs()).abs() } else { i.clamp(0, last) };
        i as usize
    };
    let channels = image.channels;
    let columns: Vec<usize> = (0..width).map(|x| at(x, by.left, image.width) * channels).collect();
    let mut pixels = Vec::with_capacity(width * height * channels);
    for y in 0..height {
        let row = &image.pixels[at(y, by.top, image.height) * image.stride()..];
        for &x in &columns {
            pixels.extend_from_slice(&row[x..x + channels]);
        }
    }
    Ok(ImageBuffer { width, height, channels, pixels })
}

/// Crops the box at (`left`, `top`) of `width` x `height`, with zeros outside of the image.
pub fn crop(image: &ImageBuffer, left: i64, top: i64, width: usize, height: usize) -> ImageBuffer {
    crop_with(image, left, top, width, height, &[0; 3])
}

/// Crops like [`crop`], with a color outside of the image; its last value is repeated for further
/// channels.
pub fn crop_with(
    image: &ImageBuffer,
    left: i64,
    top: i64,
    width: usize,
    height: usize,
    fill: &[u8],
) -> ImageBuffer {
    let channels = image.channels;
    let stride = width * channels;
    let color: Vec<u8> = (0..channels).map(|c| fill.get(c).or(fill.last()).copied().unwrap_or(0)).collect();
    let mut out = ImageBuffer { width, height, channels, pixels: Vec::with_capacity(stride * height) };
    // Columns of the result inside of the image.
    let from = left.saturating_neg().clamp(0, width as i64) as usize;
    let to = (image.width as i64).saturating_sub(left).clamp(from as i64, width as i64) as usize;
    let border = |out: &mut Vec<u8>, n: usize| (0..n).for_each(|_| out.extend_from_slice(&color));
    for y in 0..height as i64 {
        let y = y.saturating_add(top);
        if from == to || y < 0 || y >= image.height as i64 {
            border(&mut out.pixels, width);
            continue;
        }
        border(&mut out.pixels, from);
        let start = y as usize * image.stride() + (left + from as i64) as usize * channels;
        out.pixels.extend_from_slice(&image.pixels[start..start + (to - from) * channels]);
        border(&mut out.pixels, width - to);
    }
    out
}

/// Crops the center like torchvision's `CenterCrop`: a smaller image is padded with zeros first (left
/// and top `floor(d/2)`); then `left = round((w - width) / 2)`, ties to even.
pub fn center_crop(image: &ImageBuffer, width: usize, height: usize) -> ImageBuffer {
    let (left, top) = (offset(image.width, width), offset(image.height, height));
    crop(image, left, top, width, height)
}

fn offset(size: usize, wanted: usize) -> i64 {
    if wanted > size {
        return -((wanted - size) as i64 / 2);
    }
    let d = (size - wanted) as i64;
    let half = d / 2;
    if d % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> ImageBuffer {
        ImageBuffer { width, height, channels: 1, pixels: (0..(width * height) as u8).collect() }
    }

    #[test]
    fn crops_outside_of_the_image() {
        let image = ramp(3, 2);
        for (left, top) in [(i64::MIN, 0), (i64::MAX, 0), (0, i64::MIN), (5, i64::MAX), (-9, -9)] {
            assert_eq!(crop(&image, left, top, 2, 2).pixels, [0; 4]);
        }
        assert_eq!(crop(&image, -1, 1, 5, 2).pixels, [0, 3, 4, 5, 0, 0, 0, 0, 0, 0]);
        assert_eq!(crop_with(&image, 2, 1, 2, 1, &[7]).pixels, [5, 7]);
    }

    #[test]
    fn rounds_centers_to_even() {
        assert_eq!([offset(8, 5), offset(10, 5), offset(9, 4), offset(5, 8)], [2, 2, 2, -1]);
    }

    #[test]
    fn rejects_reflection_of_small_images() {
        let by = Padding { left: 2, right: 2, ..Padding::default() };
        assert_eq!(pad(&ramp(3, 1), by, PadMode::Reflect).unwrap().pixels, [2, 1, 0, 1, 2, 1, 0]);
        assert!(pad(&ramp(2, 1), by, PadMode::Reflect).is_err());
        assert_eq!(pad(&ramp(2, 1), by, PadMode::Edge).unwrap().pixels, [0, 0, 0, 1, 1, 1]);
        assert!(pad(&ramp(0, 0), by, PadMode::Edge).is_err());
    }
}
