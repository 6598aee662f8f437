//! The plain 1x1 convolution that brings a student's map to the teacher's channels.

use candle_core::Tensor;
use stillhouse_core::{ParamBuilder, Result};
use stillhouse_ops::Init;

use crate::connector::{conv1x1, pixels};

/// A 1x1 convolution with bias. Trained with the student, dropped afterwards.
#[derive(Debug)]
pub(crate) struct Conv1x1 {
    weight: Tensor, // [to, from, 1, 1]
    bias: Tensor,   // [to]
}

impl Conv1x1 {
    /// Makes `weight` and `bias` below the builder.
    pub(crate) fn new(from: usize, to: usize, params: &ParamBuilder) -> Result<Self> {
        let init = Init::fan_in_uniform(from);
        Ok(Self {
            weight: params.var("weight", &[to, from, 1, 1], init)?,
            bias: params.var("bias", &[to], init)?,
        })
    }

    /// `[B, from, H, W] -> [B, to, H, W]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, _, h, w) = x.dims4()?;
        let to = self.bias.dim(0)?;
        let y = conv1x1(&pixels(x)?, &self.weight)?;
        // A product with ones: candle's own sum over a leading axis, backward of a broadcast, is
        // slow and loses digits.
        let ones = Tensor::ones((b * h * w, 1), x.dtype(), x.device())?;
        let y = (y + ones.matmul(&self.bias.reshape((1, to))?)?)?;
        Ok(y.reshape((b, h, w, to))?.permute((0, 3, 1, 2))?)
    }
}
