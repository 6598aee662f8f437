//! In-place optimizers.

mod adam;
mod ema;
mod graph;

pub use adam::Adam;
pub use ema::Ema;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::{DType, Device, Tensor};

use crate::element::{Float, dispatch_dtype};
use crate::gradients::Gradients;
use crate::kernels::optim::{SgdStep, sgd};
use crate::mode::EngineKind;
use crate::params::{Param, ParamKind, ParamStore};
use crate::{Error, ParamId, Result};

/// Hyperparameters of one parameter in one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f64,
    /// L2 penalty added to the gradient; AdamW: decay per unit of learning rate.
    pub weight_decay: f64,
}

/// Stochastic gradient descent with momentum, as in PyTorch: `g += decay * p; m = momentum * m + g; p -=
/// lr * m`, where the first step sets `m = g`. With Nesterov momentum, `p -= lr * (g + momentum * m)`.
#[derive(Debug)]
pub struct Sgd {
    momentum: f64,
    nesterov: bool,
    state: HashMap<ParamId, StateBuffer>,
}

/// Returns the parameters updated in this step, with their hyperparameters.
fn movable(
    params: &ParamStore,
    gradients: &Gradients,
    hyper: impl Fn(&Param) -> Option<Hyper>,
) -> Vec<(ParamId, Hyper)> {
    let all = gradients.ids().filter_map(|id| {
        let param = params.get(id);
        let moves = param.trainable && param.kind == ParamKind::Weight;
        Some((id, if moves { hyper(&param) } else { None }?))
    });
    all.collect()
}

fn buffer_tensor(moment: &StateBuffer) -> Result<Tensor> {
    Ok(match moment {
        StateBuffer::F32(v) => Tensor::from_slice(v, v.len(), &Device::Cpu)?,
        StateBuffer::F64(v) => Tensor::from_slice(v, v.len(), &Device::Cpu)?,
        StateBuffer::Tensor(t) => t.copy()?,
    })
}

/// Reads the state buffer of the named parameter, in storage order, from a checkpoint.
fn read_buffer(params: &ParamStore, name: &str, tensor: &Tensor) -> Result<(ParamId, StateBuffer)> {
    let Some(id) = params.id(name) else {
        return Err(Error::Param {
            name: name.into(),
            what: "unknown: found in the optimizer state, not in the parameter store".into(),
        });
    };
    let len = params.get(id).var().elem_count();
    if tensor.elem_count() != len || tensor.dtype() != params.dtype() {
        return Err(Error::Param {
            name: name.into(),
            what: format!(
                "invalid optimizer state: expected {len} values of {:?}, found {tensor:?}",
                params.dtype()
            ),
        });
    }
    // The element counts may agree while the storage order of the other engine differs.
    let var = params.get(id).var().as_detached_tensor();
    let graph = params.engine() == EngineKind::Graph;
    if tensor.rank() != var.rank() && (graph || var.rank() == 1) {
        return Err(Error::Param {
            name: name.into(),
            what: format!(
                "optimizer state of another engine (CPU kernels or GPU): expected shape {:?}, found {:?}",
                var.dims(),
                tensor.dims()
            ),
        });
    }
    if graph {
        return Ok((
            id,
            StateBuffer::Tensor(tensor.reshape(var.shape())?.to_device(params.device())?.copy()?),
        ));
    }
    let flat = tensor.flatten_all()?.to_device(&Device::Cpu)?;
    let moment = match params.dtype() {
        DType::F64 => StateBuffer::F64(flat.to_vec1()?),
        _ => StateBuffer::F32(flat.to_vec1()?),
    };
    Ok((id, moment))
}

/// An optimizer selected at run time.
#[derive(Debug)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// Adam or AdamW.
    Adam(Adam),
}

impl Optimizer {
    /// Performs one update; see [`Sgd::step`] and [`Adam::step`].
    pub fn step(
        &mut self,
        params: &ParamStore,
        gradients: &Gradients,
        hyper: impl Fn(&Param) -> Option<Hyper>,
    ) -> Result<()> {
        match self {
            Self::Sgd(optimizer) => optimizer.step(params, gradients, hyper),
            Self::Adam(optimizer) => optimizer.step(params, gradients, hyper),
        }
    }

