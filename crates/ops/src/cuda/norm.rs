//! Batch norm by the statistics of the batch.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::descriptors::Map;
use super::{Context, Number, factor, fresh, read, sizes, tensor, view, with_view, write_to};
use crate::graph::BatchNormed;

/// Over all pixels. Its persistent form is faster and not always deterministic.
const MODE: sys::cudnnBatchNormMode_t = sys::cudnnBatchNormMode_t::CUDNN_BATCHNORM_SPATIAL;

/// Batch norm over all pixels of maps `[B, C, H, W]`, through whose statistics gradients pass.
pub(crate) fn batch_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> crate::Result<BatchNormed> {
    let (b, c, h, w) = x.dims4()?;
    let statistics = Arc::new(Mutex::new(None));
    let op = BatchNorm { eps, dims: [b, c, h, w], statistics: Arc::clone(&statistics) };
    let y = x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)?;
    let found = statistics.lock().ok().and_then(|s| s.clone());
    let Some(Statistics { mean, unbiased, .. }) = found else {
        return Err(crate::Error::usage("batch_norm", "the pass has left no statistics"));
    };
    let rows = (b * h * w) as f64;
    Ok(BatchNormed { y, mean, variance: (unbiased * ((rows - 1.0) / rows))? })
}

/// Of every channel, on the card.
#[derive(Clone)]
struct Statistics {
    mean: Tensor,
    /// One over the root of variance and eps.
    inverse: Tensor,
    unbiased: Tensor,
}

struct BatchNorm {
    eps: f64,
    dims: [usize; 4],
    /// Of the forward pass, which the backward pass reads.
    statistics: Arc<Mutex<Option<Statistics>>>,
}

impl BatchNorm {
    fn forward<T: Number>(
        &self,
        x: CudaView<'_, T>,
        gamma: CudaView<'_, T>,
        beta: CudaView<'_, T>,
        device: &CudaDevice,
    ) -> Result<CudaStorage> {
        let channels = self.dims[1];
        let maps = Map::new::<T>(sizes(self.dims)?)?;
        let of_channels = maps.of_channels(MODE)?;
        let mut y = fresh::<T>(device, self.dims.iter().product())?;
        let (mut mean, mut inverse) = (fresh::<T>(device, channels)?, fresh::<T>(device, channels)?);
        // Averages that follow the batch at once are those of the batch.
        let (mut follows, mut unbiased) =
            (device.alloc_zeros::<T>(channels)?, device.alloc_zeros::<T>(channels)?);
        Context::with(device, |context| {
            let stream = device.cuda_stream();
            let (one, zero) = (T::of(1.0), T::ZERO);
            read!(x = &x, &stream);
            read!(gamma = &gamma, &stream);
            read!(beta = &beta, &stream);
            write_to!(y = &mut y, &stream);
            write_to!(mean = &mut mean, &stream);
            write_to!(inverse = &mut inverse, &stream);
            write_to!(follows = &mut follows, &stream);
            write_to!(unbiased = &mut unbiased, &stream);
            // SAFETY: descriptors say what memory the pointers have, which lives until the call is in
            // the stream and is freed in its order.
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
            Ok(status.result()?)
        })?;
        let found = Statistics {
            mean: tensor(mean, device, channels),
            inverse: tensor(inverse, device, channels),
            unbiased: tensor(unbiased, device, channels),
        };
        if let Ok(mut kept) = self.statistics.lock() {
            *kept = Some(found);
        }
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }

    /// Gradients of the maps, of gamma and of beta.
    fn backward<T: Number>(&self, x: &Tensor, gamma: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
        let channels = self.dims[1];
        let maps = Map::new::<T>(sizes(self.dims)?)?;
        let of_channels = maps.of_channels(MODE)?;
        let found = self.statistics.lock().ok().and_then(|s| s.clone());
        let Some(Statistics { mean, inverse, .. }) = found else {
            candle_core::bail!("batch_norm: no forward pass before the backward pass")
        };
        with_view::<T, _>(x, |x, device| {
            with_view::<T, _>(gamma, |gamma, _| {
                with_view::<T, _>(dy, |dy, _| {
                    with_view::<T, _>(&mean, |mean, _| {
                        with_view::<T, _>(&inverse, |inverse, _| {
                            let mut dx = fresh::<T>(device, self.dims.iter().product())?;
                            let mut dgamma = fresh::<T>(device, channels)?;
                            let mut dbeta = fresh::<T>(device, channels)?;
                            Context::with(device, |context| {
                                let stream = device.cuda_stream();
                                let (one, zero) = (T::of(1.0), T::ZERO);
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
                                Ok(status.result()?)
                            })?;
                            let maps = tensor(dx, device, self.dims.to_vec());
                            Ok([maps, tensor(dgamma, device, channels), tensor(dbeta, device, channels)])
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
        candle_core::bail!("batch_norm: this form of it runs on a card")
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
        let y = match x.dtype() {
            DType::F64 => self.forward(
                view::<f64>(x, x_layout)?,
                view(gamma, gamma_layout)?,
                view(beta, beta_layout)?,
                device,
            )?,
            _ => self.forward(
                view::<f32>(x, x_layout)?,
                view(gamma, gamma_layout)?,
                view(beta, beta_layout)?,
                device,
            )?,
        };
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dgamma, dbeta] = match x.dtype() {
            DType::F64 => self.backward::<f64>(x, gamma, dy)?,
            _ => self.backward::<f32>(x, gamma, dy)?,
        };
        Ok((Some(dx), Some(dgamma), Some(dbeta)))
    }
}
