//! Weight gradient.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::super::{SharedSlice, elementwise, parallel};
use super::transform::{both_ways, spread, transform_input, weight_back};
use super::{POINTS, Tiles, slot};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, Panel, cut};

/// Packed weight gradient `[panel][9][input][width]`; all values are written.
pub(crate) struct WeightGradient<'a, T> {
    pub(crate) tiles: Tiles,
    pub(crate) source: &'a [T],
    pub(crate) dy: &'a [T],
    pub(crate) gradient: &'a mut [T],
    /// At least [`Tiles::gradient_scratch_len`].
    pub(crate) scratch: &'a mut [T],
}

/// Accumulates `V^T (A dy A^T)` over a range of tiles.
struct Sum<'a, T> {
    tiles: &'a Tiles,
    source: &'a [T],
    dy: &'a [T],
    panels: &'a [Panel],
    part: SumPart,
    range: std::ops::Range<usize>,
    first: usize,
    held: usize,
    v: *mut T,
    w: *mut T,
    u: *mut T,
}

enum SumPart {
    /// Transforms both operands.
    Transform,
    /// One panel of one point; `true` accumulates.
    Point(usize, usize, bool),
    /// All stages, block by block.
    All,
}

impl<T: Float> WeightGradient<'_, T> {
    pub(crate) fn run(self) {
        let t = self.tiles;
        let count = t.count();
        t.check(self.source, self.dy.len());
        assert!(self.gradient.len() >= 9 * t.inputs * t.outputs);
        assert!(self.scratch.len() >= t.gradient_scratch_len());
        let panels = cut(t.outputs, POINTS * t.inputs);
        let (len, chunks) = (t.weight_len(), t.gradient_chunks());
        let (sums, scratch) = self.scratch.split_at_mut(chunks * len);
        let (shared, scratch) = (SharedSlice::new(sums), SharedSlice::new(scratch));
        let run = |part, range: std::ops::Range<usize>, first, held: usize, at: usize, chunk: usize| {
            // SAFETY: the scratch buffer has `gradient_scratch_len` values.
            let (v, w, u) = unsafe {
                let v = scratch.ptr().add(at);
                (v, v.add(POINTS * held * t.inputs), shared.ptr().add(chunk * len))
            };
            let (tiles, source, dy, panels) = (&t, self.source, self.dy, &panels[..]);
            T::run(Sum { tiles, source, dy, panels, part, range, first, held, v, w, u });
        };
        if chunks > 1 {
            let held = t.block();
            let per_chunk = count.div_ceil(chunks);
            parallel(chunks, |chunk| {
                let range = (chunk * per_chunk).min(count)..((chunk + 1) * per_chunk).min(count);
                let at = slot() * held * POINTS * (t.inputs + t.outputs);
                run(SumPart::All, range, 0, held, at, chunk);
            });
            let step = len.div_ceil(16);
            parallel(len.div_ceil(step), |i| {
                let (start, n) = (i * step, step.min(len - i * step));
                // SAFETY: disjoint ranges.
                let sum = unsafe { shared.range(start, n) };
                for chunk in 1..chunks {
                    // SAFETY: as above.
                    elementwise::add_to(sum, unsafe { shared.range(chunk * len + start, n) });
                }
            });
        } else {
            let held = t.many();
            for first in (0..count).step_by(held) {
                let last = (first + held).min(count);
                let few = |i: usize| first + i * 4..(first + (i + 1) * 4).min(last);
                parallel((last - first).div_ceil(4), |i| run(SumPart::Transform, few(i), first, held, 0, 0));
                parallel(POINTS * panels.len(), |task| {
                    let part = SumPart::Point(task / panels.len(), task % panels.len(), first > 0);
                    run(part, first..last, first, held, 0, 0);
                });
            }
        }
        // SAFETY: all tasks have finished.
        let sums = unsafe { shared.range(0, len) };
        let rows = t.inputs;
        let gradient = SharedSlice::new(self.gradient);
        parallel(panels.len() * rows, |task| {
            T::run(GradientRow { u: sums, g: gradient, panel: panels[task / rows], rows, row: task % rows });
        });
    }
}

impl<T: Float> Kernel<T> for Sum<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        // SAFETY: bounds were checked by `WeightGradient::run`; tasks own their tiles, points or chunks.
        unsafe {
            match self.part {
                SumPart::Transform => self.transform::<L>(self.range.clone(), self.first),
                SumPart::Point(point, panel, add) => {
                    self.point::<L>(point, &self.panels[panel], self.range.len(), add);
                }
                SumPart::All => {
                    let mut first = self.range.start;
                    while first < self.range.end || first == self.range.start {
                        let last = (first + self.held).min(self.range.end);
                        self.transform::<L>(first..last, first);
                        for point in 0..POINTS {
                            for panel in self.panels {
                                self.point::<L>(point, panel, last - first, first > self.range.start);
                            }
                        }
                        if last == self.range.end {
                            break;
                        }
                        first = last;
                    }
                }
            }
        }
    }
}

