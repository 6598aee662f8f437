//! Convolution: forward pass, data gradient, weight gradient.

use std::ffi::c_void;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use half::bf16;

use super::descriptors::{Convolution, Filter, Map};
use super::{Context, Number, factor, fresh, math, read, sizes, view, write_to};
use crate::kernels::geometry::ConvSpec;

/// Maximum workspace of an algorithm, in bytes.
const MAX_WORKSPACE: usize = 1 << 30;
/// Upper bound on the algorithms of a pass, counted once per math type.
const MAX_ALGORITHMS: i32 = 32;

/// Geometry of a convolution for one map size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Geometry {
    x: [i32; 4],
    weight: [i32; 4],
    y: [i32; 4],
    pad: [i32; 2],
    stride: i32,
    dilation: i32,
    groups: i32,
}

/// Pass of a convolution, with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    /// Map and weight to result.
    Forward,
    /// Weight and output gradient to data gradient.
    Data,
    /// Map and output gradient to weight gradient.
    Weight,
}

/// Key of the algorithm cache.
pub(super) type Key = (Geometry, Pass, DType, bool);

/// Algorithm, workspace size in bytes, and math type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Algorithm {
    choice: Choice,
    bytes: usize,
    math: sys::cudnnMathType_t,
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// Convolves `[B, C, H, W]` with `weight [O, C / groups, k, k]` to `[B, O, H', W']`; arguments are
/// validated by the caller.
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, spec: ConvSpec) -> crate::Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let ((oh, top), (ow, left)) = (spec.along(h)?, spec.along(w)?);
    // cuDNN pads symmetrically; additional trailing padding is added explicitly.
    let reach = spec.dilation * (spec.kernel - 1) + 1;
    let behind = |size: usize, out: usize, before: usize| {
        ((out - 1) * spec.stride + reach).saturating_sub(size + 2 * before)
    };
    let (more_h, more_w) = (behind(h, oh, top), behind(w, ow, left));
    let mut x = x.clone();
    if more_h > 0 {
        x = x.pad_with_zeros(2, 0, more_h)?;
    }
    if more_w > 0 {
        x = x.pad_with_zeros(3, 0, more_w)?;
    }
    let geometry = Geometry {
        x: sizes([b, c, h + more_h, w + more_w])?,
        weight: sizes(spec.weight_shape())?,
        y: sizes([b, spec.outputs, oh, ow])?,
        pad: sizes([top, left])?,
        stride: sizes([spec.stride])?[0],
        dilation: sizes([spec.dilation])?[0],
        groups: sizes([spec.groups])?[0],
    };
    let op = Conv { geometry, pass: Pass::Forward };
    Ok(x.contiguous()?.apply_op2(&weight.contiguous()?, op)?)
}

struct Conv {
    geometry: Geometry,
    pass: Pass,
}

struct Descriptors {
    x: Map,
    weight: Filter,
    y: Map,
    conv: Convolution,
}

impl Conv {
    fn descriptors<T: Number>(&self) -> Result<Descriptors> {
        let g = &self.geometry;
        Ok(Descriptors {
            x: Map::new::<T>(g.x)?,
            weight: Filter::new::<T>(g.weight)?,
            y: Map::new::<T>(g.y)?,
            conv: Convolution::new::<T>(g.pad, g.stride, g.dilation, g.groups, math::<T>())?,
        })
    }

    fn target(&self) -> [i32; 4] {
        match self.pass {
            Pass::Forward => self.geometry.y,
            Pass::Data => self.geometry.x,
            Pass::Weight => self.geometry.weight,
        }
    }

