//! The order in which convolution kernels read their weights.
//!
//! Output channels are cut into panels of at most four vectors of [`LANES`] columns, evenly; a
//! panel holds `[tap][input channel][column]`, so the innermost loop of the kernel reads it
//! straight through. Missing columns are zero and stay zero under every optimizer, because their
//! gradient is zero. A depthwise weight is `[tap][channel]`.

use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::{Error, Result};

/// Values in a vector of every kernel, whatever the instruction set.
pub(crate) const LANES: usize = 16;
/// Most vectors in a panel.
pub(crate) const MAX_VECTORS: usize = 4;

/// Values of a turned weight that are held at a time.
const TURNED: usize = 4 << 20;

/// One panel: its first column in the group and its width in vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panel {
    pub(crate) first: usize,
    pub(crate) vectors: usize,
    /// Columns that exist (the rest is padding).
    pub(crate) columns: usize,
    /// Where its values begin within the group.
    pub(crate) offset: usize,
}

/// Geometry of a weight in panel order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Panels {
    pub(crate) out: usize,
    pub(crate) inner: usize,
    pub(crate) taps: usize,
    pub(crate) groups: usize,
}

/// Cuts `columns` into panels of at most [`MAX_VECTORS`] vectors with `depth` rows each.
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

impl Panels {
    /// For a weight `[out, in / groups, kh, kw]` or `[out, in]`.
    pub(crate) fn new(shape: &[usize], groups: usize) -> Result<Self> {
        let (out, inner, taps) = match *shape {
            [o, i] => (o, i, 1),
            [o, i, kh, kw] => (o, i, kh * kw),
            _ => return Err(Error::shape("conv weight", "[out, in, kh, kw] or [out, in]", shape)),
        };
        if groups == 0 || !out.is_multiple_of(groups) || out * inner * taps == 0 {
            return Err(Error::shape("conv weight", format!("outputs divisible by {groups} groups"), shape));
        }
        Ok(Self { out, inner, taps, groups })
    }

    /// One channel in, one out, per group.
    pub(crate) fn depthwise(&self) -> bool {
        self.groups > 1 && self.inner == 1 && self.out == self.groups
    }

    /// Rows of a panel.
    pub(crate) fn depth(&self) -> usize {
        self.taps * self.inner
    }

    /// Panels of one group.
    pub(crate) fn panels(&self) -> Vec<Panel> {
        cut(self.out / self.groups, self.depth())
    }

    /// Stored values of one group.
    pub(crate) fn group_len(&self) -> usize {
        self.depth() * (self.out / self.groups).div_ceil(LANES) * LANES
    }

    /// Stored values in all.
    pub(crate) fn stored(&self) -> usize {
        if self.depthwise() { self.taps * self.out } else { self.groups * self.group_len() }
    }

    /// Panels of one group for the data gradient: columns are the inputs, rows `[tap][output]`.
    pub(crate) fn transposed_panels(&self) -> Vec<Panel> {
        cut(self.inner, self.taps * (self.out / self.groups))
    }

    /// Stored values of one group for the data gradient.
    pub(crate) fn transposed_len(&self) -> usize {
        self.taps * (self.out / self.groups) * self.inner.div_ceil(LANES) * LANES
    }

    /// [`Self::transposed_panels`] in parts of about [`TURNED`] values at most, each with offsets of its
    /// own: a large weight needs no second copy of itself.
    pub(crate) fn transposed_parts(&self) -> Vec<Vec<Panel>> {
        let depth = self.taps * (self.out / self.groups);
        let panels = self.transposed_panels();
        let each = (TURNED / (MAX_VECTORS * LANES * depth)).max(1);
        let parts = panels.chunks(each).map(|part| {
            let base = part[0].offset;
            part.iter().map(|p| Panel { offset: p.offset - base, ..*p }).collect()
        });
        parts.collect()
    }

    /// Values that the largest of these parts takes.
    pub(crate) fn transposed_part_len(&self) -> usize {
        let depth = self.taps * (self.out / self.groups);
        let values = |part: &Vec<Panel>| part.iter().map(|p| p.vectors * LANES * depth).sum();
        self.transposed_parts().iter().map(values).max().unwrap_or(0)
    }

    /// Turns the weights of one group for these panels of the data gradient; all their values are
    /// written.
    pub(crate) fn transpose<T: Float>(&self, from: &[T], targets: &[Panel], to: &mut [T]) {
        let outputs = self.out / self.groups;
        let shared = crate::kernels::Shared::new(to);
        crate::kernels::parallel(targets.len() * self.taps, |task| {
            let (target, tap) = (&targets[task / self.taps], task % self.taps);
            let width = target.vectors * LANES;
            // SAFETY: one tap of one panel per task.
            #[allow(unsafe_code)]
            let to = unsafe { shared.range(target.offset + tap * outputs * width, outputs * width) };
            self.transpose_tap(from, target, tap, to);
        });
    }

    /// Turns one tap for one of these panels, `[output][column]`.
    pub(crate) fn transpose_tap<T: Float>(&self, from: &[T], target: &Panel, tap: usize, to: &mut [T]) {
        let width = target.vectors * LANES;
        if target.columns < width {
            to.fill(T::ZERO);
        }
        for source in &self.panels() {
            let source_width = source.vectors * LANES;
            let base = source.offset + (tap * self.inner + target.first) * source_width;
            let from = &from[base..base + target.columns * source_width];
            let to = &mut to[source.first * width..(source.first + source.columns) * width];
            T::run(Turn { from, from_row: source_width, columns: source.columns, to, to_row: width });
        }
    }

