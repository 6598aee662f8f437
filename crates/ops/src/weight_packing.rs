//! Packed weight layout of the convolution kernels.
//!
//! Output channels are split evenly into panels of at most [`MAX_VECTORS`] vectors of [`LANES`] columns.
//! A panel is stored as `[kernel offset][input channel][column]`, so the micro-kernel reads it
//! sequentially. Padding columns are zero and stay zero under every optimizer, because their gradient is
//! zero. A depthwise weight is stored as `[kernel offset][channel]`.

use crate::element::Float;
use crate::kernels::geometry::ConvSpec;
use crate::simd::{Kernel, Simd};
use crate::{Error, Result};

/// Values per vector, independent of the instruction set.
pub(crate) const LANES: usize = 16;
/// Maximum vectors per panel.
pub(crate) const MAX_VECTORS: usize = 4;

/// Maximum values of a transposed weight held at a time.
const MAX_TRANSPOSED: usize = 4 << 20;

/// One panel: first column within the group and width in vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panel {
    pub(crate) first: usize,
    pub(crate) vectors: usize,
    /// Actual columns; the rest is padding.
    pub(crate) columns: usize,
    /// Start of its values within the group.
    pub(crate) offset: usize,
}

/// Packed layout of a convolution or linear weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedLayout {
    pub(crate) out: usize,
    pub(crate) inner: usize,
    pub(crate) kernel_offsets: usize,
    pub(crate) groups: usize,
}

/// Splits `columns` into panels of at most [`MAX_VECTORS`] vectors with `depth` rows each.
pub(crate) fn cut(columns: usize, depth: usize) -> Vec<Panel> {
    let vectors = columns.div_ceil(LANES);
    let count = vectors.div_ceil(MAX_VECTORS).max(1);
    let (mut panels, mut first_vector, mut offset) = (Vec::with_capacity(count), 0, 0);
    for i in 0..count {
        let width = (vectors - first_vector).div_ceil(count - i);
        let first = first_vector * LANES;
        panels.push(Panel { first, vectors: width, columns: (columns - first).min(width * LANES), offset });
        first_vector += width;
        offset += depth * width * LANES;
    }
    panels
}

impl PackedLayout {
    /// Creates the layout of a weight `[out, in / groups, kh, kw]` or `[out, in]`.
    pub(crate) fn new(shape: &[usize], groups: usize) -> Result<Self> {
        let (out, inner, kernel_offsets) = match *shape {
            [o, i] => (o, i, 1),
            [o, i, kh, kw] => (o, i, kh * kw),
            _ => return Err(Error::shape("conv weight", "[out, in, kh, kw] or [out, in]", shape)),
        };
        if groups == 0 || !out.is_multiple_of(groups) || out * inner * kernel_offsets == 0 {
            return Err(Error::shape("conv weight", format!("outputs divisible by {groups} groups"), shape));
        }
        Ok(Self { out, inner, kernel_offsets, groups })
    }

    /// Returns the layout of a convolution's weight.
    pub(crate) fn of(spec: &ConvSpec) -> Self {
        let [out, inner, height, width] = spec.weight_shape();
        Self { out, inner, kernel_offsets: height * width, groups: spec.groups }
    }

    /// Returns whether each group has one input and one output channel.
    pub(crate) fn depthwise(&self) -> bool {
        self.groups > 1 && self.inner == 1 && self.out == self.groups
    }

    /// Rows of a panel.
    pub(crate) fn depth(&self) -> usize {
        self.kernel_offsets * self.inner
    }

    /// Returns the panels of one group.
    pub(crate) fn panels(&self) -> Vec<Panel> {
        cut(self.out / self.groups, self.depth())
    }

    /// Returns the packed length of one group.
    pub(crate) fn group_len(&self) -> usize {
        self.depth() * (self.out / self.groups).div_ceil(LANES) * LANES
    }

    /// Returns the packed length.
    pub(crate) fn packed_len(&self) -> usize {
        if self.depthwise() { self.kernel_offsets * self.out } else { self.groups * self.group_len() }
    }

    /// Returns the panels of one group for the data gradient: columns are the inputs, rows `[kernel
    /// offset][output]`.
    pub(crate) fn transposed_panels(&self) -> Vec<Panel> {
        cut(self.inner, self.kernel_offsets * (self.out / self.groups))
    }

    /// Returns the packed length of one group for the data gradient.
    pub(crate) fn transposed_len(&self) -> usize {
        self.kernel_offsets * (self.out / self.groups) * self.inner.div_ceil(LANES) * LANES
    }

