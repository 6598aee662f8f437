//! Sums, activations and shape changes of maps `[B, C, H, W]` and vectors `[B, C]`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};

use crate::element::Float;
use crate::graph::{columns_last, rows_of, upcast};
use crate::kernels::activation::Activation;
use crate::kernels::resample::AxisWeights;
use crate::{Error, Result};

/// Sum of two maps of one shape, or of a vector and a map of one pixel.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let b = if a.rank() == b.rank() { b.clone() } else { b.reshape(a.shape())? };
    in_order(&[a, &b], |x| Ok((&x[0] + &x[1])?))
}

/// Activation with derivative 0 at its corners, as in PyTorch; candle's `relu` has 1 there.
pub(crate) fn activate(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act.bounds() {
        None => Ok(x.clone()),
        Some((_, high)) => in_order(&[x], |x| {
            let y = x[0].apply_op1(Relu)?;
            if high == f64::INFINITY {
                return Ok(y);
            }
            let most = Tensor::full(high, y.shape(), y.device())?.to_dtype(y.dtype())?;
            Ok(y.lt(&most)?.where_cond(&y, &most)?)
        }),
    }
}

/// `max(x, 0)` with derivative 0 at 0.
struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((x.unary_impl::<candle_core::op::Relu>(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((x.unary_impl::<candle_core::op::Relu>(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let zeros = y.zeros_like()?;
        Ok(Some(y.gt(&zeros)?.where_cond(dy, &zeros)?))
    }
}

/// GELU with the error function; candle's own has a rounded constant in its gradient.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    in_order(&[x], |x| {
        let wide = upcast(&x[0])?;
        let below = wide.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()?.affine(0.5, 0.5)?;
        Ok((wide * below)?.to_dtype(x[0].dtype())?)
    })
}

/// Runs element-wise operations on channels-last views if all maps are stored channels last; on permuted
/// views candle would store the result channels first.
fn in_order(maps: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let rows =
        |x: &&Tensor| x.rank() == 4 && !x.is_contiguous() && columns_last(x).is_ok_and(|x| x.is_contiguous());
    if maps.iter().all(rows) {
        let transposed = maps.iter().map(|x| columns_last(x)).collect::<Result<Vec<_>>>()?;
        return Ok(f(&transposed)?.permute((0, 3, 1, 2))?);
    }
    f(&maps.iter().map(|x| (*x).clone()).collect::<Vec<_>>())
}

/// Scales each image by a factor.
pub(crate) fn scale_images(x: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = factors.len();
    let wide = upcast(x)?;
    let factors = Tensor::from_slice(factors, shape, x.device())?.to_dtype(wide.dtype())?;
    Ok(wide.broadcast_mul(&factors)?.to_dtype(x.dtype())?)
}

/// Scales each value by a factor, given in channels-last order `[B, H, W, C]`.
pub(crate) fn scale<T: Float>(x: &Tensor, factors: Vec<T>, shape: [usize; 4]) -> Result<Tensor> {
    let factors = Tensor::from_vec(factors, &shape, x.device())?;
    let factors = if x.rank() == 2 { factors.reshape(x.shape())? } else { factors.permute((0, 3, 1, 2))? };
    in_order(&[x, &factors], |x| Ok((upcast(&x[0])? * &x[1])?.to_dtype(x[0].dtype())?))
}

/// Mean over all pixels, `[B, C, H, W]` to `[B, C]`.
pub(crate) fn global_average(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 2 {
        return Ok(x.clone());
    }
    Ok(upcast(x)?.flatten_from(2)?.mean(2)?.to_dtype(x.dtype())?)
}

/// Broadcasts a vector, or a map of one pixel, to all pixels.
pub(crate) fn expand(x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (b, c) = (x.dim(0)?, x.dim(1)?);
    let pixels = upcast(x)?.reshape((b, c, 1, 1))?.broadcast_as((b, c, h, w))?;
    Ok(pixels.contiguous()?.to_dtype(x.dtype())?)
}

/// Separable resampling by two matrix products: resizing, adaptive average pooling.
pub(crate) fn resample(x: &Tensor, rows: &AxisWeights, columns: &AxisWeights) -> Result<Tensor> {
    let (b, c, from_h, from_w) = x.dims4()?;
    let (h, w) = (rows.outputs(), columns.outputs());
    let mut y = upcast(x)?;
    let matrix = |along: &AxisWeights, y: &Tensor| -> Result<Tensor> {
        let shape = (along.inputs(), along.outputs());
        Ok(Tensor::from_vec(along.matrix(), shape, x.device())?.to_dtype(y.dtype())?)
    };
    if from_w != w {
        y = y.reshape((b * c * from_h, from_w))?.matmul(&matrix(columns, &y)?)?.reshape((b, c, from_h, w))?;
    }
    if from_h != h {
        y = y.transpose(2, 3)?.reshape((b * c * w, from_h))?.matmul(&matrix(rows, &y)?)?;
        y = y.reshape((b, c, w, h))?.transpose(2, 3)?;
    }
    Ok(y.to_dtype(x.dtype())?)
}

/// Patch merging, `[B, C, H, W]` to `[B, 4C, ceil(H / 2), ceil(W / 2)]`.
pub(crate) fn merge_patches(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (rows, columns) = (h.div_ceil(2), w.div_ceil(2));
    let y = columns_last(x)?.pad_with_zeros(1, 0, 2 * rows - h)?.pad_with_zeros(2, 0, 2 * columns - w)?;
    // Axes: row, row in patch, column, column in patch; the row in the patch varies fastest.
    let y = y.contiguous()?.reshape(&[b, rows, 2, columns, 2, c])?.permute(vec![0, 1, 3, 4, 2, 5])?;
    Ok(y.reshape((b, rows, columns, 4 * c))?.permute((0, 3, 1, 2))?)
}

/// `weight * (x - mean) / sqrt(variance + eps) + bias` over the channels of every pixel or vector.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let rows = upcast(&rows_of(x)?)?;
    let centered = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let deviation = (centered.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    let y = centered.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)?;
    like(y.to_dtype(x.dtype())?, x)
}

