//! Log-softmax, log-sum-exp and Kullback-Leibler divergences.

use candle_core::{D, Tensor};
use stillhouse_core::{Error, Result};
pub(crate) use stillhouse_ops::graph::log_softmax;

use super::constant_like;
use super::reduce::mean;

/// Reshapes logits `[B, N]` or `[B, N, H, W]` to rows `[B, N]` or `[B * H * W, N]`.
pub(crate) fn rows(logits: &Tensor) -> Result<Tensor> {
    match logits.dims() {
        [_, _] => Ok(logits.clone()),
        [b, n, h, w] => Ok(logits.permute((0, 2, 3, 1))?.reshape((b * h * w, *n))?),
        other => Err(Error::incompatible(
            "logits",
            format!("expected the shape [B, N] or [B, N, H, W], found {other:?}"),
        )),
    }
}

/// `ln sum exp x` along the last axis, finite for any finite `x`.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.detach().max_keepdim(D::Minus1)?;
    let log_sum = x.broadcast_sub(&max)?.exp()?.sum(D::Minus1)?.log()?;
    Ok((log_sum + max.squeeze(D::Minus1)?)?)
}

/// `KL(softmax(p) || softmax(q))` along the last axis.
pub(crate) fn kl(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let (p, q) = (log_softmax(p)?, log_softmax(q)?);
    Ok((p.exp()? * (p - q)?)?.sum(D::Minus1)?)
}

/// Mean over rows of `KL(softmax(teacher / T) || softmax(student / T))` for logits `[B, N]` or
/// `[B, N, H, W]`. Only the student gets a gradient.
pub(crate) fn soft_kl(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let soft = |logits: &Tensor| Ok::<_, Error>((rows(logits)? / temperature)?);
    mean(&kl(&soft(&constant_like(teacher, student)?)?, &soft(student)?)?)
}

/// Multiplies by the squared temperature if `enabled`, which keeps the gradient's scale.
pub(crate) fn scale_by_t_squared(value: Tensor, temperature: f64, enabled: bool) -> Result<Tensor> {
    Ok(if enabled { (value * (temperature * temperature))? } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn is_finite_for_large_logits() {
        let x = Var::new(&[[1e4f32, -1e4, 1e4], [-1e4, -1e4, -1e4]], &Device::Cpu).unwrap();
        let y = log_softmax(&x).unwrap();
        let want = [[-(2f32.ln()), -2e4 - 2f32.ln(), -(2f32.ln())], [-(3f32.ln()); 3]];
        for (got, want) in y.to_vec2::<f32>().unwrap().iter().zip(want) {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-6 * w.abs()), "{got:?} {want:?}");
        }
        let grads = kl(&y.detach().affine(-1.0, 0.0).unwrap(), &x).unwrap().sum_all().unwrap().backward();
        let g = grads.unwrap().get(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!(g.iter().flatten().all(|v| v.is_finite() && v.abs() <= 1.0), "{g:?}");
    }

    #[test]
    fn reshapes_pixels_to_rows() {
        let x = Tensor::arange(0f64, 12., &Device::Cpu).unwrap().reshape((1, 3, 2, 2)).unwrap();
        let r = rows(&x).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(r, [[0., 4., 8.], [1., 5., 9.], [2., 6., 10.], [3., 7., 11.]]);
        assert!(rows(&x.flatten_all().unwrap()).unwrap_err().to_string().contains("[12]"));
    }
}
