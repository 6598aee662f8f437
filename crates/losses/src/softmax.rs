//! Log-softmax and what is made of it.

use candle_core::{D, Tensor};
use stillhouse_core::{Error, Result};
pub(crate) use stillhouse_ops::graph::log_softmax;

/// Logits `[B, N]` or `[B, N, H, W]` as rows `[B, N]` or `[B * H * W, N]`.
pub(crate) fn rows(logits: &Tensor, who: &str) -> Result<Tensor> {
    match logits.dims() {
        [_, _] => Ok(logits.clone()),
        [b, n, h, w] => Ok(logits.permute((0, 2, 3, 1))?.reshape((b * h * w, *n))?),
        other => Err(Error::incompatible(who, format!("needs logits [B, N] or [B, N, H, W], got {other:?}"))),
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn huge_logits_stay_finite() {
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
    fn pixels_are_rows() {
        let x = Tensor::arange(0f64, 12., &Device::Cpu).unwrap().reshape((1, 3, 2, 2)).unwrap();
        let r = rows(&x, "test").unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(r, [[0., 4., 8.], [1., 5., 9.], [2., 6., 10.], [3., 7., 11.]]);
        assert!(rows(&x.flatten_all().unwrap(), "test").unwrap_err().to_string().contains("[12]"));
    }
}
