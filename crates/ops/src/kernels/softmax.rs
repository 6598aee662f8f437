//! Logarithms of probabilities and cross-entropy, row by row.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{Shared, parallel, rows_per_task};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// The largest value of a row, and `ln sum exp (x - largest)`; that is not a number if one of the row is not.
#[inline(always)]
fn log_sum<T: Float>(x: &[T]) -> (T, T) {
    let mut max = x[0];
    for v in x {
        max = if *v > max { *v } else { max };
    }
    let (mut sum, mut lost) = (T::ZERO, false);
    for v in x {
        let shifted = *v - max;
        // The exponential takes anything for a number.
        lost |= shifted.partial_cmp(&T::ZERO).is_none();
        sum += shifted.power_of_e();
    }
    (max, T::of(if lost { f64::NAN } else { sum.wide().ln() }))
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
                let mean = x.iter().map(|v| (*v - max).wide()).sum::<f64>() / width as f64;
                own * T::of(1.0 - smoothing) + (log_sum - T::of(mean)) * T::of(smoothing)
            };
        }
    }
}

looped! {
    entropy_slopes<'a>(
        x: &'a [T], labels: &'a [u32], dy: &'a [T], width: usize, smoothing: f64, dx: &'a mut [T],
    ) {
        let (own, all) = (T::of(1.0 - smoothing), T::of(smoothing / width as f64));
        for (((x, label), dy), dx) in
            x.chunks_exact(width).zip(labels).zip(dy).zip(dx.chunks_exact_mut(width))
        {
            let (max, log_sum) = log_sum(x);
            for (dx, v) in dx.iter_mut().zip(x) {
                *dx = ((*v - max) - log_sum).power_of_e() * *dy - all * *dy;
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
                *dx = *d - y.power_of_e() * sum;
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
    let shared = Shared::new(&mut values);
    parallel(len.div_ceil(each), |task| {
        let range = task * each..((task + 1) * each).min(len);
        // SAFETY: one stretch per task.
        let to = unsafe { shared.range(range.start, range.len()) };
        fill(range, to);
    });
    values
}

/// `x - ln sum exp x` of every row.
pub(crate) fn forward<T: Float>(x: &[T], width: usize) -> Vec<T> {
    rows(x.len(), width, |range, y| forward_rows(&x[range], width, y))
}

/// Its gradient from the result and the gradient of that.
pub(crate) fn backward<T: Float>(y: &[T], dy: &[T], width: usize) -> Vec<T> {
    rows(y.len(), width, |range, dx| backward_rows(&y[range.clone()], &dy[range], width, dx))
}

/// Cross-entropy of every row with its label, which is below `width`.
pub(crate) fn entropy<T: Float>(x: &[T], labels: &[u32], width: usize, smoothing: f64) -> Vec<T> {
    rows(labels.len(), 1, |range, y| {
        let x = &x[range.start * width..range.end * width];
        entropy_rows(x, &labels[range], width, smoothing, y);
    })
}

/// Its gradient by `x`.
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