    /// Multiplies the weights of each output by its factor.
    pub(crate) fn scale<T: Float>(&self, stored: &mut [T], factors: &[f64]) {
        let scale = |row: &mut [T], factors: &[f64]| {
            row.iter_mut().zip(factors).for_each(|(w, factor)| *w = T::of(w.wide() * factor));
        };
        if self.depthwise() {
            stored.chunks_exact_mut(self.out).for_each(|tap| scale(tap, factors));
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

    /// Calls `f(plain index, stored index)` for every value.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let (inner, taps) = (self.inner, self.taps);
        if self.depthwise() {
            for o in 0..self.out {
                for t in 0..taps {
                    f(o * taps + t, t * self.out + o);
                }
            }
            return;
        }
        let per_group = self.out / self.groups;
        for g in 0..self.groups {
            for panel in self.panels() {
                // Columns innermost: one side is then read straight through, the other in as many
                // streams as the panel has columns.
                for i in 0..inner {
                    for t in 0..taps {
                        let row =
                            g * self.group_len() + panel.offset + (t * inner + i) * panel.vectors * LANES;
                        for column in 0..panel.columns {
                            let o = g * per_group + panel.first + column;
                            f((o * inner + i) * taps + t, row + column);
                        }
                    }
                }
            }
        }
    }

    /// From PyTorch's order.
    pub(crate) fn pack<T: Copy + Default>(&self, plain: &[T]) -> Vec<T> {
        let mut stored = vec![T::default(); self.stored()];
        self.pack_into(plain, &mut stored);
        stored
    }

    /// The same into memory of so many values, of which those beyond the last column become zero.
    pub(crate) fn pack_into<T: Copy + Default>(&self, plain: &[T], stored: &mut [T]) {
        stored.fill(T::default());
        self.each(|p, s| stored[s] = plain[p]);
    }

    /// To PyTorch's order.
    pub(crate) fn unpack<T: Copy + Default>(&self, stored: &[T]) -> Vec<T> {
        let mut plain = vec![T::default(); self.out * self.inner * self.taps];
        self.each(|p, s| plain[p] = stored[s]);
        plain
    }
}

/// `to[j][i] = from[i][j]` for as many columns.
struct Turn<'a, T> {
    from: &'a [T],
    from_row: usize,
    columns: usize,
    to: &'a mut [T],
    to_row: usize,
}

impl<T: Float> Kernel<T> for Turn<'_, T> {
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
                    // SAFETY: a whole block of both, by the lines above.
                    #[allow(unsafe_code)]
                    unsafe {
                        let (from, to) = (self.from.as_ptr().add(from), self.to.as_mut_ptr().add(to));
                        L::turn((from, self.from_row), (to, self.to_row));
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
    fn round_trip() {
        for (shape, groups) in [
            (vec![21, 5], 1),
            (vec![64, 3, 7, 7], 1),
            (vec![80, 16, 3, 3], 1),
            (vec![24, 4, 3, 3], 2),
            (vec![19, 1, 3, 3], 19),
        ] {
            let panels = Panels::new(&shape, groups).unwrap();
            let plain: Vec<u32> = (1..=shape.iter().product::<usize>() as u32).collect();
            let stored = panels.pack(&plain);
            assert_eq!(stored.len(), panels.stored());
            assert_eq!(panels.unpack(&stored), plain, "{shape:?} {groups}");
        }
    }

    #[test]
    fn outputs_are_scaled() {
        for (shape, groups) in
            [(vec![21, 5], 1), (vec![80, 6, 3, 3], 1), (vec![24, 4, 3, 3], 2), (vec![19, 1, 3, 3], 19)]
        {
            let panels = Panels::new(&shape, groups).unwrap();
            let plain: Vec<f64> = (1..=shape.iter().product::<usize>()).map(|i| i as f64).collect();
            let factors: Vec<f64> = (0..shape[0]).map(|o| 0.5 + o as f64).collect();
            let per = plain.len() / shape[0];
            let want: Vec<f64> = plain.iter().enumerate().map(|(i, w)| w * factors[i / per]).collect();
            let mut stored = panels.pack(&plain);
            panels.scale(&mut stored, &factors);
            assert_eq!(panels.unpack(&stored), want, "{shape:?} {groups}");
        }
    }

    #[test]
    fn a_large_weight_turns_in_parts_as_in_one() {
        let panels = Panels::new(&[66_000, 80], 1).unwrap();
        let stored: Vec<f32> = (0..panels.stored()).map(|i| i as f32).collect();
        let mut whole = vec![0.0; panels.transposed_len()];
        panels.transpose(&stored, &panels.transposed_panels(), &mut whole);
        let (parts, mut joined) = (panels.transposed_parts(), Vec::new());
        assert_eq!(parts.len(), 2);
        for part in &parts {
            let len = part.iter().map(|p| p.vectors * LANES * panels.out).sum();
            assert!(len <= panels.transposed_part_len() && len < whole.len());
            let mut turned = vec![0.0; len];
            panels.transpose(&stored, part, &mut turned);
            joined.extend(turned);
        }
        assert!(joined == whole);
    }

    #[test]
    fn panels_are_even() {
        let widths = |c| cut(c, 1).iter().map(|p| p.vectors).collect::<Vec<_>>();
        assert_eq!(widths(16), [1]);
        assert_eq!(widths(64), [4]);
        assert_eq!(widths(80), [3, 2]);
        assert_eq!(widths(144), [3, 3, 3]);
        assert_eq!(cut(21, 1)[0].columns, 21);
    }
}
