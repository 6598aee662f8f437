//! Graph engine of a block.

use candle_core::Tensor;

use super::{BN_MOMENTUM, ConvBnAct, Norm};
use crate::graph;
use crate::graph_engine::FoldedTensors;
use crate::tape::{Mode, Node, Tape};
use crate::{Error, Result};

impl ConvBnAct {
    pub(super) fn graph_op(&self, x: &Node, shortcut: Option<&Node>, tape: &mut Tape) -> Result<Node> {
        let input = tape.tensor("conv", x)?;
        let of_vectors = x.flat && tape.params().get(self.weight).shape.len() == 2;
        let y = match self.norm {
            Some(norm) if tape.mode() == Mode::Train => self.normed(&norm, &input, tape)?,
            Some(norm) if tape.mode().trains() => {
                let (a, b) = self.running(&norm, tape)?;
                let y = graph::upcast(&self.convolved(&input, &self.kernel(tape)?)?)?;
                let y = y.broadcast_mul(&of_channel(&a)?)?.broadcast_add(&of_channel(&b)?)?;
                y.to_dtype(input.dtype())?
            }
            Some(norm) => {
                let folded = self.folded_tensors(&norm, tape)?;
                self.convolved(&input, &folded.weight)?.broadcast_add(&of_channel(&folded.bias)?)?
            }
            None => {
                self.has_values(tape)?;
                let bias = self.bias.map(|id| tape.weight(id));
                self.plain_tensor(&input, &tape.weight(self.weight), bias.as_ref())?
            }
        };
        // A linear layer with batch norm ran as a 1x1 convolution.
        let y = if of_vectors { y.flatten_from(1)? } else { y };
        let y = match shortcut {
            Some(shortcut) => graph::add(&y, &tape.tensor("conv", shortcut)?)?,
            None => y,
        };
        tape.graph_node(graph::activate(&y, self.act)?)
    }

    /// Returns the weight in the shape of a convolution.
    fn kernel(&self, tape: &Tape) -> Result<Tensor> {
        self.has_values(tape)?;
        Ok(tape.weight(self.weight).reshape(&self.spec.weight_shape())?)
    }

    /// Convolves a map, or a vector as a map of one pixel; the weight is rounded to its dtype.
    fn convolved(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let x = match *x.dims() {
            [b, d] => x.reshape((b, d, 1, 1))?,
            _ => x.clone(),
        };
        graph::conv2d(&x, &weight.to_dtype(x.dtype())?, self.spec)
    }

    /// Without batch norm; a weight `[out, in]` belongs to a linear layer.
    fn plain_tensor(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        if weight.rank() == 2 {
            return graph::linear(x, weight, bias);
        }
        let y = self.convolved(x, weight)?;
        match bias {
            Some(bias) => {
                let biased = graph::upcast(&y)?.broadcast_add(&of_channel(bias)?)?;
                Ok(biased.to_dtype(y.dtype())?)
            }
            None => Ok(y),
        }
    }

    /// Normalizes with batch statistics and updates the running ones.
    fn normed(&self, norm: &Norm, x: &Tensor, tape: &mut Tape) -> Result<Tensor> {
        let y = self.convolved(x, &self.kernel(tape)?)?;
        let rows = y.elem_count() / self.spec.outputs;
        if rows < 2 {
            return Err(Error::shape(
                "batch norm",
                "more than one value per channel in training (a larger batch or map)",
                [rows, self.spec.outputs],
            ));
        }
        let mut beta = tape.weight(norm.bias);
        if let Some(id) = self.bias {
            // The bias cancels; it stays in the graph to get its zero gradient.
            let bias = tape.weight(id);
            beta = (beta + (&bias * bias.zeros_like()?)?)?;
        }
        let normed = graph::batch_norm_maps(&y, &tape.weight(norm.weight), &beta, norm.eps)?;
        let params = tape.params().clone();
        let dtype = params.dtype();
        let mut mean = normed.mean.to_dtype(dtype)?;
        if let Some(id) = self.bias {
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
    fn running(&self, norm: &Norm, tape: &Tape) -> Result<(Tensor, Tensor)> {
        let deviation = (tape.weight(norm.variance) + norm.eps)?.sqrt()?;
        let a = (tape.weight(norm.weight) / deviation)?;
        let mut shift = tape.weight(norm.mean).neg()?;
        if let Some(id) = self.bias {
            shift = (shift + tape.weight(id))?;
        }
        let b = (tape.weight(norm.bias) + (shift * &a)?)?;
        Ok((a, b))
    }

    /// Returns the weight with batch norm folded in, in the dtype of the maps, cached until the
    /// parameters change.
    fn folded_tensors(&self, norm: &Norm, tape: &mut Tape) -> Result<FoldedTensors> {
        let (version, frozen) = (tape.params().version(), tape.mode() == Mode::Inference);
        let known = tape.graph_state.as_ref().and_then(|kept| kept.folded.get(&self.weight));
        if let Some(found) = known.filter(|found| frozen || found.version == version) {
            return Ok(found.clone());
        }
        let (a, bias) = self.running(norm, tape)?;
        let mut shape = [1; 4];
        shape[0] = self.spec.outputs;
        let weight = self.kernel(tape)?.broadcast_mul(&a.reshape(&shape)?)?;
        let (weight, bias) = (weight.to_dtype(tape.map_type())?, bias.to_dtype(tape.map_type())?);
        let folded = FoldedTensors { version, weight, bias };
        if let Some(kept) = &mut tape.graph_state {
            kept.folded.insert(self.weight, folded.clone());
        }
        self.release_weight(tape)?;
        Ok(folded)
    }
}

/// Reshapes per-channel values for broadcasting over maps.
fn of_channel(values: &Tensor) -> Result<Tensor> {
    Ok(values.reshape((1, values.elem_count(), 1, 1))?)
}
