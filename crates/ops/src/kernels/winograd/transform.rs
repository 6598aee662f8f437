//! Transforms of weights and tiles.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::super::{SharedSlice, parallel};
use super::{POINTS, Tiles};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, Panel, cut};

// One-dimensional transforms. SAFETY (all): called inside a function that enables the instruction set.

#[inline(always)]
unsafe fn sub<L: Simd>(a: L, b: L) -> L {
    // SAFETY: as above.
    unsafe { a.fma(b, L::splat(L::T::narrow(-1.0))) }
}

/// `B^T d`.
#[inline(always)]
pub(super) unsafe fn input<L: Simd>(d: [L; 6]) -> [L; 6] {
    // SAFETY: as above.
    unsafe {
        let [two, four, minus2, minus4, minus5] =
            [2.0, 4.0, -2.0, -4.0, -5.0].map(|c| L::splat(L::T::narrow(c)));
        let (a, b) = (d[4].fma(d[2], minus4), d[3].fma(d[1], minus4));
        let (c, e) = (sub(d[4], d[2]), sub(d[3], d[1]));
        [
            d[4].fma(d[0], four).fma(d[2], minus5),
            a.add(b),
            sub(a, b),
            c.fma(e, two),
            c.fma(e, minus2),
            d[5].fma(d[1], four).fma(d[3], minus5),
        ]
    }
}

/// `A^T m`.
#[inline(always)]
pub(super) unsafe fn output<L: Simd>(m: [L; 6]) -> [L; 4] {
    // SAFETY: as above.
    unsafe {
        let [two, four, eight] = [2.0, 4.0, 8.0].map(|c| L::splat(L::T::narrow(c)));
        let (s, d) = (m[1].add(m[2]), sub(m[1], m[2]));
        let (s2, d2) = (m[3].add(m[4]), sub(m[3], m[4]));
        [m[0].add(s).add(s2), d.fma(d2, two), s.fma(s2, four), d.fma(d2, eight).add(m[5])]
    }
}

/// `A d`.
#[inline(always)]
pub(super) unsafe fn spread<L: Simd>(d: [L; 4]) -> [L; 6] {
    // SAFETY: as above.
    unsafe {
        let [two, four, eight] = [2.0, 4.0, 8.0].map(|c| L::splat(L::T::narrow(c)));
        let (even, odd) = (d[0].add(d[2]), d[1].add(d[3]));
        let even2 = d[0].fma(d[2], four);
        let odd2 = L::splat(L::T::ZERO).fma(d[1], two).fma(d[3], eight);
        [d[0], even.add(odd), sub(even, odd), even2.add(odd2), sub(even2, odd2), d[3]]
    }
}

/// `G g`.
#[inline(always)]
unsafe fn weight<L: Simd>(g: [L; 3]) -> [L; 6] {
    // SAFETY: as above.
    unsafe {
        let zero = L::splat(L::T::ZERO);
        let [quarter, minus6th, by24, by12, by6] =
            [0.25, -1.0 / 6.0, 1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0].map(|c| L::splat(L::T::narrow(c)));
        let ends = zero.fma(g[0].add(g[2]), minus6th);
        let middle = zero.fma(g[1], minus6th);
        let outer = zero.fma(g[0], by24).fma(g[2], by6);
        let inner = zero.fma(g[1], by12);
        [
            zero.fma(g[0], quarter),
            ends.add(middle),
            sub(ends, middle),
            outer.add(inner),
            sub(outer, inner),
            g[2],
        ]
    }
}

/// `G^T u`.
#[inline(always)]
pub(super) unsafe fn weight_back<L: Simd>(u: [L; 6]) -> [L; 3] {
    // SAFETY: as above.
    unsafe {
        let zero = L::splat(L::T::ZERO);
        let [quarter, minus6th, by24, by12, by6] =
            [0.25, -1.0 / 6.0, 1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0].map(|c| L::splat(L::T::narrow(c)));
        let (s, d) = (u[1].add(u[2]), sub(u[1], u[2]));
        let (s2, d2) = (u[3].add(u[4]), sub(u[3], u[4]));
        [
            zero.fma(u[0], quarter).fma(s, minus6th).fma(s2, by24),
            zero.fma(d, minus6th).fma(d2, by12),
            u[5].fma(s, minus6th).fma(s2, by6),
        ]
    }
}

