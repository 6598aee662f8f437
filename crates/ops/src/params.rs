//! Named weights and buffers of a network, its connectors and its heads.
//!
//! Every parameter is a candle [`Var`], shared by candle graphs and the CPU kernels. Convolution and
//! linear weights of tape layers are stored in packed order ([`Layout::Packed`]) and converted to
//! PyTorch's order on export.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Shape, Tensor, Var};

use rayon::prelude::*;

use crate::element::{Float, dispatch_dtype, with_values};
use crate::mode::{EngineKind, Precision};
use crate::rng::Rng;
use crate::weight_packing::PackedLayout;
use crate::{Error, Result};

/// Role of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// Trained by gradients.
    Weight,
    /// Updated without gradients (running statistics, memory banks).
    Buffer,
}

/// Storage order of the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Row-major.
    Plain,
    /// A convolution weight `[out, in / groups, kh, kw]` or linear weight `[out, in]`, packed into
    /// panels.
    Packed(PackedLayout),
}

/// Initialization of a new parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// A constant.
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in [-bound, bound).
    Uniform(f64),
}

impl Init {
    /// He initialization by fan-out, `std = sqrt(2 / (out * kh * kw))` (He et al. 2015), as in
    /// torchvision's residual networks.
    pub fn kaiming_fan_out(shape: &[usize]) -> Self {
        let fan_out = shape[0] * shape[2..].iter().product::<usize>();
        Self::Normal((2.0 / fan_out as f64).sqrt())
    }

    /// Fills `values`; chunk `i` is drawn at item `i` of the stream, so that chunks can be filled in
    /// parallel.
    fn fill<T: Float>(self, values: &mut [T], rng: Rng) {
        const PART: usize = 1 << 14;
        values.par_chunks_mut(PART).enumerate().for_each(|(i, part)| {
            let mut draw = rng.at(0, i as u64);
            match self {
                Self::Constant(c) => part.fill(T::narrow(c)),
                Self::Normal(std) => part.chunks_mut(2).for_each(|pair| {
                    let two = draw.normals();
                    pair.iter_mut().zip(two).for_each(|(v, n)| *v = T::narrow(std * n));
                }),
                Self::Uniform(bound) => {
                    part.iter_mut().for_each(|v| *v = T::narrow(draw.uniform_in(-bound, bound)));
                }
            }
        });
    }

    /// PyTorch's default for linear and convolution layers: uniform in `±1 / sqrt(fan_in)`.
    pub fn fan_in_uniform(fan_in: usize) -> Self {
        Self::Uniform(1.0 / (fan_in as f64).sqrt())
    }
}

/// Index of a parameter in its [`ParamStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    /// Returns the position in creation order.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A named weight or buffer.
#[derive(Debug, Clone)]
pub struct Param {
    /// Full name, in timm's naming scheme.
    pub name: String,
    /// Shape in PyTorch's convention.
    pub shape: Vec<usize>,
    /// Weight or buffer.
    pub kind: ParamKind,
    /// Whether optimizers update it.
    pub trainable: bool,
    pub(crate) layout: Layout,
    pub(crate) var: Var,
    /// The values were released after folding; only a tape's folded copy is left.
    pub(crate) released: bool,
}

