//! Upsampling and color conversion, with the rounding of libjpeg's "fancy" upsampling.

use crate::Color;
use crate::frame::{Component, Frame};
use crate::plane::Plane;

/// How stored components are converted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Components are the channels.
    None,
    /// The first three are luma and chroma.
    YCbCr,
}

/// Enlargement of the samples of a component.
#[derive(Clone, Copy)]
enum Upsampling {
    /// Interpolated horizontally, vertically, or both; a factor is 1 or 2.
    Linear { across: usize, down: usize },
    /// Repeated.
    Repeat { across: usize, down: usize },
}

impl Upsampling {
    fn new(frame: &Frame, component: &Component) -> Self {
        let (across, down) = (frame.across / component.across, frame.down / component.down);
        match (across, down) {
            // libjpeg interpolates rows of at least three samples.
            (2, 1 | 2) if component.width < 3 => Self::Repeat { across, down },
            (1 | 2, 1 | 2) => Self::Linear { across, down },
            _ => Self::Repeat { across, down },
        }
    }

    /// Writes row `y` of the image. `sums` has the plane's width plus two elements.
    #[inline(always)]
    fn row(self, plane: &Plane, y: usize, sums: &mut [u16], out: &mut [u8]) {
        match self {
            Self::Linear { across: 1, down: 1 } => out[..plane.width].copy_from_slice(plane.row(y)),
            Self::Linear { across: 2, down: 1 } => wide::<1>(plane, y, sums, out),
            Self::Linear { across: 2, .. } => wide::<2>(plane, y, sums, out),
            Self::Linear { .. } => {
                let (near, far, is_upper) = rows(plane, y);
                let bias = if is_upper { 1 } else { 2 };
                for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                    *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
                }
            }
            Self::Repeat { across, down } => {
                for (out, &sample) in out.chunks_exact_mut(across).zip(plane.row(y / down)) {
                    out.fill(sample);
                }
            }
        }
    }
}

/// Returns the nearer and the farther row of samples at row `y` of twice as many, and whether `y` is the
/// upper one of its sample.
#[inline(always)]
fn rows(plane: &Plane, y: usize) -> (&[u8], &[u8], bool) {
    let (row, is_upper) = (y / 2, y.is_multiple_of(2));
    let far = if is_upper { row.saturating_sub(1) } else { (row + 1).min(plane.height - 1) };
    (plane.row(row), plane.row(far), is_upper)
}

/// Interpolates a row to twice its width; there are `DOWN` times as many rows.
#[inline(always)]
fn wide<const DOWN: usize>(plane: &Plane, y: usize, sums: &mut [u16], out: &mut [u8]) {
    let width = plane.width;
    // Weights 3 for the nearer and 1 for the farther sample in both dimensions.
    if DOWN == 1 {
        for (sum, &near) in sums[1..].iter_mut().zip(plane.row(y)) {
            *sum = u16::from(near);
        }
    } else {
        let (near, far, _) = rows(plane, y);
        for ((sum, &near), &far) in sums[1..].iter_mut().zip(near).zip(far) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
    }
    sums[0] = sums[1];
    sums[width + 1] = sums[width];
    let (shift, left, right) = if DOWN == 1 { (2, 1, 2) } else { (4, 8, 7) };
    let (before, mid, after) = (&sums[..width], &sums[1..width + 1], &sums[2..width + 2]);
    let around = mid.iter().zip(before).zip(after);
    for (out, ((&mid, &before), &after)) in out.as_chunks_mut::<2>().0.iter_mut().zip(around) {
        // Both outputs at once: 8-bit vectors would need shuffles.
        let pair = ((3 * mid + before + left) >> shift) | ((3 * mid + after + right) >> shift) << 8;
        *out = pair.to_le_bytes();
    }
}

/// Pixels per iteration.
const N: usize = 32;

