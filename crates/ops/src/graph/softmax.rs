//! Log-softmax and cross-entropy in a candle graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Layout, Shape, Tensor};

use crate::element::Float;
use crate::graph::{from_slice, made_of};
use crate::kernels::softmax;
use crate::{Error, Result};

/// `x - ln sum exp x` along the last axis, finite for any finite `x`. A row with NaN or plus infinity is
/// NaN; minus infinity is allowed next to finite values.
///
/// On the CPU one pass forward and one backward; candle's composition keeps four intermediate maps.
///
/// # Errors
/// If `x` has no axis or the last one is empty.
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
    fn backward<T: Float>(y: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
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

/// Cross-entropy `[M]` of logits `x` `[M, N]` with `labels` `[M]` (u32). Label smoothing distributes the
/// share `smoothing` in `[0, 1]` of the target uniformly over the classes (Szegedy et al. 2016, section
/// 7). Finite for any finite logits.
///
/// On the CPU no probabilities are saved: the backward pass recomputes them from the logits.
///
/// # Errors
/// If shapes do not match, labels are not u32, or one is not below `N`.
pub fn cross_entropy(x: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    const NAME: &str = "cross_entropy";
    let classes = match (x.dims(), labels.dims()) {
        ([m, n], [labels]) if m == labels && *n > 0 => *n,
        (x, labels) => {
            return Err(Error::shape(NAME, "logits [M, N] and labels [M]", [x, labels].concat()));
        }
    };
    if labels.dtype() != DType::U32 {
        return Err(Error::usage(NAME, format!("invalid labels: expected u32, found {:?}", labels.dtype())));
    }
    if x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64) {
        if labels.elem_count() > 0 {
            let largest = labels.max(0)?.to_scalar::<u32>()?;
            if largest as usize >= classes {
                return Err(Error::usage(
                    NAME,
                    format!("label {largest}, but the logits have {classes} classes"),
                ));
            }
        }
        return Ok(x.contiguous()?.apply_op2(&labels.contiguous()?, CrossEntropy { smoothing })?);
    }
    // Labels out of range are left to candle: a check here would synchronize with the GPU.
    let log_p = log_softmax(x)?;
    let own = (log_p.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)? * (smoothing - 1.0))?;
    if smoothing == 0.0 {
        return Ok(own);
    }
    Ok((own - (log_p.mean(1)? * smoothing)?)?)
}

struct CrossEntropy {
    smoothing: f64,
}

impl CrossEntropy {
    fn forward<T: Float>(
        &self,
        (x, of_x): (&CpuStorage, &Layout),
        (labels, of_labels): (&CpuStorage, &Layout),
    ) -> candle_core::Result<Vec<T>> {
        let Some((start, end)) = of_labels.contiguous_offsets() else {
            candle_core::bail!("expected contiguous labels")
        };
        let labels = &labels.as_slice::<u32>()?[start..end];
        let width = of_x.dims().last().copied().unwrap_or(1);
        Ok(softmax::entropy(from_slice(x, of_x)?, labels, width, self.smoothing))
    }

