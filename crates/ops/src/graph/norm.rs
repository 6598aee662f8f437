//! Batch norm in a candle graph, on the CPU kernels.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};

use crate::element::{Float, with_values};
use crate::graph::shape::like;
use crate::graph::{from_slice, rows_of, upcast};
use crate::kernels::activation::Activation;
use crate::kernels::norm;
use crate::{Error, Result};

/// Result of a training-mode batch norm with the batch statistics.
#[derive(Debug, Clone)]
pub struct BatchNormOutput {
    /// Normalized values, in the shape of the input.
    pub y: Tensor,
    /// Mean of each channel `[C]`, without gradient; f64 on the CPU.
    pub mean: Tensor,
    /// Biased variance of each channel `[C]`, without gradient; f64 on the CPU.
    pub variance: Tensor,
}

/// Batch norm over the rows of `x [M, C]` with `gamma [C]` and `beta [C]`, in f32 or f64. Gradients flow
/// through the batch statistics.
///
/// One pass forward and two backward, where candle's composition needs a dozen. Results do not depend on
/// the number of threads.
///
/// # Errors
/// If shapes or dtypes do not match, or there is no row.
pub fn batch_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<BatchNormOutput> {
    let (rows, channels) = x.dims2()?;
    if rows * channels == 0 || gamma.dims() != [channels] || beta.dims() != [channels] {
        let found = (x.dims(), gamma.dims(), beta.dims());
        return Err(Error::shape("batch_norm", "rows [M, C] of at least one, gamma and beta [C]", found));
    }
    if [gamma, beta].iter().any(|t| t.dtype() != x.dtype()) || !matches!(x.dtype(), DType::F32 | DType::F64) {
        let found = (x.dtype(), gamma.dtype(), beta.dtype());
        return Err(Error::shape("batch_norm", "one of f32 and f64 for all", found));
    }
    if !x.device().is_cpu() {
        return composed(x, gamma, beta, eps);
    }
    let x = x.contiguous()?;
    let (mean, variance) = match x.dtype() {
        DType::F64 => with_values::<f64, _>(&x, |x| statistics(x, channels))?,
        _ => with_values::<f32, _>(&x, |x| statistics(x, channels))?,
    };
    let inverse = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let op = BatchNorm { mean: mean.clone(), inverse };
    let y = x.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)?;
    let of_channel = |values| Tensor::from_vec(values, channels, x.device());
    Ok(BatchNormOutput { y, mean: of_channel(mean)?, variance: of_channel(variance)? })
}

/// [`batch_norm`] over all pixels of maps `[B, C, H, W]`; also for bf16 maps, with f32 statistics.
pub(crate) fn batch_norm_maps(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<BatchNormOutput> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::batch_norm(x, gamma, beta, eps);
    }
    let normed = batch_norm(&upcast(&rows_of(x)?)?, gamma, beta, eps)?;
    Ok(BatchNormOutput { y: like(normed.y.to_dtype(x.dtype())?, x)?, ..normed })
}

/// Composed of candle operations, for other devices.
fn composed(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<BatchNormOutput> {
    let mean = x.mean(0)?;
    let centered = x.broadcast_sub(&mean)?;
    let variance = centered.sqr()?.mean(0)?;
    let scale = (&variance + eps)?.sqrt()?.recip()?.mul(gamma)?;
    let y = centered.broadcast_mul(&scale)?.broadcast_add(beta)?;
    Ok(BatchNormOutput { y, mean: mean.detach(), variance: variance.detach() })
}

fn statistics<T: Float>(x: &[T], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let mut scratch = vec![T::ZERO; norm::scratch_len(x.len() / channels, channels)];
    norm::statistics(x, channels, &mut scratch)
}

fn narrow<T: Float>(values: impl Iterator<Item = f64>) -> Vec<T> {
    values.map(T::narrow).collect()
}

struct BatchNorm {
    mean: Vec<f64>,
    /// `1 / sqrt(variance + eps)`.
    inverse: Vec<f64>,
}

impl BatchNorm {
    fn forward<T: Float>(&self, x: &[T], gamma: &[T], beta: &[T]) -> Vec<T> {
        let a: Vec<f64> = gamma.iter().zip(&self.inverse).map(|(g, i)| g.widen() * i).collect();
        let b = beta.iter().zip(&self.mean).zip(&a).map(|((b, m), a)| b.widen() - m * a);
        let mut y = vec![T::ZERO; x.len()];
        norm::affine(x, &narrow::<T>(a.iter().copied()), &narrow::<T>(b), None, Activation::None, &mut y);
        y
    }

    /// Returns the gradients of the rows, gamma and beta.
    fn backward<T: Float>(&self, x: &[T], gamma: &[T], dy: &[T]) -> [Vec<T>; 3] {
        let channels = gamma.len();
        let rows = x.len() / channels;
        let mut scratch = vec![T::ZERO; norm::scratch_len(rows, channels)];
        let mut dy = dy.to_vec();
        let mean = narrow::<T>(self.mean.iter().copied());
        let (sum, product) = norm::backward_sums(&mut dy, x, Activation::None, x, &mean, &mut scratch);
        let (mut a, mut k1, mut k2) = (vec![0.0; channels], vec![0.0; channels], vec![0.0; channels]);
        for c in 0..channels {
            let n = rows as f64;
            a[c] = gamma[c].widen() * self.inverse[c];
            k2[c] = -a[c] * self.inverse[c] * self.inverse[c] * product[c] / n;
            k1[c] = -a[c] * sum[c] / n - k2[c] * self.mean[c];
        }
        let [a, k1, k2] = [a, k1, k2].map(|v| narrow::<T>(v.into_iter()));
        let mut dx = vec![T::ZERO; x.len()];
        norm::backward_input(&dy, x, &a, &k2, &k1, &mut dx);
        [dx, narrow(product.iter().zip(&self.inverse).map(|(p, i)| p * i)), narrow(sum.into_iter())]
    }

    fn gradients<T: Float>(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<[Tensor; 3]> {
        let [dx, dgamma, dbeta] = with_values::<T, _>(x, |x| {
            with_values::<T, _>(gamma, |gamma| with_values::<T, _>(dy, |dy| self.backward(x, gamma, dy)))
        })???;
        let of_channel = |values| Tensor::from_vec(values, gamma.shape(), x.device());
        Ok([Tensor::from_vec(dx, x.shape(), x.device())?, of_channel(dgamma)?, of_channel(dbeta)?])
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape().clone();
        Ok(match x.dtype() {
            DType::F64 => {
                let (gamma, beta) = (from_slice(gamma, gamma_layout)?, from_slice(beta, beta_layout)?);
                (CpuStorage::F64(self.forward(from_slice::<f64>(x, x_layout)?, gamma, beta)), shape)
            }
            _ => {
                let (gamma, beta) = (from_slice(gamma, gamma_layout)?, from_slice(beta, beta_layout)?);
                (CpuStorage::F32(self.forward(from_slice::<f32>(x, x_layout)?, gamma, beta)), shape)
            }
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dgamma, dbeta] = match x.dtype() {
            DType::F64 => self.gradients::<f64>(x, gamma, dy)?,
            _ => self.gradients::<f32>(x, gamma, dy)?,
        };
        Ok((Some(dx), Some(dgamma), Some(dbeta)))
    }
}
