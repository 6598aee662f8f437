//! Operations for candle graphs that candle lacks, or has without a gradient.

mod resize;
mod svd;

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

/// The gradient of `x` made from its values and those of the result's gradient.
fn contiguous<T: Real>(
    x: &Tensor,
    dy: &Tensor,
    f: impl FnOnce(&[T], &[T]) -> Vec<T>,
) -> candle_core::Result<Tensor> {
    let dx = with_values::<T, _>(x, |x| with_values::<T, _>(dy, |dy| f(x, dy)))??;
    Tensor::from_vec(dx, x.shape(), x.device())
}
