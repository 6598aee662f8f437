//! Operations that several methods share.

use candle_core::Tensor;
use stillhouse_core::Result;

pub(crate) mod checks;
pub(crate) mod config;
pub(crate) mod connector;
pub(crate) mod gram;
pub(crate) mod masks;
pub mod mmd;
pub(crate) mod normalize;
pub(crate) mod pool;
pub(crate) mod reduce;
pub(crate) mod softmax;

/// The teacher's tensor without gradient, in the student's dtype.
pub(crate) fn constant_like(teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    Ok(teacher.detach().to_dtype(student.dtype())?)
}
