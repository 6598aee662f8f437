//! Named weights and buffers of a network, its connectors and its heads.
//!
//! Every tensor is a candle [`Var`], so candle graphs (connectors, other people's models) and the
//! tape's own kernels use the same store. Convolution and linear weights of tape layers are kept in
//! the order their kernels read ([`Layout::Panels`]) and are turned back to PyTorch's order on the
//! way out.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Shape, Tensor, Var};

use rayon::prelude::*;

use crate::element::{Float, dispatch_dtype, with_values};
use crate::rng::Rng;
use crate::tape::Precision;
use crate::weight_packing::Panels;
use crate::{Error, Result};

/// What an entry is to the optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Trained by gradients.
    Weight,
    /// Moves by itself (running statistics, memory banks).
    Buffer,
}

/// Order of the stored values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Row-major in the named shape.
    Plain,
    /// A convolution weight `[out, in / groups, kh, kw]` or linear weight `[out, in]` in panel order.
    Panels(Panels),
}

/// How a new parameter is filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All the same value.
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in [-bound, bound).
    Uniform(f64),
}

impl Init {
    /// He initialization over the outputs: `std = sqrt(2 / (out * kh * kw))` (He et al. 2015), as
    /// torchvision initializes the convolutions of its residual networks.
    pub fn kaiming_out(shape: &[usize]) -> Self {
        let fan_out = shape[0] * shape[2..].iter().product::<usize>();
        Self::Normal((2.0 / fan_out as f64).sqrt())
    }

    /// Values from a stream: part `i` of a fixed size is drawn at item `i`, so that parts can be drawn
    /// side by side.
    fn fill<T: Float>(self, values: &mut [T], rng: Rng) {
        const PART: usize = 1 << 14;
        values.par_chunks_mut(PART).enumerate().for_each(|(i, part)| {
            let mut draw = rng.at(0, i as u64);
            match self {
                Self::Constant(c) => part.fill(T::of(c)),
                Self::Normal(std) => part.chunks_mut(2).for_each(|pair| {
                    let two = draw.normals();
                    pair.iter_mut().zip(two).for_each(|(v, n)| *v = T::of(std * n));
                }),
                Self::Uniform(bound) => {
                    part.iter_mut().for_each(|v| *v = T::of(draw.uniform_in(-bound, bound)));
                }
            }
        });
    }

    /// PyTorch's default for linear and convolution layers: uniform within `1 / sqrt(fan_in)`.
    pub fn fan_in_uniform(fan_in: usize) -> Self {
        Self::Uniform(1.0 / (fan_in as f64).sqrt())
    }
}

/// How the networks of a store run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// On the tape's own kernels, on the CPU.
    Kernels,
    /// As candle's graph, on any device; on the CPU slower, to compare with.
    Graph,
}

impl Engine {
    /// What [`ParamStore::new`] takes: the graph on a card; on the CPU the kernels, or what the environment
    /// says by `STILLHOUSE_ENGINE=kernels|graph`.
    ///
    /// # Errors
    /// If the environment says something else.
    pub fn of(device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            return Ok(Self::Graph);
        }
        match std::env::var("STILLHOUSE_ENGINE").as_deref() {
            Ok("graph") => Ok(Self::Graph),
            Ok("kernels" | "") | Err(_) => Ok(Self::Kernels),
            Ok(other) => {
                let what = format!("STILLHOUSE_ENGINE is `{other}`, expected `kernels` or `graph`");
                Err(Error::usage("Engine::of", what))
            }
        }
    }
}

/// Index of a parameter in its [`ParamStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    /// Position in the order of creation.
    pub fn index(self) -> usize {
        self.0
    }
}

/// One named weight or buffer.
#[derive(Debug, Clone)]
pub struct Param {
    /// Full name, in timm's spelling.
    pub name: String,
    /// Shape as PyTorch has it.
    pub shape: Vec<usize>,
    /// Weight or buffer.
    pub kind: Kind,
    /// Whether an optimizer may move it.
    pub trainable: bool,
    pub(crate) layout: Layout,
    pub(crate) var: Var,
    /// Its values were given up: only a tape's folded form of them is left.
    pub(crate) given_up: bool,
}

impl Param {
    /// The stored values as the kernels and candle graphs see them. Row-major in [`Param::shape`]
    /// unless it is a weight of a tape layer.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Number of values (padding of the panel order not counted).
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the values are stored in the order of [`Param::shape`].
    pub fn is_plain(&self) -> bool {
        self.layout == Layout::Plain
    }
}

#[derive(Debug, Default)]
struct Store {
    list: Vec<Param>,
    by_name: HashMap<String, usize>,
    version: u64,
}

