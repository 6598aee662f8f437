//! Linear layer on vectors and on the pixels of maps.

use super::conv::ConvBnAct;
use crate::kernels::geometry::{ConvSpec, Padding};
use crate::kernels::indirect_gemm::Activation;
use crate::params::{Init, ParamBuilder};
use crate::tape::{Node, Tape};
use crate::{Error, ParamId, Result};

/// `y = x W^T + b` on vectors `[B, inputs]`, or on every pixel of a map `[B, inputs, H, W]`.
#[derive(Debug, Clone)]
pub struct Linear(ConvBnAct);

impl Linear {
    /// Makes `<name>.weight` `[outputs, inputs]` and, with an initialization for it, `<name>.bias`.
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

    /// With batch norm over its outputs: makes `<bn>.weight`, `.bias`, `.running_mean` and `.running_var`
    /// too. As PyTorch's batch norm of vectors, it needs two vectors in training. The bias before it
    /// moves only its running mean.
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

    /// Runs it on a vector or on every pixel of a map.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        self.check(x)?;
        let mut y = self.0.forward(x, tape)?;
        y.flat = x.flat;
        Ok(y)
    }

    /// `y = shortcut + x W^T + b`.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        self.check(x)?;
        let mut y = self.0.forward_add(x, shortcut, tape)?;
        y.flat = x.flat;
        Ok(y)
    }

    fn check(&self, x: &Node) -> Result<()> {
        if x.channels() != self.0.spec().inputs {
            let expected = format!("{} values for each vector or pixel", self.0.spec().inputs);
            return Err(Error::shape("linear", expected, x.shape));
        }
        Ok(())
    }

    /// Its bias, if it has one.
    pub(crate) fn bias(&self) -> Option<ParamId> {
        self.0.bias()
    }

    /// Values of a vector that goes in.
    pub fn inputs(&self) -> usize {
        self.0.spec().inputs
    }

    /// Values of a vector that comes out.
    pub fn outputs(&self) -> usize {
        self.0.spec().outputs
    }

    /// Multiply-accumulates for one vector or pixel.
    pub fn macs(&self) -> u64 {
        (self.0.spec().inputs * self.0.spec().outputs) as u64
    }
}
