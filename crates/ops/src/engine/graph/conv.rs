//! Convolution blocks as candle graphs.

use candle_core::Tensor;

use super::state::{FoldedTensors, GraphEngine, weight};
use crate::engine::Context;
use crate::graph;
use crate::mode::Mode;
use crate::op::{BN_MOMENTUM, BatchNorm, Conv, Value};
use crate::{Error, Result};

impl GraphEngine {
    /// Runs a block on a map, or on a vector.
    pub(super) fn conv(
        &mut self,
        op: &Conv,
        input: &Value,
        x: &Tensor,
        shortcut: Option<&Tensor>,
        context: &Context,
    ) -> Result<Tensor> {
        let y = match op.norm {
            Some(norm) if context.mode == Mode::Train => normed(op, &norm, x, context)?,
            Some(norm) if context.mode.trains() => {
                let (a, b) = running(op, &norm, context)?;
                let y = graph::upcast(&convolved(op, x, &kernel(op, context)?)?)?;
                let y = y.broadcast_mul(&of_channel(&a)?)?.broadcast_add(&of_channel(&b)?)?;
                y.to_dtype(x.dtype())?
            }
            Some(norm) => {
                let folded = self.folded(op, &norm, context)?;
                convolved(op, x, &folded.weight)?.broadcast_add(&of_channel(&folded.bias)?)?
            }
            None => {
                context.params.require_values(op.weight)?;
                let bias = op.bias.map(|id| weight(id, context));
                plain(op, x, &weight(op.weight, context), bias.as_ref())?
            }
        };
        // A linear layer with batch norm ran as a 1x1 convolution.
        let y = if op.linear && input.flat { y.flatten_from(1)? } else { y };
        let y = match shortcut {
            Some(shortcut) => graph::add(&y, shortcut)?,
            None => y,
        };
        graph::activate(&y, op.act)
    }

    /// Returns the weight with batch norm folded in, in the dtype of the maps, cached until the parameters
    /// change.
    fn folded(&mut self, op: &Conv, norm: &BatchNorm, context: &Context) -> Result<FoldedTensors> {
        let (version, frozen) = (context.params.version(), context.mode == Mode::Inference);
        let known = self.folded.get(&op.weight);
        if let Some(found) = known.filter(|found| frozen || found.version == version) {
            return Ok(found.clone());
        }
        let (a, bias) = running(op, norm, context)?;
        let mut shape = [1; 4];
        shape[0] = op.spec.outputs;
        let weight = kernel(op, context)?.broadcast_mul(&a.reshape(&shape)?)?;
        let (weight, bias) = (weight.to_dtype(context.map_type())?, bias.to_dtype(context.map_type())?);
        let folded = FoldedTensors { version, weight, bias };
        self.folded.insert(op.weight, folded.clone());
        context.release_weight(op.weight)?;
        Ok(folded)
    }
}

/// Returns the weight in the shape of a convolution.
fn kernel(op: &Conv, context: &Context) -> Result<Tensor> {
    context.params.require_values(op.weight)?;
    Ok(weight(op.weight, context).reshape(&op.spec.weight_shape())?)
}

/// Convolves a map, or a vector as a map of one pixel; the weight is rounded to its dtype.
fn convolved(op: &Conv, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let x = match *x.dims() {
        [b, d] => x.reshape((b, d, 1, 1))?,
        _ => x.clone(),
    };
    graph::conv2d(&x, &weight.to_dtype(x.dtype())?, op.spec)
}

/// Without batch norm; a weight `[out, in]` belongs to a linear layer.
fn plain(op: &Conv, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if op.linear {
        return graph::linear(x, weight, bias);
    }
    let y = convolved(op, x, weight)?;
    match bias {
        Some(bias) => {
            let biased = graph::upcast(&y)?.broadcast_add(&of_channel(bias)?)?;
            Ok(biased.to_dtype(y.dtype())?)
        }
        None => Ok(y),
    }
}

/// Normalizes with batch statistics and updates the running ones.
fn normed(op: &Conv, norm: &BatchNorm, x: &Tensor, context: &Context) -> Result<Tensor> {
    let y = convolved(op, x, &kernel(op, context)?)?;
    let rows = y.elem_count() / op.spec.outputs;
    if rows < 2 {
        return Err(Error::shape(
            "batch norm",
            "more than one value per channel in training (a larger batch or map)",
            [rows, op.spec.outputs],
        ));
    }
    let mut beta = weight(norm.bias, context);
    if let Some(id) = op.bias {
        // The bias cancels; it stays in the graph to get its zero gradient.
        let bias = weight(id, context);
        beta = (beta + (&bias * bias.zeros_like()?)?)?;
    }
    let normed = graph::batch_norm_maps(&y, &weight(norm.weight, context), &beta, norm.eps)?;
    let params = &context.params;
    let dtype = params.dtype();
    let mut mean = normed.mean.to_dtype(dtype)?;
    if let Some(id) = op.bias {
        mean = (mean + params.get(id).var().as_detached_tensor())?;
    }
    let unbiased = (normed.variance * (rows as f64 / (rows as f64 - 1.0)))?.to_dtype(dtype)?;
    for (id, now) in [(norm.mean, mean), (norm.variance, unbiased)] {
        let running = params.get(id).var().as_detached_tensor();
        params.set(id, &((running * (1.0 - BN_MOMENTUM))? + (now * BN_MOMENTUM)?)?)?;
    }
    Ok(normed.y)
}

/// Returns scale and offset per channel from the running statistics; gradients flow to the
/// parameters.
fn running(op: &Conv, norm: &BatchNorm, context: &Context) -> Result<(Tensor, Tensor)> {
    let deviation = (weight(norm.variance, context) + norm.eps)?.sqrt()?;
    let a = (weight(norm.weight, context) / deviation)?;
    let mut shift = weight(norm.mean, context).neg()?;
    if let Some(id) = op.bias {
        shift = (shift + weight(id, context))?;
    }
    let b = (weight(norm.bias, context) + (shift * &a)?)?;
    Ok((a, b))
}

/// Reshapes per-channel values for broadcasting over maps.
fn of_channel(values: &Tensor) -> Result<Tensor> {
    Ok(values.reshape((1, values.elem_count(), 1, 1))?)
}
