//! Networks as candle graphs: what a tape does where its own kernels do not run.
//!
//! A node then holds a candle tensor, `[B, C, H, W]` or `[B, D]`, every layer makes its node out of
//! [`crate::graph`] and candle's operations, and candle's backward goes from the loss to the
//! parameters. The tape keeps the books: modes, taps, running statistics, random numbers. In memory
//! a map may lie as its layer likes it, rows of channels or planes: a view in another order is free.
//!
//! In bf16 every node is bf16 and every parameter f32: an operation takes its precision from its map,
//! rounds a weight that is multiplied with it, and computes in f32 what it sums over pixels, channels or
//! tokens, on the way back too ([`crate::graph::wide`]).

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::graph::WindowTables;
use crate::tape::{Data, Mode, Node, Tape};
use crate::{Error, ParamId, Result};

/// A convolution with its batch norm folded in, at one version of the parameters.
#[derive(Debug, Clone)]
pub(crate) struct FoldedTensors {
    pub(crate) version: u64,
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

/// What is kept from pass to pass, and the probes of the pass under way.
#[derive(Debug, Default)]
pub(crate) struct GraphState {
    pub(crate) folded: HashMap<ParamId, FoldedTensors>,
    /// By the size of the map, of the windows, and the shift.
    pub(crate) windows: HashMap<[[usize; 2]; 3], WindowTables>,
    /// Zeros added to every node where gradients of taps are wanted: their gradient is the node's.
    probes: HashMap<usize, Var>,
}

impl GraphState {
    pub(crate) fn forget(&mut self) {
        self.probes.clear();
    }

    /// The gradients of the taps that a pass has probed.
    pub(crate) fn tap_gradients<'a>(
        &self,
        taps: impl Iterator<Item = (&'a str, usize)>,
        store: &GradStore,
        dtype: DType,
    ) -> Result<Vec<(String, Tensor)>> {
        let found = taps.filter_map(|(name, node)| {
            let gradient = store.get(self.probes.get(&node)?)?;
            Some(gradient.to_dtype(dtype).map(|g| (name.to_string(), g)).map_err(Error::from))
        });
        found.collect()
    }
}

impl Tape {
    /// The tensor of a node of this pass, on a tape that builds candle's graph.
    pub(crate) fn tensor(&self, op: &'static str, x: &Node) -> Result<Tensor> {
        self.check_pass(op, x)?;
        match &x.data {
            Data::Tensor(t) => Ok(t.clone()),
            _ => Err(Error::usage(op, "the node is of a tape with another engine")),
        }
    }

    /// A parameter to compute with: in the graph where it gets a gradient, else apart from it.
    pub(crate) fn weight(&self, id: ParamId) -> Tensor {
        let param = self.params().get(id);
        if self.trains(id) { param.var().as_tensor().clone() } else { param.var().as_detached_tensor() }
    }

    /// The node of a tensor `[B, C, H, W]` or `[B, D]`, in the type of the maps or of the parameters.
    pub(crate) fn composed_node(&mut self, t: Tensor) -> Result<Node> {
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
                if let Some(composed) = &mut self.composed {
                    composed.probes.insert(node, probe);
                }
                probed
            }
            mode if mode.records() => t,
            _ => t.detach(),
        };
        let needs_grad = t.track_op();
        Ok(self.node_of(shape, flat, needs_grad, Data::Tensor(t)))
    }

    /// The node that `f` makes of the tensors of `inputs`; nothing on a tape with kernels of its own.
    pub(crate) fn compose(
        &mut self,
        op: &'static str,
        inputs: &[&Node],
        f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Option<Result<Node>> {
        self.composed.as_ref()?;
        let tensors: Result<Vec<Tensor>> = inputs.iter().map(|x| self.tensor(op, x)).collect();
        Some(tensors.and_then(|t| f(&t)).and_then(|t| self.composed_node(t)))
    }
}
