//! Batch norm over `[rows, channels]`: statistics, affine transform and backward pass.

#![allow(unsafe_code)]

use super::activation::Activation;
use super::elementwise::looped;
use super::{SharedSlice, parallel, rows_per_task};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// Returns the scratch length for sums over `rows`.
pub(crate) fn scratch_len(rows: usize, channels: usize) -> usize {
    rows.div_ceil(rows_per_task(rows, channels)) * 2 * channels
}

looped! {
    /// Accumulates `x - shift` and its square per channel into `sums = [sum | square]`.
    moments<'a>(x: &'a [T], shift: &'a [T], sums: &'a mut [T]) {
        let c = shift.len();
        let (sum, square) = sums.split_at_mut(c);
        sum.fill(T::ZERO);
        square.fill(T::ZERO);
        for row in x.chunks_exact(c) {
            for (((s, q), x), shift) in sum.iter_mut().zip(square.iter_mut()).zip(row).zip(shift) {
                let d = *x - *shift;
                *s += d;
                *q += d * d;
            }
        }
    }
}

/// Per-channel sums of a convolution's output, accumulated by each task over the rows it has just
/// written.
#[derive(Clone, Copy)]
pub(crate) struct Sums<'a, T> {
    /// Values near the channel means, to avoid cancellation.
    pub(crate) shift: &'a [T],
    /// `[tasks][sum | square]`, with as many channels as `shift`; each task writes its whole part.
    pub(crate) parts: SharedSlice<T>,
}

impl<T: Float> Sums<'_, T> {
    /// Accumulates `count` rows of an output, columns `first..first + columns`.
    ///
    /// # Safety
    /// `row(i)` points to `shift.len()` values, and no other task writes these columns of this part.
    #[inline(always)]
    pub(crate) unsafe fn rows(
        &self,
        task: usize,
        row: impl Fn(usize) -> *const T,
        count: usize,
        first: usize,
        columns: usize,
    ) {
        let c = self.shift.len();
        assert!(first + columns <= c);
        // SAFETY: by the caller.
        let (sum, square) = unsafe {
            let at = task * 2 * c + first;
            (self.parts.range(at, columns), self.parts.range(at + c, columns))
        };
        sum.fill(T::ZERO);
        square.fill(T::ZERO);
        let shift = &self.shift[first..first + columns];
        for i in 0..count {
            // SAFETY: by the caller.
            let row = unsafe { std::slice::from_raw_parts(row(i).add(first), columns) };
            for (((s, q), x), shift) in sum.iter_mut().zip(square.iter_mut()).zip(row).zip(shift) {
                let d = *x - *shift;
                *s += d;
                *q += d * d;
            }
        }
    }
}

/// Computes mean and biased variance from the parts of [`Sums`]; returns `None` if the shift was too far
/// off and the variance was lost to cancellation.
pub(crate) fn from_sums<T: Float>(parts: &[T], shift: &[T], rows: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    let c = shift.len();
    let sums = combine(parts, 2 * c);
    let n = rows as f64;
    let (mut mean, mut variance) = (Vec::with_capacity(c), Vec::with_capacity(c));
    for i in 0..c {
        let (off, square) = (sums[i] / n, sums[c + i] / n);
        let v = square - off * off;
        // NaN propagates and is detected in the loss.
        if v < 1e-3 * square {
            return None;
        }
        mean.push(shift[i].widen() + off);
        variance.push(v);
    }
    Some((mean, variance))
}

/// Adds up partial sums of length `len`.
fn combine<T: Float>(parts: &[T], len: usize) -> Vec<f64> {
    let mut sums = vec![0.0; len];
    for part in parts.chunks_exact(len) {
        for (s, p) in sums.iter_mut().zip(part) {
            *s += p.widen();
        }
    }
    sums
}

