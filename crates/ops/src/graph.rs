//! Operations for candle graphs that candle lacks, or has without a gradient.

mod conv;
mod norm;
mod resize;
mod svd;

pub use conv::conv2d;
pub use norm::{BatchNormed, batch_norm};
pub use resize::resize_bilinear;
pub use svd::svd;

use candle_core::{CpuStorage, Layout, Tensor};

use crate::real::{Real, with_values};

/// The values of a contiguous argument of an operation.
fn from_slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous argument")
    };
    Ok(&T::slice(storage)?[start..end])
}

/// What `f` makes of the values of two tensors, in the shape of a third.
fn made_of<T: Real>(
    [a, b]: [&Tensor; 2],
    like: &Tensor,
    f: impl FnOnce(&[T], &[T]) -> Vec<T>,
) -> candle_core::Result<Tensor> {
    let values = with_values::<T, _>(a, |a| with_values::<T, _>(b, |b| f(a, b)))??;
    Tensor::from_vec(values, like.shape(), like.device())
}
