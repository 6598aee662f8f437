//! Layer norm over the channels of NHWC maps.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{SharedSlice, parallel, rows_per_task};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

const LARGE_TILES: usize = 16;

/// Sums `f(0..n)` in sixteen lanes, combined in f64.
#[inline(always)]
fn sum<T: Float>(n: usize, f: impl Fn(usize) -> T) -> f64 {
    let mut lanes = [T::ZERO; LARGE_TILES];
    let whole = n / LARGE_TILES * LARGE_TILES;
    for start in (0..whole).step_by(LARGE_TILES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(start + l);
        }
    }
    let mut total = 0.0;
    for i in whole..n {
        total += f(i).widen();
    }
    lanes.iter().map(|l| l.widen()).sum::<f64>() + total
}

looped! {
    forward_rows<'a>(
        x: &'a [T],
        gamma: &'a [T],
        beta: &'a [T],
        eps: f64,
        out: &'a mut [T],
        stats: &'a mut [T],
    ) {
        let c = gamma.len();
        let rows = x.chunks_exact(c).zip(out.chunks_exact_mut(c)).zip(stats.chunks_exact_mut(2));
        for ((x, out), stats) in rows {
            let mean = T::narrow(sum(c, |i| x[i]) / c as f64);
            let variance = sum(c, |i| (x[i] - mean) * (x[i] - mean)) / c as f64;
            let inverse = T::narrow(1.0 / (variance + eps).sqrt());
            (stats[0], stats[1]) = (mean, inverse);
            for ((o, x), (g, b)) in out.iter_mut().zip(x).zip(gamma.iter().zip(beta)) {
                *o = (*x - mean) * inverse * *g + *b;
            }
        }
    }
}

looped! {
    backward_rows<'a>(
        x: &'a [T],
        dy: &'a [T],
        gamma: &'a [T],
        stats: &'a [T],
        add: bool,
        dx: &'a mut [T],
        sums: &'a mut [T],
    ) {
        let c = gamma.len();
        let (d_gamma, d_beta) = sums.split_at_mut(c);
        let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c));
        for (((x, dy), dx), stats) in rows.zip(stats.chunks_exact(2)) {
            let (mean, inverse) = (stats[0], stats[1]);
            for i in 0..c {
                d_gamma[i] += dy[i] * ((x[i] - mean) * inverse);
                d_beta[i] += dy[i];
            }
            let first = T::narrow(sum(c, |i| dy[i] * gamma[i]) / c as f64);
            let second = T::narrow(sum(c, |i| dy[i] * gamma[i] * ((x[i] - mean) * inverse)) / c as f64);
            for i in 0..c {
                let d = inverse * (dy[i] * gamma[i] - first - (x[i] - mean) * inverse * second);
                dx[i] = if add { dx[i] + d } else { d };
            }
        }
    }
}

/// Computes `gamma * (x - mean) / sqrt(variance + eps) + beta` for every row; stores mean and `1 /
/// sqrt(variance + eps)` of each in `stats`.
pub(crate) fn forward<T: Float>(
    x: &[T],
    (gamma, beta): (&[T], &[T]),
    eps: f64,
    out: &mut [T],
    stats: &mut [T],
) {
    let c = gamma.len();
    let rows = x.len() / c;
    let part = rows_per_task(rows, c);
    let (out, stats) = (SharedSlice::new(out), SharedSlice::new(stats));
    parallel(rows.div_ceil(part), |i| {
        let (first, n) = (i * part, part.min(rows - i * part));
        // SAFETY: whole rows per task.
        let (out, stats) = unsafe { (out.range(first * c, n * c), stats.range(first * 2, n * 2)) };
        forward_rows(&x[first * c..(first + n) * c], gamma, beta, eps, out, stats);
    });
}

/// Returns the scratch length of [`backward`].
pub(crate) fn scratch_len(rows: usize, channels: usize) -> usize {
    rows.div_ceil(rows_per_task(rows, channels)) * 2 * channels
}

/// Writes (or adds to) `dx` and returns the gradients of gamma and beta.
pub(crate) fn backward<T: Float>(
    (x, dy): (&[T], &[T]),
    gamma: &[T],
    stats: &[T],
    add: bool,
    dx: &mut [T],
    scratch: &mut [T],
) -> (Vec<f64>, Vec<f64>) {
    let c = gamma.len();
    let rows = x.len() / c;
    let part = rows_per_task(rows, c);
    let tasks = rows.div_ceil(part);
    scratch.fill(T::ZERO);
    let (dx, sums) = (SharedSlice::new(dx), SharedSlice::new(scratch));
    parallel(tasks, |i| {
        let (first, n) = (i * part, part.min(rows - i * part));
        // SAFETY: whole rows and one partial sum per task.
        let (dx, sums) = unsafe { (dx.range(first * c, n * c), sums.range(i * 2 * c, 2 * c)) };
        let range = first * c..(first + n) * c;
        backward_rows(
            &x[range.clone()],
            &dy[range],
            gamma,
            &stats[first * 2..(first + n) * 2],
            add,
            dx,
            sums,
        );
    });
    let total = |offset: usize| {
        let column = |j: usize| (0..tasks).map(|i| scratch[i * 2 * c + offset + j].widen()).sum();
        (0..c).map(column).collect()
    };
    (total(0), total(c))
}
