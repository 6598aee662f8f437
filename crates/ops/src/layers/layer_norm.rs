//! Layer norm over channels.

use std::sync::Arc;

use crate::buffers::Buf;
use crate::element::with_values;
use crate::graph;
use crate::kernels::layer_norm;
use crate::layers::Record;
use crate::params::{Init, ParamBuilder};
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, ParamId, Result};

const EPS: f64 = 1e-5;

/// `weight * (x - mean) / sqrt(variance + 1e-5) + bias` with mean and biased variance over the channels
/// of each pixel or vector, as PyTorch's `LayerNorm`.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    channels: usize,
    weight: ParamId,
    bias: ParamId,
}

impl LayerNorm {
    /// Creates `<name>.weight` (ones) and `<name>.bias` (zeros), `[channels]` each.
    pub fn new(channels: usize, name: &str, p: &ParamBuilder) -> Result<Self> {
        let at = p.pp(name);
        let weight = at.weight("weight", &[channels], Init::Constant(1.0))?;
        let bias = at.weight("bias", &[channels], Init::Constant(0.0))?;
        Ok(Self { channels, weight, bias })
    }

    /// Runs the layer on a map `[B, C, H, W]` or vector `[B, C]`.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        if x.channels() != self.channels {
            return Err(Error::shape("layer norm", format!("{} channels", self.channels), x.shape));
        }
        let op = || Op::LayerNorm { weight: self.weight, bias: self.bias, eps: EPS };
        if let Some(node) = tape.traced(op, &[x], x.shape, x.flat) {
            return Ok(node);
        }
        let [weight, bias] = [self.weight, self.bias].map(|id| tape.weight(id));
        if let Some(node) =
            tape.graph_op("layer norm", &[x], |x| graph::layer_norm(&x[0], &weight, &bias, EPS))
        {
            return node;
        }
        dispatch_dtype!(tape, T => self.run::<T>(x, tape))
    }

    fn run<T: Elem>(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let values = tape.values::<T>("layer norm", x)?;
        let params = tape.params().clone();
        let pool = Arc::clone(&T::state(tape).pool);
        let (mut out, mut stats) = (pool.take(values.len()), pool.take(values.len() / self.channels * 2));
        with_values::<T, _>(params.get(self.weight).var(), |gamma| {
            with_values::<T, _>(params.get(self.bias).var(), |beta| {
                layer_norm::forward(&values, (gamma, beta), EPS, &mut out, &mut stats);
            })
        })??;
        let trains = tape.trains(self.weight) || tape.trains(self.bias);
        let needs_grad = tape.mode().records() && (x.needs_grad || trains);
        let node = tape.node(x.shape, x.flat, needs_grad, out);
        if needs_grad {
            let x = (x.id, x.needs_grad);
            let record = LayerNormRecord { out: node.id, layer: *self, x, values, stats };
            T::state(tape).records.push(Record::LayerNorm(record));
        }
        Ok(node)
    }
}

#[derive(Debug)]
pub(crate) struct LayerNormRecord<T> {
    pub(crate) out: usize,
    layer: LayerNorm,
    x: (usize, bool),
    values: Arc<Buf<T>>,
    stats: Buf<T>,
}

impl<T: Elem> LayerNormRecord<T> {
    pub(crate) fn backward(self, dy: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        let c = self.layer.channels;
        let (mut dx, holds) = back.slot(self.x.0, dy.len());
        let mut scratch = back.pool.take(layer_norm::scratch_len(dy.len() / c, c));
        let weight = tape.params().get(self.layer.weight);
        let (d_weight, d_bias) = with_values::<T, _>(weight.var(), |gamma| {
            let maps = (&self.values[..], &dy[..]);
            layer_norm::backward(maps, gamma, &self.stats, holds, &mut dx, &mut scratch)
        })?;
        for (id, sums) in [(self.layer.weight, d_weight), (self.layer.bias, d_bias)] {
            if tape.trains(id) {
                let mut gradient = back.pool.take(c);
                gradient.iter_mut().zip(sums).for_each(|(g, s)| *g = T::narrow(s));
                back.param(id, gradient);
            }
        }
        if self.x.1 {
            back.grads[self.x.0] = Some(dx);
        }
        Ok(())
    }
}