    /// Returns the state for a checkpoint.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        match self {
            Self::Sgd(optimizer) => optimizer.state(params),
            Self::Adam(optimizer) => optimizer.state(params),
        }
    }

    /// Restores the state returned by [`Optimizer::state`].
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        match self {
            Self::Sgd(optimizer) => optimizer.load_state(params, state),
            Self::Adam(optimizer) => optimizer.load_state(params, state),
        }
    }
}

#[derive(Debug)]
enum StateBuffer {
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// On the graph engine, in the shape of the parameter.
    Tensor(Tensor),
}

impl StateBuffer {
    fn zeros(params: &ParamStore, id: ParamId) -> Result<Self> {
        let var = params.get(id).var().as_detached_tensor();
        Ok(match (params.engine(), params.dtype()) {
            (EngineKind::Graph, _) => Self::Tensor(var.zeros_like()?),
            (_, DType::F64) => Self::F64(vec![0.0; var.elem_count()]),
            _ => Self::F32(vec![0.0; var.elem_count()]),
        })
    }
}

trait StateFloat: Float {
    fn values_mut(moment: &mut StateBuffer) -> Option<&mut Vec<Self>>;
}
impl StateFloat for f32 {
    fn values_mut(moment: &mut StateBuffer) -> Option<&mut Vec<Self>> {
        if let StateBuffer::F32(v) = moment { Some(v) } else { None }
    }
}
impl StateFloat for f64 {
    fn values_mut(moment: &mut StateBuffer) -> Option<&mut Vec<Self>> {
        if let StateBuffer::F64(v) = moment { Some(v) } else { None }
    }
}

impl Sgd {
    /// Creates the optimizer with this momentum.
    pub fn new(momentum: f64, nesterov: bool) -> Self {
        Self { momentum, nesterov, state: HashMap::new() }
    }

    /// Updates each trainable parameter that has a gradient and hyperparameters from `hyper`; the others
    /// and their momentum buffers do not change.
    ///
    /// # Errors
    /// [`Error::NonFiniteGradient`] with the kernels, which check each gradient as they read it: the update
    /// is then incomplete. The graph engine does not check: see [`Gradients::non_finite_flags`].
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

    fn update<T: StateFloat>(
        &mut self,
        params: &ParamStore,
        gradients: &Gradients,
        id: ParamId,
        hyper: Hyper,
    ) -> Result<()> {
        let (first, moment) = match self.state.entry(id) {
            Entry::Occupied(known) => (false, known.into_mut()),
            Entry::Vacant(new) => (true, new.insert(StateBuffer::zeros(params, id)?)),
        };
        let step = SgdStep {
            lr: hyper.lr,
            momentum: self.momentum,
            weight_decay: hyper.weight_decay,
            nesterov: self.nesterov,
            first,
        };
        if let (StateBuffer::Tensor(m), Some(g)) = (&mut *moment, gradients.tensor(id)) {
            return graph::sgd(params, id, g, m, step);
        }
        let Some(m) = T::values_mut(moment) else {
            return Err(Error::usage("sgd", "dtype mismatch between state and parameters"));
        };
        let mut finite = true;
        let update = |g: &[T]| params.modify::<T>(id, |p| finite = sgd(p, g, m, step));
        gradients.with::<T, _>(id, false, update)?.unwrap_or(Ok(()))?;
        if finite {
            return Ok(());
        }
        Err(Error::NonFiniteGradient { name: params.get(id).name })
    }

    /// Returns the momentum buffers by parameter name, in storage order, for a checkpoint.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        let mut ids: Vec<_> = self.state.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().map(|id| Ok((params.get(id).name, buffer_tensor(&self.state[&id])?))).collect()
    }

    /// Restores the state returned by [`Sgd::state`].
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        self.state.clear();
        for (name, tensor) in state {
            let (id, moment) = read_buffer(params, name, tensor)?;
            self.state.insert(id, moment);
        }
        Ok(())
    }
}
