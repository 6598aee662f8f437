//! Moving averages of the parameters.

use candle_core::Tensor;

use super::{Moment, Moments, dispatch_dtype, moment_tensor, read_moment};
use crate::element::Float;
use crate::params::{Param, ParamStore};
use crate::{Error, ParamId, Result};

/// Exponential moving averages `a = decay * a + (1 - decay) * p` of weights and buffers (Polyak and
/// Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992), begun at the values of
/// the start, as timm's `ModelEma` has them.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    values: Vec<(ParamId, Moment)>,
}

impl Ema {
    /// Averages of the parameters that are `wanted`, at their present values.
    pub fn new(decay: f64, params: &ParamStore, wanted: impl Fn(&Param) -> bool) -> Result<Self> {
        let mut values = Vec::new();
        for param in params.all().into_iter().filter(|p| wanted(p)) {
            if let Some(id) = params.id(&param.name) {
                values.push((id, read_moment(params, &param.name, param.var().as_tensor())?.1));
            }
        }
        Ok(Self { decay, values })
    }

    /// Moves the averages towards the present values.
    pub fn update(&mut self, params: &ParamStore) -> Result<()> {
        let decay = self.decay;
        for (id, average) in &mut self.values {
            if let Moment::Tensor(average) = average {
                let now = (params.get(*id).var().as_detached_tensor() * (1.0 - decay))?;
                *average = ((&*average * decay)? + now)?;
                continue;
            }
            dispatch_dtype!(params, T => each::<T>(params, *id, average, |a, p| {
                *a = T::of(decay * a.wide() + (1.0 - decay) * p.wide());
            }))?;
        }
        Ok(())
    }

    /// Exchanges the averages and the present values: once to test or save the averages, once more to
    /// train on.
    pub fn swap(&mut self, params: &ParamStore) -> Result<()> {
        for (id, average) in &mut self.values {
            if let Moment::Tensor(average) = average {
                let now = params.get(*id).var().as_detached_tensor().copy()?;
                params.set(*id, average)?;
                *average = now;
                continue;
            }
            dispatch_dtype!(params, T => each::<T>(params, *id, average, std::mem::swap))?;
        }
        Ok(())
    }

    /// The averages by parameter name, in stored order, for a checkpoint.
    pub fn state(&self, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        self.values.iter().map(|(id, v)| Ok((params.get(*id).name, moment_tensor(v)?))).collect()
    }

    /// Restores what [`Ema::state`] gave.
    pub fn load_state(&mut self, params: &ParamStore, state: &[(String, Tensor)]) -> Result<()> {
        if state.len() != self.values.len() {
            let what = format!("the state has {} averages, expected {}", state.len(), self.values.len());
            return Err(Error::usage("average", what));
        }
        for (name, tensor) in state {
            let (id, moment) = read_moment(params, name, tensor)?;
            match self.values.iter_mut().find(|(own, _)| *own == id) {
                Some((_, value)) => *value = moment,
                None => return Err(Error::Param { name: name.clone(), what: "is not averaged".into() }),
            }
        }
        Ok(())
    }
}

fn each<T: Moments>(
    params: &ParamStore,
    id: ParamId,
    average: &mut Moment,
    f: impl Fn(&mut T, &mut T),
) -> Result<()> {
    let Some(average) = T::of_state(average) else {
        return Err(Error::usage("average", "the averages have another element type than the parameters"));
    };
    params.modify::<T>(id, |values| average.iter_mut().zip(values).for_each(|(a, p)| f(a, p)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{Init, Rng};

    #[test]
    fn averages_follow_and_change_places() {
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
