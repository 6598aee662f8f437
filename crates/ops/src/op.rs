//! The operations of a tape, as data: shape rule, cost and parameters.
//!
//! A layer is a constructor of parameters and one [`Op`]; an engine runs it. What is counted, traced or
//! exported is read off the recorded [`Entry`]s. Maps are `[B, C, H, W]`, vectors `[B, D]`.

use crate::kernels::activation::Activation;
use crate::kernels::geometry::ConvSpec;
use crate::params::ParamId;
use crate::weight_packing::PackedLayout;
use crate::{Error, Result};

/// Shape and position of a value on the tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// Index in the pass, from 0.
    pub index: usize,
    /// Images, rows, columns, channels.
    pub shape: [usize; 4],
    /// Whether it is a vector `[B, D]` rather than a map of one pixel.
    pub flat: bool,
    /// Whether gradients are propagated to it.
    pub(crate) needs_grad: bool,
}

impl Value {
    /// Returns the number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns rows and columns.
    pub fn size(&self) -> [usize; 2] {
        [self.shape[1], self.shape[2]]
    }

    /// Returns the shape of the tensor: `[B, C, H, W]` or `[B, D]`.
    pub fn dims(&self) -> Vec<usize> {
        let [b, h, w, c] = self.shape;
        if self.flat { vec![b, c] } else { vec![b, c, h, w] }
    }
}

/// One recorded operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The operation.
    pub op: Op,
    /// Its inputs.
    pub inputs: Vec<Value>,
    /// Its result.
    pub output: Value,
}

/// Cost of an operation or of a trace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Multiply-accumulates (MACs) of convolutions and linear layers, padding included.
    pub macs: u64,
    /// Multiply-accumulates of the products inside attention (queries with keys, weights with values), not
    /// included in `macs`.
    pub attention_macs: u64,
    /// Number of outputs of batch norms.
    pub batch_norm_outputs: u64,
    /// Number of values kept for the backward pass: all results, and the inputs of batch norms.
    pub activations: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.parameters += other.parameters;
        self.macs += other.macs;
        self.attention_macs += other.attention_macs;
        self.batch_norm_outputs += other.batch_norm_outputs;
        self.activations += other.activations;
    }
}

/// Share of the current batch in the running statistics of batch norm.
pub(crate) const BN_MOMENTUM: f64 = 0.1;

/// Parameters of a batch norm, named as in PyTorch; `[out]` each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
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

/// A convolution or linear layer with what is fused into it; see [`Op::Conv`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv {
    /// Hyperparameters of the convolution; of a linear layer, those of a 1x1 convolution.
    pub spec: ConvSpec,
    /// Whether the weight is `[out, in]`, that of a linear layer, which maps vectors to vectors.
    pub linear: bool,
    /// `[out, in / groups, k, k]`, or `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    /// Batch norm.
    pub norm: Option<BatchNorm>,
    /// Activation.
    pub act: Activation,
}

impl Conv {
    /// Returns the packed layout of the weight.
    pub(crate) fn packing(&self) -> PackedLayout {
        PackedLayout::of(&self.spec)
    }
}

/// Windowed self-attention; see [`Op::WindowAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Heads, which divide the channels.
    pub heads: usize,
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// Rows and columns by which the map is shifted, smaller than the window.
    pub shift: [usize; 2],
    /// Relative position bias `[(2 h - 1) (2 w - 1), heads]`.
    pub table: ParamId,
    /// Bias of the projection to queries, keys and values, which tokens beyond the edge of the map hold.
    pub bias: Option<ParamId>,
}

/// Defines [`Op::name`] and the list of all names by one table; a variant that is missing does not compile.
macro_rules! names {
    ($($variant:pat => $name:literal,)*) => {
        /// Names of all operations, in the order of the enum.
        pub const NAMES: &[&str] = &[$($name),*];

        /// Returns the name of the operation.
        pub fn name(&self) -> &'static str {
            match self { $($variant => $name),* }
        }
    };
}

