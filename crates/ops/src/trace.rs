//! Shape-only trace of a network: nodes with shapes and parameters, no values.
//!
//! A tape created by [`Tape::trace`] runs no kernels. The resulting [`Trace`] serves ONNX export, FLOPs
//! and memory estimates.

use std::sync::Arc;

use crate::kernels::geometry::ConvSpec;
use crate::kernels::indirect_gemm::Activation;
use crate::params::ParamId;
use crate::tape::{Elem, Node, Tape, dispatch_dtype};

/// Parameters of a batch norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormIds {
    /// Scale per channel.
    pub weight: ParamId,
    /// Offset per channel.
    pub bias: ParamId,
    /// Running mean.
    pub mean: ParamId,
    /// Running variance, unbiased.
    pub variance: ParamId,
    /// Epsilon added to the variance.
    pub eps: f64,
}

/// Operation of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// A value computed outside the tape ([`Tape::opaque_op`]).
    Opaque,
    /// `act(norm(conv(x) + bias) + shortcut)`; the optional second input is the shortcut. A linear layer
    /// is a 1x1 convolution with a weight of rank two.
    Conv {
        /// Hyperparameters of the convolution.
        spec: ConvSpec,
        /// `[out, in / groups, k, k]`, or `[out, in]`.
        weight: ParamId,
        /// `[out]`.
        bias: Option<ParamId>,
        /// Batch norm.
        norm: Option<NormIds>,
        /// Activation.
        act: Activation,
    },
    /// Max pooling.
    MaxPool {
        /// Window size.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Padding, ignored by the maximum.
        padding: usize,
    },
    /// Global average pooling to a vector.
    GlobalAveragePool,
    /// `max(x, 0)`.
    Relu,
    /// Sum of two maps.
    Add,
    /// Concatenation along the channels.
    Concat,
    /// Bilinear interpolation to the size of the node.
    Resize {
        /// Whether the corner pixels are aligned.
        align_corners: bool,
    },
    /// Adaptive average pooling to the size of the node.
    AdaptiveAveragePool,
    /// Broadcast of one pixel to the size of the node.
    Expand,
    /// Layer norm over the channels.
    LayerNorm {
        /// Scale per channel.
        weight: ParamId,
        /// Offset per channel.
        bias: ParamId,
        /// Epsilon added to the variance.
        eps: f64,
    },
    /// `x * CDF(x)` of the standard normal.
    Gelu,
    /// `x` above zero, `exp(x) - 1` below.
    Elu,
    /// Windowed self-attention on concatenated queries, keys and values.
    WindowAttention,
    /// Concatenation of 2x2 neighbors (Swin's patch merging).
    MergePatches,
}

/// A node of the trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceNode {
    /// Index of the result.
    pub output: usize,
    /// Indices of the inputs.
    pub inputs: Vec<usize>,
    /// Images, rows, columns, channels of the result.
    pub shape: [usize; 4],
    /// Whether the result is a vector `[B, D]` rather than a map.
    pub flat: bool,
    /// Operation.
    pub op: Op,
}

/// Nodes of a network in execution order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The nodes; the first is the input.
    pub nodes: Vec<TraceNode>,
    /// Selected features and the indices of their nodes.
    pub features: Vec<(String, usize)>,
}

impl Trace {
    /// Returns the number of values saved for the backward pass: the results of all nodes and the inputs
    /// of batch norms.
    pub fn saved_values(&self) -> u64 {
        let kept = |step: &TraceNode| {
            let values = step.shape.iter().product::<usize>() as u64;
            match &step.op {
                Op::Conv { norm: Some(_), .. } => 2 * values,
                _ => values,
            }
        };
        self.nodes.iter().map(kept).sum()
    }
}

/// Trace under construction.
#[derive(Debug, Default)]
pub(crate) struct Tracing {
    trace: Trace,
}

impl Tracing {
    pub(crate) fn clear(&mut self) {
        self.trace = Trace::default();
    }

    pub(crate) fn feature(&mut self, name: &str, node: usize) {
        self.trace.features.push((name.to_string(), node));
    }
}

impl Tape {
    /// Takes the trace of the current pass; `None` unless the tape was created by [`Tape::trace`].
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.tracing_mut().map(|s| std::mem::take(&mut s.trace))
    }

    /// On a tracing tape, adds a node without values; returns `None` otherwise.
    pub(crate) fn traced(
        &mut self,
        op: impl FnOnce() -> Op,
        inputs: &[&Node],
        shape: [usize; 4],
        flat: bool,
    ) -> Option<Node> {
        self.tracing_mut()?;
        let inputs = inputs.iter().map(|x| x.id).collect();
        let data = dispatch_dtype!(self, T => T::wrap(Arc::new(T::state(self).pool.take(0))));
        let node = self.node_of(shape, flat, false, data);
        let node_info = TraceNode { output: node.id, inputs, shape, flat, op: op() };
        self.tracing_mut()?.trace.nodes.push(node_info);
        Some(node)
    }
}
