//! Logarithms of probabilities in a candle graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Shape, Tensor};

use crate::graph::{from_slice, made_of};
use crate::kernels::softmax;
use crate::real::Real;
use crate::{Error, Result};

/// `x - ln sum exp x` along the last axis, finite for any finite `x`; a row with a value that is not a
/// number, or infinite, is not a number as a whole, but for values of minus infinity beside finite ones.
///
/// On the CPU in one pass, and another one back, where candle's own operations leave four values for each
/// one of a map behind.
///
/// # Errors
///
/// No axis, or none of any length.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    if x.dims().last().is_none_or(|n| *n == 0) {
        let expected = "at least one value on the last axis";
        return Err(Error::shape("log_softmax", expected, x.dims()));
    }
    if !x.device().is_cpu() || !matches!(x.dtype(), DType::F32 | DType::F64) {
        return Ok(candle_nn::ops::log_softmax(x, D::Minus1)?);
    }
    Ok(x.contiguous()?.apply_op1(LogSoftmax)?)
}

struct LogSoftmax;

impl LogSoftmax {
    fn backward<T: Real>(y: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let width = y.dim(D::Minus1)?;
        made_of::<T>([y, dy], y, |y, dy| softmax::backward(y, dy, width))
    }
}

impl CustomOp1 for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let shape = layout.shape().clone();
        Ok(match x.dtype() {
            DType::F64 => (CpuStorage::F64(softmax::forward(from_slice(x, layout)?, width)), shape),
            _ => (CpuStorage::F32(softmax::forward(from_slice(x, layout)?, width)), shape),
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(match x.dtype() {
            DType::F64 => Self::backward::<f64>(y, dy)?,
            _ => Self::backward::<f32>(y, dy)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn values(t: &Tensor) -> Vec<f64> {
        t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    /// Against candle's own operations, on many rows, on a view and with any gradient.
    #[test]
    fn it_is_the_formula() {
        for (dtype, within) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
            let x = Tensor::arange(0f64, 60_000.0, &Device::Cpu).unwrap().reshape((3, 1000, 20)).unwrap();
            let x = ((x * 0.37).unwrap().sin().unwrap() * 9.0).unwrap().to_dtype(dtype).unwrap();
            let x = Var::from_tensor(&x).unwrap();
            let slopes = x.affine(0.3, 1.0).unwrap().detach();
            let run = |f: &dyn Fn(&Tensor) -> Tensor| {
                let y = f(&x.transpose(0, 1).unwrap()).transpose(0, 1).unwrap();
                let grads = (&y * &slopes).unwrap().sum_all().unwrap().backward().unwrap();
                (values(&y), values(grads.get(&x).unwrap()))
            };
            let (y, dx) = run(&|x| log_softmax(x).unwrap());
            let (want_y, want_dx) = run(&|x| {
                let log_sum = x.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
                x.broadcast_sub(&log_sum).unwrap()
            });
            for (got, want) in y.iter().zip(&want_y).chain(dx.iter().zip(&want_dx)) {
                assert!((got - want).abs() <= within * (1.0 + want.abs()), "{got} {want}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let row = |v: [f32; 3]| log_softmax(&Tensor::new(&[v], &Device::Cpu).unwrap()).unwrap();
        let infinite = f32::INFINITY;
        for lost in [[0.0, f32::NAN, 1.0], [infinite, 0.0, 1.0], [-infinite; 3], [f32::NAN, 0.0, 0.0]] {
            assert!(values(&row(lost)).iter().all(|v| v.is_nan()), "{lost:?}");
        }
        let half = values(&row([0.0, -infinite, 0.0]));
        assert!(half[1] == f64::NEG_INFINITY && (half[0] + 2f64.ln()).abs() < 1e-6, "{half:?}");
        let said = log_softmax(&Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap()).unwrap_err();
        assert!(said.to_string().contains("log_softmax") && said.to_string().contains("[2, 0]"), "{said}");
    }
}