/// Ordered, named weights and buffers. Clones share the store.
#[derive(Debug, Clone)]
pub struct ParamStore {
    store: Arc<RwLock<Store>>,
    dtype: DType,
    device: Device,
    engine: Engine,
    precision: Precision,
    /// Names and shapes only.
    meta: bool,
}

/// What an error says of an entry that was given up.
pub(crate) const GIVEN_UP: &str =
    "was given up when a frozen tape folded it (Tape::release_weights); build and load the network anew";

fn poisoned<T>(r: std::result::Result<T, std::sync::PoisonError<T>>) -> T {
    // A panic elsewhere leaves the list itself in order: entries are only ever appended.
    r.unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl ParamStore {
    /// An empty store for `f32` or `f64` values.
    pub fn new(dtype: DType, device: &Device) -> Result<Self> {
        Self::with_engine(dtype, device, Engine::of(device)?)
    }

    /// An empty store whose networks run by that engine.
    pub fn with_engine(dtype: DType, device: &Device, engine: Engine) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F64) {
            return Err(Error::usage("ParamStore::new", format!("needs f32 or f64, got {dtype:?}")));
        }
        if engine == Engine::Kernels && !device.is_cpu() {
            let what = format!("the tape's own kernels run on the CPU, not on {:?}", device.location());
            return Err(Error::usage("ParamStore::new", what));
        }
        let precision = Precision::Full;
        Ok(Self { store: Arc::default(), dtype, device: device.clone(), engine, precision, meta: false })
    }

    /// Sets the precision of every tape created for this store from now on; the values do not change.
    ///
    /// # Errors
    /// [`Precision::Bf16`] with f64 values or on the CPU kernels.
    pub fn in_precision(self, precision: Precision) -> Result<Self> {
        precision.check(self.dtype, self.engine)?;
        Ok(Self { precision, ..self })
    }

    /// Returns the precision of networks on this store.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A store of names and shapes without values, for counting: nothing can run on it.
    pub fn meta() -> Self {
        Self {
            store: Arc::default(),
            dtype: DType::F32,
            device: Device::Cpu,
            engine: Engine::Kernels,
            precision: Precision::Full,
            meta: true,
        }
    }

    /// Whether it has names and shapes only.
    pub(crate) fn is_meta(&self) -> bool {
        self.meta
    }

    /// Element type of all entries.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device of all entries.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How networks on it run.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Names are made below `root`, new values drawn from `rng`.
    pub fn builder(&self, rng: Rng) -> ParamBuilder {
        ParamBuilder { params: self.clone(), rng, prefix: String::new() }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        poisoned(self.store.read()).list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Snapshot of the entries in order; the values are shared, not copied.
    pub fn all(&self) -> Vec<Param> {
        poisoned(self.store.read()).list.clone()
    }

    /// One entry; the values are shared.
    pub fn get(&self, id: ParamId) -> Param {
        poisoned(self.store.read()).list[id.0].clone()
    }

    /// The id of a name.
    pub fn id(&self, name: &str) -> Option<ParamId> {
        poisoned(self.store.read()).by_name.get(name).map(|i| ParamId(*i))
    }

    /// Sets whether an optimizer may move the entry.
    pub fn set_trainable(&self, id: ParamId, trainable: bool) {
        poisoned(self.store.write()).list[id.0].trainable = trainable;
    }

    /// Grows with every change made through this store; folded copies of weights are kept by it.
    pub fn version(&self) -> u64 {
        poisoned(self.store.read()).version
    }

    /// Number of trainable values.
    pub fn count_weights(&self) -> usize {
        self.all().iter().filter(|p| p.kind == Kind::Weight).map(Param::count).sum()
    }

    fn insert(&self, name: String, shape: &[usize], kind: Kind, layout: Layout, var: Var) -> Result<ParamId> {
        let mut store = poisoned(self.store.write());
        if store.by_name.contains_key(&name) {
            return Err(Error::Param { name, what: "made twice".into() });
        }
        let index = store.list.len();
        store.by_name.insert(name.clone(), index);
        let trainable = kind == Kind::Weight;
        store.list.push(Param { name, shape: shape.to_vec(), kind, trainable, layout, var, given_up: false });
        store.version += 1;
        Ok(ParamId(index))
    }

    /// The values in PyTorch's shape and order, copied.
    pub fn export(&self, id: ParamId) -> Result<Tensor> {
        let param = self.get(id);
        if self.meta {
            return Err(Error::Param { name: param.name, what: "is of an meta, without values".into() });
        }
        if param.given_up {
            return Err(Error::Param { name: param.name, what: GIVEN_UP.into() });
        }
        match &param.layout {
            Layout::Plain => Ok(param.var.as_tensor().copy()?),
            Layout::Panels(panels) => dispatch_dtype!(self, T => {
                let values = with_values::<T, _>(&param.var, |stored| panels.unpack(stored))?;
                Ok(Tensor::from_vec(values, param.shape, &self.device)?)
            }),
        }
    }

    /// Replaces the values by a tensor in PyTorch's shape and order; its dtype is converted.
    pub fn import(&self, id: ParamId, values: &Tensor) -> Result<()> {
        let param = self.get(id);
        if param.given_up {
            return Err(Error::Param { name: param.name, what: GIVEN_UP.into() });
        }
        if values.dims() != param.shape {
            return Err(Error::Param {
                name: param.name,
                what: format!("expected shape {:?}, got {:?}", param.shape, values.dims()),
            });
        }
        let values = values.to_dtype(self.dtype)?.to_device(&self.device)?.contiguous()?;
        match &param.layout {
            Layout::Plain => param.var.set(&values)?,
            // No second copy of a large weight.
            Layout::Panels(panels) => dispatch_dtype!(self, T => {
                with_values::<T, _>(&values, |plain| {
                    modify_var::<T>(&param.var, |stored| panels.pack_into(plain, stored))
                })??;
            }),
        }
        self.touch();
        Ok(())
    }

    /// All entries by name in PyTorch's order, for saving.
    pub fn export_all(&self) -> Result<Vec<(String, Tensor)>> {
        self.export_named(|_| true)
    }

    /// Those of [`Self::export_all`] whose names are `wanted`.
    pub fn export_named(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Tensor)>> {
        let entries = (0..self.len()).map(|i| (self.get(ParamId(i)).name, ParamId(i)));
        entries.filter(|(name, _)| wanted(name)).map(|(name, id)| Ok((name, self.export(id)?))).collect()
    }

    /// Lets the values of an entry go: a tape keeps another form of them.
    pub(crate) fn give_up(&self, id: ParamId) -> Result<()> {
        let nothing = Var::zeros(0, self.dtype, &self.device)?;
        let mut store = poisoned(self.store.write());
        store.list[id.0].var = nothing;
        store.list[id.0].given_up = true;
        Ok(())
    }

    /// Replaces the stored values by a tensor of the stored shape on the same device.
    pub(crate) fn set(&self, id: ParamId, values: &Tensor) -> Result<()> {
        self.get(id).var.set(values)?;
        self.touch();
        Ok(())
    }

    /// Marks the values as changed.
    pub(crate) fn touch(&self) {
        poisoned(self.store.write()).version += 1;
    }

    /// Runs `f` on the stored values in place (panel order for weights of tape layers). CPU only.
    pub(crate) fn modify<T: Float>(&self, id: ParamId, f: impl FnOnce(&mut [T])) -> Result<()> {
        let param = self.get(id);
        modify_var(&param.var, f)?;
        self.touch();
        Ok(())
    }
}

