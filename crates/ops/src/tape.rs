//! The tape records the operations of a forward pass and propagates gradients back through them.
//!
//! An engine runs the operations. Features marked by the network become candle tensors (`[B, C, H, W]`
//! views); a loss is any candle expression, and [`Tape::backward`] joins the two graphs.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::element::dispatch_dtype;
use crate::engine::graph::GraphEngine;
use crate::engine::kernels::KernelsEngine;
use crate::engine::trace::TraceEngine;
use crate::engine::{Context, Engine, Segment, shape_of};
use crate::gradients::Gradients;
use crate::kernels::winograd;
use crate::mode::{EngineKind, Mode, Precision};
use crate::node::{Data, Feature, Node};
use crate::op::{Cost, Entry, Op, Value};
use crate::params::ParamStore;
use crate::profile::{LayerTiming, Profile};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::{Error, Result};

/// Forward function of a segment.
type SegmentFn = Arc<dyn Fn(&Node, &mut Tape) -> Result<Node> + Send + Sync>;

/// What the backward pass goes through.
enum Record {
    Op(Entry),
    /// A segment of which only the input is kept: its first inner index, its input and its result.
    Segment(usize, Node, Value, SegmentFn),
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Op(entry) => entry.fmt(f),
            Self::Segment(first, _, output, _) => write!(f, "Segment({first} to {})", output.index),
        }
    }
}

/// Records the forward passes of a network on one parameter store.
///
/// A tape is kept for the whole training: [`Tape::begin`] starts a new pass and reuses the memory of the
/// last one.
#[derive(Debug)]
pub struct Tape {
    context: Context,
    engine: Box<dyn Engine>,
    pass: u64,
    /// Number of values in this pass.
    count: usize,
    records: Vec<Record>,
    selected: Vec<String>,
    features: Vec<Feature>,
    /// Whether segments drop their intermediate values.
    gradient_checkpointing: bool,
}

impl Tape {
    /// Creates a tape for the parameters of one network (and its connectors). Keeps the feature `logits`
    /// until [`Tape::select_features`] is called.
    pub fn new(params: &ParamStore, mode: Mode) -> Result<Self> {
        if params.is_meta() {
            return Err(Error::usage("Tape::new", "the parameter store has no values (ParamStore::meta)"));
        }
        let engine: Box<dyn Engine> = match params.engine() {
            EngineKind::Graph => Box::<GraphEngine>::default(),
            EngineKind::Kernels => dispatch_dtype!(params, T => Box::<KernelsEngine<T>>::default()),
        };
        Ok(Self::with_engine(params, mode, engine))
    }

    /// Creates a shape-only tape: a network that runs on it computes nothing and leaves a trace
    /// ([`Tape::take_trace`]), used for ONNX export, FLOPs and memory estimates. The parameters may be
    /// without values ([`ParamStore::meta`]), and only the shape of the images matters.
    pub fn trace(params: &ParamStore) -> Self {
        Self::with_engine(params, Mode::Eval, Box::new(TraceEngine))
    }

    fn with_engine(params: &ParamStore, mode: Mode, engine: Box<dyn Engine>) -> Self {
        let context = Context {
            params: params.clone(),
            mode,
            precision: params.precision(),
            winograd: winograd::allowed(),
            releases_weights: false,
            segment: Segment::Outside,
            rng: Rng::new(0),
            step: 0,
            profile: Profile::default(),
        };
        Self {
            context,
            engine,
            pass: 0,
            count: 0,
            records: Vec::new(),
            selected: vec!["logits".into()],
            features: Vec::new(),
            gradient_checkpointing: false,
        }
    }

    /// Returns the parameter store.
    pub fn params(&self) -> &ParamStore {
        &self.context.params
    }

    /// Returns the dtype of parameters and features.
    pub fn dtype(&self) -> DType {
        self.context.params.dtype()
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.context.mode
    }

    /// Changes the mode and discards the current pass.
    pub fn set_mode(&mut self, mode: Mode) {
        self.context.mode = mode;
        self.forget();
    }

