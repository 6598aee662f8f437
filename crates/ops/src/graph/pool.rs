//! Max pooling in a candle graph.

use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use crate::element::{Float, with_values};
use crate::graph::shape::check_map;
use crate::graph::{columns_last, from_slice, upcast};
use crate::kernels::pool::MaxPool;
use crate::{Error, Result};

/// Max pooling that ignores padding, `[B, C, H, W]` to `[B, C, h, w]`; the gradient goes to the first
/// maximum of a window.
pub(crate) fn max_pool(x: &Tensor, geo: MaxPool) -> Result<Tensor> {
    if x.dtype() == DType::BF16 {
        return Ok(max_pool(&upcast(x)?, geo)?.to_dtype(DType::BF16)?); // exact
    }
    check_map("max_pool", x)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::max_pool(x, geo);
    }
    if !x.device().is_cpu() {
        return Err(Error::usage(
            "max_pool",
            "unsupported device: requires the CPU, or a GPU in a build with the feature `cuda`",
        ));
    }
    let y = columns_last(x)?.contiguous()?.apply_op1(Pool { geo, which: Mutex::default() })?;
    Ok(y.permute((0, 3, 1, 2))?)
}

/// Maps `[B, H, W, C]`.
struct Pool {
    geo: MaxPool,
    /// Index of the maximum within its window, for every output.
    which: Mutex<Vec<u8>>,
}

impl Pool {
    fn forward<T: Float>(&self, x: &[T], images: usize) -> Vec<T> {
        let len = images * self.geo.output[0] * self.geo.output[1] * self.geo.channels;
        let (mut y, mut which) = (vec![T::ZERO; len], vec![0; len]);
        self.geo.forward(images, x, &mut y, &mut which);
        if let Ok(mut kept) = self.which.lock() {
            *kept = which;
        }
        y
    }

    fn backward<T: Float>(&self, x: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let Ok(which) = self.which.lock() else { candle_core::bail!("max_pool: poisoned lock") };
        let mut dx = vec![T::ZERO; x.elem_count()];
        with_values::<T, _>(dy, |dy| self.geo.backward(x.dims()[0], dy, &which, &mut dx))?;
        Tensor::from_vec(dx, x.shape(), x.device())
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let images = layout.dims()[0];
        let shape = Shape::from((images, self.geo.output[0], self.geo.output[1], self.geo.channels));
        Ok(match x.dtype() {
            DType::F64 => (CpuStorage::F64(self.forward(from_slice(x, layout)?, images)), shape),
            _ => (CpuStorage::F32(self.forward(from_slice(x, layout)?, images)), shape),
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(match x.dtype() {
            DType::F64 => self.backward::<f64>(x, dy)?,
            _ => self.backward::<f32>(x, dy)?,
        }))
    }
}
