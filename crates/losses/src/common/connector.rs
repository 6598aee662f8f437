//! Connectors from the student's to the teacher's channels: 1x1 convolution, batch norm, ReLU.

use std::cell::RefCell;

use candle_core::Tensor;
use stillhouse_core::{ParamBuilder, ParamStore, Result};
use stillhouse_ops::{ConvSpec, Init, ParamId, graph};

/// Weight of a batch in the running statistics (PyTorch's default).
const MOMENTUM: f64 = 0.1;

/// Reshapes maps `[B, C, H, W]` to rows of channels `[B * H * W, C]`; no copy for maps of a tape.
pub(crate) fn pixels(maps: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = maps.dims4()?;
    Ok(maps.permute((0, 2, 3, 1))?.reshape((b * h * w, c))?)
}

/// 1x1 convolution of [`pixels`] with a weight `[to, from, 1, 1]`, `[M, from] -> [M, to]`.
pub(crate) fn conv1x1(pixels: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, from) = pixels.dims2()?;
    let to = weight.dim(0)?;
    let images = pixels.reshape((rows, from, 1, 1))?;
    Ok(graph::conv2d(&images, weight, ConvSpec::new(from, to, 1))?.reshape((rows, to))?)
}

/// Adds a bias `[C]` to [`pixels`].
pub(crate) fn add_bias(pixels: &Tensor, bias: &Tensor) -> Result<Tensor> {
    // A product with ones: the gradient of a broadcast is a sum over the leading axis, which is slow
    // and inaccurate in candle.
    let ones = Tensor::ones((pixels.dim(0)?, 1), pixels.dtype(), pixels.device())?;
    Ok((pixels + ones.matmul(&bias.unsqueeze(0)?)?)?)
}

/// `max(x, 0)` with derivative 0 at 0 (candle's is 1).
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    Ok((x * x.gt(0.0)?.to_dtype(x.dtype())?)?)
}

/// 1x1 convolution with bias.
#[derive(Debug)]
pub(crate) struct Conv1x1 {
    weight: Tensor, // [to, from, 1, 1]
    bias: Tensor,   // [to]
}

impl Conv1x1 {
    /// Creates `weight` and `bias` under the builder's prefix.
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
        let y = add_bias(&conv1x1(&pixels(x)?, &self.weight)?, &self.bias)?;
        Ok(y.reshape((b, h, w, self.bias.dim(0)?))?.permute((0, 3, 1, 2))?)
    }
}

/// Batch norm of [`pixels`] with PyTorch's parameter names, momentum and unbiased running variance.
#[derive(Debug)]
pub(crate) struct BatchNorm {
    gamma: Tensor, // [C]
    beta: Tensor,  // [C]
    running_mean: ParamId,
    running_var: ParamId,
    params: ParamStore,
    eps: f64,
    /// Mean and unbiased variance of the last training batch, until `after_step`.
    batch_stats: RefCell<Option<[Tensor; 2]>>,
}