/// Runs `f` on the contiguous values of a CPU variable in place.
pub(crate) fn modify_var<T: Float>(var: &Var, f: impl FnOnce(&mut [T])) -> Result<()> {
    struct Edit<F>(std::sync::Mutex<Option<F>>);
    impl<F> Edit<F> {
        fn run<T: Float>(
            &self,
            storage: &mut CpuStorage,
            layout: &candle_core::Layout,
        ) -> candle_core::Result<()>
        where
            F: FnOnce(&mut [T]),
        {
            let Some((start, end)) = layout.contiguous_offsets() else {
                candle_core::bail!("in-place change of a parameter that is not contiguous")
            };
            let values = T::slice_mut(storage)?;
            let f = self.0.lock().ok().and_then(|mut f| f.take());
            if let Some(f) = f {
                f(&mut values[start..end]);
            }
            Ok(())
        }
    }
    struct Op<T, F>(Edit<F>, std::marker::PhantomData<fn(T)>);
    impl<T: Float, F: FnOnce(&mut [T])> InplaceOp1 for Op<T, F> {
        fn name(&self) -> &'static str {
            "modify"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &candle_core::Layout) -> candle_core::Result<()> {
            self.0.run::<T>(storage, layout)
        }
    }
    let op = Op(Edit(std::sync::Mutex::new(Some(f))), std::marker::PhantomData);
    var.as_tensor().inplace_op1(&op)?;
    Ok(())
}

/// Makes parameters below a prefix, as candle's `VarBuilder` reads them.
#[derive(Debug, Clone)]
pub struct ParamBuilder {
    params: ParamStore,
    rng: Rng,
    prefix: String,
}

