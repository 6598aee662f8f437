//! Depthwise convolution; weights `[kernel offset][channel]`.

#![allow(unsafe_code)]

use super::geometry::Rows;
use super::indirect_gemm::{Epilogue, activate};
use super::norm::Sums;
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::LANES;

/// `target[row] (+)= sum over kernel offsets of source[row at offset] * weight[offset]` per channel: the
/// forward pass, and the data gradient with the tables of a stride phase.
pub(crate) struct Depthwise<'a, T> {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [T],
    pub(crate) source_len: usize,
    pub(crate) weight: &'a [T],
    pub(crate) target: SharedSlice<T>,
    pub(crate) target_len: usize,
    pub(crate) epilogue: Epilogue<'a, T>,
    /// Sums of the target, whose rows must be contiguous; [`sum_tasks`] of them.
    pub(crate) sums: Option<Sums<'a, T>>,
}

fn step(rows: usize, channels: usize) -> usize {
    super::rows_per_task(rows, channels * 4)
}

/// Returns the number of tasks that write sums.
pub(crate) fn sum_tasks(rows: usize, channels: usize) -> usize {
    rows.div_ceil(step(rows, channels))
}

struct Span<'a, 'b, T> {
    all: &'a Depthwise<'b, T>,
    first: usize,
    last: usize,
}

fn check(rows: &Rows, channels: usize, images: usize, [source, source_len]: [usize; 2], target_len: usize) {
    assert_eq!(rows.table.len(), rows.kernel_offsets.len() * rows.p);
    let reach = rows.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
    assert!(reach == 0 || reach - 1 + channels <= source_len);
    assert!(source >= images * source_len);
    assert!(rows.target.iter().max().map_or(0, |m| *m as usize) + channels <= target_len);
}

impl<T: Float> Depthwise<'_, T> {
    pub(crate) fn run(&self) {
        let rows = self.images * self.rows.p;
        if rows == 0 {
            return;
        }
        check(self.rows, self.channels, self.images, [self.source.len(), self.source_len], self.target_len);
        assert!(self.rows.kernel_offsets.iter().all(|t| (t + 1) * self.channels <= self.weight.len()));
        if self.sums.is_some() {
            let c = self.channels;
            assert!(self.target_len == self.rows.p * c);
            assert!(self.rows.target.iter().enumerate().all(|(q, t)| *t as usize == q * c));
        }
        let step = step(rows, self.channels);
        parallel(rows.div_ceil(step), |i| {
            T::run(Span { all: self, first: i * step, last: ((i + 1) * step).min(rows) });
        });
    }
}

impl<T: Float> Kernel<T> for Span<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let d = self.all;
        let r = d.rows;
        // Starts of the source pixel and of the weights for each kernel offset of a row.
        let mut kernel_offsets = Vec::with_capacity(r.kernel_offsets.len());
        let (mut image, mut at) = (self.first / r.p, self.first % r.p);
        for _ in self.first..self.last {
            kernel_offsets.clear();
            for (t, kernel_offset) in r.kernel_offsets.iter().enumerate() {
                let offset = r.table[t * r.p + at];
                if offset >= 0 {
                    kernel_offsets.push((image * d.source_len + offset as usize, kernel_offset * d.channels));
                }
            }
            let target = image * d.target_len + r.target[at] as usize;
            let mut c = 0;
            while c < d.channels {
                let left = d.channels - c;
                // SAFETY: bounds were checked by `check`; spans write disjoint rows.
                c += unsafe {
                    match left / LANES {
                        0 => self.columns::<L, 1, false>(&kernel_offsets, target, c, left),
                        1 => self.columns::<L, 1, true>(&kernel_offsets, target, c, LANES),
                        2 => self.columns::<L, 2, true>(&kernel_offsets, target, c, 2 * LANES),
                        3 => self.columns::<L, 3, true>(&kernel_offsets, target, c, 3 * LANES),
                        _ => self.columns::<L, 4, true>(&kernel_offsets, target, c, 4 * LANES),
                    }
                };
            }
            at += 1;
            if at == r.p {
                (image, at) = (image + 1, 0);
            }
        }
        if let Some(sums) = &d.sums {
            let task = self.first / step(d.images * r.p, d.channels);
            // SAFETY: this task has just written these rows; `run` checked that they are contiguous.
            unsafe {
                let from = d.target.ptr().add(self.first * d.channels);
                sums.rows(task, |i| from.wrapping_add(i * d.channels), self.last - self.first, 0, d.channels);
            }
        }
    }
}