impl Param {
    /// Returns the stored values. Row-major in [`Param::shape`], except for packed weights of tape
    /// layers.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Returns the number of values, without the padding of packed weights.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

#[derive(Debug, Default)]
struct Store {
    list: Vec<Param>,
    by_name: HashMap<String, usize>,
    version: u64,
}

/// Ordered, named weights and buffers. Clones share the storage.
#[derive(Debug, Clone)]
pub struct ParamStore {
    store: Arc<RwLock<Store>>,
    dtype: DType,
    device: Device,
    engine: EngineKind,
    precision: Precision,
    /// Names and shapes only.
    meta: bool,
}

/// Error for a parameter whose values were released.
const RELEASED: &str = "released after folding (Tape::release_weights); build and load the network again";

fn poisoned<T>(r: std::result::Result<T, std::sync::PoisonError<T>>) -> T {
    // Entries are only ever appended, so a panic elsewhere leaves the list valid.
    r.unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl ParamStore {
    /// Creates an empty store for `f32` or `f64` values.
    pub fn new(dtype: DType, device: &Device) -> Result<Self> {
        Self::with_engine(dtype, device, EngineKind::for_device(device)?)
    }

    /// Creates an empty store with an explicit engine.
    pub fn with_engine(dtype: DType, device: &Device, engine: EngineKind) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F64) {
            return Err(Error::usage(
                "ParamStore::new",
                format!("unsupported dtype: expected f32 or f64, found {dtype:?}"),
            ));
        }
        if engine == EngineKind::Kernels && !device.is_cpu() {
            let what = format!("the kernels engine requires the CPU, found {:?}", device.location());
            return Err(Error::usage("ParamStore::new", what));
        }
        let precision = Precision::Full;
        Ok(Self { store: Arc::default(), dtype, device: device.clone(), engine, precision, meta: false })
    }

