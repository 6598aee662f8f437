//! GEMM for matrices that fit the cache.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use crate::simd::Simd;
use crate::weight_packing::LANES;

/// Left operand: element `(i, k)` is `values[i * row + k * column]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// Computes `c = a b`, `[m, k]` times `[k, n]`. `b` and `c` are dense and `n` is a multiple of the vector
/// length.
///
/// # Safety
/// Must be called inside a function that enables the instructions of `L`, as every kernel is.
#[inline(always)]
pub(crate) unsafe fn multiply<L: Simd>(
    a: Left<L::T>,
    b: &[L::T],
    c: &mut [L::T],
    (m, k, n): (usize, usize, usize),
) {
    assert!(n.is_multiple_of(LANES) && b.len() >= k * n && c.len() >= m * n);
    assert!(m * k == 0 || a.values.len() > (m - 1) * a.row + (k - 1) * a.column);
    let mut v = 0;
    while v < n {
        let left = (n - v) / LANES;
        // SAFETY: bounds by the assertions above, instructions by the caller.
        unsafe {
            v += LANES
                * if L::LARGE_TILES {
                    match left {
                        1 => columns::<L, 12, 1>(a, b, c, (m, k, n), v),
                        2 => columns::<L, 10, 2>(a, b, c, (m, k, n), v),
                        3 => columns::<L, 8, 3>(a, b, c, (m, k, n), v),
                        _ => columns::<L, 6, 4>(a, b, c, (m, k, n), v),
                    }
                } else {
                    columns::<L, 5, 1>(a, b, c, (m, k, n), v)
                };
        }
    }
}

/// Computes `NV` vectors of columns from column `v`; returns `NV`.
///
/// # Safety
/// Bounds as checked by [`multiply`], and `v + NV * LANES <= n`.
#[inline(always)]
unsafe fn columns<L: Simd, const MR: usize, const NV: usize>(
    a: Left<L::T>,
    b: &[L::T],
    c: &mut [L::T],
    (m, k, n): (usize, usize, usize),
    v: usize,
) -> usize {
    let (a_at, b_at, c_at) = (a.values.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let mut row = 0;
    while row < m {
        let count = MR.min(m - row);
        // SAFETY: rows past the end repeat the last one and are not stored.
        unsafe {
            let mut from = [a_at; MR];
            for i in 0..MR {
                from[i] = a_at.add((row + i.min(count - 1)) * a.row);
            }
            let mut acc = [[L::splat(L::T::default()); NV]; MR];
            for p in 0..k {
                let line = b_at.add(p * n + v);
                let mut x = [L::splat(L::T::default()); NV];
                for j in 0..NV {
                    x[j] = L::load(line.add(j * LANES));
                }
                for i in 0..MR {
                    let y = L::splat(*from[i].add(p * a.column));
                    for j in 0..NV {
                        acc[i][j] = acc[i][j].fma(y, x[j]);
                    }
                }
            }
            // A loop bound of `count` would index the tile with a variable and spill it to memory.
            for i in 0..MR {
                if i >= count {
                    break;
                }
                for j in 0..NV {
                    acc[i][j].store(c_at.add((row + i) * n + v + j * LANES));
                }
            }
        }
        row += count;
    }
    NV
}