impl<T: Float> Span<'_, '_, T> {
    /// Computes `n` channels from `c` of one row: `NV` vectors, or part of one. Returns `n`.
    #[inline(always)]
    unsafe fn columns<L: Simd<T = T>, const NV: usize, const WHOLE: bool>(
        &self,
        kernel_offsets: &[(usize, usize)],
        target: usize,
        c: usize,
        n: usize,
    ) -> usize {
        let d = self.all;
        // SAFETY: bounds were checked by `check`.
        unsafe {
            let load = |p: *const T, v: usize| {
                if WHOLE { L::load(p.add(v * LANES)) } else { L::load_partial(p, n) }
            };
            let (source, weight) = (d.source.as_ptr().add(c), d.weight.as_ptr().add(c));
            let mut acc = [L::splat(T::ZERO); NV];
            for (x, w) in kernel_offsets {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = acc.fma(load(source.add(*x), v), load(weight.add(*w), v));
                }
            }
            let offset = target + c;
            let to = d.target.ptr().add(offset);
            let e = &d.epilogue;
            for (v, acc) in acc.iter().enumerate() {
                let mut x = *acc;
                if e.accumulate {
                    x = x.add(load(to, v));
                }
                if let Some(bias) = e.bias {
                    x = x.add(load(bias.as_ptr().add(c), v));
                }
                if let Some(shortcut) = e.shortcut {
                    x = x.add(load(shortcut.as_ptr().add(offset), v));
                }
                x = activate(x, e.act);
                if WHOLE {
                    x.store(to.add(v * LANES));
                } else {
                    x.store_partial(to, n);
                }
            }
        }
        n
    }
}

/// Weight gradient `[kernel offset][channel]`; all values are written.
pub(crate) struct DepthwiseGradient<'a, T> {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [T],
    pub(crate) source_len: usize,
    pub(crate) dy: &'a [T],
    pub(crate) dy_len: usize,
    pub(crate) gradient: &'a mut [T],
    /// At least [`gradient_scratch`] values.
    pub(crate) scratch: &'a mut [T],
}

const CHUNKS: usize = 8;
/// Kernel offsets accumulated in registers, and channel vectors that share one table lookup.
const MAX_OFFSETS: usize = 9;
const VECTORS: usize = 3;

fn chunks(rows: usize) -> usize {
    if rows >= 256 { CHUNKS } else { 1 }
}

/// Returns the scratch length of the weight gradient.
pub(crate) fn gradient_scratch(rows: usize, stored: usize) -> usize {
    chunks(rows) * stored
}

struct Sum<'a, T> {
    channels: usize,
    rows: &'a Rows,
    source: &'a [T],
    source_len: usize,
    dy: &'a [T],
    dy_len: usize,
    range: std::ops::Range<usize>,
    /// Channel vectors of this task.
    vectors: std::ops::Range<usize>,
    into: *mut T,
}

