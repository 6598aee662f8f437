//! What runs the operations of a tape: CPU kernels, candle's graph, or nothing (a trace).

pub(crate) mod graph;
pub(crate) mod kernels;
pub(crate) mod trace;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::buffers::Pools;
use crate::gradients::Gradients;
use crate::kernels::allocator;
use crate::mode::{Mode, Precision};
use crate::node::{Data, Feature, Node};
use crate::op::{Entry, Op, Value};
use crate::params::ParamStore;
use crate::profile::Profile;
use crate::rng::Rng;
use crate::{ParamId, Result};

/// Runs operations and propagates gradients through them.
///
/// The tape checks shapes before it calls an engine: `inputs` belong to the current pass and fit the
/// operation, and `output` is what its shape rule says.
pub(crate) trait Engine: std::fmt::Debug + Send + Sync {
    /// Discards all values of the last pass.
    fn begin(&mut self);

    /// Returns whether the tape keeps the entry of this result.
    fn records(&self, output: &Value) -> bool;

    /// Returns whether the entries are a trace.
    fn traces(&self) -> bool {
        false
    }

    /// Runs an operation.
    fn forward(&mut self, op: &Op, inputs: &[&Node], output: &Value, context: &mut Context) -> Result<Data>;

    /// Makes a value without a gradient of a tensor, of the shape of `output`. A trace does not compute it.
    fn import(&mut self, tensor: Source, output: &Value, context: &Context) -> Result<Data>;

    /// Runs a candle expression; returns its shape, [`Value::flat`] and values. `output` is its index and
    /// whether it gets a gradient.
    fn expression(
        &mut self,
        f: Expression,
        inputs: &[&Node],
        output: (usize, bool),
        context: &Context,
    ) -> Result<([usize; 4], bool, Data)>;

    /// Returns the value as a tensor, and its leaf in candle's graph if gradients are propagated from one.
    fn export(&self, x: &Node, context: &Context) -> Result<(Tensor, Option<Var>)>;

    /// Starts a backward pass from the gradients of features, which candle computed.
    fn begin_backward(&mut self, features: &[Feature], store: &GradStore, context: &Context) -> Result<()>;

    /// Returns whether a value has a gradient to propagate.
    fn has_gradient(&self, _index: usize) -> bool {
        false
    }

    /// Propagates the gradient of an entry's result, if there is one, to its inputs and parameters.
    fn backward(&mut self, entry: &Entry, context: &mut Context) -> Result<()>;

    /// Ends a backward pass; adds the gradients of parameters and features.
    fn end_backward(&mut self, gradients: &mut Gradients) -> Result<()>;

    /// Discards what the backward pass needs of the values from `first` on, which will be computed again.
    fn discard_from(&mut self, _first: usize) {}

    /// Discards weights that were folded at another precision.
    fn discard_folded(&mut self) {}

    /// Returns the memory that tapes can share.
    fn pools(&self) -> Option<&Pools> {
        None
    }

    /// Replaces the memory.
    fn set_pools(&mut self, _pools: &Pools) {}
}

/// Computes a tensor.
pub(crate) type Source<'a> = Box<dyn FnOnce() -> Result<Tensor> + 'a>;

/// A function of tensors `[B, C, H, W]` or `[B, D]`.
pub(crate) type Expression<'a> = Box<dyn FnOnce(&[Tensor]) -> candle_core::Result<Tensor> + 'a>;

/// Smallest weight, in values, whose release is worth trimming the heap.
const MIN_TRIM_VALUES: usize = 1 << 18;

/// Position relative to a segment of gradient checkpointing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment {
    Outside,
    /// Inside a segment, in the forward pass.
    First,
    /// Inside a segment that is recomputed in the backward pass.
    Again,
}

/// Settings of a tape that engines read, and its profile.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) params: ParamStore,
    pub(crate) mode: Mode,
    pub(crate) precision: Precision,
    /// Whether 3x3 convolutions in f32 may use Winograd's algorithm.
    pub(crate) winograd: bool,
    /// Whether weights leave the store once they are folded.
    pub(crate) releases_weights: bool,
    pub(crate) segment: Segment,
    /// Random numbers of the pass, and its step.
    pub(crate) rng: Rng,
    pub(crate) step: u64,
    pub(crate) profile: Profile,
}

impl Context {
    /// Returns whether a parameter gets a gradient.
    pub(crate) fn trains(&self, id: ParamId) -> bool {
        self.mode.trains() && self.params.is_trained(id)
    }

    /// Returns the random stream and step of a value.
    pub(crate) fn draw_key(&self, index: usize) -> (Rng, u64) {
        (self.rng.stream("tape").stream(&index.to_string()), self.step)
    }

    /// Returns the dtype of maps on the graph engine.
    pub(crate) fn map_type(&self) -> DType {
        match self.precision {
            Precision::Full => self.params.dtype(),
            Precision::Bf16 => DType::BF16,
        }
    }

    /// Releases a weight that was folded from the store, if the tape is set to.
    pub(crate) fn release_weight(&self, id: ParamId) -> Result<()> {
        if self.releases_weights && self.mode == Mode::Inference {
            let count = self.params.get(id).count();
            self.params.release_weight(id)?;
            if count >= MIN_TRIM_VALUES {
                allocator::trim();
            }
        }
        Ok(())
    }
}

/// Shape and flatness of a tensor `[B, C, H, W]` or `[B, D]`.
pub(crate) fn shape_of(op: &'static str, dims: &[usize]) -> Result<([usize; 4], bool)> {
    match *dims {
        [b, d] => Ok(([b, 1, 1, d], true)),
        [b, c, h, w] => Ok(([b, h, w, c], false)),
        _ => Err(crate::Error::shape(op, "a shape [B, C, H, W] or [B, D]", dims)),
    }
}
