//! Color operations on 8-bit values with the rounding of Pillow, and normalization.

use serde::{Deserialize, Serialize};

use crate::image_buffer::{ImageBuffer, luma};

/// `low + factor * (value - low)` in f32, clamped, truncated.
pub(super) fn blend(low: u8, value: u8, factor: f32) -> u8 {
    let low = f32::from(low);
    (low + factor * (f32::from(value) - low)).clamp(0.0, 255.0) as u8
}

fn table(f: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|v| f(v as u8))
}

/// Blends with black.
pub fn brightness(image: &ImageBuffer, factor: f32) -> ImageBuffer {
    image.mapped(&table(|v| blend(0, v, factor)))
}

/// Blends with the mean luma of the whole image.
pub fn contrast(image: &ImageBuffer, factor: f32) -> ImageBuffer {
    let pixels = image.pixels.chunks_exact(image.channels.max(1));
    let count = pixels.len().max(1);
    let sum: u64 = pixels.map(|p| u64::from(luma(p))).sum();
    let mean = (sum as f64 / count as f64 + 0.5) as u8;
    image.mapped(&table(|v| blend(mean, v, factor)))
}

/// Blends each pixel with its luma; gray images are unchanged.
pub fn saturation(image: &ImageBuffer, factor: f32) -> ImageBuffer {
    by_pixel(image, |p| {
        let gray = luma(&p);
        p.map(|v| blend(gray, v, factor))
    })
}

fn by_pixel(image: &ImageBuffer, f: impl Fn([u8; 3]) -> [u8; 3]) -> ImageBuffer {
    if image.channels != 3 {
        return image.clone();
    }
    let pixels = image.pixels.chunks_exact(3).flat_map(|p| f([p[0], p[1], p[2]])).collect();
    ImageBuffer { pixels, ..*image }
}

/// Shifts the hue by `factor` turns (in [-0.5, 0.5]) in 8-bit HSV; gray images are unchanged.
pub fn hue(image: &ImageBuffer, factor: f32) -> ImageBuffer {
    let turn = (f64::from(factor) * 255.0) as i32;
    by_pixel(image, |p| {
        let (h, s, v) = to_hsv(p);
        from_hsv((i32::from(h) + turn).rem_euclid(256) as u8, s, v)
    })
}

fn to_hsv([r, g, b]: [u8; 3]) -> (u8, u8, u8) {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return (0, 0, max);
    }
    let c = f32::from(max - min);
    let s = c / f32::from(max);
    let ratio = |v: u8| f32::from(max - v) / c;
    let (rc, gc, bc) = (ratio(r), ratio(g), ratio(b));
    let h = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
    ((f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max)
}

fn from_hsv(h: u8, s: u8, v: u8) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let h = (f64::from(h) * 6.0 / 255.0) as f32;
    let s = (f64::from(s) / 255.0) as f32;
    let i = h.floor();
    let f = h - i;
    let of = |x: f64| (f64::from(v) * x + 0.5).floor().clamp(0.0, 255.0) as u8;
    let p = of(1.0 - f64::from(s));
    let q = of(1.0 - f64::from(s * f));
    let t = of(1.0 - f64::from(s) * (1.0 - f64::from(f)));
    match i as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

/// A step of [`color_jitter`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// [`brightness`].
    Brightness(f32),
    /// [`contrast`].
    Contrast(f32),
    /// [`saturation`].
    Saturation(f32),
    /// [`hue`].
    Hue(f32),
}

/// Applies steps in the given order, each rounded to 8 bits.
pub fn color_jitter(image: &ImageBuffer, steps: &[Jitter]) -> ImageBuffer {
    let mut image = image.clone();
    for step in steps {
        image = match *step {
            Jitter::Brightness(f) => brightness(&image, f),
            Jitter::Contrast(f) => contrast(&image, f),
            Jitter::Saturation(f) => saturation(&image, f),
            Jitter::Hue(f) => hue(&image, f),
        };
    }
    image
}

/// Converts to luma in `channels` equal channels.
pub fn grayscale(image: &ImageBuffer, channels: usize) -> ImageBuffer {
    let lumas = image.pixels.chunks_exact(image.channels.max(1)).map(luma);
    let pixels = lumas.flat_map(|l| std::iter::repeat_n(l, channels)).collect();
    ImageBuffer { channels, pixels, ..*image }
}

