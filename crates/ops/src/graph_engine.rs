//! Graph engine: runs a network as a candle graph instead of on the CPU kernels.
//!
//! A node holds a candle tensor, `[B, C, H, W]` or `[B, D]`; layers are composed of [`crate::graph`] and
//! candle operations, and candle's backward computes the gradients. The tape still manages modes,
//! features, running statistics and random numbers. Memory order of a map (channels last or first) is up
//! to the layer: a permuted view costs nothing.
//!
//! In bf16, nodes are bf16 and parameters f32. An operation takes its precision from its input map,
//! rounds weights that are multiplied with it, and reduces over pixels, channels or tokens in f32, in
//! both directions ([`crate::graph::upcast`]).

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::graph::WindowTables;
use crate::tape::{Data, Mode, Node, Tape};
use crate::{Error, ParamId, Result};

/// Convolution weights with batch norm folded in, at one version of the parameters.
#[derive(Debug, Clone)]
pub(crate) struct FoldedTensors {
    pub(crate) version: u64,
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

/// State kept between passes, and the probes of the current pass.
#[derive(Debug, Default)]
pub(crate) struct GraphState {
    pub(crate) folded: HashMap<ParamId, FoldedTensors>,
    /// Keyed by map size, window size and shift.
    pub(crate) windows: HashMap<[[usize; 2]; 3], WindowTables>,
    /// Zeros added to each node when feature gradients are recorded; the gradient of a probe is that of
    /// its node.
    probes: HashMap<usize, Var>,
}

impl GraphState {
    pub(crate) fn forget(&mut self) {
        self.probes.clear();
    }

    /// Returns the gradients of the features probed in this pass.
    pub(crate) fn feature_gradients<'a>(
        &self,
        features: impl Iterator<Item = (&'a str, usize)>,
        store: &GradStore,
        dtype: DType,
    ) -> Result<Vec<(String, Tensor)>> {
        let found = features.filter_map(|(name, node)| {
            let gradient = store.get(self.probes.get(&node)?)?;
            Some(gradient.to_dtype(dtype).map(|g| (name.to_string(), g)).map_err(Error::from))
        });
        found.collect()
    }
}

impl Tape {
    /// Returns the tensor of a node of this pass.
    pub(crate) fn tensor(&self, op: &'static str, x: &Node) -> Result<Tensor> {
        self.check_pass(op, x)?;
        match &x.data {
            Data::Tensor(t) => Ok(t.clone()),
            _ => Err(Error::usage(op, "the node belongs to a tape with another engine")),
        }
    }

    /// Returns a parameter for computation: attached to the graph if it is trained, detached otherwise.
    pub(crate) fn weight(&self, id: ParamId) -> Tensor {
        let param = self.params().get(id);
        if self.trains(id) { param.var().as_tensor().clone() } else { param.var().as_detached_tensor() }
    }

    /// Wraps a tensor `[B, C, H, W]` or `[B, D]`, of the dtype of the maps or of the parameters, as a
    /// node.
    pub(crate) fn graph_node(&mut self, t: Tensor) -> Result<Node> {
        let (shape, flat) = match *t.dims() {
            [b, d] => ([b, 1, 1, d], true),
            [b, c, h, w] => ([b, h, w, c], false),
            _ => return Err(Error::shape("graph", "a result [B, C, H, W] or [B, D]", t.dims())),
        };
        if ![self.dtype(), self.map_type()].contains(&t.dtype()) {
            return Err(Error::shape("graph", format!("a result of {:?}", self.dtype()), t.dtype()));
        }
        let t = t.to_dtype(self.map_type())?;
        let t = match self.mode() {
            Mode::EvalWithGrad => {
                let probe = Var::zeros(t.shape(), t.dtype(), t.device())?;
                let probed = (&t + probe.as_tensor())?;
                let node = self.count();
                if let Some(graph_state) = &mut self.graph_state {
                    graph_state.probes.insert(node, probe);
                }
                probed
            }
            mode if mode.records() => t,
            _ => t.detach(),
        };
        let needs_grad = t.track_op();
        Ok(self.node_of(shape, flat, needs_grad, Data::Tensor(t)))
    }

    /// Runs `f` on the tensors of `inputs` if the tape uses the graph engine; returns `None` otherwise.
    pub(crate) fn graph_op(
        &mut self,
        op: &'static str,
        inputs: &[&Node],
        f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Option<Result<Node>> {
        self.graph_state.as_ref()?;
        let tensors: Result<Vec<Tensor>> = inputs.iter().map(|x| self.tensor(op, x)).collect();
        Some(tensors.and_then(|t| f(&t)).and_then(|t| self.graph_node(t)))
    }
}
