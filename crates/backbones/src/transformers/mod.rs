//! Models of candle-transformers, as frozen teachers (Cargo feature `transformers`).
//!
//! candle's vision models support inference only, so the backbone is one opaque operation on the tape,
//! and only the linear layer on its `embedding` is trainable. Training a teacher is a linear probe, and
//! a file with a matching head needs no training. A training pass that selects a feature other than
//! `logits` is an error, because no gradient would reach the parameters.
//!
//! *Names*: timm's. Other names of candle's are mapped ([`Value`]).
//!
//! A family is one file: its entries, its candle model ([`Family`]), and the number of positions of an
//! image at which a weight is used, for counting operations.

mod convnext;
mod dinov2;
mod efficientnet;
mod vit;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, ParamStore, Result, Tape};
use stillhouse_ops::op::Cost;
use stillhouse_ops::{Init, Linear, ParamKind};

use crate::{NoVariant, check_classes};

pub(crate) use convnext::ENTRIES as CONVNEXT;
pub(crate) use dinov2::ENTRIES as DINOV2;
pub(crate) use efficientnet::ENTRIES as EFFICIENTNET;
pub(crate) use vit::ENTRIES as VIT;

/// Creates a family of the registry.
pub(crate) const fn family(entries: &'static [Entry<ModelBuild>]) -> crate::Family {
    crate::Family { entries, backbone: None, frozen: true }
}

/// Tensors by feature name.
type NamedTensors = Vec<(String, Tensor)>;

/// Forward pass of a candle model: computes the selected features of images, and possibly others.
type Forward = Box<dyn Fn(&Tensor, &dyn Fn(&str) -> bool) -> candle_core::Result<NamedTensors> + Send + Sync>;

/// Source of a tensor of candle's model.
enum Value {
    /// The parameter of this name.
    Named(String),
    /// Part `.1` of `.2` equal parts of a parameter's rows.
    Rows(String, usize, usize),
    /// Computed from the parameter of this name and shape.
    Computed(String, Tensor, fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>),
    /// A shifted identity matrix, with ones at `column = row + offset`: a head that returns its input.
    Identity(usize),
    /// Zeros.
    Zeros,
    /// Not a tensor of the model; candle probes for it.
    Absent,
}

/// Model-specific part of one size of a family.
trait Family: Debug + Send + Sync {
    /// All features except `logits`, including `embedding`.
    fn features(&self) -> Vec<FeatureInfo>;

    /// Name of the linear layer on the embedding.
    fn head(&self) -> &'static str;

    /// Rejects image sizes that candle's model does not support.
    fn check(&self, size: (usize, usize)) -> std::result::Result<(), String>;

    /// Source of the tensor with candle's `name`, for images of that size.
    fn value(&self, name: &str, size: (usize, usize)) -> candle_core::Result<Value>;

    /// Builds candle's model.
    fn build(&self, vb: VarBuilder<'static>) -> candle_core::Result<Forward>;

    /// Number of positions of an image at which the parameter is used.
    fn positions(&self, name: &str, size: (usize, usize)) -> u64;

    /// Multiply-accumulates of the products inside attention.
    fn attention_macs(&self, _size: (usize, usize)) -> u64 {
        0
    }
}

/// Returns the model of an entry.
fn find(name: &str) -> Result<Arc<dyn Family>> {
    let found = convnext::family(name).or_else(|| efficientnet::family(name));
    let found = found.or_else(|| vit::family(name)).or_else(|| dinov2::family(name));
    found.ok_or_else(|| Error::incompatible(name, "not a model of candle-transformers in this crate"))
}

/// Creates an entry without variants.
const fn entry(name: &'static str, summary: &'static str, source: &'static str) -> Entry<ModelBuild> {
    Entry { name, summary, source, defaults: String::new, build }
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(FrozenModel::new(request, p)?))
}

/// A frozen backbone of candle's with a trainable head.
#[derive(Debug)]
struct FrozenModel {
    name: String,
    classes: usize,
    features: Vec<FeatureInfo>,
    family: Arc<dyn Family>,
    builder: ParamBuilder,
    head: Linear,
    cached: Mutex<Option<CachedModel>>,
}

/// candle's model for one version of the parameters and one image size.
struct CachedModel {
    version: u64,
    size: (usize, usize),
    forward: Arc<Forward>,
}

impl Debug for CachedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedModel").field("version", &self.version).field("size", &self.size).finish()
    }
}