/// An operation on maps and vectors.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The images `[B, C, H, W]`.
    Input,
    /// A value computed outside the tape, without a gradient ([`Tape::opaque_op`](crate::Tape::opaque_op)),
    /// and its cost.
    Opaque(Cost),
    /// A candle expression ([`Tape::graph`](crate::Tape::graph)).
    Expression,
    /// `act(norm(conv(x) + bias) + shortcut)`, `[B, C, H, W]` to `[B, O, H', W']`; `y = x W^T + bias` on
    /// every pixel or vector if `linear`. The optional second input is the shortcut, of the shape of the
    /// result.
    ///
    /// Batch norm is `weight * (x - mean) / sqrt(variance + eps) + bias` per channel.
    Conv(Conv),
    /// Maximum of each window, padding ignored: `[B, C, H, W]` to `[B, C, (H + 2p - k) / s + 1, (W + 2p - k)
    /// / s + 1]`. The gradient goes to the first maximum.
    MaxPool {
        /// Window size, at most 15.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Padding, smaller than the window.
        padding: usize,
    },
    /// Mean over all pixels: `[B, C, H, W]` to `[B, C]`.
    GlobalAveragePool,
    /// `max(x, 0)`, of the shape of `x`; its derivative at 0 is 0.
    Relu,
    /// `a + b`, of one shape.
    Add,
    /// Concatenation along the channels: `[B, C1, H, W]`, `[B, C2, H, W]`, ... to `[B, C1 + C2 + ..., H, W]`.
    Concat,
    /// Bilinear interpolation: `[B, C, H, W]` to `[B, C, size]`. The source of pixel `i` is at `i (in - 1) /
    /// (out - 1)` with aligned corners, otherwise at `max((i + 0.5) in / out - 0.5, 0)`.
    Resize {
        /// Rows and columns of the result.
        size: [usize; 2],
        /// Whether the centers of the corner pixels are aligned.
        align_corners: bool,
    },
    /// Mean over bins: `[B, C, H, W]` to `[B, C, size]`; bin `i` of `n` covers `floor(i H / n) .. ceil((i + 1)
    /// H / n)`.
    AdaptiveAveragePool {
        /// Rows and columns of the result.
        size: [usize; 2],
    },
    /// Broadcast of a vector `[B, C]`, or a map of one pixel, to `[B, C, size]`.
    Expand {
        /// Rows and columns of the result.
        size: [usize; 2],
    },
    /// `weight * (x - mean) / sqrt(variance + eps) + bias` with mean and biased variance over the channels of
    /// each pixel or vector, of the shape of `x`.
    LayerNorm {
        /// Channels.
        channels: usize,
        /// Scale per channel.
        weight: ParamId,
        /// Offset per channel.
        bias: ParamId,
        /// Epsilon added to the variance.
        eps: f64,
    },
    /// Like [`Op::LayerNorm`], over the pixels and channels of each image and group of channels.
    GroupNorm {
        /// Groups, which divide the channels.
        groups: usize,
        /// Channels.
        channels: usize,
        /// Scale per channel.
        weight: ParamId,
        /// Offset per channel.
        bias: ParamId,
        /// Epsilon added to the variance.
        eps: f64,
    },
    /// `x * CDF(x)` of the standard normal, of the shape of `x`.
    Gelu,
    /// `x` above zero, `exp(x) - 1` below, of the shape of `x`.
    Elu,
    /// `x / (1 - p)` with probability `1 - p`, otherwise 0, of the shape of `x`.
    Dropout {
        /// Probability of a value to be dropped.
        p: f64,
    },
    /// [`Op::Dropout`] of whole images.
    DropPath {
        /// Probability of an image to be dropped.
        p: f64,
    },
    /// `softmax(q k^T / sqrt(C / heads) + table) v` inside windows, on concatenated queries, keys and values:
    /// `[B, 3C, H, W]` to `[B, C, H, W]`. The map is shifted cyclically and zero-padded to whole windows;
    /// tokens that were not neighbors before the shift do not see each other.
    WindowAttention(Attention),
    /// Concatenation of 2x2 neighbors: `[B, C, H, W]` to `[B, 4C, ceil(H / 2), ceil(W / 2)]`, in the order (row
    /// 0, column 0), (1, 0), (0, 1), (1, 1); an odd edge is zero-padded.
    MergePatches,
}

