//! Optimizers, in place.

mod adam;
mod average;
mod composed;

pub use adam::Adam;
pub use average::Ema;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::{DType, Device, Tensor};

use crate::element::{Float, dispatch_dtype};
use crate::gradients::Gradients;
use crate::kernels::optim::{SgdStep, sgd};
use crate::params::{Engine, Kind, Param, ParamStore};
use crate::{Error, ParamId, Result};

/// Settings of one parameter in one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// L2 penalty, added to the gradient; of AdamW the share that is taken off at a rate of 1.
    pub weight_decay: f64,
}

/// Stochastic gradient descent with momentum, as PyTorch defines it:
/// `g += decay * p; m = momentum * m + g` (the first time `m = g`)`; p -= lr * m`, with Nesterov
/// `p -= lr * (g + momentum * m)`.
#[derive(Debug)]
pub struct Sgd {
    momentum: f64,
    nesterov: bool,
    state: HashMap<ParamId, Moment>,
}

/// The parameters that a step moves, with their settings.
fn movable(
    params: &ParamStore,
    gradients: &Gradients,
    hyper: impl Fn(&Param) -> Option<Hyper>,
) -> Vec<(ParamId, Hyper)> {
    let all = gradients.ids().filter_map(|id| {
        let param = params.get(id);
        let moves = param.trainable && param.kind == Kind::Weight;
        Some((id, if moves { hyper(&param) } else { None }?))
    });
    all.collect()
}

fn moment_tensor(moment: &Moment) -> Result<Tensor> {
    Ok(match moment {
        Moment::F32(v) => Tensor::from_slice(v, v.len(), &Device::Cpu)?,
        Moment::F64(v) => Tensor::from_slice(v, v.len(), &Device::Cpu)?,
        Moment::Tensor(t) => t.copy()?,
    })
}

/// Values of the parameter of that name in stored order, from a checkpoint.
fn read_moment(params: &ParamStore, name: &str, tensor: &Tensor) -> Result<(ParamId, Moment)> {
    let Some(id) = params.id(name) else {
        return Err(Error::Param { name: name.into(), what: "in the state, not in the store".into() });
    };
    let len = params.get(id).var().elem_count();
    if tensor.elem_count() != len || tensor.dtype() != params.dtype() {
        return Err(Error::Param {
            name: name.into(),
            what: format!("expected {len} values of {:?}, got {tensor:?}", params.dtype()),
        });
    }
    // Equal in number, the values of one engine would be in the wrong places for the other.
    let var = params.get(id).var().as_detached_tensor();
    let graph = params.engine() == Engine::Graph;
    if tensor.rank() != var.rank() && (graph || var.rank() == 1) {
        return Err(Error::Param {
            name: name.into(),
            what: format!(
                "its state of shape {:?} is of another engine (of the CPU's kernels, or of a card), expected {:?}",
                tensor.dims(),
                var.dims()
            ),
        });
    }
    if graph {
        return Ok((id, Moment::Tensor(tensor.reshape(var.shape())?.to_device(params.device())?.copy()?)));
    }
    let flat = tensor.flatten_all()?.to_device(&Device::Cpu)?;
    let moment = match params.dtype() {
        DType::F64 => Moment::F64(flat.to_vec1()?),
        _ => Moment::F32(flat.to_vec1()?),
    };
    Ok((id, moment))
}

/// Any of them.
#[derive(Debug)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// Adam or AdamW.
    Adam(Adam),
}

impl Optimizer {
    /// One update, as [`Sgd::step`] and [`Adam::step`].
    pub fn step(
        &mut self,
        params: &ParamStore,
        gradients: &Gradients,
        hyper: impl Fn(&Param) -> Option<Hyper>,
    ) -> Result<()> {
        match self {
            Self::Sgd(rule) => rule.step(params, gradients, hyper),
            Self::Adam(rule) => rule.step(params, gradients, hyper),
        }
    }

    /// What a checkpoint has to hold.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        match self {
            Self::Sgd(rule) => rule.state(params),
            Self::Adam(rule) => rule.state(params),
        }
    }

    /// Restores what [`Optimizer::state`] gave.
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        match self {
            Self::Sgd(rule) => rule.load_state(params, state),
            Self::Adam(rule) => rule.load_state(params, state),
        }
    }
}

#[derive(Debug)]
enum Moment {
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// Where parameters are tensors of a device, in the shape of the parameter.
    Tensor(Tensor),
}

impl Moment {
    fn zeros(params: &ParamStore, id: ParamId) -> Result<Self> {
        let var = params.get(id).var().as_detached_tensor();
        Ok(match (params.engine(), params.dtype()) {
            (Engine::Graph, _) => Self::Tensor(var.zeros_like()?),
            (_, DType::F64) => Self::F64(vec![0.0; var.elem_count()]),
            _ => Self::F32(vec![0.0; var.elem_count()]),
        })
    }
}

trait Moments: Float {
    fn of_state(moment: &mut Moment) -> Option<&mut Vec<Self>>;
}
impl Moments for f32 {
    fn of_state(moment: &mut Moment) -> Option<&mut Vec<Self>> {
        if let Moment::F32(v) = moment { Some(v) } else { None }
    }
}
impl Moments for f64 {
    fn of_state(moment: &mut Moment) -> Option<&mut Vec<Self>> {
        if let Moment::F64(v) = moment { Some(v) } else { None }
    }
}

impl Sgd {
    /// With this momentum.
    pub fn new(momentum: f64, nesterov: bool) -> Self {
        Self { momentum, nesterov, state: HashMap::new() }
    }

    /// Moves every trainable parameter that has a gradient and for which `hyper` gives settings;
    /// nothing else changes, not even its momentum.
    pub fn step(
        &mut self,
        params: &ParamStore,
        gradients: &Gradients,
        hyper: impl Fn(&Param) -> Option<Hyper>,
    ) -> Result<()> {
        for (id, hyper) in movable(params, gradients, hyper) {
            dispatch_dtype!(params, T => self.update::<T>(params, gradients, id, hyper))?;
        }
        Ok(())
    }

    fn update<T: Moments>(
        &mut self,
        params: &ParamStore,
        gradients: &Gradients,
        id: ParamId,
        hyper: Hyper,
    ) -> Result<()> {
        let (first, moment) = match self.state.entry(id) {
            Entry::Occupied(known) => (false, known.into_mut()),
            Entry::Vacant(new) => (true, new.insert(Moment::zeros(params, id)?)),
        };
        let step = SgdStep {
            lr: hyper.lr,
            momentum: self.momentum,
            weight_decay: hyper.weight_decay,
            nesterov: self.nesterov,
            first,
        };
        if let (Moment::Tensor(m), Some(g)) = (&mut *moment, gradients.tensor(id)) {
            return composed::sgd(params, id, g, m, step);
        }
        let Some(m) = T::of_state(moment) else {
            return Err(Error::usage("sgd", "the state has another element type than the parameters"));
        };
        gradients
            .with::<T, _>(id, false, |g| params.modify::<T>(id, |p| sgd(p, g, m, step)))?
            .unwrap_or(Ok(()))
    }

    /// The momentum buffers by parameter name, in stored order, for a checkpoint.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        let mut ids: Vec<_> = self.state.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().map(|id| Ok((params.get(id).name, moment_tensor(&self.state[&id])?))).collect()
    }

    /// Restores what [`Sgd::state`] gave.
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        self.state.clear();
        for (name, tensor) in state {
            let (id, moment) = read_moment(params, name, tensor)?;
            self.state.insert(id, moment);
        }
        Ok(())
    }
}
