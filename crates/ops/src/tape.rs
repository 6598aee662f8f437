//! The tape: records layers while a network runs and carries gradients back through them.
//!
//! Inside, maps are NHWC and live in buffers that are used again from step to step. At the taps a
//! network marks, the tape hands out candle tensors (`[B, C, H, W]` views); a loss is ordinary
//! candle code, and [`Tape::backward`] joins the two graphs.

mod backward;
mod lane;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

pub(crate) use self::backward::Backward;
pub(crate) use self::lane::{Elem, Folded, TypedState};
use crate::buffers::Buf;
pub(crate) use crate::element::dispatch_dtype;
use crate::element::{Float, with_values};
use crate::graph_engine::GraphState;
use crate::kernels;
use crate::kernels::geometry::{ConvGeo, ConvSpec};
use crate::layers::activation_checkpoint::Pass;
use crate::measure::Totals;
use crate::params::{Engine, ParamStore};
use crate::rng::Rng;
use crate::trace::{Op, Tracing};
use crate::{Error, Result};

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, gradients recorded, running statistics moved.
    Train,
    /// Running statistics, gradients recorded: for weights whose statistics are all they have.
    TrainFrozenBn,
    /// Running statistics, nothing recorded.
    Eval,
    /// Running statistics, gradients recorded for the taps only (Grad-CAM).
    EvalWithGrad,
    /// As `Eval`, for a network whose weights do not change: batch norm is folded once.
    Inference,
}

impl Mode {
    /// Whether gradients are recorded.
    pub fn records(self) -> bool {
        matches!(self, Self::Train | Self::TrainFrozenBn | Self::EvalWithGrad)
    }

    /// Whether parameters get gradients, and dropout drops.
    pub fn trains(self) -> bool {
        matches!(self, Self::Train | Self::TrainFrozenBn)
    }
}

/// Values of a node.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    F32(Arc<Buf<f32>>),
    F64(Arc<Buf<f64>>),
    /// Of a network that runs as a candle graph: `[B, C, H, W]` or `[B, D]`.
    Tensor(Tensor),
}

/// Numeric precision of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The type of the parameters.
    #[default]
    Full,
    /// Feature maps and their gradients in bf16, on the graph engine only.
    ///
    /// Weights are rounded to bf16 where they are multiplied with a map. Parameters, their gradients,
    /// running and batch statistics, reductions over pixels or channels, and extracted features are f32.
    Bf16,
}

impl Precision {
    /// Checks that a network of `dtype` parameters can run in this precision.
    pub(crate) fn check(self, dtype: DType, engine: Engine) -> Result<()> {
        match self {
            Self::Full => Ok(()),
            Self::Bf16 if dtype != DType::F32 => {
                Err(Error::usage("bf16", format!("expected f32 parameters, found {dtype:?}")))
            }
            Self::Bf16 if engine == Engine::Kernels => {
                Err(Error::usage("bf16", "requires a GPU; the CPU kernels support f32 only"))
            }
            Self::Bf16 => Ok(()),
        }
    }
}

/// A map or vector inside a network: the result of a layer.
///
/// Its memory goes back to the tape when the last clone is dropped and no record needs it.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) id: usize,
    pub(crate) pass: u64,
    /// Images, rows, columns, channels.
    pub(crate) shape: [usize; 4],
    /// A vector `[B, D]`, not a map of one pixel.
    pub(crate) flat: bool,
    /// Whether a gradient has to reach it.
    pub(crate) needs_grad: bool,
    pub(crate) data: Data,
}

impl Node {
    /// Images in the batch.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }
    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.shape[1], self.shape[2])
    }
    /// Channels.
    pub fn channels(&self) -> usize {
        self.shape[3]
    }
}

#[derive(Debug)]
struct Tap {
    name: String,
    node: usize,
    leaf: Option<Var>,
    tensor: Tensor,
}

/// Records what a network does, for one parameter store.
///
/// A tape is kept over the whole training: [`Tape::begin`] starts a new pass and finds the memory
/// of the last one.
#[derive(Debug)]
pub struct Tape {
    params: ParamStore,
    mode: Mode,
    wanted: Vec<String>,
    pass: u64,
    nodes: usize,
    rng: Rng,
    step: u64,
    taps: Vec<Tap>,
    geometry: HashMap<(ConvSpec, usize, usize), Arc<ConvGeo>>,
    winograd: bool,
    precision: Precision,
    gives_up: bool,
    pub(crate) spent: Option<Totals>,
    /// Whether segments keep no inner values.
    pub(crate) checkpointing: bool,
    /// Whether it is in a segment, and for which time.
    pub(crate) segment: Pass,
    /// Steps in place of values, on a tape that only traces.
    tracing: Option<Tracing>,
    /// What a network keeps that runs as a candle graph.
    pub(crate) composed: Option<GraphState>,
    f32: TypedState<f32>,
    f64: TypedState<f64>,
}