impl BatchNorm {
    /// Creates `weight`, `bias`, `running_mean` and `running_var` under the builder's prefix.
    pub(crate) fn new(channels: usize, eps: f64, params: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            gamma: params.var("weight", &[channels], Init::Constant(1.0))?,
            beta: params.var("bias", &[channels], Init::Constant(0.0))?,
            running_mean: params.buffer("running_mean", &[channels], Init::Constant(0.0))?,
            running_var: params.buffer("running_var", &[channels], Init::Constant(1.0))?,
            params: params.params().clone(),
            eps,
            batch_stats: RefCell::new(None),
        })
    }

    /// Normalizes `[M, C]` by the batch's statistics if `train`, else by the running ones.
    pub(crate) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if train {
            let graph::BatchNormOutput { y, mean, variance } =
                graph::batch_norm(x, &self.gamma, &self.beta, self.eps)?;
            let count = x.dim(0)? as f64;
            let unbiased = ((variance * count)? / (count - 1.0).max(1.0))?;
            *self.batch_stats.borrow_mut() = Some([mean, unbiased]);
            return Ok(y);
        }
        let centered = x.broadcast_sub(&self.buffer(self.running_mean))?;
        let scale = (self.buffer(self.running_var) + self.eps)?.sqrt()?.recip()?.mul(&self.gamma)?;
        Ok(centered.broadcast_mul(&scale)?.broadcast_add(&self.beta)?)
    }

    /// Updates the running statistics by the last training batch.
    pub(crate) fn after_step(&self) -> Result<()> {
        if let Some(seen) = self.batch_stats.borrow_mut().take() {
            for (id, new) in [self.running_mean, self.running_var].into_iter().zip(seen) {
                let new = new.to_dtype(self.params.dtype())?;
                let moved = ((self.buffer(id) * (1.0 - MOMENTUM))? + (new * MOMENTUM)?)?;
                self.params.import(id, &moved)?;
            }
        }
        Ok(())
    }

    fn buffer(&self, id: ParamId) -> Tensor {
        self.params.get(id).var().as_detached_tensor()
    }
}

/// 1x1 convolution without bias and batch norm.
#[derive(Debug)]
pub(crate) struct Conv1x1Bn {
    weight: Tensor, // [C_T, C_S, 1, 1]
    norm: BatchNorm,
}

impl Conv1x1Bn {
    /// Creates `connector.weight` and `bn.*` under the builder's prefix.
    pub(crate) fn new(student: usize, teacher: usize, eps: f64, params: &ParamBuilder) -> Result<Self> {
        let shape = [teacher, student, 1, 1];
        let weight = params.pp("connector").var("weight", &shape, Init::fan_in_uniform(student))?;
        Ok(Self { weight, norm: BatchNorm::new(teacher, eps, &params.pp("bn"))? })
    }

    /// `[B, C_S, H, W] -> [B, C_T, H, W]`, with the batch's statistics if `train`.
    pub(crate) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (b, _, h, w) = x.dims4()?;
        let y = self.norm.forward(&conv1x1(&pixels(x)?, &self.weight)?, train)?;
        Ok(y.reshape((b, h, w, self.weight.dim(0)?))?.permute((0, 3, 1, 2))?)
    }

    /// Updates the running statistics by the last training batch.
    pub(crate) fn after_step(&self) -> Result<()> {
        self.norm.after_step()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use stillhouse_core::Rng;

    #[test]
    fn updates_running_statistics_after_the_step() {
        let params = ParamStore::new(DType::F64, &Device::Cpu).unwrap();
        let connector = Conv1x1Bn::new(1, 1, 1e-5, &params.builder(Rng::new(1))).unwrap();
        let value = |name: &str| {
            params.export(params.id(name).unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
                [0]
        };
        params
            .import(
                params.id("connector.weight").unwrap(),
                &Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu).unwrap(),
            )
            .unwrap();
        let x = Tensor::new(&[[[[1f64, 2.], [3., 6.]]]], &Device::Cpu).unwrap(); // mean 3, variance 14 / 4

        let y = connector.forward(&x, true).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!((y[3] - 3.0 / (3.5f64 + 1e-5).sqrt()).abs() < 1e-12, "{y:?}");
        assert_eq!((value("bn.running_mean"), value("bn.running_var")), (0.0, 1.0));
        connector.after_step().unwrap();
        connector.after_step().unwrap(); // no new batch
        assert!((value("bn.running_mean") - 0.3).abs() < 1e-12);
        assert!((value("bn.running_var") - (0.9 + 0.1 * 14.0 / 3.0)).abs() < 1e-12);

        let y = connector.forward(&x, false).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let want = (6.0 - 0.3) / (0.9 + 0.1 * 14.0 / 3.0 + 1e-5f64).sqrt();
        assert!((y[3] - want).abs() < 1e-12, "{y:?}");
        connector.after_step().unwrap(); // evaluation has no effect
        assert!((value("bn.running_mean") - 0.3).abs() < 1e-12);
    }
}
