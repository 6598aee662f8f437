//! Batch norm with batch statistics.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use half::bf16;

use super::descriptors::Map;
use super::{Context, Number, factor, fresh, lacks, read, sizes, tensor, view, with_view, write_to};
use crate::graph::BatchNormOutput;

/// Per-channel statistics over all pixels. The persistent mode is faster but not always deterministic.
const MODE: sys::cudnnBatchNormMode_t = sys::cudnnBatchNormMode_t::CUDNN_BATCHNORM_SPATIAL;

/// Batch norm over all pixels of maps `[B, C, H, W]`, with gradients through the statistics. For bf16
/// maps, parameters and statistics are f32.
pub(crate) fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> crate::Result<BatchNormOutput> {
    let (b, c, h, w) = x.dims4()?;
    let statistics = Arc::new(Mutex::new(None));
    let op = BatchNorm { eps, dims: [b, c, h, w], statistics: Arc::clone(&statistics) };
    let y = x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)?;
    let found = statistics.lock().ok().and_then(|s| s.clone());
    let Some(Statistics { mean, unbiased, .. }) = found else {
        return Err(crate::Error::usage("batch_norm", "missing statistics of the forward pass"));
    };
    let rows = (b * h * w) as f64;
    Ok(BatchNormOutput { y, mean, variance: (unbiased * ((rows - 1.0) / rows))? })
}

/// Per-channel statistics on the GPU.
#[derive(Clone)]
struct Statistics {
    mean: Tensor,
    /// `1 / sqrt(variance + eps)`.
    inverse: Tensor,
    unbiased: Tensor,
}

struct BatchNorm {
    eps: f64,
    dims: [usize; 4],
    /// Saved by the forward pass for the backward pass.
    statistics: Arc<Mutex<Option<Statistics>>>,
}

impl BatchNorm {
    /// Returns `None` if cuDNN does not support the type.
    fn forward<T: Number>(
        &self,
        x: CudaView<'_, T>,
        gamma: CudaView<'_, T::Wide>,
        beta: CudaView<'_, T::Wide>,
        device: &CudaDevice,
    ) -> Result<Option<CudaStorage>> {
        let channels = self.dims[1];
        let maps = Map::new::<T>(sizes(self.dims)?)?;
        let of_channels = Map::of_channels::<T>(sizes([channels])?[0])?;
        let mut y = fresh::<T>(device, self.dims.iter().product())?;
        let (mut mean, mut inverse) =
            (fresh::<T::Wide>(device, channels)?, fresh::<T::Wide>(device, channels)?);
        // A running average with momentum 1 equals the batch statistics.
        let (mut follows, mut unbiased) =
            (device.alloc_zeros::<T::Wide>(channels)?, device.alloc_zeros::<T::Wide>(channels)?);
        let done = Context::with(device, |context| {
            if T::TYPE == DType::BF16 && context.norm_in_f32 {
                return Ok(false);
            }
            let stream = device.cuda_stream();
            let (one, zero) = (T::ONE, T::ZERO);
            read!(x = &x, &stream);
            read!(gamma = &gamma, &stream);
            read!(beta = &beta, &stream);
            write_to!(y = &mut y, &stream);
            write_to!(mean = &mut mean, &stream);
            write_to!(inverse = &mut inverse, &stream);
            write_to!(follows = &mut follows, &stream);
            write_to!(unbiased = &mut unbiased, &stream);
            // SAFETY: descriptors describe the memory behind the pointers, which lives until the call is
            // enqueued and is freed in stream order.
            let status = unsafe {
                sys::cudnnBatchNormalizationForwardTraining(
                    context.handle,
                    MODE,
                    factor(&one),
                    factor(&zero),
                    maps.raw(),
                    x,
                    maps.raw(),
                    y,
                    of_channels.raw(),
                    gamma,
                    beta,
                    1.0,
                    follows,
                    unbiased,
                    self.eps,
                    mean,
                    inverse,
                )
            };
            if lacks::<T>(status) {
                context.norm_in_f32 = true;
                return Ok(false);
            }
            status.result()?;
            Ok(true)
        })?;
        if !done {
            return Ok(None);
        }
        let found = Statistics {
            mean: tensor(mean, device, channels),
            inverse: tensor(inverse, device, channels),
            unbiased: tensor(unbiased, device, channels),
        };
        if let Ok(mut kept) = self.statistics.lock() {
            *kept = Some(found);
        }
        Ok(Some(CudaStorage::wrap_cuda_slice(y, device.clone())))
    }

