//! Row-wise log-softmax and cross-entropy.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{SharedSlice, parallel, rows_per_task};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// Returns the maximum of a row and `ln sum exp (x - max)`, which is NaN if the row has a NaN.
#[inline(always)]
fn log_sum<T: Float>(x: &[T]) -> (T, T) {
    let mut max = x[0];
    for v in x {
        max = if *v > max { *v } else { max };
    }
    let (mut sum, mut lost) = (T::ZERO, false);
    for v in x {
        let shifted = *v - max;
        // The approximate exponential does not propagate NaN.
        lost |= shifted.partial_cmp(&T::ZERO).is_none();
        sum += shifted.fast_exp();
    }
    (max, T::narrow(if lost { f64::NAN } else { sum.widen().ln() }))
}

looped! {
    forward_rows<'a>(x: &'a [T], width: usize, y: &'a mut [T]) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (max, log_sum) = log_sum(x);
            for (y, v) in y.iter_mut().zip(x) {
                *y = (*v - max) - log_sum;
            }
        }
    }
}

looped! {
    entropy_rows<'a>(x: &'a [T], labels: &'a [u32], width: usize, smoothing: f64, y: &'a mut [T]) {
        for ((x, label), y) in x.chunks_exact(width).zip(labels).zip(y) {
            let (max, log_sum) = log_sum(x);
            let own = log_sum - (x[*label as usize] - max);
            *y = if smoothing == 0.0 {
                own
            } else {
                let mean = x.iter().map(|v| (*v - max).widen()).sum::<f64>() / width as f64;
                own * T::narrow(1.0 - smoothing) + (log_sum - T::narrow(mean)) * T::narrow(smoothing)
            };
        }
    }
}

looped! {
    entropy_slopes<'a>(
        x: &'a [T], labels: &'a [u32], dy: &'a [T], width: usize, smoothing: f64, dx: &'a mut [T],
    ) {
        let (own, all) = (T::narrow(1.0 - smoothing), T::narrow(smoothing / width as f64));
        for (((x, label), dy), dx) in
            x.chunks_exact(width).zip(labels).zip(dy).zip(dx.chunks_exact_mut(width))
        {
            let (max, log_sum) = log_sum(x);
            for (dx, v) in dx.iter_mut().zip(x) {
                *dx = ((*v - max) - log_sum).fast_exp() * *dy - all * *dy;
            }
            dx[*label as usize] -= own * *dy;
        }
    }
}

looped! {
    backward_rows<'a>(y: &'a [T], dy: &'a [T], width: usize, dx: &'a mut [T]) {
        for ((y, dy), dx) in y.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let mut sum = T::ZERO;
            for d in dy {
                sum += *d;
            }
            for ((dx, d), y) in dx.iter_mut().zip(dy).zip(y) {
                *dx = *d - y.fast_exp() * sum;
            }
        }
    }
}

/// Fills rows of `width` values in parallel.
fn rows<T: Float>(
    len: usize,
    width: usize,
    fill: impl Fn(std::ops::Range<usize>, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let mut values = vec![T::ZERO; len];
    let each = rows_per_task(len / width, width) * width;
    let shared = SharedSlice::new(&mut values);
    parallel(len.div_ceil(each), |task| {
        let range = task * each..((task + 1) * each).min(len);
        // SAFETY: one range per task.
        let to = unsafe { shared.range(range.start, range.len()) };
        fill(range, to);
    });
    values
}

/// Computes `x - ln sum exp x` for every row.
pub(crate) fn forward<T: Float>(x: &[T], width: usize) -> Vec<T> {
    rows(x.len(), width, |range, y| forward_rows(&x[range], width, y))
}

/// Computes its gradient from the result and the gradient of the result.
pub(crate) fn backward<T: Float>(y: &[T], dy: &[T], width: usize) -> Vec<T> {
    rows(y.len(), width, |range, dx| backward_rows(&y[range.clone()], &dy[range], width, dx))
}

/// Computes the cross-entropy of every row with its label, which must be below `width`.
pub(crate) fn entropy<T: Float>(x: &[T], labels: &[u32], width: usize, smoothing: f64) -> Vec<T> {
    rows(labels.len(), 1, |range, y| {
        let x = &x[range.start * width..range.end * width];
        entropy_rows(x, &labels[range], width, smoothing, y);
    })
}

/// Computes its gradient with respect to `x`.
pub(crate) fn entropy_backward<T: Float>(
    x: &[T],
    labels: &[u32],
    dy: &[T],
    width: usize,
    smoothing: f64,
) -> Vec<T> {
    rows(x.len(), width, |range, dx| {
        let row = range.start / width..range.end / width;
        entropy_slopes(&x[range], &labels[row.clone()], &dy[row], width, smoothing, dx);
    })
}
