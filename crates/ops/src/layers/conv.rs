//! Convolution, batch norm and activation as one block.

use crate::kernels::activation::Activation;
use crate::kernels::geometry::ConvSpec;
use crate::node::Node;
use crate::op::{BatchNorm, Conv, Op};
use crate::params::{Init, ParamBuilder};
use crate::tape::Tape;
use crate::{Error, ParamId, Result};

const BN_EPS: f64 = 1e-5;

/// `act(bn(conv(x)))`, or `act(bn(conv(x)) + shortcut)`; `[B, C, H, W]` to `[B, O, H', W']`.
///
/// Batch norm as in PyTorch: eps 1e-5, momentum 0.1, biased variance for normalization and unbiased
/// variance in the running statistics.
#[derive(Debug, Clone)]
pub struct ConvBnAct(Conv);

impl ConvBnAct {
    /// Creates `<conv>.weight` and `<bn>.weight`, `.bias`, `.running_mean`, `.running_var`.
    pub fn new(
        spec: ConvSpec,
        conv: &str,
        bn: &str,
        act: Activation,
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        Self::build(spec, &spec.weight_shape(), conv, Some(bn), None, act, init, p)
    }

    /// Sets the initial scale of the batch norm to 0: a residual block starts as the identity (Goyal et al.,
    /// "Accurate, Large Minibatch SGD", 2017, section 5.1).
    ///
    /// # Errors
    /// If the store refuses the values.
    pub fn with_zero_scale(self, p: &ParamBuilder) -> Result<Self> {
        let params = p.params();
        if let Some(norm) = self.0.norm.filter(|_| !params.is_meta()) {
            let zeros = candle_core::Tensor::zeros(self.0.spec.outputs, params.dtype(), params.device())?;
            params.import(norm.weight, &zeros)?;
        }
        Ok(self)
    }

    /// Creates a block without batch norm; with `bias`, also `<conv>.bias` (zeros).
    pub fn without_bn(
        spec: ConvSpec,
        conv: &str,
        bias: bool,
        act: Activation,
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        let bias = bias.then_some(Init::Constant(0.0));
        Self::build(spec, &spec.weight_shape(), conv, None, bias, act, init, p)
    }

    /// Creates a block with a bias and, if `bn` is given, batch norm: `<conv>.weight`, `<conv>.bias` and
    /// the batch norm's parameters. A bias before batch norm affects only its running mean.
    pub fn with_bias(
        spec: ConvSpec,
        conv: &str,
        bn: Option<&str>,
        act: Activation,
        (weight, bias): (Init, Init),
        p: &ParamBuilder,
    ) -> Result<Self> {
        Self::build(spec, &spec.weight_shape(), conv, bn, Some(bias), act, weight, p)
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn build(
        spec: ConvSpec,
        weight_shape: &[usize],
        conv: &str,
        bn: Option<&str>,
        bias: Option<Init>,
        act: Activation,
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        spec.check()?;
        let at = p.pp(conv);
        let weight = at.packed("weight", weight_shape, spec.groups, init)?;
        let bias = bias.map(|init| at.weight("bias", &[spec.outputs], init)).transpose()?;
        let norm = bn
            .map(|bn| {
                let (at, c) = (p.pp(bn), [spec.outputs]);
                Ok::<_, Error>(BatchNorm {
                    weight: at.weight("weight", &c, Init::Constant(1.0))?,
                    bias: at.weight("bias", &c, Init::Constant(0.0))?,
                    mean: at.buffer("running_mean", &c, Init::Constant(0.0))?,
                    variance: at.buffer("running_var", &c, Init::Constant(1.0))?,
                    eps: BN_EPS,
                })
            })
            .transpose()?;
        let linear = weight_shape.len() == 2;
        Ok(Self(Conv { spec, linear, weight, bias, norm, act }))
    }

    /// Returns the block on the same parameters with another activation.
    #[must_use]
    pub fn with_activation(&self, act: Activation) -> Self {
        Self(Conv { act, ..self.0 })
    }

    /// Returns the bias, if any.
    pub(crate) fn bias(&self) -> Option<ParamId> {
        self.0.bias
    }

    /// Returns the convolution's hyperparameters.
    pub fn spec(&self) -> &ConvSpec {
        &self.0.spec
    }

    /// Runs the block.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        tape.apply(Op::Conv(self.0), &[x])
    }