    /// Sets the precision of every tape created for this store from now on; the values do not change.
    ///
    /// # Errors
    /// [`Precision::Bf16`] with f64 values or on the CPU kernels.
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        precision.check(self.dtype, self.engine)?;
        Ok(Self { precision, ..self })
    }

    /// Returns the precision of networks on this store.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Creates a store of names and shapes without values, for counting and tracing.
    pub fn meta() -> Self {
        Self {
            store: Arc::default(),
            dtype: DType::F32,
            device: Device::Cpu,
            engine: EngineKind::Kernels,
            precision: Precision::Full,
            meta: true,
        }
    }

    /// Returns whether the store has names and shapes only.
    pub(crate) fn is_meta(&self) -> bool {
        self.meta
    }

    /// Returns the dtype of all entries.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the device of all entries.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the execution engine.
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// Returns a builder at the root; initial values are drawn from `rng`.
    pub fn builder(&self, rng: Rng) -> ParamBuilder {
        ParamBuilder { params: self.clone(), rng, prefix: String::new() }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        poisoned(self.store.read()).list.len()
    }

    /// Returns whether the store has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a snapshot of the entries in order; the values are shared, not copied.
    pub fn all(&self) -> Vec<Param> {
        poisoned(self.store.read()).list.clone()
    }

    /// Returns one entry; the values are shared.
    pub fn get(&self, id: ParamId) -> Param {
        poisoned(self.store.read()).list[id.0].clone()
    }

    /// Returns whether optimizers update the entry.
    pub(crate) fn is_trained(&self, id: ParamId) -> bool {
        let param = &poisoned(self.store.read()).list[id.0];
        param.trainable && param.kind == ParamKind::Weight
    }

    /// Fails if the values of the entry were released.
    pub(crate) fn require_values(&self, id: ParamId) -> Result<()> {
        let param = &poisoned(self.store.read()).list[id.0];
        match param.released {
            true => Err(Error::Param { name: param.name.clone(), what: RELEASED.into() }),
            false => Ok(()),
        }
    }

    /// Looks up a parameter by name.
    pub fn id(&self, name: &str) -> Option<ParamId> {
        poisoned(self.store.read()).by_name.get(name).map(|i| ParamId(*i))
    }

    /// Sets whether optimizers update the entry.
    pub fn set_trainable(&self, id: ParamId, trainable: bool) {
        poisoned(self.store.write()).list[id.0].trainable = trainable;
    }

    /// Version counter, incremented with every change through this store; invalidates folded weights.
    pub fn version(&self) -> u64 {
        poisoned(self.store.read()).version
    }

    /// Returns the number of values of all weights.
    pub fn count_weights(&self) -> usize {
        self.all().iter().filter(|p| p.kind == ParamKind::Weight).map(Param::count).sum()
    }

    fn insert(
        &self,
        name: String,
        shape: &[usize],
        kind: ParamKind,
        layout: Layout,
        var: Var,
    ) -> Result<ParamId> {
        let mut store = poisoned(self.store.write());
        if store.by_name.contains_key(&name) {
            return Err(Error::Param { name, what: "duplicate name".into() });
        }
        let index = store.list.len();
        store.by_name.insert(name.clone(), index);
        let trainable = kind == ParamKind::Weight;
        store.list.push(Param { name, shape: shape.to_vec(), kind, trainable, layout, var, released: false });
        store.version += 1;
        Ok(ParamId(index))
    }

    /// Returns a copy of the values in PyTorch's shape and order.
    pub fn export(&self, id: ParamId) -> Result<Tensor> {
        let param = self.get(id);
        if self.meta {
            return Err(Error::Param { name: param.name, what: "has no values (ParamStore::meta)".into() });
        }
        self.require_values(id)?;
        match &param.layout {
            Layout::Plain => Ok(param.var.as_tensor().copy()?),
            Layout::Packed(packing) => dispatch_dtype!(self, T => {
                let values = with_values::<T, _>(&param.var, |stored| packing.unpack(stored))?;
                Ok(Tensor::from_vec(values, param.shape, &self.device)?)
            }),
        }
    }

    /// Replaces the values with a tensor in PyTorch's shape and order, converting its dtype.
    pub fn import(&self, id: ParamId, values: &Tensor) -> Result<()> {
        let param = self.get(id);
        self.require_values(id)?;
        if values.dims() != param.shape {
            return Err(Error::Param {
                name: param.name,
                what: format!("shape mismatch: expected {:?}, found {:?}", param.shape, values.dims()),
            });
        }
        let values = values.to_dtype(self.dtype)?.to_device(&self.device)?.contiguous()?;
        match &param.layout {
            Layout::Plain => param.var.set(&values)?,
            // Packs in place: no second copy of a large weight.
            Layout::Packed(packing) => dispatch_dtype!(self, T => {
                with_values::<T, _>(&values, |plain| {
                    modify_var::<T>(&param.var, |stored| packing.pack_into(plain, stored))
                })??;
            }),
        }
        self.touch();
        Ok(())
    }

    /// Exports all entries in PyTorch's order, for saving.
    pub fn export_all(&self) -> Result<Vec<(String, Tensor)>> {
        self.export_named(|_| true)
    }

    /// Exports the entries whose names are `selected`.
    pub fn export_named(&self, selected: impl Fn(&str) -> bool) -> Result<Vec<(String, Tensor)>> {
        let entries = (0..self.len()).map(|i| (self.get(ParamId(i)).name, ParamId(i)));
        entries.filter(|(name, _)| selected(name)).map(|(name, id)| Ok((name, self.export(id)?))).collect()
    }

    /// Releases the values of an entry of which a tape keeps a folded copy.
    pub(crate) fn release_weight(&self, id: ParamId) -> Result<()> {
        let nothing = Var::zeros(0, self.dtype, &self.device)?;
        let mut store = poisoned(self.store.write());
        store.list[id.0].var = nothing;
        store.list[id.0].released = true;
        Ok(())
    }

    /// Replaces the stored values with a tensor of the stored shape on the same device.
    pub(crate) fn set(&self, id: ParamId, values: &Tensor) -> Result<()> {
        self.get(id).var.set(values)?;
        self.touch();
        Ok(())
    }

    /// Increments the version after an external change of the values.
    pub(crate) fn touch(&self) {
        poisoned(self.store.write()).version += 1;
    }

    /// Runs `f` on the stored values in place. CPU only.
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
                candle_core::bail!("in-place update requires a contiguous parameter")
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

/// Creates parameters under a name prefix; also backs candle's `VarBuilder`.
#[derive(Debug, Clone)]
pub struct ParamBuilder {
    params: ParamStore,
    rng: Rng,
    prefix: String,
}

