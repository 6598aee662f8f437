//! Convolutions that treat every channel by itself; weights `[tap][channel]`.

#![allow(unsafe_code)]

use super::geometry::Rows;
use super::norm::Sums;
use super::tap_gemm::{Act, Epilogue};
use super::{Shared, parallel};
use crate::lanes::{Kernel, Lanes};
use crate::panels::LANES;
use crate::real::Real;

/// `target[row] (+)= sum over taps of source[row of tap] * weight[tap]`, channel by channel:
/// the forward pass, and the data gradient with the tables of a phase.
pub(crate) struct Depthwise<'a, T> {
    pub(crate) images: usize,
    pub(crate) channels: usize,
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [T],
    pub(crate) source_len: usize,
    pub(crate) weight: &'a [T],
    pub(crate) target: Shared<T>,
    pub(crate) target_len: usize,
    pub(crate) epilogue: Epilogue<'a, T>,
    /// Sums of the target, whose rows must follow one another; [`sum_tasks`] of them.
    pub(crate) sums: Option<Sums<'a, T>>,
}

fn step(rows: usize, channels: usize) -> usize {
    super::rows_per_task(rows, channels * 4)
}

/// Tasks that leave sums.
pub(crate) fn sum_tasks(rows: usize, channels: usize) -> usize {
    rows.div_ceil(step(rows, channels))
}

struct Span<'a, 'b, T> {
    all: &'a Depthwise<'b, T>,
    first: usize,
    last: usize,
}

fn check(rows: &Rows, channels: usize, images: usize, [source, source_len]: [usize; 2], target_len: usize) {
    assert_eq!(rows.table.len(), rows.taps.len() * rows.p);
    let reach = rows.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
    assert!(reach == 0 || reach - 1 + channels <= source_len);
    assert!(source >= images * source_len);
    assert!(rows.target.iter().max().map_or(0, |m| *m as usize) + channels <= target_len);
}

impl<T: Real> Depthwise<'_, T> {
    pub(crate) fn run(&self) {
        let rows = self.images * self.rows.p;
        if rows == 0 {
            return;
        }
        check(self.rows, self.channels, self.images, [self.source.len(), self.source_len], self.target_len);
        assert!(self.rows.taps.iter().all(|t| (t + 1) * self.channels <= self.weight.len()));
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

impl<T: Real> Kernel<T> for Span<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes<T = T>>(self) {
        let d = self.all;
        let r = d.rows;
        for row in self.first..self.last {
            let (image, at) = (row / r.p, row % r.p);
            let mut c = 0;
            while c < d.channels {
                // SAFETY: bounds were seen by `check`; spans write disjoint rows.
                unsafe {
                    if d.channels - c >= 4 * LANES {
                        self.columns::<L, 4>(image, at, c, 4 * LANES);
                        c += 4 * LANES;
                    } else {
                        let n = (d.channels - c).min(LANES);
                        self.columns::<L, 1>(image, at, c, n);
                        c += n;
                    }
                }
            }
        }
        if let Some(sums) = &d.sums {
            let task = self.first / step(d.images * r.p, d.channels);
            // SAFETY: this task has just written these rows; `run` saw that they follow one another.
            unsafe {
                let from = d.target.ptr().add(self.first * d.channels);
                sums.rows(task, |i| from.wrapping_add(i * d.channels), self.last - self.first, 0, d.channels);
            }
        }
    }
}