    /// Selects the fastest deterministic algorithm within the workspace limit: benchmarked on the first
    /// call with its own operands, whose result is overwritten, then cached. Returns `None` if cuDNN has
    /// none.
    fn algorithm<T: Number>(
        &self,
        d: &Descriptors,
        [a, b]: [*const c_void; 2],
        out: *mut c_void,
        context: &mut Context,
        device: &CudaDevice,
    ) -> Result<Option<Algorithm>> {
        let strict = math::<T>() == sys::cudnnMathType_t::CUDNN_FMA_MATH;
        let key = (self.geometry, self.pass, T::TYPE, strict);
        if let Some(known) = context.algorithms.get(&key) {
            return Ok(*known);
        }
        let (handle, stream) = (context.handle, device.cuda_stream());
        // Lists are sorted by time, as predicted by cuDNN's heuristics or measured.
        macro_rules! query {
            ($choice:path, $perf:ty, $call:path, $($arg:expr),* => $($end:expr),*) => {{
                let mut found = 0;
                // SAFETY: plain data, for which zeros are valid.
                let mut list: [$perf; MAX_ALGORITHMS as usize] = unsafe { std::mem::zeroed() };
                // SAFETY: all descriptors are alive and describe the memory behind the pointers; the list
                // has that many entries.
                let status = unsafe {
                    $call(handle, $($arg,)* MAX_ALGORITHMS, &mut found, list.as_mut_ptr() $(, $end)*)
                };
                let found = if status.result().is_ok() { usize::try_from(found).unwrap_or(0) } else { 0 };
                list.iter()
                    .take(found)
                    .filter(|a| a.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC)
                    .filter(|a| a.status.result().is_ok() && a.memory <= MAX_WORKSPACE)
                    .map(|a| Algorithm { choice: $choice(a.algo), bytes: a.memory, math: a.mathType })
                    .collect::<Vec<_>>()
            }};
        }
        // Predicted algorithms, and a benchmark of them in a workspace that fits them all.
        macro_rules! search {
            (
                $choice:path, $perf:ty, $expect:path, ($($descriptor:expr),*),
                $measure:path, ($($arg:expr),*)
            ) => {{
                let expected = query!($choice, $perf, $expect, $($descriptor),* =>);
                let bytes = expected.iter().map(|a| a.bytes).max().unwrap_or(0);
                let measured = match context.workspace(bytes, device) {
                    Ok(space) if expected.len() > 1 => {
                        write_to!(space = space, &stream);
                        query!($choice, $perf, $measure, $($arg),* => space, bytes)
                    }
                    Ok(_) => Vec::new(),
                    // Memory is nearly exhausted.
                    Err(_) => expected.iter().copied().min_by_key(|a| a.bytes).into_iter().collect(),
                };
                measured.into_iter().chain(expected).next()
            }};
        }
        let (x, w, y, conv) = (d.x.raw(), d.weight.raw(), d.y.raw(), d.conv.raw());
        let chosen = match self.pass {
            Pass::Forward => search!(
                Choice::Forward,
                sys::cudnnConvolutionFwdAlgoPerf_t,
                sys::cudnnGetConvolutionForwardAlgorithm_v7,
                (x, w, conv, y),
                sys::cudnnFindConvolutionForwardAlgorithmEx,
                (x, a, w, b, conv, y, out)
            ),
            Pass::Data => search!(
                Choice::Data,
                sys::cudnnConvolutionBwdDataAlgoPerf_t,
                sys::cudnnGetConvolutionBackwardDataAlgorithm_v7,
                (w, y, conv, x),
                sys::cudnnFindConvolutionBackwardDataAlgorithmEx,
                (w, a, y, b, conv, x, out)
            ),
            Pass::Weight => search!(
                Choice::Weight,
                sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                (x, y, conv, w),
                sys::cudnnFindConvolutionBackwardFilterAlgorithmEx,
                (x, a, y, b, conv, w, out)
            ),
        };
        // Forces FMA math, whatever else the algorithm supports.
        let strictly = |a: Algorithm| Algorithm { math: sys::cudnnMathType_t::CUDNN_FMA_MATH, ..a };
        let chosen = if strict { chosen.map(strictly) } else { chosen };
        context.algorithms.insert(key, chosen);
        Ok(chosen)
    }

