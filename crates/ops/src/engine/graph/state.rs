//! State of the graph engine.

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use crate::ParamId;
use crate::engine::Context;
use crate::graph::WindowTables;

/// State kept between passes, and the probes of the current pass.
#[derive(Debug, Default)]
pub(crate) struct GraphEngine {
    pub(super) folded: HashMap<ParamId, FoldedTensors>,
    /// Keyed by map size, window size and shift.
    pub(super) windows: HashMap<[[usize; 2]; 3], WindowTables>,
    /// Zeros added to each node when feature gradients are recorded; the gradient of a probe is that of
    /// its node.
    pub(super) probes: HashMap<usize, Var>,
    /// Gradients of the probed features.
    pub(super) features: Vec<(String, Tensor)>,
}

/// Convolution weights with batch norm folded in, at one version of the parameters.
#[derive(Debug, Clone)]
pub(super) struct FoldedTensors {
    pub(super) version: u64,
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

/// Returns a parameter for computation: attached to the graph if it is trained, detached otherwise.
pub(super) fn weight(id: ParamId, context: &Context) -> Tensor {
    let param = context.params.get(id);
    if context.trains(id) { param.var().as_tensor().clone() } else { param.var().as_detached_tensor() }
}
