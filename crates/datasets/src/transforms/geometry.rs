//! Flips, quarter rotations, jigsaws.

use crate::image_buffer::ImageBuffer;
use crate::{Error, Result};

/// Flips horizontally.
pub fn hflip(image: &ImageBuffer) -> ImageBuffer {
    fn mirror<const C: usize>(from: &[u8], to: &mut [u8]) {
        for (from, to) in from.as_chunks::<C>().0.iter().rev().zip(to.as_chunks_mut::<C>().0) {
            *to = *from;
        }
    }
    let mut pixels = vec![0; image.pixels.len()];
    let stride = image.stride().max(1);
    for (from, to) in image.rows().zip(pixels.chunks_exact_mut(stride)) {
        match image.channels {
            1 => mirror::<1>(from, to),
            3 => mirror::<3>(from, to),
            c => {
                from.chunks_exact(c).rev().zip(to.chunks_exact_mut(c)).for_each(|(f, t)| t.copy_from_slice(f))
            }
        }
    }
    ImageBuffer { pixels, ..*image }
}

/// Flips vertically.
pub fn vflip(image: &ImageBuffer) -> ImageBuffer {
    let mut pixels = Vec::with_capacity(image.pixels.len());
    image.rows().rev().for_each(|row| pixels.extend_from_slice(row));
    ImageBuffer { pixels, ..*image }
}

/// Rotates by `k` quarter turns, counterclockwise.
pub fn rot90(image: &ImageBuffer, k: i64) -> ImageBuffer {
    let (w, h, c) = (image.width, image.height, image.channels);
    let k = k.rem_euclid(4);
    let (width, height) = if k % 2 == 0 { (w, h) } else { (h, w) };
    // Source of the first pixel, and strides along rows and columns.
    let (w, h) = (w as isize, h as isize);
    let (start, right, down) = match k {
        0 => (0, 1, w),
        1 => (w - 1, w, -1),
        2 => (w * h - 1, -1, -w),
        _ => ((h - 1) * w, -w, 1),
    };
    let mut pixels = vec![0; image.pixels.len()];
    for (y, row) in pixels.chunks_exact_mut((width * c).max(1)).enumerate() {
        let mut at = start + y as isize * down;
        for pixel in row.chunks_exact_mut(c) {
            let from = at as usize * c;
            pixel.copy_from_slice(&image.pixels[from..from + c]);
            at += right;
        }
    }
    ImageBuffer { width, height, channels: c, pixels }
}

/// Permutes `n` x `n` cells in row-major order: cell `i` of the result is cell `permutation[i]` of the
/// input. The sides must be divisible by `n`.
pub fn jigsaw(image: &ImageBuffer, n: usize, permutation: &[usize]) -> Result<ImageBuffer> {
    if n == 0 || !image.width.is_multiple_of(n) || !image.height.is_multiple_of(n) {
        return Err(Error::setting(
            "jigsaw",
            format!("expected sides divisible by {n}, found {}x{}; resize first", image.width, image.height),
        ));
    }
    let mut sorted = permutation.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..n * n) {
        return Err(Error::setting(
            "jigsaw",
            format!("expected a permutation of 0..{1}, found {0:?}", permutation, n * n),
        ));
    }
    let (row, rows) = (image.stride() / n, image.height / n);
    let mut out = image.clone();
    for (cell, &source) in permutation.iter().enumerate() {
        for y in 0..rows {
            let to = (cell / n * rows + y) * image.stride() + cell % n * row;
            let from = (source / n * rows + y) * image.stride() + source % n * row;
            out.pixels[to..to + row].copy_from_slice(&image.pixels[from..from + row]);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> ImageBuffer {
        ImageBuffer { width: 3, height: 2, channels: 1, pixels: vec![0, 1, 2, 3, 4, 5] }
    }

    #[test]
    fn inverts_flips_and_rotations() {
        let image = ramp();
        assert_eq!(rot90(&image, 1).pixels, [2, 5, 1, 4, 0, 3]);
        assert_eq!(rot90(&rot90(&image, 1), 3), image);
        assert_eq!(rot90(&image, -2), rot90(&image, 2));
        assert_eq!(hflip(&vflip(&image)), rot90(&image, 2));
        assert_eq!(hflip(&hflip(&image)), image);
        rot90(&ImageBuffer::filled(0, 0, 3, 0), 1);
    }

    #[test]
    fn rejects_invalid_jigsaws() {
        assert!(jigsaw(&ramp(), 2, &[0, 1, 2, 3]).is_err());
        let square = ImageBuffer { width: 2, height: 2, channels: 1, pixels: vec![0, 1, 2, 3] };
        assert!(jigsaw(&square, 2, &[0, 1, 2, 2]).is_err());
        assert!(jigsaw(&square, 2, &[0, 1, 2, 9]).is_err());
        assert!(jigsaw(&square, 0, &[]).is_err());
        assert_eq!(jigsaw(&square, 2, &[3, 0, 1, 2]).unwrap().pixels, [3, 0, 1, 2]);
    }
}