impl FrozenModel {
    fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        check_classes(request)?;
        let name = request.name.clone();
        let NoVariant {} = from_table(&request.variant, &format!("variant of {name}"))?;
        let family = find(&name)?;
        // candle's constructor creates the parameters.
        drop(family.build(var_builder(p, &family, None))?);
        let mut features = family.features();
        let inputs = features.iter().find(|t| t.name == "embedding").map_or(0, |t| t.channels);
        let head = Linear::new(
            inputs,
            request.classes,
            family.head(),
            Init::Normal(0.02),
            Some(Init::Constant(0.0)),
            p,
        )?;
        features.push(FeatureInfo::vector("logits", request.classes));
        let params = p.params();
        let own = head_names(&family, p);
        for param in params.all().iter().filter(|param| !own.contains(&param.name)) {
            if let Some(id) = params.id(&param.name) {
                params.set_trainable(id, false);
            }
        }
        let cached = Mutex::new(None);
        Ok(Self { name, classes: request.classes, features, family, builder: p.clone(), head, cached })
    }

    /// Returns candle's model for the current values of the parameters. The model shares most of them
    /// and copies some, such as batch norm statistics.
    fn model(&self, size: (usize, usize)) -> Result<Arc<Forward>> {
        let version = self.builder.params().version();
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = cached.as_ref().filter(|c| (c.version, c.size) == (version, size)) {
            return Ok(Arc::clone(&cached.forward));
        }
        let forward = Arc::new(self.family.build(var_builder(&self.builder, &self.family, Some(size)))?);
        *cached = Some(CachedModel { version, size, forward: Arc::clone(&forward) });
        Ok(forward)
    }
}

/// Returns the cost of the backbone for one image.
fn backbone_cost(family: &dyn Family, builder: &ParamBuilder, size: (usize, usize)) -> Cost {
    let mut cost = Cost { attention_macs: family.attention_macs(size), ..Cost::default() };
    let prefix = builder.full("");
    for param in builder.params().all() {
        let name = param.name.strip_prefix(&prefix).unwrap_or(&param.name);
        // The head is an operation of its own.
        if name.strip_prefix(family.head()).is_some_and(|rest| rest.starts_with('.')) {
            continue;
        }
        let (count, positions) = (param.count(), family.positions(name, size));
        if param.kind == ParamKind::Weight {
            cost.parameters += count;
        }
        if name.ends_with("running_mean") {
            cost.batch_norm_outputs += count as u64 * positions;
        } else if name.ends_with(".weight") && param.shape.len() > 1 {
            cost.macs += count as u64 * positions;
        }
    }
    cost
}

fn head_names(family: &Arc<dyn Family>, p: &ParamBuilder) -> Vec<String> {
    ["weight", "bias"].map(|part| p.full(&format!("{}.{part}", family.head()))).to_vec()
}

impl Model for FrozenModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let (batch, _, height, width) = images.dims4()?;
        let size = (height, width);
        self.family.check(size).map_err(|reason| Error::incompatible(&self.name, reason))?;
        let is_selected = |name: &str| tape.selects(name) || name == "embedding" && tape.selects("logits");
        let selected: Vec<FeatureInfo> =
            self.features.iter().filter(|feature| is_selected(&feature.name)).cloned().collect();
        let untrainable =
            selected.iter().find(|feature| tape.selects(&feature.name) && feature.name != "logits");
        if let Some(feature) = untrainable.filter(|_| tape.mode().trains()) {
            let reason = format!(
                "cannot train through `{}`: models of candle-transformers are frozen except for their last \
                 layer; use another model as the student",
                feature.name
            );
            return Err(Error::incompatible(&self.name, reason));
        }
        let mut computed: Option<BTreeMap<String, Tensor>> = None;
        let (mut embedding, mut counted) = (None, false);
        for feature in selected.iter().filter(|feature| feature.name != "logits") {
            let shape = match feature.stride {
                0 => vec![batch, feature.channels],
                stride => vec![batch, feature.channels, height / stride, width / stride],
            };
            let compute = || {
                if computed.is_none() {
                    let forward = self.model(size).map_err(candle_core::Error::wrap)?;
                    let images = images.to_dtype(self.builder.params().dtype())?.contiguous()?;
                    let selects = |name: &str| selected.iter().any(|feature| feature.name == name);
                    computed = Some(forward(&images, &selects)?.into_iter().collect());
                }
                let value = computed.as_mut().and_then(|computed| computed.remove(&feature.name));
                value.ok_or_else(|| {
                    candle_core::Error::Msg(format!("candle's model has no feature {}", feature.name))
                })
            };
            // One pass through candle's model computes all features.
            let cost = || match std::mem::replace(&mut counted, true) {
                false => backbone_cost(self.family.as_ref(), &self.builder, size),
                true => Cost::default(),
            };
            let node = tape.opaque_op(&shape, cost, compute)?;
            tape.mark_feature(&feature.name, &node)?;
            if feature.name == "embedding" {
                embedding = Some(node);
            }
        }
        if let (Some(embedding), true) = (embedding, tape.selects("logits")) {
            let logits = self.head.forward(&embedding, tape)?;
            tape.mark_feature("logits", &logits)?;
        }
        Ok(tape.outputs()?.into_iter().collect())
    }

    fn head(&self) -> Vec<String> {
        head_names(&self.family, &self.builder)
    }
}