impl Tape {
    /// A tape for the parameters of one network (and its connectors). Only `logits` is kept until
    /// [`Tape::select_features`] says otherwise.
    pub fn new(params: &ParamStore, mode: Mode) -> Result<Self> {
        if params.is_meta() {
            return Err(Error::usage("Tape::new", "the parameters are an meta without values"));
        }
        Ok(Self::empty(params, mode, None))
    }

    /// A tape on which nothing is computed: a network that runs on it leaves its steps, which
    /// [`Tape::take_trace`] gives. The parameters may be an meta; of the images only the shape
    /// counts.
    pub fn trace(params: &ParamStore) -> Self {
        Self::empty(params, Mode::Eval, Some(Tracing::default()))
    }

    fn empty(params: &ParamStore, mode: Mode, tracing: Option<Tracing>) -> Self {
        Self {
            params: params.clone(),
            mode,
            wanted: vec!["logits".into()],
            pass: 0,
            nodes: 0,
            rng: Rng::new(0),
            step: 0,
            taps: Vec::new(),
            geometry: HashMap::new(),
            winograd: kernels::winograd::allowed(),
            precision: params.precision(),
            gives_up: false,
            spent: None,
            checkpointing: false,
            segment: Pass::Outside,
            composed: (params.engine() == Engine::Graph && tracing.is_none()).then(GraphState::default),
            tracing,
            f32: TypedState::default(),
            f64: TypedState::default(),
        }
    }

    pub(crate) fn tracing_mut(&mut self) -> Option<&mut Tracing> {
        self.tracing.as_mut()
    }

    /// The parameters it runs on.
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// Element type of the parameters and of what the taps hand out.
    pub fn dtype(&self) -> DType {
        self.params.dtype()
    }