fn by_channel(image: &ImageBuffer, make: impl Fn(&[u64; 256]) -> Option<[u8; 256]>) -> ImageBuffer {
    let mut out = image.clone();
    for c in 0..image.channels {
        let mut counts = [0u64; 256];
        image.pixels.iter().skip(c).step_by(image.channels).for_each(|&v| counts[usize::from(v)] += 1);
        if let Some(table) = make(&counts) {
            out.pixels.iter_mut().skip(c).step_by(image.channels).for_each(|v| *v = table[usize::from(*v)]);
        }
    }
    out
}

/// Stretches each channel to 0 to 255; a constant channel is unchanged.
pub fn autocontrast(image: &ImageBuffer) -> ImageBuffer {
    by_channel(image, |counts| {
        let low = counts.iter().position(|&n| n > 0)?;
        let high = counts.iter().rposition(|&n| n > 0)?;
        if high <= low {
            return None;
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        Some(table(|v| (f64::from(v) * scale + offset).clamp(0.0, 255.0) as u8))
    })
}

/// Equalizes the histogram of each channel in integers, like Pillow.
pub fn equalize(image: &ImageBuffer) -> ImageBuffer {
    by_channel(image, |counts| {
        let last = counts.iter().rposition(|&n| n > 0)?;
        let total: u64 = counts.iter().sum();
        let step = (total - counts[last]) / 255;
        if step == 0 {
            return None;
        }
        let mut below = step / 2;
        Some(std::array::from_fn(|v| {
            let value = (below / step).min(255) as u8;
            below += counts[v];
            value
        }))
    })
}

/// Keeps the upper `bits` of each value.
pub fn posterize(image: &ImageBuffer, bits: u32) -> ImageBuffer {
    let mask = if bits >= 8 { 255 } else { !(255u8 >> bits) };
    image.mapped(&table(|v| v & mask))
}

/// Inverts values from `threshold` on.
pub fn solarize(image: &ImageBuffer, threshold: u32) -> ImageBuffer {
    image.mapped(&table(|v| if u32::from(v) >= threshold { 255 - v } else { v }))
}

/// Computes `255 - v`.
pub fn invert(image: &ImageBuffer) -> ImageBuffer {
    image.mapped(&table(|v| 255 - v))
}

/// Computes `(v / 255 - mean) / std` in f32 as `[C, H, W]`. Missing means are 0, missing deviations 1.
pub fn normalize(image: &ImageBuffer, mean: &[f32], std: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(image.pixels.len());
    normalize_into(image, mean, std, &mut out);
    out
}

/// Appends the result of [`normalize`] to `out`.
pub fn normalize_into(image: &ImageBuffer, mean: &[f32], std: &[f32], out: &mut Vec<f32>) {
    pulp::Arch::new().dispatch(|| {
        for c in 0..image.channels {
            let (mean, std) = (mean.get(c).copied().unwrap_or(0.0), std.get(c).copied().unwrap_or(1.0));
            let one = |v: u8| (f32::from(v) / 255.0 - mean) / std;
            match image.channels {
                // A constant chunk size vectorizes.
                3 => out.extend(image.pixels.as_chunks::<3>().0.iter().map(|pixel| one(pixel[c]))),
                n => out.extend(image.pixels.chunks_exact(n).map(|pixel| one(pixel[c]))),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_hsv() {
        for p in [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]] {
            let (h, s, v) = to_hsv(p);
            assert_eq!(from_hsv(h, s, v), p);
        }
        let gray = ImageBuffer::filled(2, 2, 1, 90);
        assert_eq!(hue(&gray, 0.3), gray);
        assert_eq!(saturation(&gray, 2.0), gray);
    }

    #[test]
    fn appends_planes() {
        let image = ImageBuffer { width: 1, height: 2, channels: 3, pixels: vec![0, 51, 255, 255, 51, 0] };
        assert_eq!(normalize(&image, &[], &[]), [0.0, 1.0, 0.2, 0.2, 1.0, 0.0]);
        assert_eq!(normalize(&image, &[0.5; 3], &[0.5; 3])[0..2], [-1.0, 1.0]);
    }

    #[test]
    fn accepts_extreme_parameters() {
        let image = ImageBuffer::filled(3, 1, 3, 255);
        for f in [f32::NAN, f32::INFINITY, -1e30] {
            brightness(&image, f);
            contrast(&image, f);
            saturation(&image, f);
            hue(&image, f);
        }
        posterize(&image, 0);
        posterize(&image, 99);
        equalize(&ImageBuffer::filled(0, 0, 3, 0));
        autocontrast(&ImageBuffer::filled(0, 0, 3, 0));
        contrast(&ImageBuffer::filled(0, 0, 3, 0), 1.0);
    }
}