/// Returns mean and biased variance per channel.
pub(crate) fn statistics<T: Float>(y: &[T], channels: usize, scratch: &mut [T]) -> (Vec<f64>, Vec<f64>) {
    let rows = y.len() / channels;
    let step = rows_per_task(rows, channels);
    // Any value near the data avoids cancellation; the first row is good enough.
    let shift = &y[..channels];
    let tasks = rows.div_ceil(step);
    let scratch = &mut scratch[..tasks * 2 * channels];
    let parts = SharedSlice::new(scratch);
    parallel(tasks, |i| {
        // SAFETY: one part per task.
        let part = unsafe { parts.range(i * 2 * channels, 2 * channels) };
        moments(&y[i * step * channels..((i + 1) * step).min(rows) * channels], shift, part);
    });
    let sums = combine(scratch, 2 * channels);
    let n = rows as f64;
    let mean = (0..channels).map(|c| shift[c].widen() + sums[c] / n).collect();
    let variance =
        (0..channels).map(|c| (sums[channels + c] / n - (sums[c] / n) * (sums[c] / n)).max(0.0)).collect();
    (mean, variance)
}

looped! {
    affine_rows<'a>(y: &'a [T], a: &'a [T], b: &'a [T], shortcut: Option<&'a [T]>, low: T, high: T, out: &'a mut [T]) {
        let c = a.len();
        let bound = |z: T| {
            let z = if z > low { z } else { low };
            if z < high { z } else { high }
        };
        match shortcut {
            None => {
                for (y, out) in y.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
                    for (((o, y), a), b) in out.iter_mut().zip(y).zip(a).zip(b) {
                        *o = bound(*a * *y + *b);
                    }
                }
            }
            Some(s) => {
                for ((y, out), s) in y.chunks_exact(c).zip(out.chunks_exact_mut(c)).zip(s.chunks_exact(c)) {
                    for ((((o, y), a), b), s) in out.iter_mut().zip(y).zip(a).zip(b).zip(s) {
                        *o = bound(*a * *y + *b + *s);
                    }
                }
            }
        }
    }
}

/// `out = act(a * y + b (+ shortcut))`.
pub(crate) fn affine<T: Float>(
    y: &[T],
    a: &[T],
    b: &[T],
    shortcut: Option<&[T]>,
    act: Activation,
    out: &mut [T],
) {
    let c = a.len();
    let rows = y.len() / c;
    let step = rows_per_task(rows, c);
    let (low, high) = match act {
        Activation::None => (f64::NEG_INFINITY, f64::INFINITY),
        Activation::Relu => (0.0, f64::INFINITY),
        Activation::Relu6 => (0.0, 6.0),
    };
    let target = SharedSlice::new(out);
    parallel(rows.div_ceil(step), |i| {
        let part = i * step * c..((i + 1) * step).min(rows) * c;
        // SAFETY: one part per task.
        let out = unsafe { target.range(part.start, part.len()) };
        affine_rows(
            &y[part.clone()],
            a,
            b,
            shortcut.map(|s| &s[part.clone()]),
            T::narrow(low),
            T::narrow(high),
            out,
        );
    });
}

looped! {
    open_sums<'a>(dz: &'a [T], a: &'a [T], b: &'a [T], low: T, high: T, y: &'a [T], mean: &'a [T], sums: &'a mut [T]) {
        let c = mean.len();
        let (sum, product) = sums.split_at_mut(c);
        sum.fill(T::ZERO);
        product.fill(T::ZERO);
        for (dz, y) in dz.chunks_exact(c).zip(y.chunks_exact(c)) {
            for ((((((dz, y), a), b), mean), s), p) in
                dz.iter().zip(y).zip(a).zip(b).zip(mean).zip(sum.iter_mut()).zip(product.iter_mut())
            {
                let z = *a * *y + *b;
                let g = if z > low && z < high { *dz } else { T::ZERO };
                *s += g;
                *p += g * (*y - *mean);
            }
        }
    }
}

