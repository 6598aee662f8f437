//! Resizing in fixed point like Pillow, horizontal pass first.

use serde::{Deserialize, Serialize};

use crate::image_buffer::ImageBuffer;
use crate::transforms::crop;

/// Fractional bits of Pillow's weights.
const BITS: u32 = 22;

/// Interpolation filter. Downscaling widens it (antialiasing), except for `nearest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Nearest neighbor, for labels.
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

/// Input pixels and weights of every output pixel along one dimension.
struct FilterWeights {
    /// First input pixel, and the end of its weights in `weights`.
    bounds: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl FilterWeights {
    fn new(filter: Filter, from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        let mut taps = Self { bounds: Vec::with_capacity(to), weights: Vec::new() };
        let mut weights = Vec::new();
        for i in 0..to {
            let center = (i as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).max(0.0)) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend((first..end).map(|j| filter.weight((j as f64 - center + 0.5) / widening)));
            let sum: f64 = weights.iter().sum();
            taps.weights.extend(weights.iter().map(|&w| {
                let w = if sum == 0.0 { w } else { w / sum } * f64::from(1u32 << BITS);
                (w + if w < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            taps.bounds.push((first, taps.weights.len()));
        }
        taps
    }

    fn len(&self) -> usize {
        self.bounds.len()
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut start = 0;
        self.bounds.iter().map(move |&(first, end)| {
            let weights = &self.weights[start..end];
            start = end;
            (first, weights)
        })
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// A view of the resized box: copying it would cost as much as resizing.
#[derive(Clone, Copy)]
struct View<'a> {
    /// Values from the first pixel on.
    pixels: &'a [u8],
    /// Row stride in values.
    stride: usize,
    width: usize,
    height: usize,
    channels: usize,
}

impl<'a> View<'a> {
    fn whole(image: &'a ImageBuffer) -> Self {
        let ImageBuffer { width, height, channels, ref pixels } = *image;
        Self { pixels, stride: image.stride(), width, height, channels }
    }

    /// Creates a view of a box; `None` if it exceeds the image.
    fn cut(image: &'a ImageBuffer, left: i64, top: i64, width: usize, height: usize) -> Option<Self> {
        let (left, top) = (usize::try_from(left).ok()?, usize::try_from(top).ok()?);
        if left.checked_add(width)? > image.width || top.checked_add(height)? > image.height {
            return None;
        }
        let pixels = image.pixels.get(top * image.stride() + left * image.channels..)?;
        Some(Self { pixels, width, height, ..Self::whole(image) })
    }

    fn row(&self, y: usize) -> &'a [u8] {
        &self.pixels[y * self.stride..][..self.width * self.channels]
    }

    fn copied(&self) -> ImageBuffer {
        let pixels = (0..self.height).flat_map(|y| self.row(y)).copied().collect();
        ImageBuffer { width: self.width, height: self.height, channels: self.channels, pixels }
    }
}

/// Accumulators per iteration of [`Across`]: 4 rows of 3 channels (and an empty one), or 16 rows of
/// one.
const LANES: usize = 16;

/// Horizontal pass over `C` channels, padded to `P`, a power of two. Written for auto-vectorization with
/// the instruction set that [`pulp`] detects at run time; integer sums do not depend on it.
struct Across<'a, const C: usize, const P: usize> {
    view: View<'a>,
    taps: &'a FilterWeights,
}

impl<const C: usize, const P: usize> pulp::WithSimd for Across<'_, C, P> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<u8> {
        let Self { view, taps } = self;
        let rows = LANES / P;
        let stride = taps.len() * C;
        // Copies a pixel with the value after it, which is faster: the extra value goes to the empty
        // lane and is overwritten on output by the next pixel.
        let mut out = vec![0; view.height * stride + P - C];
        // Several rows at once share a weight.
        let mut from = vec![[0u8; LANES]; view.width];
        let mut to = vec![[0u8; LANES]; taps.len()];
        for first in (0..view.height).step_by(rows) {
            let count = rows.min(view.height - first);
            for r in 0..count {
                let row = &view.pixels[(first + r) * view.stride..];
                for (lanes, pixel) in from.iter_mut().zip(row.windows(P).step_by(C)) {
                    lanes[r * P..][..P].copy_from_slice(pixel);
                }
                // No value follows the last pixel.
                let last = view.width - 1;
                from[last][r * P..][..C].copy_from_slice(&row[last * C..][..C]);
            }
            for (to, (first, weights)) in to.iter_mut().zip(taps.iter()) {
                let mut sums = [1i32 << (BITS - 1); LANES];
                for (lanes, &weight) in from[first..].iter().zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(lanes) {
                        *sum += i32::from(value) * weight;
                    }
                }
                for (to, &sum) in to.iter_mut().zip(&sums) {
                    *to = clip(sum);
                }
            }
            for r in 0..count {
                let out = &mut out[(first + r) * stride..][..stride + P - C];
                for (x, lanes) in to.iter().enumerate() {
                    out[x * C..][..P].copy_from_slice(&lanes[r * P..][..P]);
                }
            }
        }
        out.truncate(view.height * stride);
        out
    }
}

