//! Convolution in a candle graph, with the kernels of the tape.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

use crate::graph::{from_slice, made_of};
use crate::kernels::Shared;
use crate::kernels::geometry::{ConvGeo, ConvSpec, Padding, pad_images};
use crate::kernels::tap_gemm::{Epilogue, TapGemm};
use crate::kernels::wgrad::{self, WeightGradient};
use crate::kernels::winograd::{self, Tiles};
use crate::panels::Panels;
use crate::real::Real;
use crate::{Error, Result};

/// A convolution without bias, `[B, C, H, W]` with `weight [O, C, k, k]` to `[B, O, H', W']`; f32 and
/// f64. Several times faster than candle's own, backward above all, and without the copies that the
/// latter makes. Results do not depend on the number of threads. As on a tape, 3x3 convolutions in f32
/// run by Winograd's algorithm where that pays, unless the environment says `STILLHOUSE_WINOGRAD=0`.
///
/// Inside maps are NHWC: a map of a tape, or of this function, is taken without a copy.
///
/// # Errors
/// If weight or map do not have the shape that `spec` says, if dtypes differ, and for groups.
pub fn conv2d(x: &Tensor, weight: &Tensor, spec: ConvSpec) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if spec.groups != 1 {
        return Err(Error::usage("conv2d", "groups are not built here; use a layer of the tape"));
    }
    if c != spec.inputs || weight.dims() != spec.weight_shape() {
        let expected = format!("a map of {} channels, a weight {:?}", spec.inputs, spec.weight_shape());
        return Err(Error::shape("conv2d", expected, (x.dims(), weight.dims())));
    }
    if b == 0 || x.dtype() != weight.dtype() || !matches!(x.dtype(), DType::F32 | DType::F64) {
        let found = (x.dims(), x.dtype(), weight.dtype());
        return Err(Error::shape("conv2d", "one or more images, and one of f32 and f64 for both", found));
    }
    if let (false, Padding::Symmetric(padding)) = (x.device().is_cpu(), spec.padding) {
        return Ok(x.conv2d(weight, padding, spec.stride, spec.dilation, 1)?);
    }
    let op = Conv { geo: ConvGeo::new(spec, h, w)?, panels: Panels::new(&spec.weight_shape(), 1)? };
    let y = x.permute((0, 2, 3, 1))?.contiguous()?.apply_op2(&weight.contiguous()?, op)?;
    Ok(y.permute((0, 3, 1, 2))?)
}

/// Maps `[B, H, W, C]` with a weight in PyTorch's order.
struct Conv {
    geo: ConvGeo,
    panels: Panels,
}

impl Conv {
    /// Values of one image of the result.
    fn output_len(&self) -> usize {
        self.geo.output[0] * self.geo.output[1] * self.geo.spec.outputs
    }

    /// Values of one image of the argument.
    fn input_len(&self) -> usize {
        self.geo.input[0] * self.geo.input[1] * self.geo.spec.inputs
    }

    /// Tiles of the forward pass, where Winograd's algorithm serves.
    fn tiles<T: Real>(&self, images: usize) -> Option<Tiles> {
        (winograd::allowed() && T::TYPE == DType::F32).then(|| Tiles::of(&self.geo, images, images))?
    }

    /// Winograd's convolution; the weight in panel order, turned for the data gradient.
    fn convolve<T: Real>(tiles: Tiles, source: &[T], weight: &[T], turned: bool, target: &mut [T]) {
        let mut points = vec![T::ZERO; tiles.weight_len()];
        winograd::transform_weight(weight, tiles.inputs, tiles.outputs, turned, &mut points);
        winograd::Convolution {
            tiles,
            source,
            weight: &points,
            target_len: target.len(),
            target: Shared::new(target),
            epilogue: Epilogue::store(false),
            sums: None,
            scratch: &mut vec![T::ZERO; tiles.scratch_len()],
        }
        .run();
    }

    /// The zero-padded copy that convolutions of few channels read.
    fn padded<T: Real>(&self, x: &[T], images: usize) -> Option<Vec<T>> {
        let size = self.geo.padded?;
        let mut copy = vec![T::ZERO; images * self.geo.source_len()];
        pad_images(x, self.geo.input, self.geo.spec.inputs, self.geo.before, size, &mut copy);
        Some(copy)
    }