/// Applies a transform along the rows and then along the columns of a tile.
macro_rules! both_ways {
    ($f:ident, $tile:expr, $zero:expr, $from:literal, $to:literal) => {{
        let tile = $tile;
        let mut half = [[$zero; $to]; $from];
        for y in 0..$from {
            half[y] = $f(tile[y]);
        }
        let mut all = [[$zero; $to]; $to];
        for x in 0..$to {
            let mut column = [$zero; $from];
            for y in 0..$from {
                column[y] = half[y][x];
            }
            let done = $f(column);
            for y in 0..$to {
                all[y][x] = done[y];
            }
        }
        all
    }};
}

pub(super) use both_ways;

/// Transforms packed weights `[panel][9][rows][width]` to `[panel][36][rows][width]`, rotated by 180
/// degrees for the data gradient.
pub(crate) fn transform_weight<T: Float>(
    g: &[T],
    rows: usize,
    columns: usize,
    transposed: bool,
    u: &mut [T],
) {
    let panels = cut(columns, 9 * rows);
    assert!(g.len() >= 9 * rows * columns && u.len() >= POINTS * rows * columns);
    let (len, u) = (u.len(), SharedSlice::new(u));
    parallel(panels.len() * rows, |task| {
        let (panel, row) = (panels[task / rows], task % rows);
        T::run(WeightRow { g, u, len, panel, rows, row, transposed });
    });
}

struct WeightRow<'a, T> {
    g: &'a [T],
    u: SharedSlice<T>,
    len: usize,
    panel: Panel,
    rows: usize,
    row: usize,
    transposed: bool,
}

impl<T: Float> Kernel<T> for WeightRow<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let width = self.panel.vectors * LANES;
        let (from, to) = (self.panel.offset, self.panel.offset / 9 * POINTS);
        assert!(from + 9 * self.rows * width <= self.g.len() && to + POINTS * self.rows * width <= self.len);
        for v in 0..self.panel.vectors {
            // SAFETY: in bounds by the assertion above; rows of panels are disjoint.
            unsafe {
                let zero = L::splat(T::ZERO);
                let mut g = [[zero; 3]; 3];
                for kernel_offset in 0..9 {
                    let at = if self.transposed { 8 - kernel_offset } else { kernel_offset };
                    g[kernel_offset / 3][kernel_offset % 3] =
                        L::load(self.g.as_ptr().add(from + (at * self.rows + self.row) * width + v * LANES));
                }
                let u = both_ways!(weight, g, zero, 3, 6);
                for p in 0..POINTS {
                    let to = self.u.ptr().add(to + (p * self.rows + self.row) * width + v * LANES);
                    u[p / 6][p % 6].store(to);
                }
            }
        }
    }
}

/// Transforms input tiles: `v[point][tile - first][channel]`.
#[inline(always)]
pub(super) unsafe fn transform_input<L: Simd>(
    t: &Tiles,
    source: *const L::T,
    tiles: std::ops::Range<usize>,
    (first, held): (usize, usize),
    v: *mut L::T,
) {
    let ([h, w], c) = (t.source, t.inputs);
    for tile in tiles {
        let (image, y0, x0) = t.position(tile);
        for channel in (0..c).step_by(LANES) {
            // SAFETY: by the caller: the source holds all images, `v` the tiles.
            unsafe {
                let zero = L::splat(L::T::ZERO);
                let mut d = [[zero; 6]; 6];
                for y in 0..6 {
                    let row = (y0 + y).wrapping_sub(t.before[0]);
                    if row < h {
                        for x in 0..6 {
                            let column = (x0 + x).wrapping_sub(t.before[1]);
                            if column < w {
                                d[y][x] = L::load(source.add(((image * h + row) * w + column) * c + channel));
                            }
                        }
                    }
                }
                let d = both_ways!(input, d, zero, 6, 6);
                let to = v.add((tile - first) * c + channel);
                for p in 0..POINTS {
                    d[p / 6][p % 6].store(to.add(p * held * c));
                }
            }
        }
    }
}