    fn backward<T: Float>(&self, x: &Tensor, labels: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let (labels, width) = (labels.to_vec1::<u32>()?, x.dim(D::Minus1)?);
        made_of::<T>([x, dy], x, |x, dy| softmax::entropy_backward(x, &labels, dy, width, self.smoothing))
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        labels: &CpuStorage,
        of_labels: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (logits, labels) = ((x, of_x), (labels, of_labels));
        let values = match x.dtype() {
            DType::F64 => CpuStorage::F64(self.forward(logits, labels)?),
            _ => CpuStorage::F32(self.forward(logits, labels)?),
        };
        Ok((values, of_labels.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        labels: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = match x.dtype() {
            DType::F64 => self.backward::<f64>(x, labels, dy)?,
            _ => self.backward::<f32>(x, labels, dy)?,
        };
        Ok((Some(dx), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use stillhouse_testkit::device;

    fn values(t: &Tensor) -> Vec<f64> {
        t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    /// Compares with candle's own operations: many rows, a view, arbitrary output gradients.
    #[test]
    fn log_softmax_matches_composed_ops() {
        for (dtype, within) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
            let x = Tensor::arange(0f64, 60_000.0, &device()).unwrap().reshape((3, 1000, 20)).unwrap();
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

    /// Compares with candle's own operations: many rows, with and without smoothing, arbitrary output
    /// gradients.
    #[test]
    fn cross_entropy_matches_composed_ops() {
        let (rows, classes) = (3000, 21);
        let labels: Vec<u32> = (0..rows as u32).map(|i| i * 7 % classes as u32).collect();
        let labels = Tensor::new(labels, &device()).unwrap();
        for (dtype, within) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
            let x = Tensor::arange(0f64, (rows * classes) as f64, &device()).unwrap();
            let x = ((x * 0.37).unwrap().sin().unwrap() * 9.0).unwrap().to_dtype(dtype).unwrap();
            let x = Var::from_tensor(&x.reshape((classes, rows)).unwrap()).unwrap();
            for s in [0.0, 0.1, 1.0] {
                let run = |f: &dyn Fn(&Tensor) -> Tensor| {
                    let y = f(&x.t().unwrap());
                    let slopes = (y.detach() * 0.3).unwrap();
                    let grads = (&y * slopes).unwrap().sum_all().unwrap().backward().unwrap();
                    (values(&y), values(grads.get(&x).unwrap()))
                };
                let (y, dx) = run(&|x| cross_entropy(x, &labels, s).unwrap());
                let (want_y, want_dx) = run(&|x| {
                    let log_sum = x.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
                    let log_p = x.broadcast_sub(&log_sum).unwrap();
                    let own = log_p.gather(&labels.unsqueeze(1).unwrap(), 1).unwrap().squeeze(1).unwrap();
                    ((own * (s - 1.0)).unwrap() - (log_p.mean(1).unwrap() * s).unwrap()).unwrap()
                });
                for (got, want) in y.iter().zip(&want_y).chain(dx.iter().zip(&want_dx)) {
                    assert!((got - want).abs() <= 4.0 * within * (1.0 + want.abs()), "{s}: {got} {want}");
                }
            }
        }
    }

    /// The path of other devices and dtypes, here in bf16.
    #[test]
    fn bf16_cross_entropy_is_near_f32() {
        let labels = Tensor::new(&[0u32, 2, 1], &device()).unwrap();
        let x = Tensor::new(&[[1f32, -2.0, 0.5], [3.0, 0.0, -1.0], [0.0, 0.0, 0.0]], &device()).unwrap();
        let halves = x.to_dtype(DType::BF16).unwrap();
        for s in [0.0, 0.25] {
            let want = values(&cross_entropy(&x, &labels, s).unwrap());
            let got = values(&cross_entropy(&halves, &labels, s).unwrap());
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 0.03), "{s}: {got:?} {want:?}");
        }
    }

    #[test]
    fn cross_entropy_rejects_bad_labels() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let labels = |l: &[u32]| Tensor::new(l, &Device::Cpu).unwrap();
        let error = |labels: &Tensor| cross_entropy(&x, labels, 0.0).unwrap_err().to_string();
        for (labels, words) in [
            (labels(&[0, 3]), "label 3, but the logits have 3 classes"),
            (labels(&[0]), "labels [M]"),
            (labels(&[0, 1]).to_dtype(DType::I64).unwrap(), "u32"),
        ] {
            assert!(
                error(&labels).contains(words) && error(&labels).contains("cross_entropy"),
                "{}",
                error(&labels)
            );
        }
    }

    #[test]
    fn propagates_nan() {
        let row = |v: [f32; 3]| log_softmax(&Tensor::new(&[v], &Device::Cpu).unwrap()).unwrap();
        let infinite = f32::INFINITY;
        for lost in [[0.0, f32::NAN, 1.0], [infinite, 0.0, 1.0], [-infinite; 3], [f32::NAN, 0.0, 0.0]] {
            assert!(values(&row(lost)).iter().all(|v| v.is_nan()), "{lost:?}");
        }
        let half = values(&row([0.0, -infinite, 0.0]));
        assert!(half[1] == f64::NEG_INFINITY && (half[0] + 2f64.ln()).abs() < 1e-6, "{half:?}");
        let error = log_softmax(&Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap()).unwrap_err();
        assert!(error.to_string().contains("log_softmax") && error.to_string().contains("[2, 0]"), "{error}");
    }
}
