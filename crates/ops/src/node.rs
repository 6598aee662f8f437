//! Values of a pass.

use std::sync::Arc;

use candle_core::{Tensor, Var};

use crate::buffers::Buf;
use crate::op::Value;

/// Values of a node.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    F32(Arc<Buf<f32>>),
    F64(Arc<Buf<f64>>),
    /// Graph engine: `[B, C, H, W]` or `[B, D]`.
    Tensor(Tensor),
    /// Trace.
    None,
}

/// A feature map or vector: the result of an operation.
///
/// Its memory returns to the tape's pool when the last clone is dropped and no record needs it.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) value: Value,
    pub(crate) pass: u64,
    pub(crate) data: Data,
}

impl Node {
    /// Returns the batch size.
    pub fn batch(&self) -> usize {
        self.value.shape[0]
    }
    /// Returns rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.value.shape[1], self.value.shape[2])
    }
    /// Returns the number of channels.
    pub fn channels(&self) -> usize {
        self.value.shape[3]
    }
}

/// A named feature of a pass.
#[derive(Debug)]
pub(crate) struct Feature {
    pub(crate) name: String,
    /// Index of its value.
    pub(crate) index: usize,
    /// Kernels: the leaf of candle's graph, if gradients are propagated.
    pub(crate) leaf: Option<Var>,
    pub(crate) tensor: Tensor,
}
