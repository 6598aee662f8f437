//! Max pooling.

use std::ffi::c_void;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use super::descriptors::{Map, Pooling};
use super::{Context, Number, factor, fresh, read, sizes, tensor, view, with_view, write_to};
use crate::kernels::pool::MaxPool;

/// Max pooling that ignores padding; arguments are validated by the caller.
pub(crate) fn max_pool(x: &Tensor, geo: MaxPool) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Pool { geo, images: x.dim(0)? })?)
}

struct Pool {
    geo: MaxPool,
    images: usize,
}

impl Pool {
    fn input(&self) -> [usize; 4] {
        [self.images, self.geo.channels, self.geo.input[0], self.geo.input[1]]
    }

    fn output(&self) -> [usize; 4] {
        [self.images, self.geo.channels, self.geo.output[0], self.geo.output[1]]
    }

    fn pooling(&self) -> Result<Pooling> {
        Pooling::max(self.geo.kernel, self.geo.padding, self.geo.stride)
    }

    fn forward<T: Number>(&self, x: CudaView<'_, T>, device: &CudaDevice) -> Result<CudaStorage> {
        let (maps, smaller) = (Map::new::<T>(sizes(self.input())?)?, Map::new::<T>(sizes(self.output())?)?);
        let pooling = self.pooling()?;
        let mut y = fresh::<T>(device, self.output().iter().product())?;
        Context::with(device, |context| {
            let stream = device.cuda_stream();
            let (one, zero) = (T::ONE, T::ZERO);
            read!(x = &x, &stream);
            write_to!(y = &mut y, &stream);
            // SAFETY: descriptors describe the memory behind the pointers, which lives until the call is
            // enqueued and is freed in stream order.
            let status = unsafe {
                sys::cudnnPoolingForward(
                    context.handle,
                    pooling.raw(),
                    factor(&one),
                    maps.raw(),
                    x,
                    factor(&zero),
                    smaller.raw(),
                    y,
                )
            };
            Ok(status.result()?)
        })?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }

    fn backward<T: Number>(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (maps, smaller) = (Map::new::<T>(sizes(self.input())?)?, Map::new::<T>(sizes(self.output())?)?);
        let pooling = self.pooling()?;
        with_view::<T, _>(x, |x, device| {
            with_view::<T, _>(y, |y, _| {
                with_view::<T, _>(dy, |dy, _| {
                    let mut dx = fresh::<T>(device, self.input().iter().product())?;
                    Context::with(device, |context| {
                        let stream = device.cuda_stream();
                        let (one, zero) = (T::ONE, T::ZERO);
                        read!(x = &x, &stream);
                        read!(y = &y, &stream);
                        read!(dy = &dy, &stream);
                        write_to!(dx = &mut dx, &stream);
                        // SAFETY: as in the forward pass.
                        let status = unsafe {
                            sys::cudnnPoolingBackward(
                                context.handle,
                                pooling.raw(),
                                factor(&one),
                                smaller.raw(),
                                y,
                                smaller.raw(),
                                dy,
                                maps.raw(),
                                x,
                                factor(&zero),
                                maps.raw(),
                                dx,
                            )
                        };
                        Ok(status.result()?)
                    })?;
                    Ok(tensor(dx, device, self.input().to_vec()))
                })
            })
        })
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("max_pool: requires a GPU")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = x.device();
        let y = match x.dtype() {
            DType::F64 => self.forward(view::<f64>(x, layout)?, device)?,
            _ => self.forward(view::<f32>(x, layout)?, device)?,
        };
        Ok((y, Shape::from(self.output().to_vec())))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match x.dtype() {
            DType::F64 => self.backward::<f64>(x, y, dy)?,
            _ => self.backward::<f32>(x, y, dy)?,
        }))
    }
}
