//! Indirect GEMM for the forward pass, the data gradient and linear layers (Dukhan, "The Indirect
//! Convolution Algorithm", 2019, arXiv 1907.02129).
//!
//! Each output row is a sum over kernel offsets of a source row times a weight block. Source rows are
//! found through an index table, so stride, dilation, padding and small maps need neither im2col nor
//! special cases.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::activation::Activation;
use super::geometry::Rows;
use super::norm::Sums;
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, Panel};

/// Epilogue: operations fused into the store.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a, T> {
    /// Adds to the target.
    pub(crate) accumulate: bool,
    /// Added per column.
    pub(crate) bias: Option<&'a [T]>,
    /// Added per value; same layout as the target.
    pub(crate) shortcut: Option<&'a [T]>,
    /// Applied last.
    pub(crate) act: Activation,
}

impl<T> Epilogue<'_, T> {
    pub(crate) fn store(accumulate: bool) -> Self {
        Self { accumulate, bias: None, shortcut: None, act: Activation::None }
    }
}

/// `target[row] (+)= sum over kernel offsets of source[row at offset] * weight[offset]`.
pub(crate) struct IndirectGemm<'a, T> {
    pub(crate) images: usize,
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [T],
    /// Stride between source images.
    pub(crate) source_len: usize,
    /// First channel of the group in the source and in the target.
    pub(crate) source_first: usize,
    pub(crate) target_first: usize,
    /// Packed weights of the group.
    pub(crate) weight: &'a [T],
    pub(crate) panels: &'a [Panel],
    pub(crate) target: SharedSlice<T>,
    /// Stride between target images.
    pub(crate) target_len: usize,
    pub(crate) epilogue: Epilogue<'a, T>,
    /// At least `kc` zeros.
    pub(crate) zeros: &'a [T],
    /// Sums of the target, whose rows must be contiguous; one task per [`ROWS_PER_TASK`] rows.
    pub(crate) sums: Option<Sums<'a, T>>,
}

/// Returns the number of tasks that write sums.
pub(crate) fn sum_tasks(rows: usize) -> usize {
    rows.div_ceil(ROWS_PER_TASK)
}

/// Rows per task, and packed weights that stay in the cache while tasks iterate over the rows.
const ROWS_PER_TASK: usize = 48;
const MAX_GROUP_VALUES: usize = 192 * 1024;
/// Largest map, in pixels, whose rows are ordered by pixel rather than by image.
const MAX_BY_PIXEL: usize = 64;
/// Prefetch distance of weights, in rows.
pub(super) const PREFETCH_ROWS: usize = 12;

/// Returns whether rows are ordered by pixel. The rows of a tile then lack the same kernel offsets, which
/// are skipped.
fn by_pixel(rows: &Rows) -> bool {
    rows.p <= MAX_BY_PIXEL && rows.table.iter().any(|offset| *offset < 0)
}