/// Converts luma and chroma to RGB.
#[inline(always)]
fn rgb(y: u8, blue: u8, red: u8) -> [u8; 3] {
    let (y, blue, red) = (i16::from(y), i16::from(blue) - 128, i16::from(red) - 128);
    // 16 fractional bits: 1.402, 0.34414, 0.71414, 1.772. 16-bit products double the lanes of a vector;
    // doubled and halved again they round like 32-bit ones.
    let high = |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    let r = y + red + ((high(2 * red, 26345) + 1) >> 1);
    let b = y + 2 * blue + ((high(2 * blue, -14942) + 1) >> 1);
    let g = ((i32::from(blue) * -22554 + i32::from(red) * 18734 + 32768) >> 16) as i16;
    [r, y + g - red, b].map(|value| value.clamp(0, 255) as u8)
}

#[inline(always)]
fn convert_rgb(rows: [&[u8; N]; 3]) -> [[u8; 3]; N] {
    let [y, blue, red] = rows;
    let mut out = [[0; 3]; N];
    let flat = out.as_flattened_mut();
    for i in 0..N {
        let [r, g, b] = rgb(y[i], blue[i], red[i]);
        flat[3 * i] = r;
        flat[3 * i + 1] = g;
        flat[3 * i + 2] = b;
    }
    out
}

#[inline(always)]
fn interleave<const C: usize>(rows: [&[u8; N]; C]) -> [[u8; C]; N] {
    let mut out = [[0; C]; N];
    for (i, pixel) in out.iter_mut().enumerate() {
        *pixel = rows.map(|row| row[i]);
    }
    out
}

#[inline(always)]
fn convert_cmyk([y, blue, red, key]: [&[u8; N]; 4]) -> [[u8; 4]; N] {
    let mut out = [[0; 4]; N];
    for (i, pixel) in out.iter_mut().enumerate() {
        let [r, g, b] = rgb(y[i], blue[i], red[i]);
        *pixel = [255 - r, 255 - g, 255 - b, key[i]];
    }
    out
}

/// Returns the interleaved pixels of an image.
#[inline(always)]
pub(crate) fn pixels(frame: &Frame, planes: &[Plane], color: Color, transform: Transform) -> Vec<u8> {
    match (color, transform) {
        (Color::Luma, _) => {
            let rows: Vec<&[u8]> = (0..frame.height).map(|y| planes[0].row(y)).collect();
            rows.concat()
        }
        (Color::Rgb, Transform::YCbCr) => merge(frame, planes, convert_rgb),
        (Color::Rgb, Transform::None) => merge(frame, planes, interleave::<3>),
        (Color::Cmyk, Transform::YCbCr) => merge(frame, planes, convert_cmyk),
        (Color::Cmyk, Transform::None) => merge(frame, planes, interleave::<4>),
    }
}

/// Merges `C` components.
#[inline(always)]
fn merge<const C: usize>(
    frame: &Frame,
    planes: &[Plane],
    convert: impl Fn([&[u8; N]; C]) -> [[u8; C]; N],
) -> Vec<u8> {
    let (width, height) = (frame.width, frame.height);
    // Upsampled rows may be up to three samples wider.
    let padded = (width + 3).next_multiple_of(N);
    let upsampling: Vec<_> = frame.components.iter().map(|c| Upsampling::new(frame, c)).collect();
    let mut rows: [Vec<u8>; C] = std::array::from_fn(|_| vec![0; padded]);
    let mut sums = vec![0; width + 2];
    let mut out = Vec::with_capacity(C * width * height);
    for y in 0..height {
        for ((plane, upsampling), row) in planes.iter().zip(&upsampling).zip(&mut rows) {
            upsampling.row(plane, y, &mut sums, row);
        }
        for start in (0..width).step_by(N) {
            let chunks = std::array::from_fn(|c| rows[c][start..].first_chunk().unwrap_or(&[0; N]));
            let pixels = convert(chunks);
            // Copies of constant length are inlined.
            match width - start {
                left @ 0..N => out.extend_from_slice(pixels[..left].as_flattened()),
                _ => out.extend_from_slice(pixels.as_flattened()),
            }
        }
    }
    out
}
