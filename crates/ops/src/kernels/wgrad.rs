//! Weight gradient of a convolution, in panel order.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::geometry::Rows;
use super::{Shared, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, MAX_VECTORS, Panel};

/// Rows whose output gradients lie in the first-level cache at a time.
const BLOCK: usize = 64;
/// Inputs times taps up to which a row of the output's gradient is read too seldom to be copied.
const FEW_INPUTS: usize = 32;
/// Weights up to this size are summed in partial copies over chunks of rows.
const SMALL: usize = 160 * 1024;
/// Copies: of small weights more, which balances threads better.
const CHUNKS: std::ops::RangeInclusive<usize> = 8..=32;
/// Least rows of a chunk.
const CHUNK_ROWS: usize = 128;

/// `gradient[tap][input][column] = sum over rows of source * output gradient` for one group.
pub(crate) struct WeightGradient<'a, T> {
    pub(crate) images: usize,
    /// Tables of the forward pass.
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [T],
    pub(crate) source_len: usize,
    pub(crate) source_first: usize,
    /// Gradient of the output.
    pub(crate) dy: &'a [T],
    pub(crate) dy_len: usize,
    pub(crate) dy_first: usize,
    pub(crate) panels: &'a [Panel],
    /// Written whole (taps that read only padding: zeros).
    pub(crate) gradient: &'a mut [T],
    /// For partial sums: at least [`scratch_len`] values.
    pub(crate) scratch: &'a mut [T],
}

/// Chunks of rows, fixed by the shape.
pub(crate) fn chunks(rows: usize, stored: usize) -> usize {
    let (least, most) = (*CHUNKS.start(), *CHUNKS.end());
    if stored > SMALL || rows < least * CHUNK_ROWS {
        return 1;
    }
    (2 * SMALL / stored).clamp(least, most).min(rows / CHUNK_ROWS)
}

/// The rows of a chunk.
pub(crate) fn chunk(rows: usize, chunks: usize, i: usize) -> std::ops::Range<usize> {
    let per_chunk = rows.div_ceil(chunks);
    (i * per_chunk).min(rows)..((i + 1) * per_chunk).min(rows)
}

/// Adds the copies of the chunks after the first to `gradient`, which is the first one's.
pub(crate) fn add_chunks<T: Float>(gradient: &mut [T], scratch: &mut [T], chunks: usize) {
    let stored = gradient.len();
    let size = stored.div_ceil(16).max(1);
    let (gradient, scratch) = (Shared::new(gradient), Shared::new(scratch));
    parallel(stored.div_ceil(size), |i| {
        let (start, len) = (i * size, size.min(stored - i * size));
        // SAFETY: tasks take disjoint ranges.
        let sum = unsafe { gradient.range(start, len) };
        for c in 0..chunks - 1 {
            // SAFETY: as above.
            let part = unsafe { scratch.range(c * stored + start, len) };
            for (s, p) in sum.iter_mut().zip(part.iter()) {
                *s += *p;
            }
        }
    });
}

/// Values of scratch memory that a weight gradient needs.
pub(crate) fn scratch_len(rows: usize, stored: usize) -> usize {
    (chunks(rows, stored) - 1) * stored
}

/// Values that begin with a line of the cache.
#[repr(align(64))]
struct Lines<T>([T; BLOCK * MAX_VECTORS * LANES]);

/// A part of the work: these rows, this panel, these inputs, into this copy.
struct Part<'a, 'b, T> {
    all: &'a WeightGradient<'b, T>,
    panel: Panel,
    rows: std::ops::Range<usize>,
    inputs: std::ops::Range<usize>,
    into: *mut T,
    /// Whether the first rows overwrite the copy.
    fresh: bool,
}