impl ParamBuilder {
    /// The builder one level down.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let prefix = self.full(&name.to_string());
        Self { prefix, ..self.clone() }
    }

    /// The store behind it.
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// The full name of `name` here.
    pub fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// A weight for candle graphs, row-major. Its values depend on the seed and the full name only.
    pub fn weight(&self, name: &str, shape: &[usize], init: Init) -> Result<ParamId> {
        self.make(name, shape, Kind::Weight, Layout::Plain, init)
    }

    /// A weight for candle graphs, as the tensor to compute with.
    pub fn var(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let id = self.weight(name, shape, init)?;
        Ok(self.params.get(id).var.as_tensor().clone())
    }

    /// State that no optimizer moves.
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> Result<ParamId> {
        self.make(name, shape, Kind::Buffer, Layout::Plain, init)
    }

    /// A convolution or linear weight in the order of the kernels, where they run.
    pub(crate) fn packed(&self, name: &str, shape: &[usize], groups: usize, init: Init) -> Result<ParamId> {
        let panels = Panels::new(shape, groups)?;
        let layout = match self.params.engine {
            Engine::Kernels => Layout::Panels(panels),
            Engine::Graph => Layout::Plain,
        };
        self.make(name, shape, Kind::Weight, layout, init)
    }

    fn make(&self, name: &str, shape: &[usize], kind: Kind, layout: Layout, init: Init) -> Result<ParamId> {
        let name = self.full(name);
        if self.params.meta {
            let nothing = Var::zeros(0, self.params.dtype, &self.params.device)?;
            return self.params.insert(name, shape, kind, layout, nothing);
        }
        let var = dispatch_dtype!(self.params, T => self.filled::<T>(shape, &layout, init, self.rng.stream(&name)))?;
        self.params.insert(name, shape, kind, layout, var)
    }

    /// A new variable, which is all that is held of a large weight in the end; on the way there it is held
    /// twice.
    fn filled<T: Float>(&self, shape: &[usize], layout: &Layout, init: Init, rng: Rng) -> Result<Var> {
        let count: usize = shape.iter().product();
        if let (Layout::Plain, true) = (layout, self.params.device.is_cpu()) {
            let var = Var::zeros(shape, T::TYPE, &Device::Cpu)?;
            modify_var::<T>(&var, |values| init.fill(values, rng))?;
            return Ok(var);
        }
        // What stays comes first, so that it leaves no gap behind when the rest is freed.
        let kept = match layout {
            Layout::Plain => None,
            Layout::Panels(panels) => Some((panels, Var::zeros(panels.stored(), T::TYPE, &Device::Cpu)?)),
        };
        let mut values = vec![T::ZERO; count];
        init.fill(&mut values, rng);
        match kept {
            None => Ok(Var::from_tensor(&Tensor::from_vec(values, shape, &self.params.device)?)?),
            Some((panels, var)) => {
                modify_var::<T>(&var, |stored| panels.pack_into(&values, stored))?;
                Ok(var)
            }
        }
    }
}

/// Lets candle-nn layers read and create their weights in the store.
impl candle_nn::var_builder::SimpleBackend for ParamBuilder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hint: candle_nn::Init,
        dtype: DType,
        _device: &Device,
    ) -> candle_core::Result<Tensor> {
        let id = match self.params.id(name) {
            Some(id) => id,
            None => {
                use candle_nn::init::NormalOrUniform;
                let init = match hint {
                    candle_nn::Init::Const(c) => Init::Constant(c),
                    candle_nn::Init::Uniform { lo, up } if lo == -up => Init::Uniform(up),
                    candle_nn::Init::Randn { mean: 0.0, stdev } => Init::Normal(stdev),
                    candle_nn::Init::Kaiming { dist, fan, non_linearity } => {
                        let std = non_linearity.gain() / (fan.for_shape(&shape) as f64).sqrt();
                        match dist {
                            NormalOrUniform::Normal => Init::Normal(std),
                            NormalOrUniform::Uniform => Init::Uniform(3f64.sqrt() * std),
                        }
                    }
                    other => candle_core::bail!("parameter `{name}`: no seeded form of {other:?}"),
                };
                let root = ParamBuilder { prefix: String::new(), ..self.clone() };
                root.weight(name, shape.dims(), init).map_err(candle_core::Error::wrap)?
            }
        };
        let tensor = self.params.get(id).var.as_tensor().clone();
        if tensor.shape() != &shape {
            candle_core::bail!("parameter `{name}`: expected shape {shape:?}, got {:?}", tensor.shape());
        }
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        match self.params.id(name) {
            Some(id) => self.params.get(id).var.as_tensor().to_dtype(dtype),
            None => candle_core::bail!("no parameter `{name}`"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.params.id(name).is_some()
    }
}

impl ParamBuilder {
    /// The same place as a candle `VarBuilder`, so that candle-nn layers live in this store.
    pub fn var_builder(&self) -> candle_nn::VarBuilder<'static> {
        let backend = Box::new(ParamBuilder { prefix: String::new(), ..self.clone() });
        let vb = candle_nn::VarBuilder::from_backend(backend, self.params.dtype, self.params.device.clone());
        if self.prefix.is_empty() { vb } else { vb.pp(&self.prefix) }
    }
}
