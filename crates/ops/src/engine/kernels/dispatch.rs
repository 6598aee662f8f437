//! Kernel selection and calls for one convolution and map size.

use std::sync::Arc;

use candle_core::DType;

use super::state::{Elem, KernelsEngine};
use crate::buffers::Buf;
use crate::engine::Context;
use crate::kernels::depthwise::{self, Depthwise, DepthwiseGradient, gradient_scratch};
use crate::kernels::geometry::{ConvGeo, Rows, pad_images};
use crate::kernels::indirect_gemm::{self, Epilogue, IndirectGemm};
use crate::kernels::norm::{Slopes, Sums};
use crate::kernels::pointwise::{self, Pointwise};
use crate::kernels::wgrad::{self, WeightGradient};
use crate::kernels::winograd::{self, Tiles};
use crate::kernels::{SharedSlice, parallel};
use crate::op::{Conv, Value};
use crate::weight_packing::{LANES, MAX_VECTORS, PackedLayout, Panel};

/// Largest data gradient, in rows, for which transposing the weights dominates.
const MAX_BY_OFFSET_ROWS: usize = 512;
/// Number of panels that keeps the threads busy with one task per panel.
const MIN_BY_OFFSET_PANELS: usize = 4;

/// Batch size assumed for the choice of an algorithm outside training.
const NOMINAL_BATCH: usize = 8;

/// A convolution for one map size and batch.
pub(super) struct Dispatch<'a> {
    geo: &'a ConvGeo,
    packing: PackedLayout,
    images: usize,
    winograd: bool,
    /// Batch size for the choice of an algorithm. Outside training the choice must not depend on the batch
    /// size, so that a single image gets the same logits as within a batch.
    nominal: usize,
}

impl<'a> Dispatch<'a> {
    pub(super) fn new(op: &Conv, geo: &'a ConvGeo, input: &Value, context: &Context) -> Self {
        let images = input.shape[0];
        let nominal = if context.mode.records() { images } else { NOMINAL_BATCH };
        Self { geo, packing: op.packing(), images, winograd: context.winograd, nominal }
    }

    /// Returns the zero-padded copy that convolutions of few channels read.
    pub(super) fn pad<T: Elem>(&self, values: &[T], engine: &mut KernelsEngine<T>) -> Option<Buf<T>> {
        let size = self.geo.padded?;
        let mut copy = engine.pool().take(self.images * self.geo.source_len());
        pad_images(values, self.geo.input, self.geo.spec.inputs, self.geo.before, size, &mut copy);
        Some(copy)
    }

    /// Returns the Winograd tiling of the forward pass, if profitable.
    pub(super) fn tiles<T: Elem>(&self) -> Option<Tiles> {
        let allowed = self.winograd && T::TYPE == DType::F32;
        allowed.then(|| Tiles::new(self.geo, self.images, self.nominal))?
    }

    /// Returns the number of parts that the forward pass writes to [`Sums`].
    pub(super) fn sum_tasks<T: Elem>(&self) -> usize {
        let rows = self.images * self.geo.forward.p;
        if let Some(tiles) = self.tiles::<T>() {
            tiles.sum_tasks()
        } else if self.packing.depthwise() {
            depthwise::sum_tasks(rows, self.geo.spec.outputs)
        } else {
            indirect_gemm::sum_tasks(rows)
        }
    }