/// Like [`layer_norm`], over the pixels and channels of each image and group of channels.
pub(crate) fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let rows = upcast(x)?.reshape((x.dim(0)?, groups, ()))?;
    let centered = rows.broadcast_sub(&rows.mean_keepdim(2)?)?;
    let deviation = (centered.sqr()?.mean_keepdim(2)? + eps)?.sqrt()?;
    let y = centered.broadcast_div(&deviation)?.reshape(x.shape())?;
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    let y = y.broadcast_mul(&weight.reshape(&shape[..])?)?.broadcast_add(&bias.reshape(&shape[..])?)?;
    Ok(y.to_dtype(x.dtype())?)
}

/// Reshapes rows of channels to the shape of `x`; the number of channels may differ.
pub(crate) fn like(rows: Tensor, x: &Tensor) -> Result<Tensor> {
    match *x.dims() {
        [b, _, h, w] => Ok(rows.reshape((b, h, w, rows.dim(1)?))?.permute((0, 3, 1, 2))?),
        _ => Ok(rows),
    }
}

/// `x W^T + b` on vectors and on the pixels of maps; `weight [out, in]` and bias are rounded to their
/// dtype.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let rows = rows_of(x)?;
    let mut y = rows.matmul(&weight.to_dtype(x.dtype())?.t()?)?;
    if let Some(bias) = bias {
        y = with_bias(&y, &bias.to_dtype(x.dtype())?)?;
    }
    like(y, x)
}

/// Adds a bias to each row as a product with ones: candle's reduction over the leading axis, the gradient
/// of a broadcast, loses precision.
pub(crate) fn with_bias(rows: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if !bias.track_op() {
        return Ok(rows.broadcast_add(bias)?);
    }
    let ones = Tensor::ones((rows.dim(0)?, 1), rows.dtype(), rows.device())?;
    Ok((rows + ones.matmul(&bias.unsqueeze(0)?)?)?)
}

/// Requires a map of f32 or f64.
pub(crate) fn check_map(op: &'static str, x: &Tensor) -> Result<(usize, usize, usize, usize)> {
    match *x.dims() {
        [b, c, h, w] if b * c * h * w > 0 && matches!(x.dtype(), DType::F32 | DType::F64) => Ok((b, c, h, w)),
        _ => Err(Error::shape(op, "a map [B, C, H, W] of f32 or f64", (x.dims(), x.dtype()))),
    }
}
