//! Layers: forward and backward pass of each in one file.

pub(crate) mod activation_checkpoint;
pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod concat;
pub(crate) mod conv;
pub(crate) mod dropout;
pub(crate) mod elu;
pub(crate) mod gelu;
pub(crate) mod graph;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod patches;
pub(crate) mod pool;
pub(crate) mod resize;

use crate::Result;
use crate::buffers::Buf;
use crate::tape::{Backward, Elem, Tape};

/// Values saved by a layer for the backward pass.
#[derive(Debug)]
pub(crate) enum Record<T> {
    Conv(Box<conv::ConvRecord<T>>),
    MaxPool(pool::MaxPoolRecord),
    Average(pool::AverageRecord),
    Add(add::AddRecord<T>),
    Dropout(dropout::DropoutRecord<T>),
    Resample(resize::ResampleRecord),
    Expand(resize::ExpandRecord),
    Concat(concat::ConcatRecord),
    Gelu(gelu::GeluRecord<T>),
    Elu(elu::EluRecord<T>),
    DropPath(dropout::DropPathRecord),
    LayerNorm(layer_norm::LayerNormRecord<T>),
    Patches(patches::PatchesRecord),
    Attention(attention::AttentionRecord<T>),
    Graph(graph::GraphRecord),
    Checkpoint(activation_checkpoint::CheckpointRecord<T>),
}

impl<T: Elem> Record<T> {
    /// Returns the index of the layer's node.
    pub(crate) fn out(&self) -> usize {
        match self {
            Self::Conv(r) => r.out,
            Self::MaxPool(r) => r.out,
            Self::Average(r) => r.out,
            Self::Add(r) => r.out,
            Self::Dropout(r) => r.out,
            Self::Resample(r) => r.out,
            Self::Expand(r) => r.out,
            Self::Concat(r) => r.out,
            Self::Gelu(r) => r.out,
            Self::Elu(r) => r.out,
            Self::DropPath(r) => r.out,
            Self::LayerNorm(r) => r.out,
            Self::Patches(r) => r.out,
            Self::Attention(r) => r.out,
            Self::Graph(r) => r.out,
            Self::Checkpoint(r) => r.out,
        }
    }

    /// Propagates the gradient of the node to its inputs and parameters.
    pub(crate) fn backward(self, dy: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        match self {
            Self::Conv(r) => r.backward(dy, back, tape),
            Self::MaxPool(r) => r.backward(&dy, back),
            Self::Average(r) => r.backward(&dy, back),
            Self::Add(r) => r.backward(dy, back),
            Self::Dropout(r) => r.backward(dy, back),
            Self::Resample(r) => r.backward(&dy, back),
            Self::Expand(r) => r.backward(&dy, back),
            Self::Concat(r) => r.backward(&dy, back),
            Self::Gelu(r) => r.backward(dy, back),
            Self::Elu(r) => r.backward(dy, back),
            Self::DropPath(r) => r.backward(dy, back),
            Self::LayerNorm(r) => r.backward(dy, back, tape),
            Self::Patches(r) => r.backward(&dy, back),
            Self::Attention(r) => r.backward(&dy, back, tape),
            Self::Graph(r) => r.backward(&dy, back),
            Self::Checkpoint(r) => r.backward(dy, back, tape),
        }
    }
}
