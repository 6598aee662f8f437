//! Exponential moving average (EMA) of the parameters.

use candle_core::Tensor;

use super::{StateBuffer, StateFloat, buffer_tensor, dispatch_dtype, read_buffer};
use crate::element::Float;
use crate::params::{Param, ParamStore};
use crate::{Error, ParamId, Result};

/// Exponential moving average `a = decay * a + (1 - decay) * p` of weights and buffers (Polyak and
/// Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992), initialized with the current
/// values like timm's `ModelEma`.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    values: Vec<(ParamId, StateBuffer)>,
}

impl Ema {
    /// Creates averages of the `selected` parameters, initialized with their current values.
    pub fn new(decay: f64, params: &ParamStore, selected: impl Fn(&Param) -> bool) -> Result<Self> {
        let mut values = Vec::new();
        for param in params.all().into_iter().filter(|p| selected(p)) {
            if let Some(id) = params.id(&param.name) {
                values.push((id, read_buffer(params, &param.name, param.var().as_tensor())?.1));
            }
        }
        Ok(Self { decay, values })
    }

    /// Updates the averages with the current values.
    pub fn update(&mut self, params: &ParamStore) -> Result<()> {
        let decay = self.decay;
        for (id, average) in &mut self.values {
            if let StateBuffer::Tensor(average) = average {
                let now = (params.get(*id).var().as_detached_tensor() * (1.0 - decay))?;
                *average = ((&*average * decay)? + now)?;
                continue;
            }
            dispatch_dtype!(params, T => each::<T>(params, *id, average, |a, p| {
                *a = T::narrow(decay * a.widen() + (1.0 - decay) * p.widen());
            }))?;
        }
        Ok(())
    }

    /// Swaps the averages with the current values: once to evaluate or save them, once more to continue
    /// training.
    pub fn swap(&mut self, params: &ParamStore) -> Result<()> {
        for (id, average) in &mut self.values {
            if let StateBuffer::Tensor(average) = average {
                let now = params.get(*id).var().as_detached_tensor().copy()?;
                params.set(*id, average)?;
                *average = now;
                continue;
            }
            dispatch_dtype!(params, T => each::<T>(params, *id, average, std::mem::swap))?;
        }
        Ok(())
    }

    /// Returns the averages by parameter name, in storage order, for a checkpoint.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        self.values.iter().map(|(id, v)| Ok((params.get(*id).name, buffer_tensor(v)?))).collect()
    }

    /// Restores the state returned by [`Ema::state`].
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        if state.len() != self.values.len() {
            let what =
                format!("invalid state: expected {} averages, found {}", self.values.len(), state.len());
            return Err(Error::usage("ema", what));
        }
        for (name, tensor) in state {
            let (id, moment) = read_buffer(params, name, tensor)?;
            match self.values.iter_mut().find(|(own, _)| *own == id) {
                Some((_, value)) => *value = moment,
                None => return Err(Error::Param { name: name.clone(), what: "not part of the EMA".into() }),
            }
        }
        Ok(())
    }
}

fn each<T: StateFloat>(
    params: &ParamStore,
    id: ParamId,
    average: &mut StateBuffer,
    f: impl Fn(&mut T, &mut T),
) -> Result<()> {
    let Some(average) = T::values_mut(average) else {
        return Err(Error::usage("ema", "dtype mismatch between averages and parameters"));
    };
    params.modify::<T>(id, |values| average.iter_mut().zip(values).for_each(|(a, p)| f(a, p)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{Init, Rng};

    #[test]
    fn ema_updates_and_swaps() {
        let params = ParamStore::new(DType::F64, &Device::Cpu).unwrap();
        let p = params.builder(Rng::new(0));
        let moving = p.weight("a", &[2], Init::Constant(1.0)).unwrap();
        let apart = p.weight("connector.b", &[1], Init::Constant(1.0)).unwrap();
        let values = |id| params.export(id).unwrap().to_vec1::<f64>().unwrap();
        let mut average = Ema::new(0.75, &params, |p| !p.name.starts_with("connector.")).unwrap();
        for id in [moving, apart] {
            params.modify::<f64>(id, |v| v.fill(5.0)).unwrap();
        }
        average.update(&params).unwrap();
        let state = average.state(&params).unwrap();
        average.swap(&params).unwrap();
        assert_eq!((values(moving), values(apart)), (vec![2.0, 2.0], vec![5.0]));
        average.swap(&params).unwrap();
        assert_eq!(values(moving), [5.0, 5.0]);
        average.update(&params).unwrap();
        average.load_state(&params, &state).unwrap();
        average.swap(&params).unwrap();
        assert_eq!(values(moving), [2.0, 2.0]);
        assert!(average.load_state(&params, &[]).unwrap_err().to_string().contains("expected 1"));
    }
}
