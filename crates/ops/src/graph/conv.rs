//! Convolution in a candle graph, on the CPU kernels.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

use crate::element::Float;
use crate::graph::{from_slice, made_of, upcast};
use crate::kernels::SharedSlice;
use crate::kernels::depthwise::{Depthwise, DepthwiseGradient, gradient_scratch};
use crate::kernels::geometry::{ConvGeo, ConvSpec, Padding, Rows, pad_images};
use crate::kernels::indirect_gemm::{Epilogue, IndirectGemm};
use crate::kernels::wgrad::{self, WeightGradient};
use crate::kernels::winograd::{self, Tiles};
use crate::weight_packing::PackedLayout;
use crate::{Error, Result};

/// Convolution without bias, `[B, C, H, W]` with `weight [O, C / groups, k, k]` to `[B, O, H', W']`, in
/// f32, f64, or bf16 with f32 accumulation (on the CPU: computed in f32 and rounded).
///
/// Several times faster than candle's own, especially backward, and without its im2col copies. Results do
/// not depend on the number of threads. As on a tape, 3x3 convolutions in f32 use Winograd's algorithm
/// where profitable, unless `STILLHOUSE_WINOGRAD=0`.
///
/// Computes in NHWC: maps of a tape or of this function are taken without a copy.
///
/// # Errors
/// If the shape of weight or map does not match `spec`, or dtypes differ.
pub fn conv2d(x: &Tensor, weight: &Tensor, spec: ConvSpec) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    spec.check()?;
    if c != spec.inputs || weight.dims() != spec.weight_shape() {
        let expected = format!("a map of {} channels, a weight {:?}", spec.inputs, spec.weight_shape());
        return Err(Error::shape("conv2d", expected, (x.dims(), weight.dims())));
    }
    let known = matches!(x.dtype(), DType::F32 | DType::F64 | DType::BF16);
    if b == 0 || x.dtype() != weight.dtype() || !known {
        let found = (x.dims(), x.dtype(), weight.dtype());
        return Err(Error::shape(
            "conv2d",
            "one or more images, and one of f32, f64 and bf16 for both",
            found,
        ));
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::conv2d(x, weight, spec);
    }
    if let (false, Padding::Symmetric(padding)) = (x.device().is_cpu(), spec.padding) {
        return Ok(x.conv2d(weight, padding, spec.stride, spec.dilation, spec.groups)?);
    }
    if x.dtype() == DType::BF16 {
        return Ok(conv2d(&upcast(x)?, &upcast(weight)?, spec)?.to_dtype(DType::BF16)?);
    }
    let op = Conv {
        geo: ConvGeo::new(spec, h, w)?,
        packing: PackedLayout::new(&spec.weight_shape(), spec.groups)?,
    };
    let y = x.permute((0, 2, 3, 1))?.contiguous()?.apply_op2(&weight.contiguous()?, op)?;
    Ok(y.permute((0, 3, 1, 2))?)
}

/// Maps `[B, H, W, C]` with a weight in PyTorch's order.
struct Conv {
    geo: ConvGeo,
    packing: PackedLayout,
}

impl Conv {
    /// Length of one output image.
    fn output_len(&self) -> usize {
        self.geo.output[0] * self.geo.output[1] * self.geo.spec.outputs
    }

    /// Length of one input image.
    fn input_len(&self) -> usize {
        self.geo.input[0] * self.geo.input[1] * self.geo.spec.inputs
    }

    /// Returns the Winograd tiling of the forward pass, if profitable.
    fn tiles<T: Float>(&self, images: usize) -> Option<Tiles> {
        (winograd::allowed() && T::TYPE == DType::F32).then(|| Tiles::new(&self.geo, images, images))?
    }

    /// Winograd convolution with packed weights, transposed for the data gradient.
    fn convolve<T: Float>(tiles: Tiles, source: &[T], weight: &[T], transposed: bool, target: &mut [T]) {
        let mut points = vec![T::ZERO; tiles.weight_len()];
        winograd::transform_weight(weight, tiles.inputs, tiles.outputs, transposed, &mut points);
        winograd::Convolution {
            tiles,
            source,
            weight: &points,
            target_len: target.len(),
            target: SharedSlice::new(target),
            epilogue: Epilogue::store(false),
            sums: None,
            scratch: &mut vec![T::ZERO; tiles.scratch_len()],
        }
        .run();
    }

    /// Returns the zero-padded copy that convolutions of few channels read.
    fn padded<T: Float>(&self, x: &[T], images: usize) -> Option<Vec<T>> {
        let size = self.geo.padded?;
        let mut copy = vec![T::ZERO; images * self.geo.source_len()];
        pad_images(x, self.geo.input, self.geo.spec.inputs, self.geo.before, size, &mut copy);
        Some(copy)
    }

