//! Logarithms of probabilities, row by row.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{Shared, parallel, rows_per_task};
use crate::lanes::{Kernel, Lanes};
use crate::real::Real;

looped! {
    forward_rows<'a>(x: &'a [T], width: usize, y: &'a mut [T]) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
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
            let log_sum = T::of(if lost { f64::NAN } else { sum.wide().ln() });
            for (y, v) in y.iter_mut().zip(x) {
                *y = (*v - max) - log_sum;
            }
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
fn rows<T: Real>(
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
pub(crate) fn forward<T: Real>(x: &[T], width: usize) -> Vec<T> {
    rows(x.len(), width, |range, y| forward_rows(&x[range], width, y))
}

/// Its gradient from the result and the gradient of that.
pub(crate) fn backward<T: Real>(y: &[T], dy: &[T], width: usize) -> Vec<T> {
    rows(y.len(), width, |range, dx| backward_rows(&y[range.clone()], &dy[range], width, dx))
}