    /// Runs the block with a shortcut added before the activation.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        tape.apply(Op::Conv(self.0), &[x, shortcut])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::mode::Mode;
    use crate::params::ParamStore;
    use crate::rng::Rng;

    #[test]
    fn released_weight_is_an_error() {
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let p = params.builder(Rng::new(1));
        let spec = ConvSpec::new(3, 8, 3);
        let layer = ConvBnAct::new(spec, "conv", "bn", Activation::Relu, Init::Normal(0.3), &p).unwrap();
        let plain = ConvBnAct::without_bn(
            ConvSpec::new(8, 4, 1),
            "head",
            true,
            Activation::None,
            Init::Normal(0.3),
            &p,
        );
        let plain = plain.unwrap();
        let images = Tensor::arange(0f32, 150.0, &Device::Cpu).unwrap().reshape((2, 3, 5, 5)).unwrap();
        let run = |tape: &mut Tape| -> Result<Vec<f32>> {
            tape.begin(Rng::new(0), 0);
            let x = tape.input(&images)?;
            let x = layer.forward(&x, tape)?;
            let x = plain.forward(&x, tape)?;
            tape.mark_feature("logits", &x)?;
            Ok(tape.outputs()?[0].1.flatten_all()?.to_vec1()?)
        };
        let tape = |mode| Tape::new(&params, mode).unwrap();
        let whole = run(&mut tape(Mode::Inference)).unwrap();
        let mut frozen = tape(Mode::Inference);
        frozen.release_weights();
        assert_eq!(run(&mut frozen).unwrap(), whole, "the pass that folds");
        assert_eq!(run(&mut frozen).unwrap(), whole, "the passes after it");
        let id = params.id("conv.weight").unwrap();
        assert_eq!(params.get(id).var().elem_count(), 0);
        assert!(params.export(params.id("head.weight").unwrap()).is_ok(), "still in the store");
        for mode in [Mode::Inference, Mode::Eval, Mode::Train, Mode::EvalWithGrad] {
            let error = run(&mut tape(mode)).unwrap_err().to_string();
            assert!(error.contains("conv.weight") && error.contains("released"), "{mode:?}: {error}");
        }
        let error = params.export(id).unwrap_err().to_string();
        assert!(error.contains("released"), "{error}");
        assert!(params.import(id, &Tensor::zeros((8, 3, 3, 3), DType::F32, &Device::Cpu).unwrap()).is_err());
    }

    /// A shared pool changes no result.
    #[test]
    fn tapes_share_memory() {
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let p = params.builder(Rng::new(1));
        let spec = ConvSpec::new(3, 8, 3);
        let layer = ConvBnAct::new(spec, "conv", "bn", Activation::Relu, Init::Normal(0.3), &p).unwrap();
        let images = Tensor::arange(0f32, 6144.0, &Device::Cpu).unwrap().reshape((2, 3, 32, 32)).unwrap();
        let run = |tape: &mut Tape| -> Result<Vec<f32>> {
            tape.begin(Rng::new(0), 0);
            let x = tape.input(&images)?;
            let x = layer.forward(&x, tape)?;
            tape.mark_feature("logits", &x)?;
            let values = tape.outputs()?[0].1.flatten_all()?.to_vec1()?;
            tape.begin(Rng::new(0), 1);
            Ok(values)
        };
        let tape = || Tape::new(&params, Mode::Eval).unwrap();
        let (mut alone, mut first, mut second) = (tape(), tape(), tape());
        second.share_memory(&first);
        let values = run(&mut alone).unwrap();
        assert_eq!(run(&mut first).unwrap(), values);
        assert_eq!(first.memory_bytes(), alone.memory_bytes());
        assert_eq!(run(&mut second).unwrap(), values);
        // Only the folded weights, which are long-lived, exist twice; without sharing everything would.
        let more = second.memory_bytes() - alone.memory_bytes();
        assert!(more > 0 && more < alone.memory_bytes() / 4, "{more} of {}", alone.memory_bytes());
    }
}