    fn forward<T: Real>(&self, x: &[T], weight: &[T]) -> Vec<T> {
        let images = x.len() / self.input_len();
        let mut y = vec![T::ZERO; images * self.output_len()];
        if let Some(tiles) = self.tiles::<T>(images) {
            Self::convolve(tiles, x, &self.panels.pack(weight), false, &mut y);
            return y;
        }
        let padded = self.padded(x, images);
        TapGemm {
            images,
            rows: &self.geo.forward,
            source: padded.as_deref().unwrap_or(x),
            source_len: self.geo.source_len(),
            source_first: 0,
            target_first: 0,
            weight: &self.panels.pack(weight),
            panels: &self.panels.panels(),
            target: Shared::new(&mut y),
            target_len: self.output_len(),
            epilogue: Epilogue::store(false),
            zeros: &vec![T::ZERO; self.geo.forward.kc],
            sums: None,
        }
        .run();
        y
    }

    fn data_gradient<T: Real>(&self, dy: &[T], weight: &[T]) -> Vec<T> {
        let images = dy.len() / self.output_len();
        let mut dx = vec![T::ZERO; images * self.input_len()];
        let mut turned = vec![T::ZERO; self.panels.transposed_len()];
        self.panels.transpose(&self.panels.pack(weight), &mut turned);
        if let Some(tiles) = self.tiles::<T>(images) {
            Self::convolve(tiles.turned(), dy, &turned, true, &mut dx);
            return dx;
        }
        let target = Shared::new(&mut dx);
        for rows in self.geo.backward.iter().filter(|r| !r.taps.is_empty()) {
            TapGemm {
                images,
                rows,
                source: dy,
                source_len: self.output_len(),
                source_first: 0,
                target_first: 0,
                weight: &turned,
                panels: &self.panels.transposed_panels(),
                target,
                target_len: self.input_len(),
                epilogue: Epilogue::store(false),
                zeros: &vec![T::ZERO; rows.kc],
                sums: None,
            }
            .run();
        }
        dx
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let images = dy.len() / self.output_len();
        let stored = self.panels.stored();
        let mut gradient = vec![T::ZERO; stored];
        if let Some(tiles) = self.tiles::<T>(images) {
            let mut scratch = vec![T::ZERO; tiles.gradient_scratch_len()];
            let (gradient, scratch) = (&mut gradient[..], &mut scratch[..]);
            winograd::WeightGradient { tiles, source: x, dy, gradient, scratch }.run();
            return self.panels.unpack(gradient);
        }
        let padded = self.padded(x, images);
        let mut scratch = vec![T::ZERO; wgrad::scratch_len(images * self.geo.forward.p, stored)];
        WeightGradient {
            images,
            rows: &self.geo.forward,
            source: padded.as_deref().unwrap_or(x),
            source_len: self.geo.source_len(),
            source_first: 0,
            dy,
            dy_len: self.output_len(),
            dy_first: 0,
            panels: &self.panels.panels(),
            gradient: &mut gradient,
            scratch: &mut scratch,
        }
        .run();
        self.panels.unpack(&gradient)
    }

    fn backward<T: Real>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = made_of::<T>([dy, weight], x, |dy, weight| self.data_gradient(dy, weight))?;
        let dw = made_of::<T>([x, dy], weight, |x, dy| self.weight_gradient(x, dy))?;
        Ok((Some(dx), Some(dw)))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let [h, w] = self.geo.output;
        let shape = Shape::from((x_layout.dims()[0], h, w, self.geo.spec.outputs));
        Ok(match x.dtype() {
            DType::F64 => {
                let (x, weight) = (from_slice::<f64>(x, x_layout)?, from_slice(weight, weight_layout)?);
                (CpuStorage::F64(self.forward(x, weight)), shape)
            }
            _ => {
                let (x, weight) = (from_slice::<f32>(x, x_layout)?, from_slice(weight, weight_layout)?);
                (CpuStorage::F32(self.forward(x, weight)), shape)
            }
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        match x.dtype() {
            DType::F64 => self.backward::<f64>(x, weight, dy),
            _ => self.backward::<f32>(x, weight, dy),
        }
    }
}