/// Vertical pass, vectorized like [`Across`].
struct Down<'a> {
    view: View<'a>,
    taps: &'a FilterWeights,
}

impl pulp::WithSimd for Down<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<u8> {
        const N: usize = 32;
        let Self { view, taps } = self;
        let stride = view.width * view.channels;
        let mut out = Vec::with_capacity(stride * taps.len());
        let whole = stride - stride % N;
        let mut rows = Vec::new();
        for (first, weights) in taps.iter() {
            rows.clear();
            rows.extend(weights.iter().enumerate().map(|(i, &weight)| (view.row(first + i), weight)));
            for at in (0..whole).step_by(N) {
                let mut sums = [1i32 << (BITS - 1); N];
                for (row, weight) in &rows {
                    for (sum, &value) in sums.iter_mut().zip(&row[at..][..N]) {
                        *sum += i32::from(value) * weight;
                    }
                }
                let mut values = [0; N];
                for (value, &sum) in values.iter_mut().zip(&sums) {
                    *value = clip(sum);
                }
                out.extend_from_slice(&values);
            }
            out.extend((whole..stride).map(|at| {
                let sum = rows.iter().map(|(row, weight)| i32::from(row[at]) * weight).sum::<i32>();
                clip(sum + (1 << (BITS - 1)))
            }));
        }
        out
    }
}

/// Returns the nearest source indices. The position is accumulated, as in Pillow; multiplication differs
/// at ties.
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

/// Resizes to `width` x `height`. Equal to Pillow, except for differences of 1 at rounding ties. An
/// empty input or output yields an empty image.
pub fn resize(image: &ImageBuffer, width: usize, height: usize, filter: Filter) -> ImageBuffer {
    resized(View::whole(image), width, height, filter)
}

fn resized(view: View, width: usize, height: usize, filter: Filter) -> ImageBuffer {
    let channels = view.channels;
    if width * height * view.width * view.height == 0 {
        return ImageBuffer::filled(width, height, channels, 0);
    }
    if filter == Filter::Nearest {
        let columns = nearest(view.width, width);
        let mut pixels = Vec::with_capacity(width * height * channels);
        for y in nearest(view.height, height) {
            let row = view.row(y);
            for &x in &columns {
                pixels.extend_from_slice(&row[x * channels..(x + 1) * channels]);
            }
        }
        return ImageBuffer { width, height, channels, pixels };
    }
    let arch = pulp::Arch::new();
    let mut across = None;
    if width != view.width {
        let taps = &FilterWeights::new(filter, view.width, width);
        let pixels = match channels {
            1 => arch.dispatch(Across::<1, 1> { view, taps }),
            3 => arch.dispatch(Across::<3, 4> { view, taps }),
            // The decoders produce 1 or 3 channels; others are slow but correct.
            _ => by_channel(&view.copied(), |p| arch.dispatch(Across::<1, 1> { view: View::whole(p), taps })),
        };
        across = Some(ImageBuffer { width, height: view.height, channels, pixels });
    }
    if height != view.height {
        let taps = &FilterWeights::new(filter, view.height, height);
        let view = across.as_ref().map_or(view, View::whole);
        return ImageBuffer { width, height, channels, pixels: arch.dispatch(Down { view, taps }) };
    }
    across.unwrap_or_else(|| view.copied())
}

fn by_channel(image: &ImageBuffer, pass: impl Fn(&ImageBuffer) -> Vec<u8>) -> Vec<u8> {
    let planes: Vec<Vec<u8>> = (0..image.channels)
        .map(|c| {
            let pixels = image.pixels.iter().copied().skip(c).step_by(image.channels).collect();
            pass(&ImageBuffer { width: image.width, height: image.height, channels: 1, pixels })
        })
        .collect();
    let length = planes.first().map_or(0, Vec::len);
    (0..length).flat_map(|i| planes.iter().map(move |p| p[i])).collect()
}

