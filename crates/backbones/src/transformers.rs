//! Networks of candle-transformers, as teachers: behind the feature `transformers`.
//!
//! candle's vision models only infer. So such a network stays as it is in every mode, whatever the
//! optimizer is told: its body is one value from outside on the tape, and only the linear layer on its
//! `embedding`, which is ours, learns. A teacher's run on own classes is then a linear probe, and with
//! the right head in its file nothing has to learn. A training pass that asks for any other tap than
//! `logits` is refused: nothing could be learned there, which a student would not notice.
//!
//! *Names*: timm's, so that its files load with the strict report of all others. What candle calls
//! otherwise is renamed on the way ([`Value`]).
//!
//! A family is one file: its rows, its candle model ([`Family`]), and at how many places of an image
//! a weight is used, from which operations are counted.

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
use stillhouse_ops::{Init, ParamKind, Linear};

use crate::count::Work;
use crate::{NoVariant, check_classes};

pub(crate) use convnext::ENTRIES as CONVNEXT;
pub(crate) use dinov2::ENTRIES as DINOV2;
pub(crate) use efficientnet::ENTRIES as EFFICIENTNET;
pub(crate) use vit::ENTRIES as VIT;

/// These rows as a family of the registry.
pub(crate) const fn family(rows: &'static [Entry<ModelBuild>]) -> crate::Family {
    crate::Family { rows, work, body: None, frozen: true }
}

/// Features by the names of their taps.
type Found = Vec<(String, Tensor)>;

/// A candle model at work: the features of images that are asked for, with others where they come by
/// themselves.
type Run = Box<dyn Fn(&Tensor, &dyn Fn(&str) -> bool) -> candle_core::Result<Found> + Send + Sync>;

/// Where a tensor that candle asks for comes from.
enum Value {
    /// The parameter of this name.
    Named(String),
    /// The n-th of so many equal parts of a parameter's rows.
    Rows(String, usize, usize),
    /// Computed from the parameter of this name, of the same shape.
    Made(String, Tensor, fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>),
    /// Ones where the column is the row and so many more: a head that hands its input out.
    Selection(usize),
    /// Zeros.
    Zeros,
    /// The network has no such tensor; candle tries.
    Absent,
}

/// What is particular to one size of a family.
trait Family: Debug + Send + Sync {
    /// All taps but `logits`; `embedding` among them.
    fn taps(&self) -> Vec<FeatureInfo>;

    /// Name of the linear layer on the embedding.
    fn head(&self) -> &'static str;

    /// Refuses sizes of images on which candle's model cannot run.
    fn check(&self, size: (usize, usize)) -> std::result::Result<(), String>;

    /// What stands behind a name of candle's, for images of that size.
    fn value(&self, name: &str, size: (usize, usize)) -> candle_core::Result<Value>;

    /// Makes candle's model for images of that size.
    fn open(&self, vb: VarBuilder<'static>) -> candle_core::Result<Run>;

    /// At how many places of an image of that size the parameter is used.
    fn places(&self, name: &str, size: (usize, usize)) -> u64;

    /// Multiply-accumulates inside attention.
    fn attention_macs(&self, _size: (usize, usize)) -> u64 {
        0
    }
}

/// The network of a row.
fn find(name: &str) -> Result<Arc<dyn Family>> {
    let found = convnext::family(name).or_else(|| efficientnet::family(name));
    let found = found.or_else(|| vit::family(name)).or_else(|| dinov2::family(name));
    found.ok_or_else(|| Error::incompatible(name, "is no network of candle-transformers that is known here"))
}

/// A row without variants.
const fn row(name: &'static str, summary: &'static str, source: &'static str) -> Entry<ModelBuild> {
    Entry { name, summary, source, defaults: String::new, build }
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(Frozen::new(request, p)?))
}

fn work(request: &ModelSpec, p: &ParamBuilder, size: (usize, usize)) -> Result<Work> {
    Frozen::new(request, p)?.work(size)
}

/// A body of candle's with a head of ours.
#[derive(Debug)]
struct Frozen {
    name: String,
    classes: usize,
    taps: Vec<FeatureInfo>,
    family: Arc<dyn Family>,
    builder: ParamBuilder,
    head: Linear,
    open: Mutex<Option<Opened>>,
}