impl<T: Float> DepthwiseGradient<'_, T> {
    pub(crate) fn run(self) {
        let rows = self.images * self.rows.p;
        let stored = self.gradient.len();
        let chunks = chunks(rows);
        let scratch = &mut self.scratch[..chunks * stored];
        check(self.rows, self.channels, self.images, [self.source.len(), self.source_len], self.dy_len);
        assert!(self.dy.len() >= self.images * self.dy_len);
        assert!(self.rows.kernel_offsets.iter().all(|t| (t + 1) * self.channels <= stored));
        if self.rows.kernel_offsets.len() * self.channels < stored || rows == 0 {
            scratch.fill(T::ZERO);
        }
        let per_chunk = rows.div_ceil(chunks);
        let vectors = self.channels.div_ceil(LANES);
        let blocks = vectors.div_ceil(VECTORS);
        let shared = SharedSlice::new(scratch);
        parallel(chunks * blocks, |task| {
            let (chunk, block) = (task / blocks, task % blocks);
            // SAFETY: chunk `chunk` of the scratch; tasks write disjoint channels of it.
            let into = unsafe { shared.ptr().add(chunk * stored) };
            T::run(Sum {
                channels: self.channels,
                rows: self.rows,
                source: self.source,
                source_len: self.source_len,
                dy: self.dy,
                dy_len: self.dy_len,
                range: (chunk * per_chunk).min(rows)..((chunk + 1) * per_chunk).min(rows),
                vectors: block * VECTORS..((block + 1) * VECTORS).min(vectors),
                into,
            });
        });
        let (first, others) = self.scratch[..chunks * stored].split_at(stored);
        self.gradient.copy_from_slice(first);
        for part in others.chunks_exact(stored) {
            self.gradient.iter_mut().zip(part).for_each(|(g, p)| *g += *p);
        }
    }
}

impl<T: Float> Kernel<T> for Sum<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let mut v = self.vectors.start;
        while v < self.vectors.end {
            let (c, left) = (v * LANES, self.channels - v * LANES);
            // SAFETY: bounds were checked by `check`; each task owns its channels of its copy.
            v += unsafe {
                match self.vectors.end - v {
                    _ if left < LANES => self.columns::<L, 1, false>(c, left),
                    3 if L::LARGE_TILES && left >= 3 * LANES => self.columns::<L, 3, true>(c, LANES),
                    2.. if L::LARGE_TILES && left >= 2 * LANES => self.columns::<L, 2, true>(c, LANES),
                    _ => self.columns::<L, 1, true>(c, LANES),
                }
            };
        }
    }
}

impl<T: Float> Sum<'_, T> {
    /// Accumulates all rows for `NV` vectors of channels from `c`, or for one of `n` channels. Returns
    /// `NV`.
    #[inline(always)]
    unsafe fn columns<L: Simd<T = T>, const NV: usize, const WHOLE: bool>(
        &self,
        c: usize,
        n: usize,
    ) -> usize {
        let r = self.rows;
        let zeros = [T::ZERO; VECTORS * LANES];
        for first in (0..r.kernel_offsets.len()).step_by(MAX_OFFSETS) {
            let count = MAX_OFFSETS.min(r.kernel_offsets.len() - first);
            // SAFETY: by the caller.
            unsafe {
                let load = |p: *const T, v: usize| {
                    if WHOLE { L::load(p.add(v * LANES)) } else { L::load_partial(p, n) }
                };
                let mut acc = [[L::splat(T::ZERO); NV]; MAX_OFFSETS];
                let (mut image, mut at) = (self.range.start / r.p, self.range.start % r.p);
                for _ in self.range.clone() {
                    let target = *r.target.get_unchecked(at) as usize;
                    let dy = self.dy.as_ptr().add(image * self.dy_len + target + c);
                    let source = self.source.as_ptr().add(image * self.source_len + c);
                    let mut d = [L::splat(T::ZERO); NV];
                    for (v, d) in d.iter_mut().enumerate() {
                        *d = load(dy, v);
                    }
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let offset =
                            if t < count { *r.table.get_unchecked((first + t) * r.p + at) } else { -1 };
                        let x = if offset >= 0 { source.add(offset as usize) } else { zeros.as_ptr() };
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = acc.fma(d[v], load(x, v));
                        }
                    }
                    at += 1;
                    if at == r.p {
                        (image, at) = (image + 1, 0);
                    }
                }
                for (t, acc) in acc.iter().enumerate().take(count) {
                    let into = self.into.add(r.kernel_offsets[first + t] * self.channels + c);
                    for (v, acc) in acc.iter().enumerate() {
                        if WHOLE {
                            acc.store(into.add(v * LANES));
                        } else {
                            acc.store_partial(into, n);
                        }
                    }
                }
            }
        }
        NV
    }
}
