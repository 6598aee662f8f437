//! Resizing, as Pillow computes it: in fixed point, horizontal pass first.

use serde::{Deserialize, Serialize};

use crate::raster::Raster;
use crate::transform::crop;

/// Bits of the fractional part of Pillow's weights.
const BITS: u32 = 22;

/// How values between pixels are found. Shrinking widens the filter (antialiasing) except for
/// `nearest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The nearest pixel; for labels.
    Nearest,
    /// Triangle of radius 1.
    #[default]
    Bilinear,
    /// Keys' cubic of radius 2 with a = -0.5.
    Bicubic,
    /// Windowed sinc of radius 3.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Nearest => 1.0,
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The input pixels of one output pixel: the first one, and a weight for it and each that follows.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(filter: Filter, from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5).max(0.0)) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|j| filter.weight((j as f64 - centre + 0.5) / widening)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: f64| {
            let w = if sum == 0.0 { w } else { w / sum } * f64::from(1u32 << BITS);
            (w + if w < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Taps { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(tap).collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

fn horizontal<const C: usize>(image: &Raster, taps: &[Taps]) -> Vec<u8> {
    let mut out = vec![0; image.height * taps.len() * C];
    for (row, out) in image.rows().zip(out.chunks_exact_mut(taps.len() * C)) {
        for (tap, out) in taps.iter().zip(out.chunks_exact_mut(C)) {
            let mut sum = [1i32 << (BITS - 1); C];
            let pixels = row[tap.first * C..].chunks_exact(C);
            for (pixel, weight) in pixels.zip(&tap.weights) {
                for c in 0..C {
                    sum[c] += i32::from(pixel[c]) * weight;
                }
            }
            for c in 0..C {
                out[c] = clip(sum[c]);
            }
        }
    }
    out
}

fn vertical(image: &Raster, taps: &[Taps]) -> Vec<u8> {
    let stride = image.stride();
    let mut out = vec![0; stride * taps.len()];
    let mut sums = vec![0i32; stride];
    for (tap, out) in taps.iter().zip(out.chunks_exact_mut(stride)) {
        sums.fill(1 << (BITS - 1));
        let rows = image.pixels[tap.first * stride..].chunks_exact(stride);
        for (row, &weight) in rows.zip(&tap.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = clip(sum);
        }
    }
    out
}

/// Nearest source indices; the position is accumulated, as in Pillow: multiplying gives other
/// pixels at ties.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let scale = from as f64 / to as f64;
    let mut position = 0.5 * scale;
    let mut step = || {
        let index = (position as usize).min(from - 1);
        position += scale;
        index
    };
    (0..to).map(|_| step()).collect()
}

/// Resizes to `width` x `height`. Within 1 of Pillow at rounding ties, else equal. An empty input
/// or output gives an empty image.
pub fn resize(image: &Raster, width: usize, height: usize, filter: Filter) -> Raster {
    let channels = image.channels;
    if width * height * image.width * image.height == 0 {
        return Raster::filled(width, height, channels, 0);
    }
    if filter == Filter::Nearest {
        let columns = nearest(image.width, width);
        let mut pixels = Vec::with_capacity(width * height * channels);
        for y in nearest(image.height, height) {
            let row = &image.pixels[y * image.stride()..];
            for &x in &columns {
                pixels.extend_from_slice(&row[x * channels..(x + 1) * channels]);
            }
        }
        return Raster { width, height, channels, pixels };
    }
    let mut across = None;
    if width != image.width {
        let taps = taps(filter, image.width, width);
        let pixels = match channels {
            1 => horizontal::<1>(image, &taps),
            3 => horizontal::<3>(image, &taps),
            // No other count is made by the readers; channel by channel is slow but right.
            _ => by_channel(image, |plane| horizontal::<1>(plane, &taps)),
        };
        across = Some(Raster { width, height: image.height, channels, pixels });
    }
    if height != image.height {
        let pixels = vertical(across.as_ref().unwrap_or(image), &taps(filter, image.height, height));
        return Raster { width, height, channels, pixels };
    }
    across.unwrap_or_else(|| image.clone())
}

fn by_channel(image: &Raster, pass: impl Fn(&Raster) -> Vec<u8>) -> Vec<u8> {
    let planes: Vec<Vec<u8>> = (0..image.channels)
        .map(|c| {
            let pixels = image.pixels.iter().copied().skip(c).step_by(image.channels).collect();
            pass(&Raster { width: image.width, height: image.height, channels: 1, pixels })
        })
        .collect();
    let length = planes.first().map_or(0, Vec::len);
    (0..length).flat_map(|i| planes.iter().map(move |p| p[i])).collect()
}

/// Sides after the shorter one became `size` and the longer `trunc(size * long / short)`; if that
/// is more than `max_size`: the longer `max_size`, the shorter `trunc(max_size * short / long)` of
/// the new sides.
pub fn short_side_size(width: usize, height: usize, size: usize, max_size: Option<usize>) -> (usize, usize) {
    let (short, long) = (width.min(height).max(1), width.max(height));
    let (mut new_short, mut new_long) = (size, size * long / short);
    if let Some(max) = max_size
        && new_long > max
    {
        (new_short, new_long) = (max * new_short / new_long, max);
    }
    if width <= height { (new_short, new_long) } else { (new_long, new_short) }
}

/// Resizes so that the shorter side has `size` pixels, as torchvision's `Resize(size)`.
pub fn resize_short_side(image: &Raster, size: usize, max_size: Option<usize>, filter: Filter) -> Raster {
    let (width, height) = short_side_size(image.width, image.height, size, max_size);
    resize(image, width, height, filter)
}

/// Crops the box at (`left`, `top`) of `width` x `height`, **then** resizes to `out` (width,
/// height): pixels outside the box do not count.
pub fn resized_crop(
    image: &Raster,
    (left, top): (i64, i64),
    (width, height): (usize, usize),
    out: (usize, usize),
    filter: Filter,
) -> Raster {
    resize(&crop(image, left, top, width, height), out.0, out.1, filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_images_stay_flat() {
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for channels in [1, 2, 3] {
                let image = Raster::filled(17, 9, channels, 200);
                for (w, h) in [(5, 31), (40, 3), (17, 9), (1, 1)] {
                    assert_eq!(resize(&image, w, h, filter), Raster::filled(w, h, channels, 200));
                }
            }
        }
    }

    #[test]
    fn short_sides() {
        assert_eq!(short_side_size(256, 256, 72, None), (72, 72));
        assert_eq!(short_side_size(90, 68, 32, None), (42, 32));
        assert_eq!(short_side_size(68, 90, 32, None), (32, 42));
        assert_eq!(short_side_size(90, 68, 64, Some(70)), (70, 53));
    }

    #[test]
    fn empty_images_do_not_panic() {
        let empty = Raster::filled(0, 0, 3, 0);
        assert_eq!(resize(&empty, 2, 2, Filter::Bilinear).pixels.len(), 12);
        assert_eq!(resize(&Raster::filled(3, 3, 3, 1), 0, 5, Filter::Bicubic).pixels.len(), 0);
        resize_short_side(&empty, 4, None, Filter::Nearest);
    }
}