    /// Winograd convolution with transformed weights.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn convolve<T: Elem>(
        &self,
        tiles: Tiles,
        source: &[T],
        weight: &[T],
        out: &mut [T],
        epilogue: Epilogue<T>,
        sums: Option<Sums<T>>,
        engine: &mut KernelsEngine<T>,
    ) {
        let mut scratch = engine.pool().take(tiles.scratch_len());
        let target_len = out.len();
        let target = SharedSlice::new(out);
        let scratch = &mut scratch[..];
        winograd::Convolution { tiles, source, weight, target, target_len, epilogue, sums, scratch }.run();
    }

    fn output_len(&self) -> usize {
        self.geo.output[0] * self.geo.output[1] * self.geo.spec.outputs
    }

    pub(super) fn forward<T: Elem>(
        &self,
        source: &[T],
        weight: &[T],
        out: &mut [T],
        epilogue: Epilogue<T>,
        sums: Option<Sums<T>>,
        engine: &mut KernelsEngine<T>,
    ) {
        let (spec, packing) = (&self.geo.spec, &self.packing);
        if let Some(tiles) = self.tiles::<T>() {
            let mut points = engine.pool().take(tiles.weight_len());
            winograd::transform_weight(weight, tiles.inputs, tiles.outputs, false, &mut points);
            self.convolve(tiles, source, &points, out, epilogue, sums, engine);
            return;
        }
        let target = SharedSlice::new(out);
        let (source_len, target_len) = (self.geo.source_len(), self.output_len());
        if packing.depthwise() {
            Depthwise {
                images: self.images,
                channels: spec.outputs,
                rows: &self.geo.forward,
                source,
                source_len,
                weight,
                target,
                target_len,
                epilogue,
                sums,
            }
            .run();
            return;
        }
        let zeros = engine.zeros(self.geo.forward.kc);
        let cut = packing.panels();
        for (g, weight) in weight.chunks_exact(packing.group_len()).enumerate() {
            IndirectGemm {
                images: self.images,
                rows: &self.geo.forward,
                source,
                source_len,
                source_first: g * spec.inputs / spec.groups,
                target_first: g * spec.outputs / spec.groups,
                weight,
                panels: &cut,
                target,
                target_len,
                epilogue,
                zeros: &zeros,
                sums,
            }
            .run();
        }
    }

    /// Computes the gradient of the input, added to `dx` if `accumulate`.
    pub(super) fn data_gradient<T: Elem>(
        &self,
        dy: &[T],
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        engine: &mut KernelsEngine<T>,
    ) {
        let (spec, packing) = (&self.geo.spec, &self.packing);
        let [h, w] = self.geo.input;
        let (source_len, target_len) = (self.output_len(), h * w * spec.inputs);
        // Pixels that no output reads: stride larger than the kernel, or a cut edge.
        if !accumulate && self.geo.backward.iter().any(|r| r.kernel_offsets.is_empty()) {
            dx.fill(T::ZERO);
        }
        if packing.depthwise() {
            let target = SharedSlice::new(dx);
            for rows in self.geo.backward.iter().filter(|r| !r.kernel_offsets.is_empty()) {
                Depthwise {
                    images: self.images,
                    channels: spec.inputs,
                    rows,
                    source: dy,
                    source_len,
                    weight,
                    target,
                    target_len,
                    epilogue: Epilogue::store(accumulate),
                    sums: None,
                }
                .run();
            }
            return;
        }
        if let Some(tiles) = self.tiles::<T>() {
            let tiles = tiles.transposed();
            let mut transposed = engine.pool().take(packing.transposed_len());
            packing.transpose(weight, &packing.transposed_panels(), &mut transposed);
            let mut points = engine.pool().take(tiles.weight_len());
            winograd::transform_weight(&transposed, tiles.inputs, tiles.outputs, true, &mut points);
            self.convolve(tiles, dy, &points, dx, Epilogue::store(accumulate), None, engine);
            return;
        }
        let tasks = spec.groups * packing.transposed_panels().len();
        if self.images * h * w <= MAX_BY_OFFSET_ROWS && tasks >= MIN_BY_OFFSET_PANELS {
            self.data_gradient_by_offset(dy, weight, dx, accumulate, engine);
            return;
        }
        let zeros = engine.zeros(spec.outputs / spec.groups);
        let (target, parts) = (SharedSlice::new(dx), packing.transposed_chunks());
        let mut transposed = engine.pool().take(packing.transposed_chunk_len());
        for (g, weight) in weight.chunks_exact(packing.group_len()).enumerate() {
            for part in &parts {
                packing.transpose(weight, part, &mut transposed);
                for rows in self.geo.backward.iter().filter(|r| !r.kernel_offsets.is_empty()) {
                    IndirectGemm {
                        images: self.images,
                        rows,
                        source: dy,
                        source_len,
                        source_first: g * spec.outputs / spec.groups,
                        target_first: g * spec.inputs / spec.groups,
                        weight: &transposed,
                        panels: part,
                        target,
                        target_len,
                        epilogue: Epilogue::store(accumulate),
                        zeros: &zeros,
                        sums: None,
                    }
                    .run();
                }
            }
        }
    }

    /// Data gradient for few rows, where transposing the weights dominates: a task transposes one kernel
    /// offset of one panel into cache-resident memory, multiplies, and continues with the next offset.
    fn data_gradient_by_offset<T: Elem>(
        &self,
        dy: &[T],
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        engine: &mut KernelsEngine<T>,
    ) {
        let (spec, packing) = (&self.geo.spec, &self.packing);
        let (inputs, outputs) = (spec.inputs / spec.groups, spec.outputs / spec.groups);
        let cut = packing.transposed_panels();
        // The first kernel offset of each phase overwrites if it reaches all rows.
        let mut kernel_offsets: Vec<(usize, bool, Rows)> = Vec::new();
        for phase in &self.geo.backward {
            for (i, (kernel_offset, rows)) in phase.by_offset().into_iter().enumerate() {
                if i == 0 && rows.p < phase.p && !accumulate {
                    dx.fill(T::ZERO);
                }
                kernel_offsets.push((kernel_offset, accumulate || i > 0 || rows.p < phase.p, rows));
            }
        }
        let (target, zeros) = (SharedSlice::new(dx), engine.zeros(outputs));
        let held = outputs * MAX_VECTORS * LANES;
        let mut transposed = engine.pool().take(rayon::current_num_threads() * held);
        let transposed = SharedSlice::new(&mut transposed);
        parallel(spec.groups * cut.len(), |task| {
            let (g, panel) = (task / cut.len(), Panel { offset: 0, ..cut[task % cut.len()] });
            let weight = &weight[g * packing.group_len()..][..packing.group_len()];
            let slot = rayon::current_thread_index().unwrap_or(0);
            // SAFETY: one range per thread, which no other task uses until this one ends.
            #[allow(unsafe_code)]
            let transposed = unsafe { transposed.range(slot * held, outputs * panel.vectors * LANES) };
            for (kernel_offset, adds, rows) in &kernel_offsets {
                packing.transpose_offset(weight, &panel, *kernel_offset, transposed);
                IndirectGemm {
                    images: self.images,
                    rows,
                    source: dy,
                    source_len: self.output_len(),
                    source_first: g * outputs,
                    target_first: g * inputs,
                    weight: transposed,
                    panels: &[panel],
                    target,
                    target_len: self.geo.input.iter().product::<usize>() * spec.inputs,
                    epilogue: Epilogue::store(*adds),
                    zeros: &zeros,
                    sums: None,
                }
                .run_here();
            }
        });
    }

    /// Returns whether the fused backward pass for weight and input is used.
    pub(super) fn is_pointwise(&self) -> bool {
        let (spec, rows) = (&self.geo.spec, self.images * self.geo.forward.p);
        let dense = spec.kernel == 1 && spec.stride == 1 && spec.groups == 1;
        // With padding the output would be larger.
        dense
            && self.geo.input == self.geo.output
            && self.geo.padded.is_none()
            && pointwise::is_profitable(rows, spec.inputs, spec.outputs, self.packing.packed_len())
    }

    /// Computes the packed weight gradient and the input gradient, added to `dx` if `accumulate`, from
    /// the gradient of the norm's output and the norm's input.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn pointwise<T: Elem>(
        &self,
        source: &[T],
        (dz, y): (&[T], &[T]),
        slopes: Slopes<T>,
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        engine: &mut KernelsEngine<T>,
    ) -> Buf<T> {
        let (spec, packing) = (&self.geo.spec, &self.packing);
        let (inputs, outputs, stored) = (spec.inputs, spec.outputs, packing.packed_len());
        let pool = Arc::clone(engine.pool());
        let transposed_panels = packing.transposed_panels();
        let mut transposed = pool.take(packing.transposed_len());
        packing.transpose(weight, &transposed_panels, &mut transposed);
        let mut gradient = pool.take(stored);
        let mut scratch = pool.take(wgrad::scratch_len(self.images * self.geo.forward.p, stored));
        let threads = rayon::current_num_threads();
        let mut blocks = pool.take(threads * pointwise::block_len(inputs, outputs));
        Pointwise {
            inputs,
            outputs,
            source,
            dz,
            y,
            slopes,
            panels: &packing.panels(),
            transposed: &transposed,
            transposed_panels: &transposed_panels,
            gradient: &mut gradient,
            scratch: &mut scratch,
            dx,
            accumulate,
            blocks: &mut blocks,
            zeros: &engine.zeros(outputs),
        }
        .run();
        gradient
    }

    /// Computes the packed weight gradient.
    pub(super) fn weight_gradient<T: Elem>(
        &self,
        source: &[T],
        dy: &[T],
        engine: &mut KernelsEngine<T>,
    ) -> Buf<T> {
        let (spec, packing) = (&self.geo.spec, &self.packing);
        let rows = self.images * self.geo.forward.p;
        let pool = Arc::clone(engine.pool());
        let mut gradient = pool.take(packing.packed_len());
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        if packing.depthwise() {
            let mut scratch = pool.take(gradient_scratch(rows, packing.packed_len()));
            DepthwiseGradient {
                images: self.images,
                channels: spec.outputs,
                rows: &self.geo.forward,
                source,
                source_len,
                dy,
                dy_len,
                gradient: &mut gradient,
                scratch: &mut scratch,
            }
            .run();
            return gradient;
        }
        if let Some(tiles) = self.tiles::<T>() {
            let mut scratch = pool.take(tiles.gradient_scratch_len());
            let (gradient, scratch) = (&mut gradient[..], &mut scratch[..]);
            winograd::WeightGradient { tiles, source, dy, gradient, scratch }.run();
        } else {
            self.direct_weight_gradient(source, dy, &mut gradient, engine);
        }
        gradient
    }

    fn direct_weight_gradient<T: Elem>(
        &self,
        source: &[T],
        dy: &[T],
        gradient: &mut [T],
        engine: &mut KernelsEngine<T>,
    ) {
        let (spec, packing) = (&self.geo.spec, &self.packing);
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        let rows = self.images * self.geo.forward.p;
        let mut scratch = engine.pool().take(wgrad::scratch_len(rows, packing.group_len()));
        let cut = packing.panels();
        for (g, gradient) in gradient.chunks_exact_mut(packing.group_len()).enumerate() {
            WeightGradient {
                images: self.images,
                rows: &self.geo.forward,
                source,
                source_len,
                source_first: g * spec.inputs / spec.groups,
                dy,
                dy_len,
                dy_first: g * spec.outputs / spec.groups,
                panels: &cut,
                gradient,
                scratch: &mut scratch,
            }
            .run();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::geometry::{ConvSpec, Padding};

    /// Reference: adds every product to the pixel it came from.
    fn reference_data_gradient(
        spec: &ConvSpec,
        geo: &ConvGeo,
        images: usize,
        dy: &[f64],
        w: &[f64],
        dx: &mut [f64],
    ) {
        let ([h, wide], [oh, ow], [top, left]) = (geo.input, geo.output, geo.before);
        let (inner, per) = (spec.inputs / spec.groups, spec.outputs / spec.groups);
        for row in 0..images * oh * ow {
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            for kernel_offset in 0..spec.kernel * spec.kernel {
                let y = (oy * spec.stride + kernel_offset / spec.kernel * spec.dilation).wrapping_sub(top);
                let x = (ox * spec.stride + kernel_offset % spec.kernel * spec.dilation).wrapping_sub(left);
                if y >= h || x >= wide {
                    continue;
                }
                for o in 0..spec.outputs {
                    let g = dy[row * spec.outputs + o];
                    for i in 0..inner {
                        let at = ((image * h + y) * wide + x) * spec.inputs + o / per * inner + i;
                        dx[at] += g * w[(o * inner + i) * spec.kernel * spec.kernel + kernel_offset];
                    }
                }
            }
        }
    }

    #[test]
    fn data_gradient_of_few_rows_matches_reference() {
        let value = |i: usize| ((i * 7919 + 13) % 257) as f64 / 64.0 - 2.0;
        let same = ConvSpec::new(250, 21, 3);
        let cut = ConvSpec::new(193, 17, 2).padding(Padding::Symmetric(0));
        for (spec, size) in [
            (same, [2, 2]),
            (same.stride(2), [5, 4]),
            (same.dilation(2).padding(Padding::Symmetric(2)), [3, 4]),
            (ConvSpec::new(256, 40, 1), [3, 1]),
            (ConvSpec::new(256, 8, 1).stride(2), [3, 5]),
            (ConvSpec::new(144, 16, 3).groups(2), [3, 3]),
            (cut, [4, 3]),
        ] {
            let mut engine = KernelsEngine::<f64>::default();
            let geo = ConvGeo::new(spec, size[0], size[1]).unwrap();
            let (images, packing) = (3, PackedLayout::of(&spec));
            let pass = Dispatch { geo: &geo, packing, images, winograd: false, nominal: images };
            let plain: Vec<f64> = (0..spec.weight_shape().iter().product()).map(|i| value(3 * i)).collect();
            let dy: Vec<f64> = (0..images * pass.output_len()).map(value).collect();
            for adds in [false, true] {
                let mut dx: Vec<f64> =
                    (0..images * size[0] * size[1] * spec.inputs).map(|i| value(5 * i)).collect();
                let mut want = if adds { dx.clone() } else { vec![0.0; dx.len()] };
                reference_data_gradient(&spec, &geo, images, &dy, &plain, &mut want);
                pass.data_gradient(&dy, &packing.pack(&plain), &mut dx, adds, &mut engine);
                for (x, w) in dx.iter().zip(&want) {
                    assert!((x - w).abs() < 1e-9, "{spec:?} on {size:?}: {x} instead of {w}");
                }
            }
        }
    }
}