impl<T: Real> Span<'_, '_, T> {
    /// `n` channels from `c`: full vectors, or one partial one.
    #[inline(always)]
    unsafe fn columns<L: Lanes<T = T>, const NV: usize>(&self, image: usize, at: usize, c: usize, n: usize) {
        let d = self.all;
        let r = d.rows;
        // SAFETY: bounds were seen by `check`.
        unsafe {
            let load = |p: *const T, v: usize| {
                if n >= NV * LANES { L::load(p.add(v * LANES)) } else { L::load_part(p, n) }
            };
            let mut acc = [L::splat(T::ZERO); NV];
            for (t, tap) in r.taps.iter().enumerate() {
                let offset = *r.table.get_unchecked(t * r.p + at);
                if offset >= 0 {
                    let x = d.source.as_ptr().add(image * d.source_len + offset as usize + c);
                    let w = d.weight.as_ptr().add(tap * d.channels + c);
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = acc.fma(load(x, v), load(w, v));
                    }
                }
            }
            let offset = image * d.target_len + r.target[at] as usize + c;
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
                match e.act {
                    Act::None => {}
                    Act::Relu => x = x.max(L::splat(T::ZERO)),
                    Act::Relu6 => x = x.max(L::splat(T::ZERO)).min(L::splat(T::of(6.0))),
                }
                if n >= NV * LANES {
                    x.store(to.add(v * LANES));
                } else {
                    x.store_part(to, n);
                }
            }
        }
    }
}

/// Weight gradient `[tap][channel]`, written whole.
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
/// Taps whose sums stay in registers.
const TAPS: usize = 9;

fn chunks(rows: usize) -> usize {
    if rows >= 256 { CHUNKS } else { 1 }
}

/// Values of scratch memory that the weight gradient needs.
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
    /// First channel of this task.
    c: usize,
    into: *mut T,
}

impl<T: Real> DepthwiseGradient<'_, T> {
    pub(crate) fn run(self) {
        let rows = self.images * self.rows.p;
        let stored = self.gradient.len();
        let chunks = chunks(rows);
        let scratch = &mut self.scratch[..chunks * stored];
        check(self.rows, self.channels, self.images, [self.source.len(), self.source_len], self.dy_len);
        assert!(self.dy.len() >= self.images * self.dy_len);
        assert!(self.rows.taps.iter().all(|t| (t + 1) * self.channels <= stored));
        if self.rows.taps.len() * self.channels < stored || rows == 0 {
            scratch.fill(T::ZERO);
        }
        let per_chunk = rows.div_ceil(chunks);
        let blocks = self.channels.div_ceil(LANES);
        let shared = Shared::new(scratch);
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
                c: block * LANES,
                into,
            });
        });
        for (i, g) in self.gradient.iter_mut().enumerate() {
            *g = (0..chunks).map(|c| self.scratch[c * stored + i]).fold(T::ZERO, |a, b| a + b);
        }
    }
}

impl<T: Real> Kernel<T> for Sum<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes<T = T>>(self) {
        let r = self.rows;
        let n = (self.channels - self.c).min(LANES);
        let zeros = [T::ZERO; LANES];
        for first in (0..r.taps.len()).step_by(TAPS) {
            let count = TAPS.min(r.taps.len() - first);
            // SAFETY: bounds were seen by `check`; this task owns its channels of its copy.
            unsafe {
                let mut acc = [L::splat(T::ZERO); TAPS];
                for row in self.range.clone() {
                    let (image, at) = (row / r.p, row % r.p);
                    let dy = self
                        .dy
                        .as_ptr()
                        .add(image * self.dy_len + *r.target.get_unchecked(at) as usize + self.c);
                    let source = self.source.as_ptr().add(image * self.source_len + self.c);
                    let from = |t: usize| {
                        let offset =
                            if t < count { *r.table.get_unchecked((first + t) * r.p + at) } else { -1 };
                        if offset >= 0 { source.add(offset as usize) } else { zeros.as_ptr() }
                    };
                    if n == LANES {
                        let d = L::load(dy);
                        for (t, acc) in acc.iter_mut().enumerate() {
                            *acc = acc.fma(d, L::load(from(t)));
                        }
                    } else {
                        let d = L::load_part(dy, n);
                        for (t, acc) in acc.iter_mut().enumerate() {
                            *acc = acc.fma(d, L::load_part(from(t), n));
                        }
                    }
                }
                for (t, acc) in acc.iter().enumerate().take(count) {
                    acc.store_part(self.into.add(r.taps[first + t] * self.channels + self.c), n);
                }
            }
        }
    }
}