    /// Splits [`Self::transposed_panels`] into chunks of about [`MAX_TRANSPOSED`] values, each with its
    /// own offsets, so that a large weight needs no second full copy.
    pub(crate) fn transposed_chunks(&self) -> Vec<Vec<Panel>> {
        let depth = self.kernel_offsets * (self.out / self.groups);
        let panels = self.transposed_panels();
        let each = (MAX_TRANSPOSED / (MAX_VECTORS * LANES * depth)).max(1);
        let parts = panels.chunks(each).map(|part| {
            let base = part[0].offset;
            part.iter().map(|p| Panel { offset: p.offset - base, ..*p }).collect()
        });
        parts.collect()
    }

    /// Returns the length of the largest chunk.
    pub(crate) fn transposed_chunk_len(&self) -> usize {
        let depth = self.kernel_offsets * (self.out / self.groups);
        let values = |part: &Vec<Panel>| part.iter().map(|p| p.vectors * LANES * depth).sum();
        self.transposed_chunks().iter().map(values).max().unwrap_or(0)
    }

    /// Transposes the weights of one group into the given panels of the data gradient; writes all their
    /// values.
    pub(crate) fn transpose<T: Float>(&self, from: &[T], targets: &[Panel], to: &mut [T]) {
        let outputs = self.out / self.groups;
        let shared = crate::kernels::SharedSlice::new(to);
        crate::kernels::parallel(targets.len() * self.kernel_offsets, |task| {
            let (target, kernel_offset) = (&targets[task / self.kernel_offsets], task % self.kernel_offsets);
            let width = target.vectors * LANES;
            // SAFETY: one kernel offset of one panel per task.
            #[allow(unsafe_code)]
            let to =
                unsafe { shared.range(target.offset + kernel_offset * outputs * width, outputs * width) };
            self.transpose_offset(from, target, kernel_offset, to);
        });
    }

    /// Transposes one kernel offset into one panel, `[output][column]`.
    pub(crate) fn transpose_offset<T: Float>(
        &self,
        from: &[T],
        target: &Panel,
        kernel_offset: usize,
        to: &mut [T],
    ) {
        let width = target.vectors * LANES;
        if target.columns < width {
            to.fill(T::ZERO);
        }
        for source in &self.panels() {
            let source_width = source.vectors * LANES;
            let base = source.offset + (kernel_offset * self.inner + target.first) * source_width;
            let from = &from[base..base + target.columns * source_width];
            let to = &mut to[source.first * width..(source.first + source.columns) * width];
            T::run(Transpose { from, from_row: source_width, columns: source.columns, to, to_row: width });
        }
    }

    /// Scales the weights of each output channel.
    pub(crate) fn scale<T: Float>(&self, stored: &mut [T], factors: &[f64]) {
        let scale = |row: &mut [T], factors: &[f64]| {
            row.iter_mut().zip(factors).for_each(|(w, factor)| *w = T::narrow(w.widen() * factor));
        };
        if self.depthwise() {
            stored.chunks_exact_mut(self.out).for_each(|kernel_offset| scale(kernel_offset, factors));
            return;
        }
        let groups = stored.chunks_exact_mut(self.group_len());
        for (group, factors) in groups.zip(factors.chunks_exact(self.out / self.groups)) {
            for panel in self.panels() {
                let width = panel.vectors * LANES;
                let rows = group[panel.offset..panel.offset + self.depth() * width].chunks_exact_mut(width);
                rows.for_each(|row| scale(row, &factors[panel.first..panel.first + panel.columns]));
            }
        }
    }

    /// Calls `f(plain index, packed index)` for every value.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let (inner, kernel_offsets) = (self.inner, self.kernel_offsets);
        if self.depthwise() {
            for o in 0..self.out {
                for t in 0..kernel_offsets {
                    f(o * kernel_offsets + t, t * self.out + o);
                }
            }
            return;
        }
        let per_group = self.out / self.groups;
        for g in 0..self.groups {
            for panel in self.panels() {
                // Columns innermost: one side is read sequentially, the other in as many streams as the
                // panel has columns.
                for i in 0..inner {
                    for t in 0..kernel_offsets {
                        let row =
                            g * self.group_len() + panel.offset + (t * inner + i) * panel.vectors * LANES;
                        for column in 0..panel.columns {
                            let o = g * per_group + panel.first + column;
                            f((o * inner + i) * kernel_offsets + t, row + column);
                        }
                    }
                }
            }
        }
    }

    /// Packs from PyTorch's order.
    pub(crate) fn pack<T: Copy + Default>(&self, plain: &[T]) -> Vec<T> {
        let mut stored = vec![T::default(); self.packed_len()];
        self.pack_into(plain, &mut stored);
        stored
    }

    /// Packs into a buffer of [`Self::packed_len`] values; padding columns become zero.
    pub(crate) fn pack_into<T: Copy + Default>(&self, plain: &[T], stored: &mut [T]) {
        stored.fill(T::default());
        self.each(|p, s| stored[s] = plain[p]);
    }

    /// Unpacks to PyTorch's order.
    pub(crate) fn unpack<T: Copy + Default>(&self, stored: &[T]) -> Vec<T> {
        let mut plain = vec![T::default(); self.out * self.inner * self.kernel_offsets];
        self.each(|p, s| plain[p] = stored[s]);
        plain
    }
}