impl<T: Float> IndirectGemm<'_, T> {
    pub(crate) fn run(&self) {
        self.tasks(|tasks, task| parallel(tasks, task));
    }

    /// Runs on the calling thread, inside a task.
    pub(crate) fn run_here(&self) {
        self.tasks(|tasks, task| (0..tasks).for_each(task));
    }

    fn tasks(&self, each: impl FnOnce(usize, &(dyn Fn(usize) + Sync))) {
        let rows = self.images * self.rows.p;
        if rows == 0 || self.panels.is_empty() {
            return;
        }
        self.check();
        // Groups of panels whose weights fit the cache; within a group, blocks of rows.
        let mut groups: Vec<&[Panel]> = Vec::new();
        let mut begin = 0;
        let depth = self.rows.kernel_offsets.len() * self.rows.kc;
        for i in 1..=self.panels.len() {
            let held: usize = self.panels[begin..i].iter().map(|p| p.vectors * LANES * depth).sum();
            if i == self.panels.len() {
                groups.push(&self.panels[begin..i]);
            } else if held + self.panels[i].vectors * LANES * depth > MAX_GROUP_VALUES {
                groups.push(&self.panels[begin..i]);
                begin = i;
            }
        }
        let blocks = rows.div_ceil(ROWS_PER_TASK);
        let by_pixel = by_pixel(self.rows);
        each(groups.len() * blocks, &|task| {
            let first = task % blocks * ROWS_PER_TASK;
            let last = (first + ROWS_PER_TASK).min(rows);
            T::run(Block { gemm: self, panels: groups[task / blocks], first, last, by_pixel });
        });
    }

    /// Checks every bound that the unchecked accesses rely on.
    fn check(&self) {
        let r = self.rows;
        assert_eq!(r.table.len(), r.kernel_offsets.len() * r.p);
        assert_eq!(r.target.len(), r.p);
        assert!(self.zeros.len() >= r.kc);
        let reach = r.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
        assert!(reach == 0 || reach - 1 + self.source_first + r.kc <= self.source_len);
        assert!(self.source.len() >= self.images * self.source_len);
        let columns = self.panels.iter().map(|p| p.first + p.columns).max().unwrap_or(0);
        let far = r.target.iter().max().map_or(0, |m| *m as usize);
        assert!(far + self.target_first + columns <= self.target_len);
        let kernel_offsets = r.kernel_offsets.iter().max().map_or(0, |t| t + 1);
        for p in self.panels {
            assert!(p.offset + kernel_offsets * r.kc * p.vectors * LANES <= self.weight.len());
        }
        if let Some(b) = self.epilogue.bias {
            assert!(b.len() >= self.target_first + columns);
        }
        if let Some(s) = self.epilogue.shortcut {
            assert!(s.len() >= self.images * self.target_len);
        }
        if let Some(s) = &self.sums {
            let c = s.shift.len();
            assert!(
                self.target_len == r.p * c && r.target.iter().enumerate().all(|(q, t)| *t as usize == q * c)
            );
        }
    }
}

struct Block<'a, 'b, T> {
    gemm: &'a IndirectGemm<'b, T>,
    panels: &'a [Panel],
    first: usize,
    last: usize,
    by_pixel: bool,
}

impl<T: Float> Kernel<T> for Block<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        for panel in self.panels {
            // SAFETY: `IndirectGemm::check` checked all bounds; blocks write disjoint rows.
            unsafe {
                if L::LARGE_TILES {
                    match panel.vectors {
                        4 => self.panel::<L, 6, 4>(panel, 0),
                        3 => self.panel::<L, 8, 3>(panel, 0),
                        2 => self.panel::<L, 8, 2>(panel, 0),
                        _ => self.panel::<L, 8, 1>(panel, 0),
                    }
                } else {
                    for v in 0..panel.vectors {
                        self.panel::<L, 6, 1>(panel, v);
                    }
                }
            }
        }
        if let (Some(sums), Some(first), Some(last)) =
            (&self.gemm.sums, self.panels.first(), self.panels.last())
        {
            let rows = self.last - self.first;
            let columns = last.first + last.columns - first.first;
            // SAFETY: this task has just written these rows and columns; `check` verified that rows are
            // contiguous.
            unsafe {
                let c = sums.shift.len();
                let row = |i: usize| {
                    let (image, at) = self.position(self.first + i);
                    self.gemm.target.ptr().add((image * self.gemm.rows.p + at) * c).cast_const()
                };
                let column = self.gemm.target_first + first.first;
                sums.rows(self.first / ROWS_PER_TASK, row, rows, column, columns);
            }
        }
    }
}

/// Rows of a register tile; rows past the end of the block repeat the last one.
struct TileRows<const MR: usize> {
    image: [usize; MR],
    /// Row within the image.
    at: [usize; MR],
    /// Start of the row in the target.
    target: [usize; MR],
}

