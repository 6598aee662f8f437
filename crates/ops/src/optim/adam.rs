//! Adam and AdamW.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::{Device, Tensor};

use super::{Hyper, StateBuffer, StateFloat, buffer_tensor, dispatch_dtype, graph, movable, read_buffer};
use crate::gradients::Gradients;
use crate::kernels::optim::{AdamStep, adam};
use crate::params::{Param, ParamStore};
use crate::{Error, ParamId, Result};

/// Adam as in PyTorch (Kingma and Ba, ICLR 2015): bias-corrected first and second moments, eps added to
/// the root, weight decay added to the gradient. AdamW (Loshchilov and Hutter, ICLR 2019): the weight
/// decay is decoupled, `p *= 1 - lr * decay`. Steps are counted per parameter.
#[derive(Debug)]
pub struct Adam {
    betas: [f64; 2],
    eps: f64,
    decoupled: bool,
    state: HashMap<ParamId, State>,
}

#[derive(Debug)]
struct State {
    steps: u64,
    first: StateBuffer,
    second: StateBuffer,
}

const STEPS: &str = ".step";
const FIRST: &str = ".exp_avg";
const SECOND: &str = ".exp_avg_sq";

impl Adam {
    /// Creates Adam with these decay rates of the moments and this eps.
    pub fn new(betas: [f64; 2], eps: f64) -> Self {
        Self { betas, eps, decoupled: false, state: HashMap::new() }
    }

    /// Creates AdamW.
    pub fn decoupled(betas: [f64; 2], eps: f64) -> Self {
        Self { decoupled: true, ..Self::new(betas, eps) }
    }

    /// Updates each trainable parameter that has a gradient and hyperparameters from `hyper`; the others,
    /// their moments and step counts do not change.
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
        let state = match self.state.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(State {
                steps: 0,
                first: StateBuffer::zeros(params, id)?,
                second: StateBuffer::zeros(params, id)?,
            }),
        };
        state.steps += 1;
        let correction = self.betas.map(|beta| 1.0 - beta.powf(state.steps as f64));
        let step = AdamStep {
            lr: hyper.lr,
            betas: self.betas,
            correction,
            eps: self.eps,
            weight_decay: hyper.weight_decay,
            decoupled: self.decoupled,
        };
        if let (StateBuffer::Tensor(m), StateBuffer::Tensor(v), Some(g)) =
            (&mut state.first, &mut state.second, gradients.tensor(id))
        {
            return graph::adam(params, id, g, [m, v], step);
        }
        let (Some(m), Some(v)) = (T::values_mut(&mut state.first), T::values_mut(&mut state.second)) else {
            return Err(Error::usage("adam", "dtype mismatch between state and parameters"));
        };
        let mut finite = true;
        let update = |g: &[T]| params.modify::<T>(id, |p| finite = adam(p, g, m, v, step));
        gradients.with::<T, _>(id, false, update)?.unwrap_or(Ok(()))?;
        if finite {
            return Ok(());
        }
        Err(Error::NonFiniteGradient { name: params.get(id).name })
    }

    /// Returns the moments and step counts by parameter name, in storage order, for a checkpoint.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        let mut ids: Vec<_> = self.state.keys().copied().collect();
        ids.sort_unstable();
        let mut all = Vec::with_capacity(3 * ids.len());
        for id in ids {
            let (name, state) = (params.get(id).name, &self.state[&id]);
            all.push((format!("{name}{STEPS}"), Tensor::new(&[state.steps as i64], &Device::Cpu)?));
            all.push((format!("{name}{FIRST}"), buffer_tensor(&state.first)?));
            all.push((format!("{name}{SECOND}"), buffer_tensor(&state.second)?));
        }
        Ok(all)
    }

    /// Restores the state returned by [`Adam::state`].
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        self.state.clear();
        let by_name: HashMap<&str, &Tensor> = state.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for (full, steps) in state {
            let Some(name) = full.strip_suffix(STEPS) else {
                if [FIRST, SECOND].iter().any(|end| full.ends_with(end)) {
                    continue;
                }
                return Err(Error::Param { name: full.clone(), what: "not part of an Adam state".into() });
            };
            let part = |end: &str| {
                let missing = || Error::Param {
                    name: name.into(),
                    what: format!("missing `{end}` in the optimizer state"),
                };
                by_name.get(format!("{name}{end}").as_str()).copied().ok_or_else(missing)
            };
            let (id, first) = read_buffer(params, name, part(FIRST)?)?;
            let (_, second) = read_buffer(params, name, part(SECOND)?)?;
            let steps = steps.flatten_all()?.to_vec1::<i64>()?;
            let steps = steps.first().and_then(|s| u64::try_from(*s).ok()).ok_or_else(|| Error::Param {
                name: name.into(),
                what: "invalid optimizer state: expected one step count".into(),
            })?;
            self.state.insert(id, State { steps, first, second });
        }
        if self.state.len() * 3 != state.len() {
            let what = format!("invalid state: expected three tensors per parameter, found {}", state.len());
            return Err(Error::usage("adam", what));
        }
        Ok(())
    }
}
