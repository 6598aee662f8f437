//! Layer norm over channels.

use crate::Result;
use crate::node::Node;
use crate::op::Op;
use crate::params::{Init, ParamBuilder, ParamId};
use crate::tape::Tape;

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
        let Self { channels, weight, bias } = *self;
        tape.apply(Op::LayerNorm { channels, weight, bias, eps: EPS }, &[x])
    }
}
