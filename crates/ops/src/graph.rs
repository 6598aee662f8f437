//! Differentiable operations for candle graphs that candle lacks or has no gradient for.

mod attention;
mod conv;
mod norm;
mod pool;
mod resize;
mod shape;
mod softmax;
mod svd;

pub(crate) use attention::{WindowTables, window_attention};
pub use conv::conv2d;
pub(crate) use norm::batch_norm_maps;
pub use norm::{BatchNormOutput, batch_norm};
pub(crate) use pool::max_pool;
pub use resize::resize_bilinear;
pub(crate) use shape::{
    activate, add, expand, gelu, global_average, group_norm, layer_norm, linear, merge_patches, resample,
    scale, scale_images,
};
pub use softmax::{cross_entropy, log_softmax};
pub use svd::svd;

use candle_core::{CpuStorage, DType, Layout, Tensor};

use crate::Result;
use crate::element::{Float, with_values};

/// Converts bf16 to f32 for reductions; other dtypes are unchanged. Gradients return in the dtype of `x`.
pub(crate) fn upcast(x: &Tensor) -> Result<Tensor> {
    Ok(if x.dtype() == DType::BF16 { x.to_dtype(DType::F32)? } else { x.clone() })
}

/// View of `[B, C, H, W]` as `[B, H, W, C]`.
fn columns_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 2, 3, 1))?)
}

/// Reshapes a map to rows of channels `[B * H * W, C]`; a vector is unchanged.
fn rows_of(x: &Tensor) -> Result<Tensor> {
    match *x.dims() {
        [b, c, h, w] => Ok(columns_last(x)?.reshape((b * h * w, c))?),
        _ => Ok(x.clone()),
    }
}

/// Returns the values of a contiguous argument of a custom op.
fn from_slice<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous argument")
    };
    Ok(&T::slice(storage)?[start..end])
}

/// Applies `f` to the values of two tensors; the result has the shape of a third.
fn made_of<T: Float>(
    [a, b]: [&Tensor; 2],
    like: &Tensor,
    f: impl FnOnce(&[T], &[T]) -> Vec<T>,
) -> candle_core::Result<Tensor> {
    let values = with_values::<T, _>(a, |a| with_values::<T, _>(b, |b| f(a, b)))??;
    Tensor::from_vec(values, like.shape(), like.device())
}