    /// Enables Winograd's algorithm for 3x3 convolutions in f32: faster, with about five times the
    /// rounding error. On by default unless `STILLHOUSE_WINOGRAD=0`; never used in f64.
    pub fn set_winograd(&mut self, on: bool) {
        self.context.winograd = on;
    }

    /// Overrides [`ParamStore::with_precision`] for this tape.
    ///
    /// # Errors
    /// [`Precision::Bf16`] with f64 parameters or on the CPU kernels.
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        precision.check(self.dtype(), self.params().engine())?;
        self.context.precision = precision;
        self.engine.discard_folded();
        Ok(())
    }

    /// In mode [`Mode::Inference`], releases each weight of the store once it is folded, so that an
    /// inference-only network holds its weights once. The store can then no longer be exported or used in
    /// another mode or on another tape; attempts return an error.
    pub fn release_weights(&mut self) {
        self.context.releases_weights = true;
    }

    /// Starts timing operations from zero, or stops it. Only the CPU kernels are timed.
    pub fn set_profiling(&mut self, on: bool) {
        self.context.profile.set(on);
    }

    /// Returns the timings accumulated since [`Tape::set_profiling`].
    pub fn layer_timings(&self) -> Vec<LayerTiming> {
        self.context.profile.timings()
    }

    /// Enables gradient checkpointing of segments run by [`Tape::gradient_checkpoint`]. Off by default.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.gradient_checkpointing = on;
    }

    /// Selects the features to keep from the next pass on.
    pub fn select_features<S: AsRef<str>>(&mut self, features: &[S]) {
        self.selected = features.iter().map(|t| t.as_ref().to_string()).collect();
    }

    /// Returns the names of the selected features.
    pub fn selected_features(&self) -> &[String] {
        &self.selected
    }

    /// Returns whether the feature is selected.
    pub fn selects(&self, feature: &str) -> bool {
        self.selected.iter().any(|w| w == feature)
    }

    /// Shares the buffer pool of another tape, for networks that run in turn, such as teacher and
    /// student. Must be called before the first pass.
    pub fn share_memory(&mut self, other: &Self) {
        if let Some(pools) = other.engine.pools() {
            self.engine.set_pools(pools);
        }
    }

    /// Returns the bytes of all maps and gradients, in use and pooled, of this tape and those that share
    /// its pool. Parameters and extracted features are not included.
    pub fn memory_bytes(&self) -> usize {
        self.engine.pools().map_or(0, |pools| pools.memory_bytes())
    }

    /// Starts a new pass; dropout draws from `rng` at `step`.
    pub fn begin(&mut self, rng: Rng, step: u64) {
        self.context.rng = rng;
        self.context.step = step;
        self.forget();
    }

    fn forget(&mut self) {
        self.pass += 1;
        self.count = 0;
        self.features.clear();
        self.records.clear();
        self.engine.begin();
    }

    /// Takes the trace of the current pass; `None` unless the tape was created by [`Tape::trace`].
    pub fn take_trace(&mut self) -> Option<Trace> {
        let records = std::mem::take(&mut self.records);
        let entries = records.into_iter().filter_map(|record| match record {
            Record::Op(entry) => Some(entry),
            Record::Segment(..) => None,
        });
        let features = self.features.iter().map(|feature| (feature.name.clone(), feature.index)).collect();
        self.engine.traces().then(|| Trace { entries: entries.collect(), features })
    }

    /// Runs an operation on values of this pass, and records it.
    pub(crate) fn apply(&mut self, op: Op, inputs: &[&Node]) -> Result<Node> {
        if inputs.iter().any(|x| x.pass != self.pass) {
            return Err(Error::usage(op.name(), "the node belongs to an earlier pass or another tape"));
        }
        let values: Vec<Value> = inputs.iter().map(|x| x.value).collect();
        let (shape, flat) = op.output(&values)?;
        let needs_grad = self.mode().records()
            && (values.iter().any(|x| x.needs_grad) || op.weights().any(|(id, _)| self.context.trains(id)));
        let output = Value { index: self.count, shape, flat, needs_grad };
        let data = self.engine.forward(&op, inputs, &output, &mut self.context)?;
        Ok(self.push(op, values, output, data))
    }

    fn push(&mut self, op: Op, inputs: Vec<Value>, output: Value, data: Data) -> Node {
        self.count += 1;
        if self.engine.records(&output) {
            self.records.push(Record::Op(Entry { op, inputs, output }));
        }
        Node { value: output, pass: self.pass, data }
    }

    /// Adds the images `[B, C, H, W]` as the first node. They get no gradient.
    pub fn input(&mut self, images: &Tensor) -> Result<Node> {
        let shape = match *images.dims() {
            [b, c, h, w] if b * c * h * w > 0 => [b, h, w, c],
            [_, _, _, _] => return Err(Error::shape("input", "at least one value", images.dims())),
            _ => return Err(Error::shape("input", "[B, C, H, W]", images.dims())),
        };
        let needs_grad = self.mode() == Mode::EvalWithGrad;
        let output = Value { index: self.count, shape, flat: false, needs_grad };
        let data = self.engine.import(Box::new(|| Ok(images.clone())), &output, &self.context)?;
        Ok(self.push(Op::Input, Vec::new(), output, data))
    }

    /// Adds the result of `f`, a map `[B, C, H, W]` or vector `[B, D]` of the given shape, as a node
    /// without gradients: for external frozen networks. A trace records shape and `cost` (for one image) and
    /// does not run `f`.
    pub fn opaque_op(
        &mut self,
        shape: &[usize],
        cost: impl FnOnce() -> Cost,
        f: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> Result<Node> {
        let (inside, flat) = shape_of("opaque_op", shape)?;
        let output = Value { index: self.count, shape: inside, flat, needs_grad: false };
        let dtype = self.dtype();
        let source = || {
            let values = f()?;
            if values.dims() != shape {
                return Err(Error::shape("opaque_op", format!("{shape:?}"), values.dims()));
            }
            Ok(values.detach().to_dtype(dtype)?)
        };
        let data = self.engine.import(Box::new(source), &output, &self.context)?;
        let cost = if self.engine.traces() { cost() } else { Cost::default() };
        Ok(self.push(Op::Opaque(cost), Vec::new(), output, data))
    }

    /// Adds a candle expression over maps `[B, C, H, W]` or vectors `[B, D]`, in the dtype of the
    /// parameters, as one node. Gradients flow to the inputs and to parameters of the tape's store.
    pub fn graph(
        &mut self,
        inputs: &[&Node],
        f: impl FnOnce(&[Tensor]) -> candle_core::Result<Tensor>,
    ) -> Result<Node> {
        if inputs.iter().any(|x| x.pass != self.pass) {
            return Err(Error::usage("graph", "the node belongs to an earlier pass or another tape"));
        }
        let mode = self.mode();
        // The expression may contain parameters.
        let needs_grad = mode.trains() || mode.records() && inputs.iter().any(|x| x.value.needs_grad);
        let index = self.count;
        let (shape, flat, data) =
            self.engine.expression(Box::new(f), inputs, (index, needs_grad), &self.context)?;
        let output = Value { index, shape, flat, needs_grad };
        Ok(self.push(Op::Expression, inputs.iter().map(|x| x.value).collect(), output, data))
    }

    /// Marks a node as a named feature; it is kept only if selected.
    pub fn mark_feature(&mut self, name: &str, x: &Node) -> Result<()> {
        if !self.selects(name) || self.features.iter().any(|feature| feature.name == name) {
            return Ok(());
        }
        if x.pass != self.pass {
            return Err(Error::usage("feature", "the node belongs to an earlier pass or another tape"));
        }
        let (tensor, leaf) = self.engine.export(x, &self.context)?;
        self.features.push(Feature { name: name.into(), index: x.value.index, leaf, tensor });
        Ok(())
    }

    /// Returns the selected features: maps `[B, C, H, W]`, vectors `[B, D]`.
    ///
    /// # Errors
    /// A selected feature that the network does not have.
    pub fn outputs(&mut self) -> Result<Vec<(String, Tensor)>> {
        for name in &self.selected {
            if !self.features.iter().any(|feature| feature.name == *name) {
                return Err(Error::usage("outputs", format!("the network has no feature `{name}`")));
            }
        }
        Ok(self.features.iter().map(|feature| (feature.name.clone(), feature.tensor.clone())).collect())
    }

    /// Runs a segment of a network. With [`Tape::set_gradient_checkpointing`] its intermediate values are
    /// dropped and recomputed in the backward pass: bit-identical values and gradients, for one more
    /// forward pass through the segment (Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear
    /// Memory Cost", 2016, arXiv 1604.06174). Recomputation does not update running statistics and draws
    /// the same random numbers. `segment` must not use other nodes of this pass than its argument.
    pub fn gradient_checkpoint(
        &mut self,
        x: &Node,
        segment: impl Fn(&Node, &mut Tape) -> Result<Node> + Send + Sync + 'static,
    ) -> Result<Node> {
        let inside = self.context.segment != Segment::Outside; // a nested segment would save nothing more
        // The graph engine manages its own intermediate values.
        let drops = self.gradient_checkpointing && self.params().engine() == EngineKind::Kernels;
        if !drops || !self.mode().records() || inside {
            return segment(x, self);
        }
        let (first, kept) = (self.count, self.records.len());
        let out = self.run_segment(Segment::First, &segment, x)?;
        if out.value.index >= first {
            self.records.truncate(kept);
            self.engine.discard_from(first);
            if out.value.needs_grad {
                self.records.push(Record::Segment(first, x.clone(), out.value, Arc::new(segment)));
            }
        }
        Ok(out)
    }

    fn run_segment(
        &mut self,
        pass: Segment,
        segment: &dyn Fn(&Node, &mut Tape) -> Result<Node>,
        x: &Node,
    ) -> Result<Node> {
        self.context.segment = pass;
        let out = segment(x, self);
        self.context.segment = Segment::Outside;
        out
    }

    /// Computes the gradients of a scalar with respect to all trainable parameters: candle's backward to
    /// the features, then the tape's own to the parameters. Consumes the recorded pass.
    pub fn backward(&mut self, loss: &Tensor) -> Result<Gradients> {
        let mode = self.mode();
        if !mode.records() {
            return Err(Error::usage("backward", format!("a pass in mode {mode:?} records nothing")));
        }
        if self.count == 0 {
            return Err(Error::usage("backward", "nothing is recorded; run the network first"));
        }
        if loss.elem_count() != 1 {
            return Err(Error::shape("backward", "a scalar loss", loss.dims()));
        }
        let store = loss.backward()?;
        let mut gradients = Gradients::new(self.params());
        if mode.trains() {
            gradients.collect(&store)?;
        }
        self.engine.begin_backward(&self.features, &store, &self.context)?;
        let records = std::mem::take(&mut self.records);
        self.go_back(records)?;
        self.engine.end_backward(&mut gradients)?;
        self.forget();
        Ok(gradients)
    }

    fn go_back(&mut self, mut records: Vec<Record>) -> Result<()> {
        while let Some(record) = records.pop() {
            match record {
                Record::Op(entry) => self.engine.backward(&entry, &mut self.context)?,
                Record::Segment(first, x, output, segment) if self.engine.has_gradient(output.index) => {
                    // Recomputed values get the same indices, and so draw the same random numbers.
                    let count = std::mem::replace(&mut self.count, first);
                    let out = self.run_segment(Segment::Again, &*segment, &x);
                    self.count = count;
                    if out?.value.index != output.index {
                        return Err(Error::usage(
                            "gradient_checkpoint",
                            "the segment was not deterministic: recomputation ended at another node",
                        ));
                    }
                    let recomputed = std::mem::take(&mut self.records);
                    self.go_back(recomputed)?;
                }
                Record::Segment(..) => {}
            }
        }
        Ok(())
    }
}
