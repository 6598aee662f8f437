//! Reductions with f64 accumulation.

use candle_core::{DType, Tensor};
use stillhouse_core::{Error, Result};

/// Sum of all values, accumulated in f64, in the tensor's dtype.
pub(crate) fn sum(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F64)?.sum_all()?.to_dtype(x.dtype())?)
}

/// Mean of all values, accumulated in f64, in the tensor's dtype.
pub(crate) fn mean(x: &Tensor) -> Result<Tensor> {
    Ok((sum(x)? / x.elem_count() as f64)?)
}

/// Sum of one scalar per stage, in the order of the stages.
///
/// # Errors
/// The first error of a stage, or if there are no stages: a method before `connect`.
pub(crate) fn sum_stages(
    component: &str,
    values: impl IntoIterator<Item = Result<Tensor>>,
) -> Result<Tensor> {
    let mut values = values.into_iter();
    let first = values.next().ok_or_else(|| {
        Error::incompatible(component, "expected connected stages, found none: call connect first")
    })?;
    values.try_fold(first?, |total, value| Ok((total + value?)?))
}

/// Mean over the first axis, `[M, N] -> [N]`, as a matrix product: candle's reduction of a leading axis
/// is slow and accumulates serially.
pub(crate) fn mean_rows(x: &Tensor) -> Result<Tensor> {
    let rows = x.dims2()?.0;
    let share = Tensor::full(1.0 / rows as f64, (1, rows), x.device())?.to_dtype(x.dtype())?;
    Ok(share.matmul(x)?.squeeze(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn accumulates_in_f64() {
        // A serial f32 sum of three million thirds has a relative error of 1e-3.
        let x = Tensor::full(1.0f32 / 3.0, 3_000_000, &Device::Cpu).unwrap();
        let exact = 3e6 * f64::from(1.0f32 / 3.0);
        assert_eq!(sum(&x).unwrap().to_scalar::<f32>().unwrap(), exact as f32);
        assert_eq!(mean(&x).unwrap().to_scalar::<f32>().unwrap(), 1.0 / 3.0);
        let x = Tensor::new(&[[1f64, 2.], [3., 6.]], &Device::Cpu).unwrap();
        assert_eq!(mean_rows(&x).unwrap().to_vec1::<f64>().unwrap(), [2., 4.]);
    }
}