impl<T: Float> Sum<'_, T> {
    /// Computes `V` and `W = A dy A^T` of some tiles.
    #[inline(always)]
    unsafe fn transform<L: Simd<T = T>>(&self, range: std::ops::Range<usize>, first: usize) {
        let t = self.tiles;
        let ([oh, ow], k) = (t.target, t.outputs);
        // SAFETY: by the caller.
        unsafe {
            transform_input::<L>(t, self.source.as_ptr(), range.clone(), (first, self.held), self.v);
            for tile in range {
                let (image, y0, x0) = t.position(tile);
                for channel in (0..k).step_by(LANES) {
                    let zero = L::splat(T::ZERO);
                    let mut d = [[zero; 4]; 4];
                    for y in 0..4 {
                        for x in 0..4 {
                            if y0 + y < oh && x0 + x < ow {
                                let at = ((image * oh + y0 + y) * ow + x0 + x) * k + channel;
                                d[y][x] = L::load(self.dy.as_ptr().add(at));
                            }
                        }
                    }
                    let d = both_ways!(spread, d, zero, 4, 6);
                    let to = self.w.add((tile - first) * k + channel);
                    for p in 0..POINTS {
                        d[p / 6][p % 6].store(to.add(p * self.held * k));
                    }
                }
            }
        }
    }

    /// Computes `u[point][panel] (+)= V^T W`.
    #[inline(always)]
    unsafe fn point<L: Simd<T = T>>(&self, point: usize, panel: &Panel, count: usize, add: bool) {
        let t = self.tiles;
        let width = panel.vectors * LANES;
        // SAFETY: by the caller.
        unsafe {
            let v = self.v.add(point * self.held * t.inputs);
            let w = self.w.add(point * self.held * t.outputs + panel.first);
            let u = self.u.add(panel.offset + point * t.inputs * width);
            let mut input = 0;
            while input < t.inputs {
                let (v, u) = (v.add(input), u.add(input * width));
                input += if L::LARGE_TILES {
                    match panel.vectors {
                        // Six, six and four of every sixteen.
                        4 if input % LANES < 12 => {
                            outer::<L, 6, 4>(v, t.inputs, w, t.outputs, count, u, width, add)
                        }
                        4 => outer::<L, 4, 4>(v, t.inputs, w, t.outputs, count, u, width, add),
                        3 => outer::<L, 8, 3>(v, t.inputs, w, t.outputs, count, u, width, add),
                        2 => outer::<L, 8, 2>(v, t.inputs, w, t.outputs, count, u, width, add),
                        _ => outer::<L, 8, 1>(v, t.inputs, w, t.outputs, count, u, width, add),
                    }
                } else {
                    for x in (0..width).step_by(LANES) {
                        outer::<L, 4, 1>(v, t.inputs, w.add(x), t.outputs, count, u.add(x), width, add);
                    }
                    4
                };
            }
        }
    }
}

/// `u[MR, NV] (+)= sum over tiles of v[tile][MR] * w[tile][NV]`; returns `MR`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn outer<L: Simd, const MR: usize, const NV: usize>(
    v: *const L::T,
    v_stride: usize,
    w: *const L::T,
    w_stride: usize,
    count: usize,
    u: *mut L::T,
    width: usize,
    add: bool,
) -> usize {
    // SAFETY: by the caller.
    unsafe {
        let mut acc = [[L::splat(L::T::ZERO); NV]; MR];
        if add {
            for i in 0..MR {
                for n in 0..NV {
                    acc[i][n] = L::load(u.add(i * width + n * LANES));
                }
            }
        }
        for tile in 0..count {
            let (v, w) = (v.add(tile * v_stride), w.add(tile * w_stride));
            let mut b = [L::splat(L::T::ZERO); NV];
            for n in 0..NV {
                b[n] = L::load(w.add(n * LANES));
            }
            for i in 0..MR {
                let a = L::splat(*v.add(i));
                for n in 0..NV {
                    acc[i][n] = acc[i][n].fma(a, b[n]);
                }
            }
        }
        for i in 0..MR {
            for n in 0..NV {
                acc[i][n].store(u.add(i * width + n * LANES));
            }
        }
    }
    MR
}

/// `G^T u G` of one input and one panel.
struct GradientRow<'a, T> {
    u: &'a [T],
    g: SharedSlice<T>,
    panel: Panel,
    rows: usize,
    row: usize,
}

impl<T: Float> Kernel<T> for GradientRow<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let width = self.panel.vectors * LANES;
        let (from, to) = (self.panel.offset, self.panel.offset / POINTS * 9);
        for v in 0..self.panel.vectors {
            // SAFETY: lengths were checked by `WeightGradient::run`; rows of panels are disjoint.
            unsafe {
                let zero = L::splat(T::ZERO);
                let mut u = [[zero; 6]; 6];
                for p in 0..POINTS {
                    let at = from + (p * self.rows + self.row) * width + v * LANES;
                    u[p / 6][p % 6] = L::load(self.u.as_ptr().add(at));
                }
                let g = both_ways!(weight_back, u, zero, 6, 3);
                for kernel_offset in 0..9 {
                    let at = to + (kernel_offset * self.rows + self.row) * width + v * LANES;
                    g[kernel_offset / 3][kernel_offset % 3].store(self.g.ptr().add(at));
                }
            }
        }
    }
}