impl ParamBuilder {
    /// Returns the builder for a nested prefix.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let prefix = self.full(&name.to_string());
        Self { prefix, ..self.clone() }
    }

    /// Returns the underlying store.
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// Returns `name` with the prefix.
    pub fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Creates a row-major weight. Its initial values depend on the seed and the full name only.
    pub fn weight(&self, name: &str, shape: &[usize], init: Init) -> Result<ParamId> {
        self.make(name, shape, ParamKind::Weight, Layout::Plain, init)
    }

    /// Creates a row-major weight and returns its tensor, for candle graphs.
    pub fn var(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let id = self.weight(name, shape, init)?;
        Ok(self.params.get(id).var.as_tensor().clone())
    }

    /// Creates a buffer, which optimizers do not update.
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> Result<ParamId> {
        self.make(name, shape, ParamKind::Buffer, Layout::Plain, init)
    }

    /// Creates a convolution or linear weight, packed if the CPU kernels run.
    pub(crate) fn packed(&self, name: &str, shape: &[usize], groups: usize, init: Init) -> Result<ParamId> {
        let packing = PackedLayout::new(shape, groups)?;
        let layout = match self.params.engine {
            EngineKind::Kernels => Layout::Packed(packing),
            EngineKind::Graph => Layout::Plain,
        };
        self.make(name, shape, ParamKind::Weight, layout, init)
    }

    fn make(
        &self,
        name: &str,
        shape: &[usize],
        kind: ParamKind,
        layout: Layout,
        init: Init,
    ) -> Result<ParamId> {
        let name = self.full(name);
        if self.params.meta {
            let nothing = Var::zeros(0, self.params.dtype, &self.params.device)?;
            return self.params.insert(name, shape, kind, layout, nothing);
        }
        let var = dispatch_dtype!(self.params, T => self.filled::<T>(shape, &layout, init, self.rng.stream(&name)))?;
        self.params.insert(name, shape, kind, layout, var)
    }

    /// Creates an initialized variable. Peak memory is twice the weight's size, for packed weights only.
    fn filled<T: Float>(&self, shape: &[usize], layout: &Layout, init: Init, rng: Rng) -> Result<Var> {
        let count: usize = shape.iter().product();
        if let (Layout::Plain, true) = (layout, self.params.device.is_cpu()) {
            let var = Var::zeros(shape, T::TYPE, &Device::Cpu)?;
            modify_var::<T>(&var, |values| init.fill(values, rng))?;
            return Ok(var);
        }
        // Allocate the variable before the temporary, so that freeing the latter leaves no gap in the
        // heap.
        let kept = match layout {
            Layout::Plain => None,
            Layout::Packed(packing) => {
                Some((packing, Var::zeros(packing.packed_len(), T::TYPE, &Device::Cpu)?))
            }
        };
        let mut values = vec![T::ZERO; count];
        init.fill(&mut values, rng);
        match kept {
            None => Ok(Var::from_tensor(&Tensor::from_vec(values, shape, &self.params.device)?)?),
            Some((packing, var)) => {
                modify_var::<T>(&var, |stored| packing.pack_into(&values, stored))?;
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
                    other => candle_core::bail!("parameter `{name}`: unsupported initialization {other:?}"),
                };
                let root = ParamBuilder { prefix: String::new(), ..self.clone() };
                root.weight(name, shape.dims(), init).map_err(candle_core::Error::wrap)?
            }
        };
        let tensor = self.params.get(id).var.as_tensor().clone();
        if tensor.shape() != &shape {
            candle_core::bail!("parameter `{name}`: expected shape {shape:?}, found {:?}", tensor.shape());
        }
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        match self.params.id(name) {
            Some(id) => self.params.get(id).var.as_tensor().to_dtype(dtype),
            None => candle_core::bail!("unknown parameter `{name}`"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.params.id(name).is_some()
    }
}

impl ParamBuilder {
    /// Returns a candle `VarBuilder` with the same prefix, so that candle-nn layers live in this store.
    pub fn var_builder(&self) -> candle_nn::VarBuilder<'static> {
        let backend = Box::new(ParamBuilder { prefix: String::new(), ..self.clone() });
        let vb = candle_nn::VarBuilder::from_backend(backend, self.params.dtype, self.params.device.clone());
        if self.prefix.is_empty() { vb } else { vb.pp(&self.prefix) }
    }
}
