//! Linear layer on vectors.

use super::conv::ConvBnAct;
use crate::kernels::geometry::{ConvSpec, Padding};
use crate::kernels::tap_gemm::Act;
use crate::params::{Builder, Init};
use crate::tape::{Node, Tape};
use crate::{Error, Result};

/// `y = x W^T + b` on vectors `[B, inputs]`.
#[derive(Debug, Clone)]
pub struct Linear(ConvBnAct);

impl Linear {
    /// Makes `<name>.weight` `[outputs, inputs]` and, with an initialisation for it, `<name>.bias`.
    pub fn new(
        inputs: usize,
        outputs: usize,
        name: &str,
        weight: Init,
        bias: Option<Init>,
        p: &Builder,
    ) -> Result<Self> {
        let spec = ConvSpec::new(inputs, outputs, 1).padding(Padding::Symmetric(0));
        Ok(Self(ConvBnAct::build(spec, &[outputs, inputs], name, None, bias, Act::None, weight, p)?))
    }

    /// Runs it on a vector node.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        if x.size() != (1, 1) {
            return Err(Error::shape("linear", "a vector [B, D]", x.shape));
        }
        let mut y = self.0.forward(x, tape)?;
        y.flat = true;
        Ok(y)
    }

    /// Multiply-accumulates for one vector.
    pub fn macs(&self) -> u64 {
        (self.0.spec().inputs * self.0.spec().outputs) as u64
    }
}
