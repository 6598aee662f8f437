//! Group norm.

use crate::node::Node;
use crate::op::Op;
use crate::params::{Init, ParamBuilder, ParamId};
use crate::tape::Tape;
use crate::{Error, Result};

const EPS: f64 = 1e-5;

/// `weight * (x - mean) / sqrt(variance + 1e-5) + bias` with mean and biased variance over the pixels and
/// channels of each image and group of channels, as PyTorch's `GroupNorm` (Wu and He, "Group Normalization",
/// ECCV 2018, DOI 10.1007/978-3-030-01261-8_1).
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm {
    groups: usize,
    channels: usize,
    weight: ParamId,
    bias: ParamId,
}

impl GroupNorm {
    /// Creates `<name>.weight` (ones) and `<name>.bias` (zeros), `[channels]` each.
    pub fn new(groups: usize, channels: usize, name: &str, p: &ParamBuilder) -> Result<Self> {
        if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::shape("group_norm", "channels divisible by the groups", (channels, groups)));
        }
        let at = p.pp(name);
        let weight = at.weight("weight", &[channels], Init::Constant(1.0))?;
        let bias = at.weight("bias", &[channels], Init::Constant(0.0))?;
        Ok(Self { groups, channels, weight, bias })
    }

    /// Runs the layer on a map `[B, C, H, W]` or vector `[B, C]`.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let Self { groups, channels, weight, bias } = *self;
        tape.apply(Op::GroupNorm { groups, channels, weight, bias, eps: EPS }, &[x])
    }
}
