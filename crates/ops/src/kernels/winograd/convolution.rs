//! Forward pass and data gradient.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::super::indirect_gemm::{Epilogue, PREFETCH_ROWS, activate};
use super::super::norm::Sums;
use super::super::{SharedSlice, parallel};
use super::transform::{output, transform_input};
use super::{MAX_CACHED, POINTS, Tiles, slot};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, Panel, cut};

/// `target = A^T (U (B^T source B)) A`, with [`Epilogue`].
pub(crate) struct Convolution<'a, T> {
    pub(crate) tiles: Tiles,
    pub(crate) source: &'a [T],
    /// From [`transform_weight`].
    pub(crate) weight: &'a [T],
    pub(crate) target: SharedSlice<T>,
    pub(crate) target_len: usize,
    pub(crate) epilogue: Epilogue<'a, T>,
    /// Sums of the target; [`Tiles::sum_tasks`] of them.
    pub(crate) sums: Option<Sums<'a, T>>,
    /// At least [`Tiles::scratch_len`].
    pub(crate) scratch: &'a mut [T],
}

/// Stage of a task, on tiles of the scratch buffer.
enum Part {
    /// `source -> V`.
    Input,
    /// `V U -> M` for one point.
    Product(usize),
    /// `M -> target`.
    Output,
    /// All three stages.
    All,
}

struct Task<'a, 'b, T> {
    all: &'a Convolution<'b, T>,
    panels: &'a [Panel],
    part: Part,
    /// Tiles of the task.
    tiles: std::ops::Range<usize>,
    /// Index of the task in the sums.
    task: usize,
    /// First tile of the scratch buffer and its capacity.
    first: usize,
    held: usize,
    v: *mut T,
    m: *mut T,
}

impl<T: Float> Convolution<'_, T> {
    pub(crate) fn run(mut self) {
        let t = self.tiles;
        let count = t.count();
        if count == 0 {
            return;
        }
        t.check(self.source, self.target_len);
        assert!(self.weight.len() >= t.weight_len() && self.scratch.len() >= t.scratch_len());
        if let Some(bias) = self.epilogue.bias {
            assert!(bias.len() >= t.outputs);
        }
        if let Some(shortcut) = self.epilogue.shortcut {
            assert!(shortcut.len() >= self.target_len);
        }
        let panels = cut(t.outputs, POINTS * t.inputs);
        let scratch = SharedSlice::new(&mut *std::mem::take(&mut self.scratch));
        let (all, panels) = (&self, &panels[..]);
        let run = |part, task, tiles: std::ops::Range<usize>, first: usize, held: usize, at: usize| {
            // SAFETY: the scratch buffer has `scratch_len` values.
            let (v, m) = unsafe {
                let v = scratch.ptr().add(at);
                (v, v.add(POINTS * held * t.inputs))
            };
            T::run(Task { all, panels, part, tiles, task, first, held, v, m });
        };
        if t.weight_len() <= MAX_CACHED {
            let held = t.block();
            parallel(count.div_ceil(held), |i| {
                let at = slot() * held * POINTS * (t.inputs + t.outputs);
                run(Part::All, i, i * held..((i + 1) * held).min(count), i * held, held, at);
            });
            return;
        }
        let held = t.many();
        for first in (0..count).step_by(held) {
            let last = (first + held).min(count);
            let few = |i: usize| first + i * 4..(first + (i + 1) * 4).min(last);
            let tasks = (last - first).div_ceil(4);
            parallel(tasks, |i| run(Part::Input, 0, few(i), first, held, 0));
            parallel(POINTS, |p| run(Part::Product(p), 0, first..last, first, held, 0));
            parallel(tasks, |i| run(Part::Output, first / 4 + i, few(i), first, held, 0));
        }
    }
}

impl<T: Float> Kernel<T> for Task<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        // SAFETY: bounds were checked by `Convolution::run`; tasks own their tiles or their point.
        unsafe {
            match self.part {
                Part::Input => self.input::<L>(),
                Part::Product(p) => self.product::<L>(p),
                Part::Output => self.output::<L>(),
                Part::All => {
                    self.input::<L>();
                    for p in 0..POINTS {
                        self.product::<L>(p);
                    }
                    self.output::<L>();
                }
            }
        }
    }
}

impl<T: Float> Task<'_, '_, T> {
    #[inline(always)]
    unsafe fn input<L: Simd<T = T>>(&self) {
        let held = (self.first, self.held);
        // SAFETY: by the caller.
        unsafe {
            transform_input::<L>(&self.all.tiles, self.all.source.as_ptr(), self.tiles.clone(), held, self.v);
        }
    }

