//! Blur and sharpness.

use super::color::blend;
use crate::image_buffer::ImageBuffer;
use crate::{Error, Result};

fn weights(size: usize, sigma: f64) -> Vec<f64> {
    let middle = (size as f64 - 1.0) / 2.0;
    let raw: Vec<f64> = (0..size).map(|i| (-0.5 * ((i as f64 - middle) / sigma).powi(2)).exp()).collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|w| w / sum).collect()
}

/// Mirrors an index into 0..n without repeating the edge.
fn mirrored(i: i64, n: usize) -> usize {
    let last = n as i64 - 1;
    (last - (last - i.abs()).abs()) as usize
}

/// Applies a Gaussian blur with odd `kernel` sizes (x, y) and `sigma` (x, y), mirrored at the border,
/// rounded to nearest, ties to even. The image must be larger than half the kernel.
pub fn gaussian_blur(image: &ImageBuffer, kernel: (usize, usize), sigma: (f64, f64)) -> Result<ImageBuffer> {
    let (w, h, c) = (image.width, image.height, image.channels);
    let ok = kernel.0 % 2 == 1 && kernel.1 % 2 == 1 && sigma.0 > 0.0 && sigma.1 > 0.0;
    if !ok || kernel.0 / 2 >= w || kernel.1 / 2 >= h {
        return Err(Error::setting(
            "gaussian_blur",
            format!(
                "kernel {kernel:?} with sigma {sigma:?} on {w}x{h} pixels: expected odd sizes below twice the \
                 image's and sigma above 0"
            ),
        ));
    }
    let (kx, ky) = (weights(kernel.0, sigma.0), weights(kernel.1, sigma.1));
    let stride = image.stride();
    let mut across = vec![0.0f64; image.pixels.len()];
    for (i, weight) in kx.iter().enumerate() {
        let shift = i as i64 - (kernel.0 / 2) as i64;
        let columns: Vec<usize> = (0..w).map(|x| mirrored(x as i64 + shift, w) * c).collect();
        for (out, row) in across.chunks_exact_mut(stride).zip(image.rows()) {
            for (out, &x) in out.chunks_exact_mut(c).zip(&columns) {
                for (out, &v) in out.iter_mut().zip(&row[x..x + c]) {
                    *out += weight * f64::from(v);
                }
            }
        }
    }
    let mut pixels = Vec::with_capacity(image.pixels.len());
    let mut sums = vec![0.0f64; stride];
    for y in 0..h {
        sums.fill(0.0);
        for (i, weight) in ky.iter().enumerate() {
            let source = mirrored((y + i) as i64 - (kernel.1 / 2) as i64, h) * stride;
            for (sum, v) in sums.iter_mut().zip(&across[source..source + stride]) {
                *sum += weight * v;
            }
        }
        pixels.extend(sums.iter().map(|s| s.round_ties_even().clamp(0.0, 255.0) as u8));
    }
    Ok(ImageBuffer { pixels, ..*image })
}

/// Blends with the image smoothed by a 3x3 kernel of ones with 5 in the center; the outermost rows and
/// columns are unchanged.
pub fn sharpness(image: &ImageBuffer, factor: f32) -> ImageBuffer {
    let (w, h, c, stride) = (image.width, image.height, image.channels, image.stride());
    let mut out = image.clone();
    for y in 1..h.saturating_sub(1) {
        for i in c..(w.saturating_sub(1) * c).max(c) {
            let at = y * stride + i;
            let around = [at - stride - c, at - c, at + stride - c];
            let sum: u32 =
                around.iter().flat_map(|&a| [a, a + c, a + 2 * c]).map(|a| u32::from(image.pixels[a])).sum();
            let value = image.pixels[at];
            let smooth = ((2 * (sum + 4 * u32::from(value)) + 13) / 26) as u8;
            out.pixels[at] = blend(smooth, value, factor);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_constant_images_and_rejects_small_ones() {
        let flat = ImageBuffer::filled(6, 5, 3, 77);
        assert_eq!(gaussian_blur(&flat, (5, 3), (1.0, 2.0)).unwrap(), flat);
        assert_eq!(sharpness(&flat, 3.0), flat);
        assert!(gaussian_blur(&flat, (4, 3), (1.0, 1.0)).is_err());
        assert!(gaussian_blur(&flat, (13, 3), (1.0, 1.0)).is_err());
        assert!(gaussian_blur(&flat, (3, 3), (0.0, 1.0)).is_err());
        for (w, h) in [(0, 0), (1, 1), (2, 9), (1, 5)] {
            sharpness(&ImageBuffer::filled(w, h, 3, 1), 2.0);
        }
    }
}