impl<T: Float> Block<'_, '_, T> {
    /// Returns the image and the row within it.
    #[inline(always)]
    fn position(&self, row: usize) -> (usize, usize) {
        let g = self.gemm;
        if self.by_pixel { (row % g.images, row / g.images) } else { (row / g.rows.p, row % g.rows.p) }
    }

    /// Locates the rows of the tile that starts at `row`.
    #[inline(always)]
    fn positions<const MR: usize>(&self, row: usize) -> TileRows<MR> {
        let g = self.gemm;
        let (mut image, mut at) = self.position(row);
        let mut positions = TileRows { image: [0; MR], at: [0; MR], target: [0; MR] };
        for i in 0..MR {
            positions.image[i] = image;
            positions.at[i] = at;
            // SAFETY: `at` is a row of an image; `IndirectGemm::check` checked the table.
            let target = unsafe { *g.rows.target.get_unchecked(at) };
            positions.target[i] = image * g.target_len + target as usize + g.target_first;
            // Incremental: a division costs as much as ten multiply-adds.
            if row + i + 1 < self.last {
                let (inner, end) = if self.by_pixel { (&mut image, g.images) } else { (&mut at, g.rows.p) };
                *inner += 1;
                if *inner == end {
                    *inner = 0;
                    *if self.by_pixel { &mut at } else { &mut image } += 1;
                }
            }
        }
        positions
    }