/// `to[j][i] = from[i][j]` for `columns` columns.
struct Transpose<'a, T> {
    from: &'a [T],
    from_row: usize,
    columns: usize,
    to: &'a mut [T],
    to_row: usize,
}

impl<T: Float> Kernel<T> for Transpose<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let rows = self.from.len() / self.from_row;
        assert!(rows <= self.to_row && self.columns <= self.from_row);
        assert!(self.to.len() >= self.columns * self.to_row);
        for j0 in (0..self.columns).step_by(LANES) {
            for i0 in (0..rows).step_by(LANES) {
                if i0 + LANES <= rows && j0 + LANES <= self.columns {
                    let (from, to) = (i0 * self.from_row + j0, j0 * self.to_row + i0);
                    // SAFETY: the full block lies inside both buffers by the check above.
                    #[allow(unsafe_code)]
                    unsafe {
                        let (from, to) = (self.from.as_ptr().add(from), self.to.as_mut_ptr().add(to));
                        L::transpose((from, self.from_row), (to, self.to_row));
                    }
                    continue;
                }
                for j in j0..(j0 + LANES).min(self.columns) {
                    for i in i0..(i0 + LANES).min(rows) {
                        self.to[j * self.to_row + i] = self.from[i * self.from_row + j];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_unpack_round_trip() {
        for (shape, groups) in [
            (vec![21, 5], 1),
            (vec![64, 3, 7, 7], 1),
            (vec![80, 16, 3, 3], 1),
            (vec![24, 4, 3, 3], 2),
            (vec![19, 1, 3, 3], 19),
        ] {
            let packing = PackedLayout::new(&shape, groups).unwrap();
            let plain: Vec<u32> = (1..=shape.iter().product::<usize>() as u32).collect();
            let stored = packing.pack(&plain);
            assert_eq!(stored.len(), packing.packed_len());
            assert_eq!(packing.unpack(&stored), plain, "{shape:?} {groups}");
        }
    }

    #[test]
    fn scales_each_output() {
        for (shape, groups) in
            [(vec![21, 5], 1), (vec![80, 6, 3, 3], 1), (vec![24, 4, 3, 3], 2), (vec![19, 1, 3, 3], 19)]
        {
            let packing = PackedLayout::new(&shape, groups).unwrap();
            let plain: Vec<f64> = (1..=shape.iter().product::<usize>()).map(|i| i as f64).collect();
            let factors: Vec<f64> = (0..shape[0]).map(|o| 0.5 + o as f64).collect();
            let per = plain.len() / shape[0];
            let want: Vec<f64> = plain.iter().enumerate().map(|(i, w)| w * factors[i / per]).collect();
            let mut stored = packing.pack(&plain);
            packing.scale(&mut stored, &factors);
            assert_eq!(packing.unpack(&stored), want, "{shape:?} {groups}");
        }
    }

    #[test]
    fn chunked_transpose_matches_full() {
        let packing = PackedLayout::new(&[66_000, 80], 1).unwrap();
        let stored: Vec<f32> = (0..packing.packed_len()).map(|i| i as f32).collect();
        let mut whole = vec![0.0; packing.transposed_len()];
        packing.transpose(&stored, &packing.transposed_panels(), &mut whole);
        let (parts, mut joined) = (packing.transposed_chunks(), Vec::new());
        assert_eq!(parts.len(), 2);
        for part in &parts {
            let len = part.iter().map(|p| p.vectors * LANES * packing.out).sum();
            assert!(len <= packing.transposed_chunk_len() && len < whole.len());
            let mut transposed = vec![0.0; len];
            packing.transpose(&stored, part, &mut transposed);
            joined.extend(transposed);
        }
        assert!(joined == whole);
    }

    #[test]
    fn splits_panels_evenly() {
        let widths = |c| cut(c, 1).iter().map(|p| p.vectors).collect::<Vec<_>>();
        assert_eq!(widths(16), [1]);
        assert_eq!(widths(64), [4]);
        assert_eq!(widths(80), [3, 2]);
        assert_eq!(widths(144), [3, 3, 3]);
        assert_eq!(cut(21, 1)[0].columns, 21);
    }
}
