//! One matrix product for the forward pass, the data gradient and linear layers.
//!
//! Every output row is the sum over taps of a source row times a weight block; the source row of
//! a tap is found through a table, so stride, dilation, padding and small maps need no code of
//! their own.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // register tiles are indexed

use super::geometry::Rows;
use super::norm::Sums;
use super::{Shared, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::{LANES, Panel};

/// Activation at the end of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// None.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl Activation {
    /// The open interval of outputs where the derivative is one.
    pub(crate) fn bounds(self) -> Option<(f64, f64)> {
        match self {
            Self::None => None,
            Self::Relu => Some((0.0, f64::INFINITY)),
            Self::Relu6 => Some((0.0, 6.0)),
        }
    }
}

/// What is done to a result before it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a, T> {
    /// Add to what is there.
    pub(crate) accumulate: bool,
    /// Added per column.
    pub(crate) bias: Option<&'a [T]>,
    /// Added per value; laid out as the target.
    pub(crate) shortcut: Option<&'a [T]>,
    /// Applied last.
    pub(crate) act: Activation,
}

impl<T> Epilogue<'_, T> {
    pub(crate) fn store(accumulate: bool) -> Self {
        Self { accumulate, bias: None, shortcut: None, act: Activation::None }
    }
}

/// `target[row] (+)= sum over taps of source[row of tap] * weight[tap]`.
pub(crate) struct IndirectGemm<'a, T> {
    pub(crate) images: usize,
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [T],
    /// Values from one source image to the next.
    pub(crate) source_len: usize,
    /// First channel of the group in the source and in the target.
    pub(crate) source_first: usize,
    pub(crate) target_first: usize,
    /// Weights of the group in panel order.
    pub(crate) weight: &'a [T],
    pub(crate) panels: &'a [Panel],
    pub(crate) target: Shared<T>,
    /// Values from one target image to the next.
    pub(crate) target_len: usize,
    pub(crate) epilogue: Epilogue<'a, T>,
    /// At least `kc` zeros.
    pub(crate) zeros: &'a [T],
    /// Sums of the target, whose rows must follow one another; one task for every [`TASK_ROWS`].
    pub(crate) sums: Option<Sums<'a, T>>,
}

/// Tasks that leave sums.
pub(crate) fn sum_tasks(rows: usize) -> usize {
    rows.div_ceil(TASK_ROWS)
}

/// Rows in a task, and values of weights that stay in the cache while tasks go down the rows.
const TASK_ROWS: usize = 48;
const GROUP_VALUES: usize = 192 * 1024;
/// Pixels of a map so small that rows go by pixel, not by image.
const FEW_PIXELS: usize = 64;
/// Rows of weights that are asked for before they are read.
pub(super) const AHEAD: usize = 12;

/// Whether rows go by pixel: the rows of a tile then lack the same taps, which are left out.
fn by_pixel(rows: &Rows) -> bool {
    rows.p <= FEW_PIXELS && rows.table.iter().any(|offset| *offset < 0)
}