    fn forward<T: Float>(&self, x: &[T], weight: &[T]) -> Vec<T> {
        let images = x.len() / self.input_len();
        let mut y = vec![T::ZERO; images * self.output_len()];
        if let Some(tiles) = self.tiles::<T>(images) {
            Self::convolve(tiles, x, &self.packing.pack(weight), false, &mut y);
            return y;
        }
        let spec = &self.geo.spec;
        let packed = self.packing.pack(weight);
        let (source_len, target_len) = (self.geo.source_len(), self.output_len());
        let target = SharedSlice::new(&mut y);
        if self.packing.depthwise() {
            self.depthwise(&self.geo.forward, (x, source_len), &packed, (target, target_len), images);
            return y;
        }
        let padded = self.padded(x, images);
        for (g, weight) in packed.chunks_exact(self.packing.group_len()).enumerate() {
            IndirectGemm {
                images,
                rows: &self.geo.forward,
                source: padded.as_deref().unwrap_or(x),
                source_len,
                source_first: g * spec.inputs / spec.groups,
                target_first: g * spec.outputs / spec.groups,
                weight,
                panels: &self.packing.panels(),
                target,
                target_len,
                epilogue: Epilogue::store(false),
                zeros: &vec![T::ZERO; self.geo.forward.kc],
                sums: None,
            }
            .run();
        }
        y
    }

    /// Depthwise convolution, forward or data gradient.
    fn depthwise<T: Float>(
        &self,
        rows: &Rows,
        (source, source_len): (&[T], usize),
        weight: &[T],
        (target, target_len): (SharedSlice<T>, usize),
        images: usize,
    ) {
        Depthwise {
            images,
            channels: self.geo.spec.outputs,
            rows,
            source,
            source_len,
            weight,
            target,
            target_len,
            epilogue: Epilogue::store(false),
            sums: None,
        }
        .run();
    }

    fn data_gradient<T: Float>(&self, dy: &[T], weight: &[T]) -> Vec<T> {
        let images = dy.len() / self.output_len();
        let mut dx = vec![T::ZERO; images * self.input_len()];
        let spec = &self.geo.spec;
        let packed = self.packing.pack(weight);
        let (source_len, target_len) = (self.output_len(), self.input_len());
        let phases = || self.geo.backward.iter().filter(|rows| !rows.kernel_offsets.is_empty());
        if self.packing.depthwise() {
            let target = SharedSlice::new(&mut dx);
            phases().for_each(|rows| {
                self.depthwise(rows, (dy, source_len), &packed, (target, target_len), images);
            });
            return dx;
        }
        let cut = self.packing.transposed_panels();
        let mut transposed = vec![T::ZERO; self.packing.transposed_len()];
        if let Some(tiles) = self.tiles::<T>(images) {
            self.packing.transpose(&packed, &cut, &mut transposed);
            Self::convolve(tiles.transposed(), dy, &transposed, true, &mut dx);
            return dx;
        }
        let target = SharedSlice::new(&mut dx);
        for (g, weight) in packed.chunks_exact(self.packing.group_len()).enumerate() {
            self.packing.transpose(weight, &cut, &mut transposed);
            for rows in phases() {
                IndirectGemm {
                    images,
                    rows,
                    source: dy,
                    source_len,
                    source_first: g * spec.outputs / spec.groups,
                    target_first: g * spec.inputs / spec.groups,
                    weight: &transposed,
                    panels: &cut,
                    target,
                    target_len,
                    epilogue: Epilogue::store(false),
                    zeros: &vec![T::ZERO; rows.kc],
                    sums: None,
                }
                .run();
            }
        }
        dx
    }

    fn weight_gradient<T: Float>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let images = dy.len() / self.output_len();
        let stored = self.packing.packed_len();
        let mut gradient = vec![T::ZERO; stored];
        if let Some(tiles) = self.tiles::<T>(images) {
            let mut scratch = vec![T::ZERO; tiles.gradient_scratch_len()];
            let (gradient, scratch) = (&mut gradient[..], &mut scratch[..]);
            winograd::WeightGradient { tiles, source: x, dy, gradient, scratch }.run();
            return self.packing.unpack(gradient);
        }
        let spec = &self.geo.spec;
        let rows = images * self.geo.forward.p;
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        if self.packing.depthwise() {
            let mut scratch = vec![T::ZERO; gradient_scratch(rows, stored)];
            DepthwiseGradient {
                images,
                channels: spec.outputs,
                rows: &self.geo.forward,
                source: x,
                source_len,
                dy,
                dy_len,
                gradient: &mut gradient,
                scratch: &mut scratch,
            }
            .run();
            return self.packing.unpack(&gradient);
        }
        let padded = self.padded(x, images);
        let mut scratch = vec![T::ZERO; wgrad::scratch_len(rows, self.packing.group_len())];
        for (g, gradient) in gradient.chunks_exact_mut(self.packing.group_len()).enumerate() {
            WeightGradient {
                images,
                rows: &self.geo.forward,
                source: padded.as_deref().unwrap_or(x),
                source_len,
                source_first: g * spec.inputs / spec.groups,
                dy,
                dy_len,
                dy_first: g * spec.outputs / spec.groups,
                panels: &self.packing.panels(),
                gradient,
                scratch: &mut scratch,
            }
            .run();
        }
        self.packing.unpack(&gradient)
    }

    fn backward<T: Float>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        // Skips gradients that images or weights do not need.
        let dx = || made_of::<T>([dy, weight], x, |dy, weight| self.data_gradient(dy, weight));
        let dw = || made_of::<T>([x, dy], weight, |x, dy| self.weight_gradient(x, dy));
        Ok((x.track_op().then(dx).transpose()?, weight.track_op().then(dw).transpose()?))
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