    fn run<T: Number>(
        &self,
        a: CudaView<'_, T>,
        b: CudaView<'_, T>,
        device: &CudaDevice,
    ) -> Result<Option<CudaStorage>> {
        let len = self.target().iter().map(|d| *d as usize).product();
        let mut out = fresh::<T>(device, len)?;
        let d = self.descriptors::<T>()?;
        let done = Context::with(device, |context| {
            let handle = context.handle;
            let stream = device.cuda_stream();
            let (one, zero) = (T::ONE, T::ZERO);
            let (one, zero) = (factor(&one), factor(&zero));
            read!(a = &a, &stream);
            read!(b = &b, &stream);
            write_to!(out = &mut out, &stream);
            let Some(algorithm) = self.algorithm::<T>(&d, [a, b], out, context, device)? else {
                return Ok(false);
            };
            d.conv.set_math(algorithm.math)?;
            let space = context.workspace(algorithm.bytes, device)?;
            write_to!(space = space, &stream);
            let (x, w, y, conv) = (d.x.raw(), d.weight.raw(), d.y.raw(), d.conv.raw());
            let bytes = algorithm.bytes;
            // SAFETY: descriptors describe the memory behind the pointers, which lives until the call is
            // enqueued and is freed in stream order.
            let status = unsafe {
                match algorithm.choice {
                    Choice::Forward(algo) => sys::cudnnConvolutionForward(
                        handle, one, x, a, w, b, conv, algo, space, bytes, zero, y, out,
                    ),
                    Choice::Data(algo) => sys::cudnnConvolutionBackwardData(
                        handle, one, w, a, y, b, conv, algo, space, bytes, zero, x, out,
                    ),
                    Choice::Weight(algo) => sys::cudnnConvolutionBackwardFilter(
                        handle, one, x, a, y, b, conv, algo, space, bytes, zero, w, out,
                    ),
                }
            };
            status.result()?;
            Ok(true)
        })?;
        Ok(done.then(|| CudaStorage::wrap_cuda_slice(out, device.clone())))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("conv2d: requires a GPU")
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = a.device();
        let shape = Shape::from(self.target().map(|d| d as usize).to_vec());
        let found = match a.dtype() {
            DType::F64 => self.run(view::<f64>(a, a_layout)?, view(b, b_layout)?, device)?,
            DType::BF16 => match self.run(view::<bf16>(a, a_layout)?, view(b, b_layout)?, device)? {
                Some(out) => Some(out),
                None => {
                    let [a, b] =
                        [(a, a_layout), (b, b_layout)].map(|(t, layout)| t.to_dtype(layout, DType::F32));
                    let whole = |layout: &Layout| Layout::contiguous(layout.shape());
                    let (a_layout, b_layout) = (whole(a_layout), whole(b_layout));
                    let (a, b) = (a?, b?);
                    let out = self.run(view::<f32>(&a, &a_layout)?, view(&b, &b_layout)?, device)?;
                    out.map(|out| out.to_dtype(&Layout::contiguous(&shape), DType::BF16)).transpose()?
                }
            },
            _ => self.run(view::<f32>(a, a_layout)?, view(b, b_layout)?, device)?,
        };
        let Some(storage) = found else {
            candle_core::bail!(
                "cuDNN has no deterministic algorithm for {:?} of {:?}",
                self.pass,
                self.geometry
            )
        };
        Ok((storage, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let of = |pass: Pass, a: &Tensor| a.apply_op2_no_bwd(&dy, &Conv { geometry: self.geometry, pass });
        // Skips gradients that images or weights do not need.
        let dx = x.track_op().then(|| of(Pass::Data, weight)).transpose()?;
        let dw = weight.track_op().then(|| of(Pass::Weight, x)).transpose()?;
        Ok((dx, dw))
    }
}
