//! L2 normalization and square root with zero value and gradient at zero.

use candle_core::{D, Tensor};
use stillhouse_core::Result;

/// Norms up to this threshold are treated as zero.
pub(crate) const EPS: f64 = 1e-12;

/// `x / |x|` along the last axis where `|x| > eps`, else 0 with gradient 0. Dividing by `max(|x|, eps)`
/// has the same values, but gradients of order 1 / eps at zero vectors.
pub(crate) fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?; // reductions of a contiguous last axis are fast
    let square = x.sqr()?.sum_keepdim(D::Minus1)?;
    let live = square.gt(eps * eps)?;
    let norm = live.where_cond(&square, &square.ones_like()?)?.sqrt()?;
    let scale = live.to_dtype(x.dtype())?.div(&norm)?;
    Ok(x.broadcast_mul(&scale)?)
}

/// Square root where `x > 0`, else 0 with gradient 0.
pub(crate) fn safe_sqrt(x: &Tensor) -> Result<Tensor> {
    let live = x.gt(0.0)?;
    let root = live.where_cond(x, &x.ones_like()?)?.sqrt()?;
    Ok(live.where_cond(&root, &x.zeros_like()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn has_zero_gradient_at_zero() {
        let x = Var::new(&[[3f64, 4.], [0., 0.], [1e-13, 0.]], &Device::Cpu).unwrap();
        let u = l2_normalize(&x, EPS).unwrap();
        let rows = u.to_vec2::<f64>().unwrap();
        assert!((rows[0][0] - 0.6).abs() < 1e-15 && (rows[0][1] - 0.8).abs() < 1e-15, "{rows:?}");
        assert_eq!(rows[1..], [[0., 0.], [0., 0.]]);
        // d(u0 + 2 u1)/dx at (3, 4) = (w - (w . u) u) / 5 with w = (1, 2)
        let weights = Tensor::new(&[1f64, 2.], &Device::Cpu).unwrap();
        let grads = u.broadcast_mul(&weights).unwrap().sum_all().unwrap().backward().unwrap();
        let g = grads.get(&x).unwrap().to_vec2::<f64>().unwrap();
        assert!((g[0][0] + 0.064).abs() < 1e-15 && (g[0][1] - 0.048).abs() < 1e-15, "{g:?}");
        assert_eq!(g[1..], [[0., 0.], [0., 0.]]);

        let x = Var::new(&[4f64, 0., -1.], &Device::Cpu).unwrap();
        let root = safe_sqrt(&x).unwrap();
        assert_eq!(root.to_vec1::<f64>().unwrap(), [2., 0., 0.]);
        let grads = root.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec1::<f64>().unwrap(), [0.25, 0., 0.]);
    }

    #[test]
    fn normalizes_small_vectors_in_f32() {
        let x = Tensor::new(&[[3e-11f32, 4e-11]], &Device::Cpu).unwrap();
        let u = l2_normalize(&x, EPS).unwrap().to_vec2::<f32>().unwrap();
        assert!((u[0][0] - 0.6).abs() < 1e-6 && (u[0][1] - 0.8).abs() < 1e-6, "{u:?}");
    }
}
