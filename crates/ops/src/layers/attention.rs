//! Window attention layer.

use crate::layers::linear::Linear;
use crate::node::Node;
use crate::op::{Attention, Op};
use crate::params::{Init, ParamBuilder, ParamId};
use crate::tape::Tape;
use crate::{Error, Result};

/// Multi-head self-attention inside windows with relative position bias: `[B, C, H, W]` to `[B, C, H, W]`
/// (Liu et al., "Swin Transformer", ICCV 2021, DOI 10.1109/ICCV48922.2021.00986, section 3.2).
///
/// The map is cyclically shifted by `shift` rows and columns, zero-padded to whole windows, attended
/// window by window, and shifted back. Tokens that the shift wraps around from opposite edges are masked
/// from each other. Queries are scaled by `1 / sqrt(C / heads)`.
#[derive(Debug, Clone)]
pub struct WindowAttention {
    heads: usize,
    window: [usize; 2],
    shift: [usize; 2],
    table: ParamId,
    qkv: Linear,
    proj: Linear,
}

impl WindowAttention {
    /// Creates `relative_position_bias_table` `[(2 h - 1) (2 w - 1), heads]`, `qkv` (three times as many
    /// outputs as channels) and `proj` under `p`; weights from `init`, biases zero.
    pub fn new(
        channels: usize,
        heads: usize,
        window: [usize; 2],
        shift: [usize; 2],
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        let fits = heads > 0 && channels.is_multiple_of(heads) && window[0] * window[1] > 0;
        if !fits || shift[0] >= window[0] || shift[1] >= window[1] {
            let expected = "channels divisible by the heads, a shift smaller than the window";
            return Err(Error::shape("window attention", expected, (channels, heads, window, shift)));
        }
        let rows = (2 * window[0] - 1) * (2 * window[1] - 1);
        let table = p.weight("relative_position_bias_table", &[rows, heads], init)?;
        let zero = Some(Init::Constant(0.0));
        let qkv = Linear::new(channels, 3 * channels, "qkv", init, zero, p)?;
        let proj = Linear::new(channels, channels, "proj", init, zero, p)?;
        Ok(Self { heads, window, shift, table, qkv, proj })
    }

    /// Runs the layer.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let y = self.attend(x, tape)?;
        self.proj.forward(&y, tape)
    }

    /// Runs the layer and adds the shortcut.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        let y = self.attend(x, tape)?;
        self.proj.forward_add(&y, shortcut, tape)
    }

    fn attend(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let qkv = self.qkv.forward(x, tape)?;
        let Self { heads, window, shift, table, .. } = *self;
        tape.apply(
            Op::WindowAttention(Attention { heads, window, shift, table, bias: self.qkv.bias() }),
            &[&qkv],
        )
    }
}