/// Like [`backward_sums`] for `act(a * y + b)`, recomputing the output from `y`; `dz` stays unmasked.
pub(crate) fn open_backward_sums<T: Float>(
    dz: &[T],
    (a, b): (&[T], &[T]),
    act: Activation,
    y: &[T],
    mean: &[T],
    scratch: &mut [T],
) -> (Vec<f64>, Vec<f64>) {
    let c = mean.len();
    let rows = y.len() / c;
    let step = rows_per_task(rows, c);
    let tasks = rows.div_ceil(step);
    let (low, high) = act.bounds().unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    let scratch = &mut scratch[..tasks * 2 * c];
    let parts = SharedSlice::new(scratch);
    parallel(tasks, |i| {
        let range = i * step * c..((i + 1) * step).min(rows) * c;
        // SAFETY: one part per task.
        let part = unsafe { parts.range(i * 2 * c, 2 * c) };
        open_sums(&dz[range.clone()], a, b, T::narrow(low), T::narrow(high), &y[range], mean, part);
    });
    let mut sums = combine(scratch, 2 * c);
    let products = sums.split_off(c);
    (sums, products)
}

looped! {
    open_rows<'a>(dz: &'a mut [T], b: &'a [T], low: T, high: T, y: &'a [T], a: &'a [T], k2: &'a [T], k1: &'a [T]) {
        let c = a.len();
        for (dz, y) in dz.chunks_exact_mut(c).zip(y.chunks_exact(c)) {
            for (((((d, y), a), b), k2), k1) in dz.iter_mut().zip(y).zip(a).zip(b).zip(k2).zip(k1) {
                let z = *a * *y + *b;
                let g = if z > low && z < high { *d } else { T::ZERO };
                *d = *a * g + *k2 * *y + *k1;
            }
        }
    }
}

/// Computes `dz = a * mask(dz) + k2 * y + k1` in place, for `act(a * y + b)`.
pub(crate) fn open_backward_input<T: Float>(
    dz: &mut [T],
    (a, b): (&[T], &[T]),
    act: Activation,
    y: &[T],
    k2: &[T],
    k1: &[T],
) {
    let c = a.len();
    let rows = y.len() / c;
    let step = rows_per_task(rows, c);
    let (low, high) = act.bounds().unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    let target = SharedSlice::new(dz);
    parallel(rows.div_ceil(step), |i| {
        let range = i * step * c..((i + 1) * step).min(rows) * c;
        // SAFETY: one part per task.
        let dz = unsafe { target.range(range.start, range.len()) };
        open_rows(dz, b, T::narrow(low), T::narrow(high), &y[range], a, k2, k1);
    });
}

looped! {
    masked_sums<'a>(dz: &'a mut [T], out: &'a [T], low: T, high: T, y: &'a [T], mean: &'a [T], sums: &'a mut [T]) {
        let c = mean.len();
        let (sum, product) = sums.split_at_mut(c);
        sum.fill(T::ZERO);
        product.fill(T::ZERO);
        for ((dz, out), y) in dz.chunks_exact_mut(c).zip(out.chunks_exact(c)).zip(y.chunks_exact(c)) {
            for (((((dz, out), y), mean), s), p) in
                dz.iter_mut().zip(out).zip(y).zip(mean).zip(sum.iter_mut()).zip(product.iter_mut())
            {
                let g = if *out > low && *out < high { *dz } else { T::ZERO };
                *dz = g;
                *s += g;
                *p += g * (*y - *mean);
            }
        }
    }
}

