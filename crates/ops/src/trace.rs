//! What a network does, as a list of steps: shapes and parameters, no values.
//!
//! A tape made by [`Tape::trace`] runs no kernel. A network that is run on it leaves a [`Trace`],
//! from which a file in another format is written and memory is counted.

use std::sync::Arc;

use crate::kernels::geometry::ConvSpec;
use crate::kernels::indirect_gemm::Activation;
use crate::params::ParamId;
use crate::tape::{Elem, Node, Tape, dispatch_dtype};

/// Parameters of a batch norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormIds {
    /// Factor per channel.
    pub weight: ParamId,
    /// Summand per channel.
    pub bias: ParamId,
    /// Running mean.
    pub mean: ParamId,
    /// Running variance, unbiased.
    pub variance: ParamId,
    /// Added to the variance.
    pub eps: f64,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// What was computed outside of the tape.
    Outside,
    /// `act(norm(conv(x) + bias) + shortcut)`; the shortcut is the second input, where there is one.
    /// A linear layer is a convolution of one pixel whose weight has two dimensions.
    Conv {
        /// Its shape.
        spec: ConvSpec,
        /// `[out, in / groups, k, k]`, or `[out, in]`.
        weight: ParamId,
        /// `[out]`.
        bias: Option<ParamId>,
        /// Batch norm after it.
        norm: Option<NormIds>,
        /// Activation, last.
        act: Activation,
    },
    /// Max pooling.
    MaxPool {
        /// Rows and columns of a window.
        kernel: usize,
        /// Stride in both directions.
        stride: usize,
        /// Padding that never wins.
        padding: usize,
    },
    /// Mean over all pixels, to a vector.
    GlobalAveragePool,
    /// `max(x, 0)`.
    Relu,
    /// Sum of two maps.
    Add,
    /// Maps side by side along the channels.
    Concat,
    /// Bilinear interpolation to the step's size.
    Resize {
        /// Whether corner pixels lie on each other.
        align_corners: bool,
    },
    /// Means over bins, to the step's size.
    AdaptiveAveragePool,
    /// One pixel on all pixels of the step's size.
    Expand,
    /// Layer norm over the channels.
    LayerNorm {
        /// Factor per channel.
        weight: ParamId,
        /// Summand per channel.
        bias: ParamId,
        /// Added to the variance.
        eps: f64,
    },
    /// `x * P(normal <= x)`.
    Gelu,
    /// `x` above zero, `exp(x) - 1` below.
    Elu,
    /// Attention inside windows, from queries, keys and values side by side.
    WindowAttention,
    /// Four neighbors side by side.
    MergePatches,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceNode {
    /// Number of its result.
    pub output: usize,
    /// Numbers of its inputs.
    pub inputs: Vec<usize>,
    /// Images, rows, columns, channels of the result.
    pub shape: [usize; 4],
    /// Whether the result is a vector `[B, D]` and not a map.
    pub flat: bool,
    /// What it does.
    pub op: Op,
}

/// The steps of a network in the order in which they run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The steps; the first is the input.
    pub steps: Vec<TraceNode>,
    /// Wanted taps and the numbers of their results.
    pub taps: Vec<(String, usize)>,
}

impl Trace {
    /// Values that a training step keeps between the forward and the backward pass: the results of
    /// all steps and, where there is a batch norm, what goes into it.
    pub fn kept_values(&self) -> u64 {
        let kept = |step: &TraceNode| {
            let values = step.shape.iter().product::<usize>() as u64;
            match &step.op {
                Op::Conv { norm: Some(_), .. } => 2 * values,
                _ => values,
            }
        };
        self.steps.iter().map(kept).sum()
    }
}

/// What a tracing tape has collected.
#[derive(Debug, Default)]
pub(crate) struct Tracing {
    trace: Trace,
}

impl Tracing {
    pub(crate) fn clear(&mut self) {
        self.trace = Trace::default();
    }

    pub(crate) fn tap(&mut self, name: &str, node: usize) {
        self.trace.taps.push((name.to_string(), node));
    }
}

impl Tape {
    /// The trace of the pass under way, on a tape of [`Tape::trace`].
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.tracing_mut().map(|s| std::mem::take(&mut s.trace))
    }

    /// The result of a step where the tape only traces: a node without values.
    pub(crate) fn sketched(
        &mut self,
        op: impl FnOnce() -> Op,
        inputs: &[&Node],
        shape: [usize; 4],
        flat: bool,
    ) -> Option<Node> {
        self.tracing_mut()?;
        let inputs = inputs.iter().map(|x| x.id).collect();
        let data = dispatch_dtype!(self, T => T::wrap(Arc::new(T::lane(self).pool.take(0))));
        let node = self.node_of(shape, flat, false, data);
        let step = TraceNode { output: node.id, inputs, shape, flat, op: op() };
        self.tracing_mut()?.trace.steps.push(step);
        Some(node)
    }
}