impl Op {
    names! {
        Self::Input => "input",
        Self::Opaque(_) => "opaque",
        Self::Expression => "expression",
        Self::Conv(_) => "conv",
        Self::MaxPool { .. } => "max_pool",
        Self::GlobalAveragePool => "global_avg_pool",
        Self::Relu => "relu",
        Self::Add => "add",
        Self::Concat => "concat",
        Self::Resize { .. } => "resize_bilinear",
        Self::AdaptiveAveragePool { .. } => "adaptive_avg_pool",
        Self::Expand { .. } => "expand",
        Self::LayerNorm { .. } => "layer_norm",
        Self::GroupNorm { .. } => "group_norm",
        Self::Gelu => "gelu",
        Self::Elu => "elu",
        Self::Dropout { .. } => "dropout",
        Self::DropPath { .. } => "drop_path",
        Self::WindowAttention(_) => "window_attention",
        Self::MergePatches => "merge_patches",
    }

    /// Returns shape and flatness of the result.
    ///
    /// # Errors
    /// Inputs that the operation does not accept.
    pub(crate) fn output(&self, inputs: &[Value]) -> Result<([usize; 4], bool)> {
        let fail = |expected: &dyn ToString, found: &dyn std::fmt::Debug| {
            Err(Error::shape(self.name(), expected.to_string(), found))
        };
        let Some(x) = inputs.first() else {
            return fail(&"at least one map", &inputs.len());
        };
        let [b, h, w, c] = x.shape;
        match self {
            // Their shapes are those of tensors.
            Self::Input | Self::Opaque(_) | Self::Expression => Ok((x.shape, x.flat)),
            Self::Conv(conv) => {
                let spec = &conv.spec;
                if c != spec.inputs {
                    let each = if conv.linear { "values for each vector or pixel" } else { "input channels" };
                    return fail(&format!("{} {each}", spec.inputs), &x.shape);
                }
                let (oh, ow) = spec.output_size(h, w)?;
                let shape = [b, oh, ow, spec.outputs];
                match inputs.get(1) {
                    Some(shortcut) if shortcut.shape != shape => {
                        fail(&format!("a shortcut of shape {shape:?}"), &shortcut.shape)
                    }
                    _ => Ok((shape, conv.linear && x.flat)),
                }
            }
            &Self::MaxPool { kernel, stride, padding } => {
                let fits = (1..=15).contains(&kernel) && stride > 0 && padding < kernel;
                if !fits || h + 2 * padding < kernel || w + 2 * padding < kernel {
                    let expected = format!(
                        "kernel {kernel} (1 to 15) <= size + 2 * padding {padding}, padding < kernel, stride {stride} > 0"
                    );
                    return fail(&expected, &[h, w]);
                }
                let along = |size: usize| {
                    let out = (size + 2 * padding - kernel) / stride + 1;
                    // A window that begins past the map would be empty.
                    if (out - 1) * stride >= size + padding { out - 1 } else { out }
                };
                Ok(([b, along(h), along(w), c], false))
            }
            Self::GlobalAveragePool => Ok(([b, 1, 1, c], true)),
            Self::Relu | Self::Gelu | Self::Elu => Ok((x.shape, x.flat)),
            Self::Add => match inputs.get(1) {
                Some(y) if y.shape == x.shape => Ok((x.shape, x.flat)),
                y => fail(&format!("two maps of shape {:?}", x.shape), &y.map(|y| y.shape)),
            },
            Self::Concat => match inputs.iter().find(|y| y.shape[..3] != x.shape[..3]) {
                Some(y) => {
                    fail(&format!("maps of one batch and size, as the first, {:?}", x.shape), &y.shape)
                }
                None => Ok(([b, h, w, inputs.iter().map(|y| y.shape[3]).sum()], x.flat)),
            },
            Self::Resize { size, .. } | Self::AdaptiveAveragePool { size } if size.contains(&0) => {
                fail(&"a size of at least one pixel", size)
            }
            Self::Resize { size, .. } | Self::AdaptiveAveragePool { size } => {
                Ok(([b, size[0], size[1], c], false))
            }
            Self::Expand { size } if x.size() != [1, 1] || size.contains(&0) => {
                let expected = format!("a vector [B, C] and a size of at least one pixel, not {size:?}");
                fail(&expected, &x.shape)
            }
            Self::Expand { size } => Ok(([b, size[0], size[1], c], false)),
            Self::LayerNorm { channels, .. } | Self::GroupNorm { channels, .. } if *channels != c => {
                fail(&format!("{channels} channels"), &x.shape)
            }
            Self::LayerNorm { .. } | Self::GroupNorm { .. } => Ok((x.shape, x.flat)),
            Self::Dropout { p } | Self::DropPath { p } => match (0.0..1.0).contains(p) {
                true => Ok((x.shape, x.flat)),
                false => fail(&"a probability in [0, 1)", p),
            },
            Self::WindowAttention(attention) => match c.is_multiple_of(3 * attention.heads) {
                true => Ok(([b, h, w, c / 3], false)),
                false => fail(&format!("queries, keys and values of {} heads", attention.heads), &x.shape),
            },
            Self::MergePatches => Ok(([b, h.div_ceil(2), w.div_ceil(2), 4 * c], false)),
        }
    }

