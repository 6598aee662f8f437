//! Weight gradient of a convolution, in packed order.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::geometry::Rows;
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, MAX_VECTORS, Panel};

/// Rows of output gradients per cache block (L1).
const BLOCK: usize = 64;
/// Largest number of inputs times kernel offsets for which copying a row of the output gradient does not
/// pay.
const MAX_IN_PLACE_INPUTS: usize = 32;
/// Largest weight, in values, that is accumulated in one copy per chunk of rows.
const MAX_CHUNKED: usize = 160 * 1024;
/// Number of copies; more for small weights, for load balance.
const CHUNKS: std::ops::RangeInclusive<usize> = 8..=32;
/// Minimum rows of a chunk.
const CHUNK_ROWS: usize = 128;

/// `gradient[kernel offset][input][column] = sum over rows of source * output gradient` for one group.
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
    /// All values are written (zeros for kernel offsets that read only padding).
    pub(crate) gradient: &'a mut [T],
    /// At least [`scratch_len`] values, for partial sums.
    pub(crate) scratch: &'a mut [T],
}

/// Returns the number of row chunks, fixed by the shape.
pub(crate) fn chunks(rows: usize, stored: usize) -> usize {
    let (least, most) = (*CHUNKS.start(), *CHUNKS.end());
    if stored > MAX_CHUNKED || rows < least * CHUNK_ROWS {
        return 1;
    }
    (2 * MAX_CHUNKED / stored).clamp(least, most).min(rows / CHUNK_ROWS)
}

/// Returns the rows of a chunk.
pub(crate) fn chunk(rows: usize, chunks: usize, i: usize) -> std::ops::Range<usize> {
    let per_chunk = rows.div_ceil(chunks);
    (i * per_chunk).min(rows)..((i + 1) * per_chunk).min(rows)
}

/// Adds the partial sums of all chunks but the first, which is in `gradient` already.
pub(crate) fn add_chunks<T: Float>(gradient: &mut [T], scratch: &mut [T], chunks: usize) {
    let stored = gradient.len();
    let size = stored.div_ceil(16).max(1);
    let (gradient, scratch) = (SharedSlice::new(gradient), SharedSlice::new(scratch));
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

/// Returns the scratch length of a weight gradient.
pub(crate) fn scratch_len(rows: usize, stored: usize) -> usize {
    (chunks(rows, stored) - 1) * stored
}

/// Values aligned to a cache line.
#[repr(align(64))]
struct Lines<T>([T; BLOCK * MAX_VECTORS * LANES]);

/// A unit of work: rows, panel, inputs, and the copy to accumulate into.
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
        let kernel_offsets = self.rows.kernel_offsets.iter().max().map_or(0, |t| t + 1);
        let per_offset: usize = self.panels.iter().map(|p| p.vectors * LANES).sum::<usize>() * self.rows.kc;
        self.check(kernel_offsets, stored);
        if rows == 0 || self.rows.kernel_offsets.len() * per_offset < stored {
            self.gradient.fill(T::ZERO);
            self.scratch.fill(T::ZERO);
            if rows == 0 {
                return;
            }
        }
        let chunks = chunks(rows, stored);
        assert!(self.scratch.len() >= (chunks - 1) * stored);
        let (first, others) = (std::mem::take(&mut self.gradient), std::mem::take(&mut self.scratch));
        let (gradient, scratch) = (SharedSlice::new(first), SharedSlice::new(others));
        // Enough tasks for many threads even with few panels.
        let cuts = if chunks > 1 { 1 } else { (16 / self.panels.len()).clamp(1, self.rows.kc.div_ceil(32)) };
        let per_cut = self.rows.kc.div_ceil(cuts).next_multiple_of(8);
        let all = &self;
        parallel(chunks * self.panels.len() * cuts, |task| {
            let (number, rest) = (task / (all.panels.len() * cuts), task % (all.panels.len() * cuts));
            let (panel, cut) = (all.panels[rest / cuts], rest % cuts);
            let inputs = (cut * per_cut).min(all.rows.kc)..((cut + 1) * per_cut).min(all.rows.kc);
            let rows = chunk(rows, chunks, number);
            // SAFETY: in bounds: chunk 0 is the gradient itself, the others lie in the scratch buffer.
            let into = unsafe {
                if number == 0 { gradient.ptr() } else { scratch.ptr().add((number - 1) * stored) }
            };
            T::run(Part { all, panel, rows, inputs, into, fresh: true });
        });
        if chunks > 1 {
            add_chunks(first, others, chunks);
        }
    }

    /// Accumulates all rows into `into` on the calling thread, inside a task; overwrites it if `fresh`.
    pub(crate) fn run_here(&self, into: &mut [T], fresh: bool) {
        self.check(self.rows.kernel_offsets.iter().max().map_or(0, |t| t + 1), into.len());
        for &panel in self.panels {
            let (rows, inputs) = (0..self.images * self.rows.p, 0..self.rows.kc);
            T::run(Part { all: self, panel, rows, inputs, into: into.as_mut_ptr(), fresh });
        }
    }

    /// Checks every bound that the unchecked accesses rely on.
    fn check(&self, kernel_offsets: usize, stored: usize) {
        let r = self.rows;
        assert_eq!(r.table.len(), r.kernel_offsets.len() * r.p);
        let reach = r.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
        assert!(reach == 0 || reach - 1 + self.source_first + r.kc <= self.source_len);
        assert!(self.source.len() >= self.images * self.source_len);
        assert!(self.dy.len() >= self.images * self.dy_len);
        for p in self.panels {
            assert!(p.vectors <= MAX_VECTORS);
            assert!(p.offset + kernel_offsets * r.kc * p.vectors * LANES <= stored);
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
        // With few inputs, rows are read in place: a copy costs as much as their products.
        let copies =
            self.panel.columns < width || r.kernel_offsets.len() * self.inputs.len() > MAX_IN_PLACE_INPUTS;
        let mut copy = Lines([T::ZERO; BLOCK * MAX_VECTORS * LANES]);
        let (mut pairs, mut positions) = ([(0usize, 0usize); BLOCK], [(0usize, 0usize, 0usize); BLOCK]);
        let (mut image, mut at) = (self.rows.start / r.p, self.rows.start % r.p);
        let mut start = self.rows.start;
        while start < self.rows.end || start == self.rows.start {
            let end = (start + BLOCK).min(self.rows.end);
            let positions = &mut positions[..end.saturating_sub(start)];
            for (i, position) in positions.iter_mut().enumerate() {
                let from = image * all.dy_len + r.target[at] as usize + all.dy_first + self.panel.first;
                *position = (image * all.source_len + all.source_first, at, from);
                if copies {
                    let columns = self.panel.columns;
                    copy.0[i * width..i * width + columns].copy_from_slice(&all.dy[from..from + columns]);
                    position.2 = i * width;
                }
                at += 1;
                if at == r.p {
                    (image, at) = (image + 1, 0);
                }
            }
            let dy = if copies { &copy.0[..] } else { all.dy };
            let fresh = self.fresh && start == self.rows.start;
            for (t, kernel_offset) in r.kernel_offsets.iter().enumerate() {
                let mut count = 0;
                for (source, at, dy) in positions.iter() {
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
                    // SAFETY: the panel's block of this kernel offset, checked by
                    // `WeightGradient::check`; units write disjoint panels, inputs or copies.
                    unsafe {
                        let into = self.into.add(self.panel.offset + (kernel_offset * r.kc + input) * width);
                        let source = all.source.as_ptr().add(input);
                        input += if L::LARGE_TILES {
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

/// Computes one register tile of at most `MR` inputs; returns the number of inputs.
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