/// candle's model, as it was made at one state of the parameters for one size of images.
struct Opened {
    version: u64,
    size: (usize, usize),
    run: Arc<Run>,
}

impl Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("version", &self.version).field("size", &self.size).finish()
    }
}

impl Frozen {
    fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        check_classes(request)?;
        let name = request.name.clone();
        let NoVariant {} = from_table(&request.variant, &format!("variant of {name}"))?;
        let family = find(&name)?;
        // candle's constructor says which parameters there are.
        drop(family.open(vars(p, &family, None))?);
        let mut taps = family.taps();
        let inputs = taps.iter().find(|t| t.name == "embedding").map_or(0, |t| t.channels);
        let head = Linear::new(
            inputs,
            request.classes,
            family.head(),
            Init::Normal(0.02),
            Some(Init::Constant(0.0)),
            p,
        )?;
        taps.push(FeatureInfo::vector("logits", request.classes));
        let params = p.params();
        let own = head_names(&family, p);
        for param in params.all().iter().filter(|param| !own.contains(&param.name)) {
            if let Some(id) = params.id(&param.name) {
                params.set_trainable(id, false);
            }
        }
        let open = Mutex::new(None);
        Ok(Self { name, classes: request.classes, taps, family, builder: p.clone(), head, open })
    }

    /// candle's model with the values that the parameters have now. It shares most of them, but
    /// copies some, statistics of batch norms for one.
    fn opened(&self, size: (usize, usize)) -> Result<Arc<Run>> {
        let version = self.builder.params().version();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.as_ref().filter(|o| (o.version, o.size) == (version, size)) {
            return Ok(Arc::clone(&found.run));
        }
        let run = Arc::new(self.family.open(vars(&self.builder, &self.family, Some(size)))?);
        *open = Some(Opened { version, size, run: Arc::clone(&run) });
        Ok(run)
    }

    fn work(&self, size: (usize, usize)) -> Result<Work> {
        let mut work = Work::default();
        work.check(&self.name, size)?;
        let name = |full: &str| full.strip_prefix(&self.builder.full("")).unwrap_or(full).to_string();
        for param in self.builder.params().all() {
            let name = name(&param.name);
            if name.ends_with("running_mean") {
                work.batch_norm_outputs += param.count() as u64 * self.family.places(&name, size);
            } else if name.ends_with(".weight") && param.shape.len() > 1 {
                work.macs += param.count() as u64 * self.family.places(&name, size);
            }
        }
        work.attention_macs = self.family.attention_macs(size);
        Ok(work)
    }
}

fn head_names(family: &Arc<dyn Family>, p: &ParamBuilder) -> Vec<String> {
    ["weight", "bias"].map(|part| p.full(&format!("{}.{part}", family.head()))).to_vec()
}

impl Model for Frozen {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.taps
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let (batch, _, height, width) = images.dims4()?;
        let size = (height, width);
        self.family.check(size).map_err(|why| Error::incompatible(&self.name, why))?;
        let wanted = |name: &str| tape.selects(name) || name == "embedding" && tape.selects("logits");
        let wanted: Vec<FeatureInfo> = self.taps.iter().filter(|tap| wanted(&tap.name)).cloned().collect();
        let beyond = wanted.iter().find(|tap| tape.selects(&tap.name) && tap.name != "logits");
        if let Some(tap) = beyond.filter(|_| tape.mode().trains()) {
            let what = format!(
                "is candle's and cannot be trained, so `{}` would not learn: it can be a teacher, and as a \
                 teacher learn its last layer from `logits`; choose another network as the student",
                tap.name
            );
            return Err(Error::incompatible(&self.name, what));
        }
        let mut found: Option<BTreeMap<String, Tensor>> = None;
        let mut embedding = None;
        for tap in wanted.iter().filter(|tap| tap.name != "logits") {
            let shape = match tap.stride {
                0 => vec![batch, tap.channels],
                stride => vec![batch, tap.channels, height / stride, width / stride],
            };
            let compute = || {
                if found.is_none() {
                    let run = self.opened(size).map_err(candle_core::Error::wrap)?;
                    let images = images.to_dtype(self.builder.params().dtype())?.contiguous()?;
                    let asked = |name: &str| wanted.iter().any(|tap| tap.name == name);
                    found = Some(run(&images, &asked)?.into_iter().collect());
                }
                let value = found.as_mut().and_then(|found| found.remove(&tap.name));
                value.ok_or_else(|| candle_core::Error::Msg(format!("candle's model gave no {}", tap.name)))
            };
            let node = tape.opaque_op(&shape, compute)?;
            tape.mark_feature(&tap.name, &node)?;
            if tap.name == "embedding" {
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

    fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok(self.work((height, width))?.macs)
    }
}

/// The parameters as candle's constructors read them. Without a size it makes them and hands out
/// zeros: values may still change before the first pass.
fn vars(p: &ParamBuilder, family: &Arc<dyn Family>, size: Option<(usize, usize)>) -> VarBuilder<'static> {
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