    /// Returns the weights that the operation uses, and their numbers of values. Buffers and the bias that
    /// attention shares with a linear layer are not included.
    pub fn weights(&self) -> impl Iterator<Item = (ParamId, usize)> + use<> {
        let weights = match self {
            Self::Conv(conv) => {
                let outputs = conv.spec.outputs;
                let vector = |id: ParamId| (id, outputs);
                [
                    Some((conv.weight, conv.spec.weight_shape().iter().product())),
                    conv.bias.map(vector),
                    conv.norm.map(|norm| vector(norm.weight)),
                    conv.norm.map(|norm| vector(norm.bias)),
                ]
            }
            Self::LayerNorm { channels, weight, bias, .. }
            | Self::GroupNorm { channels, weight, bias, .. } => {
                [Some((*weight, *channels)), Some((*bias, *channels)), None, None]
            }
            Self::WindowAttention(attention) => {
                let positions: usize = attention.window.iter().map(|side| 2 * side - 1).product();
                [Some((attention.table, positions * attention.heads)), None, None, None]
            }
            Self::Input
            | Self::Opaque(_)
            | Self::Expression
            | Self::MaxPool { .. }
            | Self::GlobalAveragePool
            | Self::Relu
            | Self::Add
            | Self::Concat
            | Self::Resize { .. }
            | Self::AdaptiveAveragePool { .. }
            | Self::Expand { .. }
            | Self::Gelu
            | Self::Elu
            | Self::Dropout { .. }
            | Self::DropPath { .. }
            | Self::MergePatches => [None; 4],
        };
        weights.into_iter().flatten()
    }
}

impl Entry {
    /// Returns the cost of the operation, without its parameters.
    pub fn cost(&self) -> Cost {
        let values = self.output.count() as u64;
        let cost = Cost { activations: values, ..Cost::default() };
        match &self.op {
            Op::Opaque(own) => Cost { activations: values, ..*own },
            Op::Conv(conv) => {
                let [_, inner, rows, columns] = conv.spec.weight_shape();
                let macs = values * (inner * rows * columns) as u64;
                match conv.norm {
                    Some(_) => Cost { macs, batch_norm_outputs: values, activations: 2 * values, ..cost },
                    None => Cost { macs, ..cost },
                }
            }
            Op::WindowAttention(attention) => {
                let [images, h, w, channels] = self.output.shape.map(|n| n as u64);
                let window = attention.window.map(|n| n as u64);
                let tokens = images * h.next_multiple_of(window[0]) * w.next_multiple_of(window[1]);
                // Queries, keys, values and results of the padding: timm computes them, the engines do not.
                let padding = (tokens - images * h * w) * 4 * channels * channels;
                let attention_macs = tokens * 2 * window[0] * window[1] * channels;
                Cost { macs: padding, attention_macs, ..cost }
            }
            _ => cost,
        }
    }
}