    /// Computes `NV` vectors of columns of the panel, from vector `v0`.
    ///
    /// # Safety
    /// Bounds as checked by [`IndirectGemm::check`]; no other task writes these rows.
    #[inline(always)]
    unsafe fn panel<L: Simd<T = T>, const MR: usize, const NV: usize>(&self, panel: &Panel, v0: usize) {
        let g = self.gemm;
        let r = g.rows;
        let width = panel.vectors * LANES;
        let (source, zeros) = (g.source.as_ptr(), g.zeros.as_ptr());
        let column = panel.first + v0 * LANES;
        let whole = panel.columns >= (v0 + NV) * LANES;
        let mut row = self.first;
        let mut positions = self.positions::<MR>(row);
        while row < self.last {
            let count = MR.min(self.last - row);
            // Prefetch the next tile's output one cache line per iteration; issuing all prefetches at
            // once would fill the line-fill buffers and stall this tile's loads.
            let goes_on = row + MR < self.last;
            let next = self.positions::<MR>(if goes_on { row + MR } else { self.first });
            let next_column = if goes_on { column } else { column + NV * LANES };
            // SAFETY: by the function's contract.
            unsafe {
                let weight = g.weight.as_ptr().add(panel.offset + v0 * LANES);
                let prefetch = |line: usize| {
                    let to = next.target[line / NV] + next_column + line % NV * LANES;
                    L::prefetch_write(g.target.ptr().wrapping_add(to));
                    if let Some(shortcut) = g.epilogue.shortcut {
                        L::prefetch(shortcut.as_ptr().wrapping_add(to));
                    }
                };
                let mut line = 0;
                let mut acc = [[L::splat(T::ZERO); NV]; MR];
                for (t, kernel_offset) in r.kernel_offsets.iter().enumerate() {
                    let mut from = [zeros; MR];
                    let mut any = false;
                    for i in 0..MR {
                        let offset = *r.table.get_unchecked(t * r.p + positions.at[i]);
                        if offset >= 0 {
                            any = true;
                            from[i] = source
                                .add(positions.image[i] * g.source_len + g.source_first + offset as usize);
                        }
                    }
                    if !any {
                        continue;
                    }
                    let mut w = weight.add(kernel_offset * r.kc * width);
                    // Source rows are often contiguous: prefetch those of the next tile, too.
                    let mut ahead = from[0].wrapping_add(MR * r.kc);
                    for k in 0..r.kc {
                        L::prefetch(ahead);
                        ahead = ahead.wrapping_add(MR);
                        if line < MR * NV {
                            prefetch(line);
                            line += 1;
                        }
                        let mut b = [L::splat(T::ZERO); NV];
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
                }
                (line..MR * NV).for_each(prefetch);
                if whole && count == MR {
                    self.store_tile(acc, &positions, column);
                } else {
                    self.store_partial_tile(acc, &positions, count, panel, v0);
                }
            }
            positions = next;
            row += count;
        }
    }

    /// Applies the epilogue to a full tile in registers and stores it.
    #[inline(always)]
    unsafe fn store_tile<L: Simd<T = T>, const MR: usize, const NV: usize>(
        &self,
        mut acc: [[L; NV]; MR],
        positions: &TileRows<MR>,
        column: usize,
    ) {
        let e = &self.gemm.epilogue;
        let to = |i: usize, v: usize| positions.target[i] + column + v * LANES;
        // SAFETY: bounds as in `panel`.
        unsafe {
            let target = self.gemm.target.ptr();
            if e.accumulate {
                for i in 0..MR {
                    for v in 0..NV {
                        acc[i][v] = acc[i][v].add(L::load(target.add(to(i, v))));
                    }
                }
            }
            if let Some(bias) = e.bias {
                for v in 0..NV {
                    let bias = L::load(bias.as_ptr().add(self.gemm.target_first + column + v * LANES));
                    for i in 0..MR {
                        acc[i][v] = acc[i][v].add(bias);
                    }
                }
            }
            if let Some(shortcut) = e.shortcut {
                for i in 0..MR {
                    for v in 0..NV {
                        acc[i][v] = acc[i][v].add(L::load(shortcut.as_ptr().add(to(i, v))));
                    }
                }
            }
            for i in 0..MR {
                for v in 0..NV {
                    activate(acc[i][v], e.act).store(target.add(to(i, v)));
                }
            }
        }
    }

    /// Applies the epilogue to a partial tile and stores it.
    #[inline(always)]
    unsafe fn store_partial_tile<L: Simd<T = T>, const MR: usize, const NV: usize>(
        &self,
        acc: [[L; NV]; MR],
        positions: &TileRows<MR>,
        count: usize,
        panel: &Panel,
        v0: usize,
    ) {
        // SAFETY: bounds as in `panel`.
        unsafe {
            // Spill to an array: indexing the tile with a variable bound would keep it in memory during
            // the micro-kernel.
            let mut sums = [[[T::ZERO; LANES]; NV]; MR];
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v].store(sums[i][v].as_mut_ptr());
                }
            }
            for i in 0..count {
                for v in 0..NV {
                    let column = (v0 + v) * LANES;
                    let n = panel.columns.saturating_sub(column).min(LANES);
                    if n > 0 {
                        let sum = L::load(sums[i][v].as_ptr());
                        let column = panel.first + column;
                        self.store_vector(sum, positions.target[i] + column, column, n);
                    }
                }
            }
        }
    }

    /// Applies the epilogue to `n` columns and stores them.
    #[inline(always)]
    unsafe fn store_vector<L: Simd<T = T>>(&self, mut x: L, offset: usize, column: usize, n: usize) {
        let g = self.gemm;
        let e = &g.epilogue;
        // SAFETY: bounds as in `panel`.
        unsafe {
            let to = g.target.ptr().add(offset);
            if e.accumulate {
                x = x.add(L::load_partial(to, n));
            }
            if let Some(bias) = e.bias {
                x = x.add(L::load_partial(bias.as_ptr().add(g.target_first + column), n));
            }
            if let Some(shortcut) = e.shortcut {
                x = x.add(L::load_partial(shortcut.as_ptr().add(offset), n));
            }
            activate(x, e.act).store_partial(to, n);
        }
    }
}

/// Applies an activation to one vector.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn activate<L: Simd>(x: L, act: Activation) -> L {
    // SAFETY: by the caller.
    unsafe {
        match act {
            Activation::None => x,
            Activation::Relu => x.max(L::splat(L::T::ZERO)),
            Activation::Relu6 => x.max(L::splat(L::T::ZERO)).min(L::splat(L::T::narrow(6.0))),
        }
    }
}