/// Returns the sides after resizing the shorter one to `size` and the longer to
/// `trunc(size * long / short)`. If the longer exceeds `max_size`, it becomes `max_size` and the
/// shorter `trunc(max_size * short / long)` of the new sides.
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

/// Resizes the shorter side to `size` pixels, like torchvision's `Resize(size)`.
pub fn resize_short_side(
    image: &ImageBuffer,
    size: usize,
    max_size: Option<usize>,
    filter: Filter,
) -> ImageBuffer {
    let (width, height) = short_side_size(image.width, image.height, size, max_size);
    resize(image, width, height, filter)
}

/// Crops the box at (`left`, `top`) of `width` x `height`, **then** resizes to `out` (width, height):
/// pixels outside of the box have no influence.
pub fn resized_crop(
    image: &ImageBuffer,
    (left, top): (i64, i64),
    (width, height): (usize, usize),
    out: (usize, usize),
    filter: Filter,
) -> ImageBuffer {
    match View::cut(image, left, top, width, height) {
        Some(view) => resized(view, out.0, out.1, filter),
        None => resize(&crop(image, left, top, width, height), out.0, out.1, filter),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn keeps_constant_images() {
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for channels in [1, 2, 3] {
                let image = ImageBuffer::filled(17, 9, channels, 200);
                for (w, h) in [(5, 31), (40, 3), (17, 9), (1, 1)] {
                    assert_eq!(resize(&image, w, h, filter), ImageBuffer::filled(w, h, channels, 200));
                }
            }
        }
    }

    /// Scalar reference of both passes, like Pillow's C code.
    fn oracle(image: &ImageBuffer, width: usize, height: usize, filter: Filter) -> ImageBuffer {
        let sum = |(first, weights): (usize, &[i32]), value: &dyn Fn(usize) -> u8| {
            let each = weights.iter().enumerate();
            clip(each.map(|(i, w)| i32::from(value(first + i)) * w).sum::<i32>() + (1 << (BITS - 1)))
        };
        let across = FilterWeights::new(filter, image.width, width);
        let down = FilterWeights::new(filter, image.height, height);
        let channels = image.channels;
        let mut middle = ImageBuffer { width, pixels: Vec::new(), ..*image };
        for row in image.rows() {
            for tap in across.iter() {
                middle.pixels.extend((0..channels).map(|c| sum(tap, &|x| row[x * channels + c])));
            }
        }
        let mut out = ImageBuffer { width, height, channels, pixels: Vec::new() };
        for tap in down.iter() {
            let value = |i: usize| sum(tap, &|y| middle.pixels[y * middle.stride() + i]);
            out.pixels.extend((0..middle.stride()).map(value));
        }
        out
    }

    proptest! {
        #[test]
        fn vectors_equal_the_oracle(
            sides in (1usize..70, 1usize..40), to in (1usize..70, 1usize..40), channels in 1usize..5, seed: u64,
        ) {
            let mut draw = stillhouse_core::Rng::new(seed).at(0, 0);
            let mut image = ImageBuffer::filled(sides.0, sides.1, channels, 0);
            image.pixels.fill_with(|| draw.below(256) as u8);
            for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                prop_assert_eq!(resize(&image, to.0, to.1, filter), oracle(&image, to.0, to.1, filter));
            }
            // A box in the image, and one partly outside.
            for at in [(0, 0), (sides.0 as i64 / 2, sides.1 as i64 / 3)] {
                let size = (sides.0.div_ceil(2), sides.1);
                let cut = crop(&image, at.0, at.1, size.0, size.1);
                for filter in [Filter::Nearest, Filter::Bilinear] {
                    let expected = resize(&cut, to.0, to.1, filter);
                    prop_assert_eq!(resized_crop(&image, at, size, to, filter), expected);
                }
            }
        }
    }

    #[test]
    fn computes_short_sides() {
        assert_eq!(short_side_size(256, 256, 72, None), (72, 72));
        assert_eq!(short_side_size(90, 68, 32, None), (42, 32));
        assert_eq!(short_side_size(68, 90, 32, None), (32, 42));
        assert_eq!(short_side_size(90, 68, 64, Some(70)), (70, 53));
    }

    #[test]
    fn accepts_empty_images() {
        let empty = ImageBuffer::filled(0, 0, 3, 0);
        assert_eq!(resize(&empty, 2, 2, Filter::Bilinear).pixels.len(), 12);
        assert_eq!(resize(&ImageBuffer::filled(3, 3, 3, 1), 0, 5, Filter::Bicubic).pixels.len(), 0);
        resize_short_side(&empty, 4, None, Filter::Nearest);
    }
}