    /// The values of a parameter, no variable: a graph of candle's would keep all that lies between.
    fn stored(&self, name: &str, shape: &Shape) -> candle_core::Result<Tensor> {
        let name = self.builder.full(name);
        let Some(id) = self.params().id(&name) else {
            candle_core::bail!("no parameter `{name}`");
        };
        let tensor = self.params().get(id).var().as_detached_tensor();
        if tensor.shape() != shape {
            candle_core::bail!("parameter `{name}`: expected shape {shape:?}, got {:?}", tensor.shape());
        }
        Ok(tensor)
    }

    /// Makes a parameter: statistics of batch norms are buffers; matrices, tokens and positions are
    /// normal with 0.02 as timm draws them, all else is what candle begins with.
    fn make(&self, name: &str, shape: &[usize], hint: candle_nn::Init) -> candle_core::Result<()> {
        if self.params().id(&self.builder.full(name)).is_some() {
            return Ok(());
        }
        let kind = if name.contains(".running_") { ParamKind::Buffer } else { ParamKind::Weight };
        let init = match hint {
            candle_nn::Init::Const(value) if shape.len() == 1 => Init::Constant(value),
            _ if shape.len() == 1 => Init::Constant(0.0),
            _ => Init::Normal(0.02),
        };
        let made = match kind {
            ParamKind::Buffer => self.builder.buffer(name, shape, init),
            ParamKind::Weight => self.builder.weight(name, shape, init),
        };
        made.map(|_| ()).map_err(candle_core::Error::wrap)
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
                Value::Named(name) | Value::Made(name, ..) => self.make(&name, dims, hint)?,
                Value::Rows(name, _, parts) => {
                    let mut whole = dims.to_vec();
                    whole[0] *= parts;
                    self.make(&name, &whole, hint)?;
                }
                Value::Selection(_) | Value::Zeros => {}
                Value::Absent => candle_core::bail!("the network has no `{name}`"),
            }
            return Tensor::zeros(shape, dtype, device);
        };
        let tensor = match value {
            Value::Named(name) => self.stored(&name, &shape)?,
            Value::Made(name, with, f) => f(&self.stored(&name, &shape)?, &with)?,
            Value::Rows(name, part, parts) => {
                let mut whole = dims.to_vec();
                whole[0] *= parts;
                self.stored(&name, &whole.into())?.narrow(0, part * dims[0], dims[0])?
            }
            Value::Selection(from) => {
                let (rows, columns) = shape.dims2()?;
                let mut ones = vec![0f32; rows * columns];
                for row in 0..rows.min(columns.saturating_sub(from)) {
                    ones[row * columns + from + row] = 1.0;
                }
                Tensor::from_vec(ones, shape, device)?
            }
            Value::Zeros => Tensor::zeros(shape, dtype, device)?,
            Value::Absent => candle_core::bail!("the network has no `{name}`"),
        };
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("`{name}` is asked for without its shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let value = self.family.value(name, self.size.unwrap_or_default());
        !matches!(value, Ok(Value::Absent) | Err(_))
    }
}

/// `wanted` as the error of [`Family::check`] where both sides are not its multiple.
fn multiple_of(side: usize, (height, width): (usize, usize)) -> std::result::Result<(), String> {
    if height > 0 && width > 0 && height.is_multiple_of(side) && width.is_multiple_of(side) {
        return Ok(());
    }
    Err(format!("cannot run on images of {height} x {width}: needs sides that are multiples of {side}"))
}