impl<T: Float> WeightGradient<'_, T> {
    pub(crate) fn run(mut self) {
        let stored = self.gradient.len();
        let rows = self.images * self.rows.p;
        let taps = self.rows.taps.iter().max().map_or(0, |t| t + 1);
        let per_tap: usize = self.panels.iter().map(|p| p.vectors * LANES).sum::<usize>() * self.rows.kc;
        self.check(taps, stored);
        if rows == 0 || self.rows.taps.len() * per_tap < stored {
            self.gradient.fill(T::ZERO);
            self.scratch.fill(T::ZERO);
            if rows == 0 {
                return;
            }
        }
        let chunks = chunks(rows, stored);
        assert!(self.scratch.len() >= (chunks - 1) * stored);
        let (first, others) = (std::mem::take(&mut self.gradient), std::mem::take(&mut self.scratch));
        let (gradient, scratch) = (Shared::new(first), Shared::new(others));
        // Enough tasks for many threads also where there are few panels.
        let cuts = if chunks > 1 { 1 } else { (16 / self.panels.len()).clamp(1, self.rows.kc.div_ceil(32)) };
        let per_cut = self.rows.kc.div_ceil(cuts).next_multiple_of(8);
        let all = &self;
        parallel(chunks * self.panels.len() * cuts, |task| {
            let (number, rest) = (task / (all.panels.len() * cuts), task % (all.panels.len() * cuts));
            let (panel, cut) = (all.panels[rest / cuts], rest % cuts);
            let inputs = (cut * per_cut).min(all.rows.kc)..((cut + 1) * per_cut).min(all.rows.kc);
            let rows = chunk(rows, chunks, number);
            // SAFETY: inside: chunk 0 is the gradient itself, the others lie in the scratch.
            let into = unsafe {
                if number == 0 { gradient.ptr() } else { scratch.ptr().add((number - 1) * stored) }
            };
            T::run(Part { all, panel, rows, inputs, into, fresh: true });
        });
        if chunks > 1 {
            add_chunks(first, others, chunks);
        }
    }

    /// Adds all rows to `into` on this thread, inside of a task; `fresh` ones overwrite it.
    pub(crate) fn run_here(&self, into: &mut [T], fresh: bool) {
        self.check(self.rows.taps.iter().max().map_or(0, |t| t + 1), into.len());
        for &panel in self.panels {
            let (rows, inputs) = (0..self.images * self.rows.p, 0..self.rows.kc);
            T::run(Part { all: self, panel, rows, inputs, into: into.as_mut_ptr(), fresh });
        }
    }

    /// Everything that the unchecked pointers below rely on.
    fn check(&self, taps: usize, stored: usize) {
        let r = self.rows;
        assert_eq!(r.table.len(), r.taps.len() * r.p);
        let reach = r.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
        assert!(reach == 0 || reach - 1 + self.source_first + r.kc <= self.source_len);
        assert!(self.source.len() >= self.images * self.source_len);
        assert!(self.dy.len() >= self.images * self.dy_len);
        for p in self.panels {
            assert!(p.vectors <= MAX_VECTORS);
            assert!(p.offset + taps * r.kc * p.vectors * LANES <= stored);
            let far = r.target.iter().max().map_or(0, |m| *m as usize);
            assert!(far + self.dy_first + p.first + p.columns <= self.dy_len);
        }
    }
}

