//! One pass of a convolution over maps of one size: which kernel serves, and its calls.

use std::sync::Arc;

use super::{ConvBnAct, NOMINAL_BATCH};
use crate::buffers::Buf;
use crate::kernels::depthwise::{self, Depthwise, DepthwiseGradient, gradient_scratch};
use crate::kernels::geometry::{ConvGeo, Rows, pad_images};
use crate::kernels::indirect_gemm::{self, Epilogue, IndirectGemm};
use crate::kernels::norm::{Slopes, Sums};
use crate::kernels::pointwise::{self, Pointwise};
use crate::kernels::wgrad::{self, WeightGradient};
use crate::kernels::winograd::{self, Tiles};
use crate::kernels::{Shared, parallel};
use crate::tape::{Elem, Tape};
use crate::weight_packing::{LANES, MAX_VECTORS, Panel};

/// Rows of a data gradient up to which turning the weights is much of its work.
const FEW_ROWS: usize = 512;
/// Panels that keep threads busy when each is a task.
const ENOUGH_PANELS: usize = 4;

/// A layer on maps of one size.
pub(super) struct Pass<'a> {
    pub(super) layer: &'a ConvBnAct,
    pub(super) geo: &'a ConvGeo,
    pub(super) images: usize,
}

impl Pass<'_> {
    /// The zero-padded copy that convolutions of few channels read.
    pub(super) fn pad<T: Elem>(&self, values: &[T], tape: &mut Tape) -> Option<Buf<T>> {
        let size = self.geo.padded?;
        let mut copy = T::lane(tape).pool.take(self.images * self.geo.source_len());
        pad_images(values, self.geo.input, self.geo.spec.inputs, self.geo.before, size, &mut copy);
        Some(copy)
    }

    /// Tiles of the forward pass, where Winograd's algorithm serves.
    pub(super) fn tiles<T: Elem>(&self, tape: &Tape) -> Option<Tiles> {
        // Outside of training the choice must not depend on how many images there are, so that a
        // single image gets the very logits that it has in a batch.
        let nominal = if tape.mode().records() { self.images } else { NOMINAL_BATCH };
        tape.winograd::<T>().then(|| Tiles::of(self.geo, self.images, nominal))?
    }

    /// Parts that the forward pass leaves in [`Sums`].
    pub(super) fn sum_tasks<T: Elem>(&self, tape: &Tape) -> usize {
        let rows = self.images * self.geo.forward.p;
        if let Some(tiles) = self.tiles::<T>(tape) {
            tiles.sum_tasks()
        } else if self.layer.panels.depthwise() {
            depthwise::sum_tasks(rows, self.geo.spec.outputs)
        } else {
            indirect_gemm::sum_tasks(rows)
        }
    }

    /// Winograd's convolution with transformed weights.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn convolve<T: Elem>(
        &self,
        tiles: Tiles,
        source: &[T],
        weight: &[T],
        out: &mut [T],
        epilogue: Epilogue<T>,
        sums: Option<Sums<T>>,
        tape: &mut Tape,
    ) {
        let mut scratch = T::lane(tape).pool.take(tiles.scratch_len());
        let target_len = out.len();
        let target = Shared::new(out);
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
        tape: &mut Tape,
    ) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        if let Some(tiles) = self.tiles::<T>(tape) {
            let mut points = T::lane(tape).pool.take(tiles.weight_len());
            winograd::transform_weight(weight, tiles.inputs, tiles.outputs, false, &mut points);
            self.convolve(tiles, source, &points, out, epilogue, sums, tape);
            return;
        }
        let target = Shared::new(out);
        let (source_len, target_len) = (self.geo.source_len(), self.output_len());
        if panels.depthwise() {
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
        let zeros = T::lane(tape).zeros(self.geo.forward.kc);
        let cut = panels.panels();
        for (g, weight) in weight.chunks_exact(panels.group_len()).enumerate() {
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

    /// Gradient of the input, added to what is there if `accumulate`.
    pub(super) fn data_gradient<T: Elem>(
        &self,
        dy: &[T],
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        tape: &mut Tape,
    ) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let [h, w] = self.geo.input;
        let (source_len, target_len) = (self.output_len(), h * w * spec.inputs);
        // Pixels that no output reads: stride larger than the kernel, or the cut edge.
        if !accumulate && self.geo.backward.iter().any(|r| r.taps.is_empty()) {
            dx.fill(T::ZERO);
        }
        if panels.depthwise() {
            let target = Shared::new(dx);
            for rows in self.geo.backward.iter().filter(|r| !r.taps.is_empty()) {
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
        if let Some(tiles) = self.tiles::<T>(tape) {
            let tiles = tiles.turned();
            let mut turned = T::lane(tape).pool.take(panels.transposed_len());
            panels.transpose(weight, &panels.transposed_panels(), &mut turned);
            let mut points = T::lane(tape).pool.take(tiles.weight_len());
            winograd::transform_weight(&turned, tiles.inputs, tiles.outputs, true, &mut points);
            self.convolve(tiles, dy, &points, dx, Epilogue::store(accumulate), None, tape);
            return;
        }
        let tasks = spec.groups * panels.transposed_panels().len();
        if self.images * h * w <= FEW_ROWS && tasks >= ENOUGH_PANELS {
            self.data_gradient_by_tap(dy, weight, dx, accumulate, tape);
            return;
        }
        let zeros = T::lane(tape).zeros(spec.outputs / spec.groups);
        let (target, parts) = (Shared::new(dx), panels.transposed_parts());
        let mut turned = T::lane(tape).pool.take(panels.transposed_part_len());
        for (g, weight) in weight.chunks_exact(panels.group_len()).enumerate() {
            for part in &parts {
                panels.transpose(weight, part, &mut turned);
                for rows in self.geo.backward.iter().filter(|r| !r.taps.is_empty()) {
                    IndirectGemm {
                        images: self.images,
                        rows,
                        source: dy,
                        source_len,
                        source_first: g * spec.outputs / spec.groups,
                        target_first: g * spec.inputs / spec.groups,
                        weight: &turned,
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

    /// The data gradient where turning the weights is much of the work: a task turns one tap of one
    /// panel into memory that stays in the cache, multiplies, and goes on to the next tap.
    fn data_gradient_by_tap<T: Elem>(
        &self,
        dy: &[T],
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        tape: &mut Tape,
    ) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let (inputs, outputs) = (spec.inputs / spec.groups, spec.outputs / spec.groups);
        let cut = panels.transposed_panels();
        // Of each phase the first tap stores, if it reaches all rows.
        let mut taps: Vec<(usize, bool, Rows)> = Vec::new();
        for phase in &self.geo.backward {
            for (i, (tap, rows)) in phase.by_tap().into_iter().enumerate() {
                if i == 0 && rows.p < phase.p && !accumulate {
                    dx.fill(T::ZERO);
                }
                taps.push((tap, accumulate || i > 0 || rows.p < phase.p, rows));
            }
        }
        let (target, zeros) = (Shared::new(dx), T::lane(tape).zeros(outputs));
        let held = outputs * MAX_VECTORS * LANES;
        let mut turned = T::lane(tape).pool.take(rayon::current_num_threads() * held);
        let turned = Shared::new(&mut turned);
        parallel(spec.groups * cut.len(), |task| {
            let (g, panel) = (task / cut.len(), Panel { offset: 0, ..cut[task % cut.len()] });
            let weight = &weight[g * panels.group_len()..][..panels.group_len()];
            let slot = rayon::current_thread_index().unwrap_or(0);
            // SAFETY: one stretch per thread, which a task leaves to no other before it ends.
            #[allow(unsafe_code)]
            let turned = unsafe { turned.range(slot * held, outputs * panel.vectors * LANES) };
            for (tap, adds, rows) in &taps {
                panels.transpose_tap(weight, &panel, *tap, turned);
                IndirectGemm {
                    images: self.images,
                    rows,
                    source: dy,
                    source_len: self.output_len(),
                    source_first: g * outputs,
                    target_first: g * inputs,
                    weight: turned,
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

    /// Whether weight and input get their gradients in one go.
    pub(super) fn is_pointwise(&self) -> bool {
        let (spec, rows) = (&self.geo.spec, self.images * self.geo.forward.p);
        let dense = spec.kernel == 1 && spec.stride == 1 && spec.groups == 1;
        // Padding would make the output larger.
        dense
            && self.geo.input == self.geo.output
            && self.geo.padded.is_none()
            && pointwise::serves(rows, spec.inputs, spec.outputs, self.layer.panels.stored())
    }

    /// Gradient of the weight in panel order, and of the input, added to what is there if
    /// `accumulate`, from the one behind the norm and what went into the norm.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn pointwise<T: Elem>(
        &self,
        source: &[T],
        (dz, y): (&[T], &[T]),
        slopes: Slopes<T>,
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        tape: &mut Tape,
    ) -> Buf<T> {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let (inputs, outputs, stored) = (spec.inputs, spec.outputs, panels.stored());
        let pool = Arc::clone(&T::lane(tape).pool);
        let turned_panels = panels.transposed_panels();
        let mut turned = pool.take(panels.transposed_len());
        panels.transpose(weight, &turned_panels, &mut turned);
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
            panels: &panels.panels(),
            turned: &turned,
            turned_panels: &turned_panels,
            gradient: &mut gradient,
            scratch: &mut scratch,
            dx,
            accumulate,
            blocks: &mut blocks,
            zeros: &T::lane(tape).zeros(outputs),
        }
        .run();
        gradient
    }

    /// Gradient of the weight in panel order.
    pub(super) fn weight_gradient<T: Elem>(&self, source: &[T], dy: &[T], tape: &mut Tape) -> Buf<T> {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let rows = self.images * self.geo.forward.p;
        let pool = Arc::clone(&T::lane(tape).pool);
        let mut gradient = pool.take(panels.stored());
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        if panels.depthwise() {
            let mut scratch = pool.take(gradient_scratch(rows, panels.stored()));
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
        if let Some(tiles) = self.tiles::<T>(tape) {
            let mut scratch = pool.take(tiles.gradient_scratch_len());
            let (gradient, scratch) = (&mut gradient[..], &mut scratch[..]);
            winograd::WeightGradient { tiles, source, dy, gradient, scratch }.run();
        } else {
            self.direct_weight_gradient(source, dy, &mut gradient, tape);
        }
        gradient
    }

    fn direct_weight_gradient<T: Elem>(&self, source: &[T], dy: &[T], gradient: &mut [T], tape: &mut Tape) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        let rows = self.images * self.geo.forward.p;
        let mut scratch = T::lane(tape).pool.take(wgrad::scratch_len(rows, panels.group_len()));
        let cut = panels.panels();
        for (g, gradient) in gradient.chunks_exact_mut(panels.group_len()).enumerate() {
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
    use candle_core::{DType, Device};

    use super::*;
    use crate::kernels::geometry::{ConvSpec, Padding};
    use crate::{Activation, Init, Mode, ParamStore, Rng};

    /// By definition: every product goes to the pixel that it came from.
    fn by_definition(spec: &ConvSpec, geo: &ConvGeo, images: usize, dy: &[f64], w: &[f64], dx: &mut [f64]) {
        let ([h, wide], [oh, ow], [top, left]) = (geo.input, geo.output, geo.before);
        let (inner, per) = (spec.inputs / spec.groups, spec.outputs / spec.groups);
        for row in 0..images * oh * ow {
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            for tap in 0..spec.kernel * spec.kernel {
                let y = (oy * spec.stride + tap / spec.kernel * spec.dilation).wrapping_sub(top);
                let x = (ox * spec.stride + tap % spec.kernel * spec.dilation).wrapping_sub(left);
                if y >= h || x >= wide {
                    continue;
                }
                for o in 0..spec.outputs {
                    let g = dy[row * spec.outputs + o];
                    for i in 0..inner {
                        let at = ((image * h + y) * wide + x) * spec.inputs + o / per * inner + i;
                        dx[at] += g * w[(o * inner + i) * spec.kernel * spec.kernel + tap];
                    }
                }
            }
        }
    }

    #[test]
    fn data_gradients_of_few_rows_by_definition() {
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
            let params = ParamStore::new(DType::F64, &Device::Cpu).unwrap();
            let p = params.builder(Rng::new(0));
            let layer = ConvBnAct::without_bn(spec, "conv", false, Activation::None, Init::Constant(0.0), &p)
                .unwrap();
            let mut tape = Tape::new(&params, Mode::Train).unwrap();
            let geo = ConvGeo::new(spec, size[0], size[1]).unwrap();
            let (images, pass) = (3, Pass { layer: &layer, geo: &geo, images: 3 });
            let plain: Vec<f64> = (0..spec.weight_shape().iter().product()).map(|i| value(3 * i)).collect();
            let dy: Vec<f64> = (0..images * pass.output_len()).map(value).collect();
            for adds in [false, true] {
                let mut dx: Vec<f64> =
                    (0..images * size[0] * size[1] * spec.inputs).map(|i| value(5 * i)).collect();
                let mut want = if adds { dx.clone() } else { vec![0.0; dx.len()] };
                by_definition(&spec, &geo, images, &dy, &plain, &mut want);
                pass.data_gradient(&dy, &layer.panels.pack(&plain), &mut dx, adds, &mut tape);
                for (x, w) in dx.iter().zip(&want) {
                    assert!((x - w).abs() < 1e-9, "{spec:?} on {size:?}: {x} in place of {w}");
                }
            }
        }
    }
}