/// Masks the gradient by the activation in place and returns `(sum dz, sum dz * (y - mean))`.
pub(crate) fn backward_sums<T: Float>(
    dz: &mut [T],
    out: &[T],
    act: Activation,
    y: &[T],
    mean: &[T],
    scratch: &mut [T],
) -> (Vec<f64>, Vec<f64>) {
    let c = mean.len();
    let rows = y.len() / c;
    let step = rows_per_task(rows, c);
    let tasks = rows.div_ceil(step);
    let (low, high) = act.bounds().unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    let scratch = &mut scratch[..tasks * 2 * c];
    let (gradient, parts) = (SharedSlice::new(dz), SharedSlice::new(scratch));
    parallel(tasks, |i| {
        let range = i * step * c..((i + 1) * step).min(rows) * c;
        // SAFETY: one part per task.
        let (dz, part) = unsafe { (gradient.range(range.start, range.len()), parts.range(i * 2 * c, 2 * c)) };
        masked_sums(dz, &out[range.clone()], T::narrow(low), T::narrow(high), &y[range], mean, part);
    });
    let mut sums = combine(scratch, 2 * c);
    let products = sums.split_off(c);
    (sums, products)
}

looped! {
    sum_rows<'a>(dz: &'a [T], sum: &'a mut [T]) {
        sum.fill(T::ZERO);
        for dz in dz.chunks_exact(sum.len()) {
            for (s, dz) in sum.iter_mut().zip(dz) {
                *s += *dz;
            }
        }
    }
}

/// Sums every column of rows of `c` values.
pub(crate) fn column_sums<T: Float>(dz: &[T], c: usize, scratch: &mut [T]) -> Vec<f64> {
    let rows = dz.len() / c;
    let step = rows_per_task(rows, c);
    let tasks = rows.div_ceil(step);
    let scratch = &mut scratch[..tasks * c];
    let parts = SharedSlice::new(scratch);
    parallel(tasks, |i| {
        // SAFETY: one part per task.
        let part = unsafe { parts.range(i * c, c) };
        sum_rows(&dz[i * step * c..((i + 1) * step).min(rows) * c], part);
    });
    combine(scratch, c)
}

looped! {
    input_rows<'a>(dz: &'a [T], y: &'a [T], a: &'a [T], k2: &'a [T], k1: &'a [T], dy: &'a mut [T]) {
        let c = a.len();
        for ((dz, y), dy) in dz.chunks_exact(c).zip(y.chunks_exact(c)).zip(dy.chunks_exact_mut(c)) {
            for (((((d, dz), y), a), k2), k1) in dy.iter_mut().zip(dz).zip(y).zip(a).zip(k2).zip(k1) {
                *d = *a * *dz + *k2 * *y + *k1;
            }
        }
    }
}

/// Coefficients of the gradient of a norm's input, `a * dz + k2 * y + k1` per channel.
#[derive(Clone, Copy)]
pub(crate) struct Slopes<'a, T> {
    pub(crate) a: &'a [T],
    pub(crate) k2: &'a [T],
    pub(crate) k1: &'a [T],
    /// Shift and activation of the norm if `dz` is not masked yet.
    pub(crate) open: Option<(&'a [T], Activation)>,
}

impl<T: Float> Slopes<'_, T> {
    /// Processes some rows on the calling thread.
    pub(crate) fn rows(&self, dz: &[T], y: &[T], dy: &mut [T]) {
        match self.open {
            Some((b, act)) => {
                let (low, high) = act.bounds().unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
                dy.copy_from_slice(dz);
                open_rows(dy, b, T::narrow(low), T::narrow(high), y, self.a, self.k2, self.k1);
            }
            None => input_rows(dz, y, self.a, self.k2, self.k1, dy),
        }
    }
}

/// `dy = a * dz + k2 * y + k1` per channel.
pub(crate) fn backward_input<T: Float>(dz: &[T], y: &[T], a: &[T], k2: &[T], k1: &[T], dy: &mut [T]) {
    let c = a.len();
    let rows = y.len() / c;
    let step = rows_per_task(rows, c);
    let target = SharedSlice::new(dy);
    parallel(rows.div_ceil(step), |i| {
        let range = i * step * c..((i + 1) * step).min(rows) * c;
        // SAFETY: one part per task.
        let dy = unsafe { target.range(range.start, range.len()) };
        input_rows(&dz[range.clone()], &y[range], a, k2, k1, dy);
    });
}