    /// Returns the gradients of the map, gamma and beta; `None` if cuDNN does not support the type.
    fn backward<T: Number>(&self, x: &Tensor, gamma: &Tensor, dy: &Tensor) -> Result<Option<[Tensor; 3]>> {
        let channels = self.dims[1];
        let maps = Map::new::<T>(sizes(self.dims)?)?;
        let of_channels = Map::of_channels::<T>(sizes([channels])?[0])?;
        let found = self.statistics.lock().ok().and_then(|s| s.clone());
        let Some(Statistics { mean, inverse, .. }) = found else {
            candle_core::bail!("batch_norm: no forward pass before the backward pass")
        };
        with_view::<T, _>(x, |x, device| {
            with_view::<T::Wide, _>(gamma, |gamma, _| {
                with_view::<T, _>(dy, |dy, _| {
                    with_view::<T::Wide, _>(&mean, |mean, _| {
                        with_view::<T::Wide, _>(&inverse, |inverse, _| {
                            let mut dx = fresh::<T>(device, self.dims.iter().product())?;
                            let mut dgamma = fresh::<T::Wide>(device, channels)?;
                            let mut dbeta = fresh::<T::Wide>(device, channels)?;
                            let done = Context::with(device, |context| {
                                if T::TYPE == DType::BF16 && context.norm_in_f32 {
                                    return Ok(false);
                                }
                                let stream = device.cuda_stream();
                                let (one, zero) = (T::ONE, T::ZERO);
                                read!(x = &x, &stream);
                                read!(gamma = &gamma, &stream);
                                read!(dy = &dy, &stream);
                                read!(mean = &mean, &stream);
                                read!(inverse = &inverse, &stream);
                                write_to!(dx = &mut dx, &stream);
                                write_to!(dgamma = &mut dgamma, &stream);
                                write_to!(dbeta = &mut dbeta, &stream);
                                // SAFETY: as in the forward pass.
                                let status = unsafe {
                                    sys::cudnnBatchNormalizationBackward(
                                        context.handle,
                                        MODE,
                                        factor(&one),
                                        factor(&zero),
                                        factor(&one),
                                        factor(&zero),
                                        maps.raw(),
                                        x,
                                        maps.raw(),
                                        dy,
                                        maps.raw(),
                                        dx,
                                        of_channels.raw(),
                                        gamma,
                                        dgamma,
                                        dbeta,
                                        self.eps,
                                        mean,
                                        inverse,
                                    )
                                };
                                if lacks::<T>(status) {
                                    context.norm_in_f32 = true;
                                    return Ok(false);
                                }
                                status.result()?;
                                Ok(true)
                            })?;
                            let maps = tensor(dx, device, self.dims.to_vec());
                            let all =
                                [maps, tensor(dgamma, device, channels), tensor(dbeta, device, channels)];
                            Ok(done.then_some(all))
                        })
                    })
                })
            })
        })
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("batch_norm: requires a GPU")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        gamma: &CudaStorage,
        gamma_layout: &Layout,
        beta: &CudaStorage,
        beta_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (device, shape) = (x.device(), x_layout.shape().clone());
        macro_rules! run {
            ($type:ty, $x:expr, $layout:expr) => {
                self.forward::<$type>(
                    view($x, $layout)?,
                    view(gamma, gamma_layout)?,
                    view(beta, beta_layout)?,
                    device,
                )?
            };
        }
        let y = match x.dtype() {
            DType::F64 => run!(f64, x, x_layout),
            DType::BF16 => match run!(bf16, x, x_layout) {
                Some(y) => Some(y),
                None => {
                    let (wide, whole) = (x.to_dtype(x_layout, DType::F32)?, Layout::contiguous(&shape));
                    run!(f32, &wide, &whole).map(|y| y.to_dtype(&whole, DType::BF16)).transpose()?
                }
            },
            _ => run!(f32, x, x_layout),
        };
        match y {
            Some(y) => Ok((y, shape)),
            None => candle_core::bail!("batch_norm: not supported by cuDNN"),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let found = match x.dtype() {
            DType::F64 => self.backward::<f64>(x, gamma, dy)?,
            DType::BF16 => match self.backward::<bf16>(x, gamma, dy)? {
                Some(found) => Some(found),
                None => {
                    let [x, dy] = [x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?];
                    let wide = self.backward::<f32>(&x, gamma, &dy)?;
                    wide.map(|[dx, a, b]| Ok::<_, candle_core::Error>([dx.to_dtype(DType::BF16)?, a, b]))
                        .transpose()?
                }
            },
            _ => self.backward::<f32>(x, gamma, dy)?,
        };
        match found {
            Some([dx, dgamma, dbeta]) => Ok((Some(dx), Some(dgamma), Some(dbeta))),
            None => candle_core::bail!("batch_norm: not supported by cuDNN"),
        }
    }
}