    #[inline(always)]
    unsafe fn product<L: Simd<T = T>>(&self, point: usize) {
        let t = &self.all.tiles;
        let rows = self.tiles.len();
        // SAFETY: by the caller.
        unsafe {
            let a = self.v.add((point * self.held + self.tiles.start - self.first) * t.inputs);
            let c = self.m.add((point * self.held + self.tiles.start - self.first) * t.outputs);
            for panel in self.panels {
                let width = panel.vectors * LANES;
                let b = self.all.weight.as_ptr().add(panel.offset + point * t.inputs * width);
                let to = c.add(panel.first);
                if L::LARGE_TILES {
                    match panel.vectors {
                        4 => rows_by_panel::<L, 6, 4>(a, t.inputs, rows, b, width, to, t.outputs),
                        3 => rows_by_panel::<L, 8, 3>(a, t.inputs, rows, b, width, to, t.outputs),
                        2 => rows_by_panel::<L, 8, 2>(a, t.inputs, rows, b, width, to, t.outputs),
                        _ => rows_by_panel::<L, 8, 1>(a, t.inputs, rows, b, width, to, t.outputs),
                    }
                } else {
                    for v in (0..width).step_by(LANES) {
                        rows_by_panel::<L, 5, 1>(a, t.inputs, rows, b.add(v), width, to.add(v), t.outputs);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn output<L: Simd<T = T>>(&self) {
        let t = &self.all.tiles;
        let e = &self.all.epilogue;
        let ([oh, ow], k) = (t.target, t.outputs);
        let sums = self.all.sums.map(|sums| {
            // SAFETY: one part per task.
            let part = unsafe { sums.parts.range(self.task * 2 * k, 2 * k) };
            part.fill(T::ZERO);
            (part.as_mut_ptr(), sums.shift.as_ptr())
        });
        for tile in self.tiles.clone() {
            let (image, y0, x0) = t.position(tile);
            for channel in (0..k).step_by(LANES) {
                // SAFETY: by the caller.
                unsafe {
                    let zero = L::splat(T::ZERO);
                    let from = self.m.add((tile - self.first) * k + channel);
                    let mut half = [[zero; 4]; 6];
                    for y in 0..6 {
                        let mut row = [zero; 6];
                        for x in 0..6 {
                            row[x] = L::load(from.add((y * 6 + x) * self.held * k));
                        }
                        half[y] = output(row);
                    }
                    let mut moments = (zero, zero);
                    let minus_shift = sums.map_or(zero, |(_, shift)| {
                        zero.fma(L::load(shift.add(channel)), L::splat(T::narrow(-1.0)))
                    });
                    let bias = e.bias.map(|bias| L::load(bias.as_ptr().add(channel)));
                    for x in 0..4 {
                        if x0 + x >= ow {
                            break;
                        }
                        let mut column = [zero; 6];
                        for y in 0..6 {
                            column[y] = half[y][x];
                        }
                        let done = output(column);
                        for y in 0..4 {
                            if y0 + y >= oh {
                                break;
                            }
                            let at = ((image * oh + y0 + y) * ow + x0 + x) * k + channel;
                            let to = self.all.target.ptr().add(at);
                            let mut value = done[y];
                            if e.accumulate {
                                value = value.add(L::load(to));
                            }
                            if let Some(bias) = bias {
                                value = value.add(bias);
                            }
                            if let Some(shortcut) = e.shortcut {
                                value = value.add(L::load(shortcut.as_ptr().add(at)));
                            }
                            value = activate(value, e.act);
                            value.store(to);
                            if sums.is_some() {
                                let d = value.add(minus_shift);
                                moments = (moments.0.add(d), moments.1.fma(d, d));
                            }
                        }
                    }
                    if let Some((part, _)) = sums {
                        let (sum, square) = (part.add(channel), part.add(k + channel));
                        L::load(sum).add(moments.0).store(sum);
                        L::load(square).add(moments.1).store(square);
                    }
                }
            }
        }
    }
}

/// `c[rows, width] = a[rows, depth] * b[depth, width]` for `NV` vectors of a panel.
#[inline(always)]
unsafe fn rows_by_panel<L: Simd, const MR: usize, const NV: usize>(
    a: *const L::T,
    depth: usize,
    rows: usize,
    b: *const L::T,
    width: usize,
    c: *mut L::T,
    stride: usize,
) {
    let mut row = 0;
    while row < rows {
        let count = MR.min(rows - row);
        // SAFETY: by the caller; rows past the end repeat the last one and are not stored.
        unsafe {
            let mut from = [a; MR];
            for i in 0..MR {
                from[i] = a.add((row + i.min(count - 1)) * depth);
            }
            let mut acc = [[L::splat(L::T::ZERO); NV]; MR];
            let mut w = b;
            // Prefetch the next tile's input and output one cache line per iteration, as in
            // `IndirectGemm`.
            let mut ahead = a.wrapping_add((row + MR) * depth);
            for k in 0..depth {
                L::prefetch(ahead);
                ahead = ahead.wrapping_add(MR);
                if k < MR * NV {
                    let to = (row + MR + k / NV) * stride + k % NV * LANES;
                    L::prefetch_write(c.wrapping_add(to));
                }
                let mut b = [L::splat(L::T::ZERO); NV];
                for v in 0..NV {
                    L::prefetch(w.wrapping_add(PREFETCH_ROWS * width + v * LANES));
                    b[v] = L::load(w.add(v * LANES));
                }
                for i in 0..MR {
                    let a = L::splat(*from[i].add(k));
                    for v in 0..NV {
                        acc[i][v] = acc[i][v].fma(a, b[v]);
                    }
                }
                w = w.add(width);
            }
            // A loop bound of `count` would index the tile with a variable and spill it to memory.
            for i in 0..MR {
                if i >= count {
                    break;
                }
                for v in 0..NV {
                    acc[i][v].store(c.add((row + i) * stride + v * LANES));
                }
            }
        }
        row += count;
    }
}