    /// What the pass is for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes the mode and forgets the pass under way.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.forget();
    }

    /// Whether 3x3 convolutions in f32 may run by Winograd's algorithm, faster and with some five
    /// times the rounding errors. They may unless the environment says `STILLHOUSE_WINOGRAD=0`; f64
    /// never does.
    pub fn set_winograd(&mut self, on: bool) {
        self.winograd = on;
    }

    /// Overrides [`ParamStore::in_precision`] for this tape.
    ///
    /// # Errors
    /// [`Precision::Bf16`] with f64 parameters or on the CPU kernels.
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        precision.check(self.dtype(), self.params.engine())?;
        self.precision = precision;
        if let Some(composed) = &mut self.composed {
            composed.folded.clear();
        }
        Ok(())
    }

    /// Element type of the maps of a network that runs as candle's graph.
    pub(crate) fn map_type(&self) -> DType {
        match self.precision {
            Precision::Full => self.dtype(),
            Precision::Bf16 => DType::BF16,
        }
    }

    /// In mode [`Mode::Inference`], lets go of a weight in the store as soon as its folded form is made,
    /// so that a network that only runs holds its weights once. Such a store can no longer be
    /// exported, nor run in another mode or on another tape: they say so.
    pub fn release_weights(&mut self) {
        self.gives_up = true;
    }

    pub(crate) fn gives_up(&self) -> bool {
        self.gives_up && self.mode == Mode::Inference
    }

    pub(crate) fn winograd<T: Elem>(&self) -> bool {
        self.winograd && T::TYPE == DType::F32
    }

    /// Which taps are kept from the next pass on.
    pub fn select_features<S: AsRef<str>>(&mut self, taps: &[S]) {
        self.wanted = taps.iter().map(|t| t.as_ref().to_string()).collect();
    }

    /// Whether that tap is kept.
    pub fn selects(&self, tap: &str) -> bool {
        self.wanted.iter().any(|w| w == tap)
    }

    /// Starts a new pass; dropout draws from `rng` at `step`.
    pub fn begin(&mut self, rng: Rng, step: u64) {
        self.rng = rng;
        self.step = step;
        self.forget();
    }

    /// Gives memory that no pass uses at the moment back to the system.
    pub fn shrink(&mut self) {
        self.forget();
        self.f32.pool.clear();
        self.f64.pool.clear();
        self.f32.bytes.clear();
        self.f64.bytes.clear();
    }

    /// Takes the memory of its maps from where another tape takes its own: what one has done with serves
    /// the other. For networks that run in turns, as a teacher and its student do. To be called before the
    /// first pass.
    pub fn share_memory(&mut self, other: &Self) {
        self.f32.pool = Arc::clone(&other.f32.pool);
        self.f32.bytes = Arc::clone(&other.f32.bytes);
        self.f64.pool = Arc::clone(&other.f64.pool);
        self.f64.bytes = Arc::clone(&other.f64.bytes);
    }

    /// Bytes of all maps and gradients that the tape and those that share its memory hold, in use and kept
    /// for the next pass; parameters and what the taps hand out not counted.
    pub fn memory_bytes(&self) -> usize {
        self.f32.pool.bytes() + self.f64.pool.bytes() + self.f32.bytes.bytes() + self.f64.bytes.bytes()
    }

    fn forget(&mut self) {
        self.pass += 1;
        self.nodes = 0;
        self.taps.clear();
        if let Some(tracing) = &mut self.tracing {
            tracing.clear();
        }
        self.f32.records.clear();
        self.f64.records.clear();
        if let Some(composed) = &mut self.composed {
            composed.forget();
        }
    }

    pub(crate) fn is_tracing(&self) -> bool {
        self.tracing.is_some()
    }

    /// Nodes made so far.
    pub(crate) fn count(&self) -> usize {
        self.nodes
    }

    /// Gives the next node this number; the number that it would have had.
    pub(crate) fn rewind(&mut self, nodes: usize) -> usize {
        std::mem::replace(&mut self.nodes, nodes)
    }

    /// Random numbers of the node that is made next.
    pub(crate) fn draw_key(&self) -> (Rng, u64) {
        (self.rng.stream("tape").stream(&self.nodes.to_string()), self.step)
    }

    pub(crate) fn geo(&mut self, spec: ConvSpec, h: usize, w: usize) -> Result<Arc<ConvGeo>> {
        if let Some(geo) = self.geometry.get(&(spec, h, w)) {
            return Ok(Arc::clone(geo));
        }
        let geo = Arc::new(ConvGeo::new(spec, h, w)?);
        self.geometry.insert((spec, h, w), Arc::clone(&geo));
        Ok(geo)
    }

    /// Memory for the values of a node.
    pub(crate) fn map<T: Elem>(&mut self, len: usize) -> Buf<T> {
        let records = self.mode.records();
        let pool = &T::lane(self).pool;
        if records { pool.take(len) } else { pool.borrow(len) }
    }

    /// A new node with these values.
    pub(crate) fn node<T: Elem>(
        &mut self,
        shape: [usize; 4],
        flat: bool,
        needs_grad: bool,
        values: Buf<T>,
    ) -> Node {
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        self.node_of(shape, flat, needs_grad, T::wrap(Arc::new(values)))
    }

    pub(crate) fn node_of(&mut self, shape: [usize; 4], flat: bool, needs_grad: bool, data: Data) -> Node {
        self.nodes += 1;
        Node { id: self.nodes - 1, pass: self.pass, shape, flat, needs_grad, data }
    }

    /// Refuses a node of another pass.
    pub(crate) fn check_pass(&self, op: &'static str, x: &Node) -> Result<()> {
        if x.pass != self.pass {
            return Err(Error::usage(op, "the node is of an earlier pass or of another tape"));
        }
        Ok(())
    }

    /// The values of a node of this pass.
    pub(crate) fn values<T: Elem>(&mut self, op: &'static str, x: &Node) -> Result<Arc<Buf<T>>> {
        self.check_pass(op, x)?;
        if let Some(values) = T::data(&x.data) {
            return Ok(Arc::clone(values));
        }
        Err(Error::usage(op, "the node has another element type than the tape"))
    }

    /// Images `[B, C, H, W]` as the first node. They get no gradient.
    pub fn input(&mut self, images: &Tensor) -> Result<Node> {
        let Ok((b, c, h, w)) = images.dims4() else {
            return Err(Error::shape("input", "[B, C, H, W]", images.dims()));
        };
        if b * c * h * w == 0 {
            return Err(Error::shape("input", "at least one value", images.dims()));
        }
        if let Some(node) = self.sketched(|| Op::Input, &[], [b, h, w, c], false) {
            return Ok(node);
        }
        if self.composed.is_some() {
            return self.composed_node(images.to_device(self.params.device())?.to_dtype(self.map_type())?);
        }
        dispatch_dtype!(self, T => {
            let images = images.to_dtype(T::TYPE)?;
            let mut buf = self.map::<T>(b * c * h * w);
            with_values::<T, _>(&images, |x| channels_last(x, c, h * w, &mut buf))?;
            let needs_grad = self.mode == Mode::EvalWithGrad;
            Ok(self.node::<T>([b, h, w, c], false, needs_grad, buf))
        })
    }

    /// Marks a node as the tap of that name. Kept only if it is wanted.
    pub fn mark_feature(&mut self, name: &str, x: &Node) -> Result<()> {
        if !self.wanted.iter().any(|w| w == name) || self.taps.iter().any(|t| t.name == name) {
            return Ok(());
        }
        let [b, h, w, c] = x.shape;
        let shape = if x.flat { vec![b, c] } else { vec![b, h, w, c] };
        if let Some(tracing) = &mut self.tracing {
            tracing.tap(name, x.id);
            let tensor = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
            self.taps.push(Tap { name: name.into(), node: x.id, leaf: None, tensor });
            return Ok(());
        }
        if self.composed.is_some() {
            let tensor = self.tensor("tap", x)?.to_dtype(self.dtype())?;
            self.taps.push(Tap { name: name.into(), node: x.id, leaf: None, tensor });
            return Ok(());
        }
        let leaf = self.mode.records() && x.needs_grad;
        let (leaf, tensor) = dispatch_dtype!(self, T => {
            let values = self.values::<T>("tap", x)?;
            if leaf {
                let leaf = Var::from_slice(&values, shape, &Device::Cpu)?;
                let tensor = leaf.as_tensor().clone();
                (Some(leaf), tensor)
            } else {
                (None, Tensor::from_slice(&values, shape, &Device::Cpu)?)
            }
        });
        let tensor = if x.flat { tensor } else { tensor.permute((0, 3, 1, 2))? };
        self.taps.push(Tap { name: name.into(), node: x.id, leaf, tensor });
        Ok(())
    }

    /// The wanted taps that the network has marked: maps `[B, C, H, W]`, vectors `[B, D]`. An
    /// error names a wanted tap that the network does not have.
    pub fn outputs(&mut self) -> Result<Vec<(String, Tensor)>> {
        for name in &self.wanted {
            if !self.taps.iter().any(|t| t.name == *name) {
                return Err(Error::usage("outputs", format!("the network has no tap `{name}`")));
            }
        }
        Ok(self.taps.iter().map(|t| (t.name.clone(), t.tensor.clone())).collect())
    }

    /// Any candle expression over maps `[B, C, H, W]` or vectors `[B, D]` of the type of the parameters as
    /// one node; gradients of the maps and of parameters of the tape's store pass through it.
    pub fn graph(
        &mut self,
        inputs: &[&Node],
        f: impl FnOnce(&[Tensor]) -> candle_core::Result<Tensor>,
    ) -> Result<Node> {
        if self.tracing.is_some() {
            return Err(Error::usage("graph", "a candle expression cannot be sketched"));
        }
        if self.composed.is_some() {
            let tensor = |x: &&Node| Ok(self.tensor("graph", x)?.to_dtype(self.dtype())?);
            let tensors: Result<Vec<Tensor>> = inputs.iter().map(tensor).collect();
            return self.composed_node(f(&tensors?)?);
        }
        dispatch_dtype!(self, T => crate::layers::graph::forward::<T>(self, inputs, f))
    }

    /// What `f` computes outside of the tape, a map `[B, C, H, W]` or a vector `[B, D]` of that shape, as
    /// a node that no gradient passes: other people's networks, which stay as they are. A trace takes
    /// its shape and does not run it.
    pub fn outside(
        &mut self,
        shape: &[usize],
        f: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> Result<Node> {
        let (inside, flat) = match *shape {
            [b, c] => ([b, 1, 1, c], true),
            [b, c, h, w] => ([b, h, w, c], false),
            _ => return Err(Error::shape("outside", "a shape [B, C, H, W] or [B, D]", shape)),
        };
        if let Some(node) = self.sketched(|| Op::Outside, &[], inside, flat) {
            return Ok(node);
        }
        let values = f()?;
        if values.dims() != shape {
            return Err(Error::shape("outside", format!("{shape:?}"), values.dims()));
        }
        if self.composed.is_some() {
            let here = values.detach().to_device(self.params.device())?.to_dtype(self.dtype())?;
            return self.composed_node(here);
        }
        dispatch_dtype!(self, T => crate::layers::graph::outside_values::<T>(self, inside, flat, &values))
    }
}

/// `[B, C, P]` to `[B, P, C]`.
fn channels_last<T: Float>(x: &[T], channels: usize, pixels: usize, out: &mut [T]) {
    let len = channels * pixels;
    let images = x.len() / len;
    let out = kernels::Shared::new(out);
    kernels::parallel(images, |i| {
        // SAFETY: one image per task.
        #[allow(unsafe_code)]
        let out = unsafe { out.range(i * len, len) };
        let x = &x[i * len..(i + 1) * len];
        for (c, plane) in x.chunks_exact(pixels).enumerate() {
            for (p, v) in plane.iter().enumerate() {
                out[p * channels + c] = *v;
            }
        }
    });
}