/// Creates a `VarBuilder` on the parameters. Without an image size it creates missing parameters and
/// returns zeros, because values may still change before the first pass.
fn var_builder(
    p: &ParamBuilder,
    family: &Arc<dyn Family>,
    size: Option<(usize, usize)>,
) -> VarBuilder<'static> {
    let store = Store { builder: p.clone(), family: Arc::clone(family), size };
    VarBuilder::from_backend(Box::new(store), p.params().dtype(), p.params().device().clone())
}

struct Store {
    builder: ParamBuilder,
    family: Arc<dyn Family>,
    size: Option<(usize, usize)>,
}

impl Store {
    fn params(&self) -> &ParamStore {
        self.builder.params()
    }

    /// Returns the values of a parameter detached from candle's graph, which would keep intermediates.
    fn stored(&self, name: &str, shape: &Shape) -> candle_core::Result<Tensor> {
        let name = self.builder.full(name);
        let Some(id) = self.params().id(&name) else {
            candle_core::bail!("unknown parameter `{name}`");
        };
        let tensor = self.params().get(id).var().as_detached_tensor();
        if tensor.shape() != shape {
            candle_core::bail!("parameter `{name}`: expected shape {shape:?}, found {:?}", tensor.shape());
        }
        Ok(tensor)
    }

    /// Creates a parameter. Batch norm statistics are buffers; matrices, tokens and positions are normal
    /// with 0.02 as in timm; all others have candle's initial values.
    fn create(&self, name: &str, shape: &[usize], hint: candle_nn::Init) -> candle_core::Result<()> {
        if self.params().id(&self.builder.full(name)).is_some() {
            return Ok(());
        }
        let kind = if name.contains(".running_") { ParamKind::Buffer } else { ParamKind::Weight };
        let init = match hint {
            candle_nn::Init::Const(value) if shape.len() == 1 => Init::Constant(value),
            _ if shape.len() == 1 => Init::Constant(0.0),
            _ => Init::Normal(0.02),
        };
        let created = match kind {
            ParamKind::Buffer => self.builder.buffer(name, shape, init),
            ParamKind::Weight => self.builder.weight(name, shape, init),
        };
        created.map(|_| ()).map_err(candle_core::Error::wrap)
    }
}

impl SimpleBackend for Store {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hint: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let value = self.family.value(name, self.size.unwrap_or_default())?;
        let dims = shape.dims();
        let Some(_) = self.size else {
            match value {
                Value::Named(name) | Value::Computed(name, ..) => self.create(&name, dims, hint)?,
                Value::Rows(name, _, parts) => {
                    let mut whole = dims.to_vec();
                    whole[0] *= parts;
                    self.create(&name, &whole, hint)?;
                }
                Value::Identity(_) | Value::Zeros => {}
                Value::Absent => candle_core::bail!("unknown tensor `{name}`"),
            }
            return Tensor::zeros(shape, dtype, device);
        };
        let tensor = match value {
            Value::Named(name) => self.stored(&name, &shape)?,
            Value::Computed(name, with, f) => f(&self.stored(&name, &shape)?, &with)?,
            Value::Rows(name, part, parts) => {
                let mut whole = dims.to_vec();
                whole[0] *= parts;
                self.stored(&name, &whole.into())?.narrow(0, part * dims[0], dims[0])?
            }
            Value::Identity(from) => {
                let (rows, columns) = shape.dims2()?;
                let mut ones = vec![0f32; rows * columns];
                for row in 0..rows.min(columns.saturating_sub(from)) {
                    ones[row * columns + from + row] = 1.0;
                }
                Tensor::from_vec(ones, shape, device)?
            }
            Value::Zeros => Tensor::zeros(shape, dtype, device)?,
            Value::Absent => candle_core::bail!("unknown tensor `{name}`"),
        };
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("`{name}`: loading without a shape is not supported")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let value = self.family.value(name, self.size.unwrap_or_default());
        !matches!(value, Ok(Value::Absent) | Err(_))
    }
}

/// Rejects images whose sides are not multiples of `side`, for [`Family::check`].
fn multiple_of(side: usize, (height, width): (usize, usize)) -> std::result::Result<(), String> {
    if height > 0 && width > 0 && height.is_multiple_of(side) && width.is_multiple_of(side) {
        return Ok(());
    }
    Err(format!("invalid image size: expected multiples of {side}, found {height} x {width}"))
}
