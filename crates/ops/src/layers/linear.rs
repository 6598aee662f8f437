//! Linear layer on vectors and on the pixels of maps.

use super::conv::ConvBnAct;
use crate::kernels::activation::Activation;
use crate::kernels::geometry::{ConvSpec, Padding};
use crate::node::Node;
use crate::params::{Init, ParamBuilder};
use crate::tape::Tape;
use crate::{ParamId, Result};

/// `y = x W^T + b` on vectors `[B, inputs]`, or on every pixel of a map `[B, inputs, H, W]`.
#[derive(Debug, Clone)]
pub struct Linear(ConvBnAct);

impl Linear {
    /// Creates `<name>.weight` `[outputs, inputs]` and, if `bias` is given, `<name>.bias`.
    pub fn new(
        inputs: usize,
        outputs: usize,
        name: &str,
        weight: Init,
        bias: Option<Init>,
        p: &ParamBuilder,
    ) -> Result<Self> {
        let spec = ConvSpec::new(inputs, outputs, 1).padding(Padding::Symmetric(0));
        Ok(Self(ConvBnAct::build(spec, &[outputs, inputs], name, None, bias, Activation::None, weight, p)?))
    }

    /// Creates a linear layer with batch norm over its outputs, and `<bn>.weight`, `.bias`,
    /// `.running_mean` and `.running_var`. Like PyTorch's `BatchNorm1d`, it requires at least two vectors
    /// in training. The bias before it affects only its running mean.
    pub fn with_bn(
        inputs: usize,
        outputs: usize,
        (name, bn): (&str, &str),
        (weight, bias): (Init, Init),
        p: &ParamBuilder,
    ) -> Result<Self> {
        let spec = ConvSpec::new(inputs, outputs, 1).padding(Padding::Symmetric(0));
        let shape = [outputs, inputs];
        Ok(Self(ConvBnAct::build(spec, &shape, name, Some(bn), Some(bias), Activation::None, weight, p)?))
    }

    /// Runs the layer on a vector or on every pixel of a map.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        self.0.forward(x, tape)
    }

    /// `y = shortcut + x W^T + b`.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        self.0.forward_add(x, shortcut, tape)
    }

    /// Returns the bias, if any.
    pub(crate) fn bias(&self) -> Option<ParamId> {
        self.0.bias()
    }

    /// Returns the input length.
    pub fn inputs(&self) -> usize {
        self.0.spec().inputs
    }

    /// Returns the output length.
    pub fn outputs(&self) -> usize {
        self.0.spec().outputs
    }
}
