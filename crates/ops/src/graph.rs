//! Operations for candle graphs that candle lacks, or has without a gradient.

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
pub use norm::{BatchNormed, batch_norm};
pub(crate) use pool::max_pool;
pub use resize::resize_bilinear;
pub(crate) use shape::{
    activate, add, expand, gelu, global_average, layer_norm, linear, merge_patches, resample, scale,
    scale_images,
};
pub use softmax::{cross_entropy, log_softmax};
pub use svd::svd;

use candle_core::{CpuStorage, DType, Layout, Tensor};

use crate::Result;
use crate::element::{Float, with_values};

/// What sums are taken of: bf16 as f32, other types as they are. Gradients come back in the type of `x`.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(if x.dtype() == DType::BF16 { x.to_dtype(DType::F32)? } else { x.clone() })
}

/// `[B, C, H, W]` as `[B, H, W, C]`, a view.
fn columns_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 2, 3, 1))?)
}

/// The pixels of a map as rows of channels `[B * H * W, C]`; a vector as it is.
fn rows_of(x: &Tensor) -> Result<Tensor> {
    match *x.dims() {
        [b, c, h, w] => Ok(columns_last(x)?.reshape((b * h * w, c))?),
        _ => Ok(x.clone()),
    }
}

/// The values of a contiguous argument of an operation.
fn from_slice<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous argument")
    };
    Ok(&T::slice(storage)?[start..end])
}

/// What `f` makes of the values of two tensors, in the shape of a third.
fn made_of<T: Float>(
    [a, b]: [&Tensor; 2],
    like: &Tensor,
    f: impl FnOnce(&[T], &[T]) -> Vec<T>,
) -> candle_core::Result<Tensor> {
    let values = with_values::<T, _>(a, |a| with_values::<T, _>(b, |b| f(a, b)))??;
    Tensor::from_vec(values, like.shape(), like.device())
}