impl<T: Float> Kernel<T> for Part<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let all = self.all;
        let r = all.rows;
        let width = self.panel.vectors * LANES;
        // Rows of a few inputs are read in place: a copy takes as long as their products.
        let copies = self.panel.columns < width || r.taps.len() * self.inputs.len() > FEW_INPUTS;
        let mut copy = Lines([T::ZERO; BLOCK * MAX_VECTORS * LANES]);
        let (mut pairs, mut places) = ([(0usize, 0usize); BLOCK], [(0usize, 0usize, 0usize); BLOCK]);
        let (mut image, mut at) = (self.rows.start / r.p, self.rows.start % r.p);
        let mut start = self.rows.start;
        while start < self.rows.end || start == self.rows.start {
            let end = (start + BLOCK).min(self.rows.end);
            let places = &mut places[..end.saturating_sub(start)];
            for (i, place) in places.iter_mut().enumerate() {
                let from = image * all.dy_len + r.target[at] as usize + all.dy_first + self.panel.first;
                *place = (image * all.source_len + all.source_first, at, from);
                if copies {
                    let columns = self.panel.columns;
                    copy.0[i * width..i * width + columns].copy_from_slice(&all.dy[from..from + columns]);
                    place.2 = i * width;
                }
                at += 1;
                if at == r.p {
                    (image, at) = (image + 1, 0);
                }
            }
            let dy = if copies { &copy.0[..] } else { all.dy };
            let fresh = self.fresh && start == self.rows.start;
            for (t, tap) in r.taps.iter().enumerate() {
                let mut count = 0;
                for (source, at, dy) in places.iter() {
                    let offset = r.table[t * r.p + at];
                    if offset >= 0 {
                        pairs[count] = (source + offset as usize, *dy);
                        count += 1;
                    }
                }
                let pairs = &pairs[..count];
                let mut input = self.inputs.start;
                while input < self.inputs.end {
                    let left = self.inputs.end - input;
                    // SAFETY: the panel's block of this tap, checked by `WeightGradient::check`;
                    // parts write disjoint panels, inputs or copies.
                    unsafe {
                        let into = self.into.add(self.panel.offset + (tap * r.kc + input) * width);
                        let source = all.source.as_ptr().add(input);
                        input += if L::WIDE {
                            match self.panel.vectors {
                                4 => tiles::<L, 6, 4>(source, dy, pairs, into, width, left, fresh),
                                3 => tiles::<L, 8, 3>(source, dy, pairs, into, width, left, fresh),
                                2 => tiles::<L, 8, 2>(source, dy, pairs, into, width, left, fresh),
                                _ => tiles::<L, 8, 1>(source, dy, pairs, into, width, left, fresh),
                            }
                        } else {
                            let mut done = 0;
                            for v in 0..self.panel.vectors {
                                let (dy, into) = (&dy[v * LANES..], into.add(v * LANES));
                                done = tiles::<L, 6, 1>(source, dy, pairs, into, width, left, fresh);
                            }
                            done
                        };
                    }
                }
            }
            start = end;
            if start == self.rows.start {
                break;
            }
        }
    }
}

/// One tile of at most `MR` inputs; returns how many it took.
#[inline(always)]
unsafe fn tiles<L: Simd, const MR: usize, const NV: usize>(
    source: *const L::T,
    dy: &[L::T],
    pairs: &[(usize, usize)],
    into: *mut L::T,
    width: usize,
    left: usize,
    fresh: bool,
) -> usize {
    // SAFETY: by the caller, for at least `left` inputs.
    unsafe {
        if left >= MR {
            tile::<L, MR, NV>(source, dy, pairs, into, width, fresh);
            MR
        } else if left >= 4 {
            tile::<L, 4, NV>(source, dy, pairs, into, width, fresh);
            4
        } else if left >= 2 {
            tile::<L, 2, NV>(source, dy, pairs, into, width, fresh);
            2
        } else {
            tile::<L, 1, NV>(source, dy, pairs, into, width, fresh);
            1
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Simd, const MR: usize, const NV: usize>(
    source: *const L::T,
    dy: &[L::T],
    pairs: &[(usize, usize)],
    into: *mut L::T,
    width: usize,
    fresh: bool,
) {
    // SAFETY: by the caller, for `MR` inputs and `NV` vectors.
    unsafe {
        let mut acc = [[L::splat(L::T::default()); NV]; MR];
        if !fresh {
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v] = L::load(into.add(i * width + v * LANES));
                }
            }
        }
        let dy = dy.as_ptr();
        for (x, d) in pairs {
            let (x, d) = (source.add(*x), dy.add(*d));
            let mut b = [L::splat(L::T::default()); NV];
            for v in 0..NV {
                b[v] = L::load(d.add(v * LANES));
            }
            for i in 0..MR {
                let a = L::splat(*x.add(i));
                for v in 0..NV {
                    acc[i][v] = acc[i][v].fma(a, b[v]);
                }
            }
        }
        for i in 0..MR {
            for v in 0..NV {
                acc[i][v].store(into.add(i * width + v * LANES));
            }
        }
    }
}
