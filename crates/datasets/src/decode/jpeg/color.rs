//! Conversion of planes to RGB with the rounding of libjpeg's "fancy" upsampling.

/// Pixels of a component.
pub(super) struct Plane {
    pub(super) stride: usize,
    /// Pixels of a row, without the padding of the last block.
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<u8>,
}

impl Plane {
    /// Stores a block at block coordinates.
    #[inline(always)]
    pub(super) fn set_block(&mut self, x: usize, y: usize, block: &[[u8; 8]; 8]) {
        let stride = self.stride;
        let out = &mut self.pixels[8 * (y * stride + x)..][..7 * stride + 8];
        for (i, row) in block.iter().enumerate() {
            out[i * stride..][..8].copy_from_slice(row);
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.pixels[y * self.stride..][..self.width]
    }
}

/// Upsamples a row of chroma to the width of the luma, `ACROSS` (1 or 2) times its own; `y` is a luma
/// row, of which there are `DOWN` times as many. `sums` has the plane's width plus two elements.
#[inline(always)]
fn upsample<const ACROSS: usize, const DOWN: usize>(
    plane: &Plane,
    y: usize,
    sums: &mut [u16],
    out: &mut [u8],
) {
    let (width, near) = (plane.width, plane.row(y / DOWN));
    if ACROSS == 1 {
        out[..width].copy_from_slice(near);
        return;
    }
    // libjpeg interpolates rows of at least three pixels.
    if width < 3 {
        for (out, &pixel) in out.as_chunks_mut::<2>().0.iter_mut().zip(near) {
            *out = [pixel; 2];
        }
        return;
    }
    // Weights 3 for the nearer and 1 for the farther pixel in both dimensions.
    if DOWN == 1 {
        for (sum, &near) in sums[1..].iter_mut().zip(near) {
            *sum = u16::from(near);
        }
    } else {
        let far =
            if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(plane.height - 1) };
        for ((sum, &near), &far) in sums[1..].iter_mut().zip(near).zip(plane.row(far)) {
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

#[inline(always)]
fn convert(y: &[u8; N], blue: &[u8; N], red: &[u8; N]) -> [u8; 3 * N] {
    let mut out = [0; 3 * N];
    for i in 0..N {
        let (y, blue, red) = (i16::from(y[i]), i16::from(blue[i]) - 128, i16::from(red[i]) - 128);
        // 16 fractional bits: 1.402, 0.34414, 0.71414, 1.772. 16-bit products double the lanes of a
        // vector; doubled and halved again they round like 32-bit ones.
        let high = |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
        let r = y + red + ((high(2 * red, 26345) + 1) >> 1);
        let b = y + 2 * blue + ((high(2 * blue, -14942) + 1) >> 1);
        let g = ((i32::from(blue) * -22554 + i32::from(red) * 18734 + 32768) >> 16) as i16;
        out[3 * i] = r.clamp(0, 255) as u8;
        out[3 * i + 1] = (y + g - red).clamp(0, 255) as u8;
        out[3 * i + 2] = b.clamp(0, 255) as u8;
    }
    out
}

/// Converts an image whose luma is `ACROSS` times as wide and `DOWN` times as high as its chroma.
#[inline(always)]
pub(super) fn rgb<const ACROSS: usize, const DOWN: usize>([luma, blue, red]: [&Plane; 3]) -> Vec<u8> {
    let (width, height) = (luma.width, luma.height);
    let padded = (width + 1).next_multiple_of(N);
    let mut sums = vec![0; blue.width + 2];
    let (mut y, mut b, mut r) = (vec![0; padded], vec![0; padded], vec![0; padded]);
    let mut out = Vec::with_capacity(3 * width * height);
    for row in 0..height {
        y[..width].copy_from_slice(luma.row(row));
        upsample::<ACROSS, DOWN>(blue, row, &mut sums, &mut b);
        upsample::<ACROSS, DOWN>(red, row, &mut sums, &mut r);
        let chunks = y.as_chunks().0.iter().zip(b.as_chunks().0).zip(r.as_chunks().0);
        for (i, ((y, b), r)) in chunks.enumerate() {
            let pixels = convert(y, b, r);
            // Copies of constant length are inlined.
            match (3 * width).saturating_sub(3 * N * i) {
                left @ 0..96 => out.extend_from_slice(&pixels[..left]),
                _ => out.extend_from_slice(&pixels),
            }
        }
    }
    out
}