impl<T: Float> IndirectGemm<'_, T> {
    pub(crate) fn run(&self) {
        self.tasks(|tasks, task| parallel(tasks, task));
    }

    /// The same on this thread alone, inside of a task.
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
        let depth = self.rows.taps.len() * self.rows.kc;
        for i in 1..=self.panels.len() {
            let held: usize = self.panels[begin..i].iter().map(|p| p.vectors * LANES * depth).sum();
            if i == self.panels.len() {
                groups.push(&self.panels[begin..i]);
            } else if held + self.panels[i].vectors * LANES * depth > GROUP_VALUES {
                groups.push(&self.panels[begin..i]);
                begin = i;
            }
        }
        let blocks = rows.div_ceil(TASK_ROWS);
        let by_pixel = by_pixel(self.rows);
        each(groups.len() * blocks, &|task| {
            let first = task % blocks * TASK_ROWS;
            let last = (first + TASK_ROWS).min(rows);
            T::run(Block { gemm: self, panels: groups[task / blocks], first, last, by_pixel });
        });
    }

    /// Everything that the unchecked pointers below rely on.
    fn check(&self) {
        let r = self.rows;
        assert_eq!(r.table.len(), r.taps.len() * r.p);
        assert_eq!(r.target.len(), r.p);
        assert!(self.zeros.len() >= r.kc);
        let reach = r.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
        assert!(reach == 0 || reach - 1 + self.source_first + r.kc <= self.source_len);
        assert!(self.source.len() >= self.images * self.source_len);
        let columns = self.panels.iter().map(|p| p.first + p.columns).max().unwrap_or(0);
        let far = r.target.iter().max().map_or(0, |m| *m as usize);
        assert!(far + self.target_first + columns <= self.target_len);
        let taps = r.taps.iter().max().map_or(0, |t| t + 1);
        for p in self.panels {
            assert!(p.offset + taps * r.kc * p.vectors * LANES <= self.weight.len());
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
            // SAFETY: `IndirectGemm::check` has seen all bounds; blocks write disjoint rows.
            unsafe {
                if L::WIDE {
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
            // SAFETY: this task has just written these rows and columns; `check` saw that rows follow
            // one another.
            unsafe {
                let c = sums.shift.len();
                let row = |i: usize| {
                    let (image, at) = self.place(self.first + i);
                    self.gemm.target.ptr().add((image * self.gemm.rows.p + at) * c).cast_const()
                };
                let column = self.gemm.target_first + first.first;
                sums.rows(self.first / TASK_ROWS, row, rows, column, columns);
            }
        }
    }
}

/// Rows of a tile: those after the last one of the block are the last one again.
struct Places<const MR: usize> {
    image: [usize; MR],
    /// Row in the image.
    at: [usize; MR],
    /// Where the row begins in the target.
    target: [usize; MR],
}

impl<T: Float> Block<'_, '_, T> {
    /// Image and row in the image of a row.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        let g = self.gemm;
        if self.by_pixel { (row % g.images, row / g.images) } else { (row / g.rows.p, row % g.rows.p) }
    }

    /// Places of the tile that begins with a row of the block.
    #[inline(always)]
    fn places<const MR: usize>(&self, row: usize) -> Places<MR> {
        let g = self.gemm;
        let (mut image, mut at) = self.place(row);
        let mut places = Places { image: [0; MR], at: [0; MR], target: [0; MR] };
        for i in 0..MR {
            places.image[i] = image;
            places.at[i] = at;
            // SAFETY: a row of an image, of which `IndirectGemm::check` has seen the table.
            let target = unsafe { *g.rows.target.get_unchecked(at) };
            places.target[i] = image * g.target_len + target as usize + g.target_first;
            // A division takes as long as ten products.
            if row + i + 1 < self.last {
                let (inner, end) = if self.by_pixel { (&mut image, g.images) } else { (&mut at, g.rows.p) };
                *inner += 1;
                if *inner == end {
                    *inner = 0;
                    *if self.by_pixel { &mut at } else { &mut image } += 1;
                }
            }
        }
        places
    }

    /// Columns of `NV` vectors of the panel, from vector `v0`.
    ///
    /// # Safety
    /// The bounds are those that [`IndirectGemm::check`] has seen; no other task writes these rows.
    #[inline(always)]
    unsafe fn panel<L: Simd<T = T>, const MR: usize, const NV: usize>(&self, panel: &Panel, v0: usize) {
        let g = self.gemm;
        let r = g.rows;
        let width = panel.vectors * LANES;
        let (source, zeros) = (g.source.as_ptr(), g.zeros.as_ptr());
        let column = panel.first + v0 * LANES;
        let whole = panel.columns >= (v0 + NV) * LANES;
        let mut row = self.first;
        let mut places = self.places::<MR>(row);
        while row < self.last {
            let count = MR.min(self.last - row);
            // What the next tile touches at its end is asked for line by line while the products of
            // this one run: all at once, the requests would wait for each other, and the products
            // for them.
            let goes_on = row + MR < self.last;
            let next = self.places::<MR>(if goes_on { row + MR } else { self.first });
            let next_column = if goes_on { column } else { column + NV * LANES };
            // SAFETY: by the contract of this function.
            unsafe {
                let weight = g.weight.as_ptr().add(panel.offset + v0 * LANES);
                let ask = |line: usize| {
                    let to = next.target[line / NV] + next_column + line % NV * LANES;
                    L::prefetch_write(g.target.ptr().wrapping_add(to));
                    if let Some(shortcut) = g.epilogue.shortcut {
                        L::prefetch(shortcut.as_ptr().wrapping_add(to));
                    }
                };
                let mut line = 0;
                let mut acc = [[L::splat(T::ZERO); NV]; MR];
                for (t, tap) in r.taps.iter().enumerate() {
                    let mut from = [zeros; MR];
                    let mut any = false;
                    for i in 0..MR {
                        let offset = *r.table.get_unchecked(t * r.p + places.at[i]);
                        if offset >= 0 {
                            any = true;
                            from[i] =
                                source.add(places.image[i] * g.source_len + g.source_first + offset as usize);
                        }
                    }
                    if !any {
                        continue;
                    }
                    let mut w = weight.add(tap * r.kc * width);
                    // Rows often follow each other: those of the next tile are asked for too.
                    let mut ahead = from[0].wrapping_add(MR * r.kc);
                    for k in 0..r.kc {
                        L::prefetch(ahead);
                        ahead = ahead.wrapping_add(MR);
                        if line < MR * NV {
                            ask(line);
                            line += 1;
                        }
                        let mut b = [L::splat(T::ZERO); NV];
                        for v in 0..NV {
                            L::prefetch(w.wrapping_add(AHEAD * width + v * LANES));
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
                (line..MR * NV).for_each(ask);
                if whole && count == MR {
                    self.finish_tile(acc, &places, column);
                } else {
                    self.finish_part(acc, &places, count, panel, v0);
                }
            }
            places = next;
            row += count;
        }
    }

    /// Epilogue and store of a tile that lacks nothing, from the registers.
    #[inline(always)]
    unsafe fn finish_tile<L: Simd<T = T>, const MR: usize, const NV: usize>(
        &self,
        mut acc: [[L; NV]; MR],
        places: &Places<MR>,
        column: usize,
    ) {
        let e = &self.gemm.epilogue;
        let to = |i: usize, v: usize| places.target[i] + column + v * LANES;
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
                    acted(acc[i][v], e.act).store(target.add(to(i, v)));
                }
            }
        }
    }

    /// The same of a tile at the end of the rows or of the columns.
    #[inline(always)]
    unsafe fn finish_part<L: Simd<T = T>, const MR: usize, const NV: usize>(
        &self,
        acc: [[L; NV]; MR],
        places: &Places<MR>,
        count: usize,
        panel: &Panel,
        v0: usize,
    ) {
        // SAFETY: bounds as in `panel`.
        unsafe {
            // A loop to `count` indexes the tile by a variable: in a copy, lest registers be kept in
            // memory while the products run.
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
                        self.finish(sum, places.target[i] + column, column, n);
                    }
                }
            }
        }
    }

    /// Epilogue and store of `n` columns.
    #[inline(always)]
    unsafe fn finish<L: Simd<T = T>>(&self, mut x: L, offset: usize, column: usize, n: usize) {
        let g = self.gemm;
        let e = &g.epilogue;
        // SAFETY: bounds as in `panel`.
        unsafe {
            let to = g.target.ptr().add(offset);
            if e.accumulate {
                x = x.add(L::load_part(to, n));
            }
            if let Some(bias) = e.bias {
                x = x.add(L::load_part(bias.as_ptr().add(g.target_first + column), n));
            }
            if let Some(shortcut) = e.shortcut {
                x = x.add(L::load_part(shortcut.as_ptr().add(offset), n));
            }
            acted(x, e.act).store_part(to, n);
        }
    }
}

/// An activation of one vector.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn acted<L: Simd>(x: L, act: Activation) -> L {
    // SAFETY: by the caller.
    unsafe {
        match act {
            Activation::None => x,
            Activation::Relu => x.max(L::splat(L::T::ZERO)),
            Activation::Relu6 => x.max(L::splat(L::T::ZERO)).min(L::splat(L::T::of(6.0))),
        }
    }
}
