//! What a backward pass returns.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::buffers::Buf;
use crate::element::{Float, with_values};
use crate::kernels::elementwise;
use crate::params::{Kind, Layout, Param, ParamStore};
use crate::{Error, ParamId, Result};

/// One gradient, laid out as the stored values of its parameter.
#[derive(Debug)]
pub(crate) enum Grad {
    F32(Buf<f32>),
    F64(Buf<f64>),
    Tensor(Tensor),
}

/// Gradients by parameter, and of the taps where the mode records them.
#[derive(Debug)]
pub struct Gradients {
    params: ParamStore,
    pub(crate) values: BTreeMap<ParamId, Grad>,
    pub(crate) taps: Vec<(String, Tensor)>,
}

impl Gradients {
    pub(crate) fn new(params: &ParamStore) -> Self {
        Self { params: params.clone(), values: BTreeMap::new(), taps: Vec::new() }
    }

    /// Gradients of a scalar that is a candle graph alone, without a tape: of the parameters of the
    /// store that it is made of.
    pub fn of_graph(params: &ParamStore, loss: &Tensor) -> Result<Self> {
        let mut gradients = Self::new(params);
        gradients.collect(&loss.backward()?)?;
        Ok(gradients)
    }

    /// Takes the gradients that candle has for parameters of candle graphs.
    pub(crate) fn collect(&mut self, store: &GradStore) -> Result<()> {
        for (i, param) in self.params.all().iter().enumerate() {
            if param.trainable
                && param.kind == Kind::Weight
                && let Some(g) = store.get(param.var())
            {
                self.insert(ParamId(i), Grad::Tensor(g.contiguous()?))?;
            }
        }
        Ok(())
    }

    /// Adds a gradient to what is there.
    pub(crate) fn insert(&mut self, id: ParamId, grad: Grad) -> Result<()> {
        let sum = match (self.values.remove(&id), grad) {
            (None, grad) => grad,
            (Some(Grad::Tensor(a)), Grad::Tensor(b)) => Grad::Tensor((a + b)?),
            (Some(Grad::F32(mut a)), Grad::F32(b)) => {
                elementwise::add_to(&mut a, &b);
                Grad::F32(a)
            }
            (Some(Grad::F64(mut a)), Grad::F64(b)) => {
                elementwise::add_to(&mut a, &b);
                Grad::F64(a)
            }
            (Some(Grad::Tensor(t)), Grad::F32(mut a)) | (Some(Grad::F32(mut a)), Grad::Tensor(t)) => {
                with_values::<f32, _>(&t, |t| elementwise::add_to(&mut a, t))?;
                Grad::F32(a)
            }
            (Some(Grad::Tensor(t)), Grad::F64(mut a)) | (Some(Grad::F64(mut a)), Grad::Tensor(t)) => {
                with_values::<f64, _>(&t, |t| elementwise::add_to(&mut a, t))?;
                Grad::F64(a)
            }
            _ => return Err(Error::usage("backward", "gradients of two element types")),
        };
        self.values.insert(id, sum);
        Ok(())
    }

    /// Adds the gradients of another pass of the same parameters; those of taps stay as they are.
    pub fn add(&mut self, other: Self) -> Result<()> {
        for (id, grad) in other.values {
            self.insert(id, grad)?;
        }
        Ok(())
    }

    /// The parameters that got a gradient.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + '_ {
        self.values.keys().copied()
    }

    /// Their names, in the same order.
    pub fn names(&self) -> Vec<String> {
        self.ids().map(|id| self.params.get(id).name).collect()
    }

    /// The gradient of a parameter in PyTorch's shape and order, copied.
    pub fn param(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(id) = self.params.id(name) else {
            return Err(Error::Param { name: name.into(), what: "not in the store".into() });
        };
        let param = self.params.get(id);
        let plain = |values: &[f64]| match &param.layout {
            Layout::Plain => values.to_vec(),
            Layout::Panels(panels) => panels.unpack(values),
        };
        let dtype = self.params.dtype();
        self.values
            .get(&id)
            .map(|_| {
                let values = self.with::<f64, _>(id, true, |g| plain(g))?.unwrap_or_default();
                Ok(Tensor::from_vec(values, param.shape.clone(), &Device::Cpu)?.to_dtype(dtype)?)
            })
            .transpose()
    }

    /// Total gradient of a tap ([`Mode::EvalWithGrad`](crate::Mode::EvalWithGrad) only): `[B, C, H, W]` or `[B, D]`.
    pub fn feature(&self, name: &str) -> Option<&Tensor> {
        self.taps.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Euclidean norm over all parameters.
    pub fn norm(&self) -> Result<f64> {
        self.norm_of(|_| true)
    }

    fn norm_of(&self, counts: impl Fn(&Param) -> bool) -> Result<f64> {
        let (mut sum, elsewhere) = self.squares(counts)?;
        // One value comes from the device, whatever the number of parameters.
        if !elsewhere.is_empty() {
            sum += Tensor::stack(&elsewhere, 0)?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum.sqrt())
    }

    /// The sum of squares of what lies in the host's memory, and that of each gradient on a card.
    fn squares(&self, counts: impl Fn(&Param) -> bool) -> Result<(f64, Vec<Tensor>)> {
        // Parts of one size, added in their order: the same for any number of threads.
        fn squares<T: Float>(values: &[T]) -> f64 {
            let parts = values.par_chunks(1 << 15).map(|part| part.iter().map(|x| x.wide() * x.wide()).sum());
            parts.collect::<Vec<f64>>().into_iter().sum()
        }
        let (mut sum, mut elsewhere) = (0.0, Vec::new());
        for (id, grad) in &self.values {
            if !counts(&self.params.get(*id)) {
                continue;
            }
            sum += match grad {
                Grad::F32(v) => squares::<f32>(v),
                Grad::F64(v) => squares::<f64>(v),
                Grad::Tensor(t) if t.device().is_cpu() => {
                    with_values::<f64, _>(&t.to_dtype(DType::F64)?, squares)?
                }
                Grad::Tensor(t) => {
                    elsewhere.push(t.to_dtype(DType::F64)?.sqr()?.sum_all()?);
                    0.0
                }
            };
        }
        Ok((sum, elsewhere))
    }

    /// Scales the gradients of the parameters that `counts` names so that their Euclidean norm is at
    /// most `most`, as PyTorch's `clip_grad_norm_`: by `most / (norm + 1e-6)` where that is below 1.
    /// Gives the norm before, an f64 scalar; on a card it stays there, and nothing waits for it.
    pub fn clip_norm(&mut self, most: f64, counts: impl Fn(&Param) -> bool) -> Result<Tensor> {
        let (sum, elsewhere) = self.squares(&counts)?;
        if !elsewhere.is_empty() {
            let norm = (Tensor::stack(&elsewhere, 0)?.sum_all()? + sum)?.sqrt()?;
            self.scale(&clip_factor(&norm, most)?, counts)?;
            return Ok(norm);
        }
        let norm = sum.sqrt();
        let factor = most / (norm + 1e-6);
        if factor < 1.0 {
            for (id, grad) in &mut self.values {
                if !counts(&self.params.get(*id)) {
                    continue;
                }
                match grad {
                    Grad::F32(v) => v.par_iter_mut().for_each(|x| *x *= factor as f32),
                    Grad::F64(v) => v.par_iter_mut().for_each(|x| *x *= factor),
                    Grad::Tensor(t) => *t = t.affine(factor, 0.0)?,
                }
            }
        }
        Ok(Tensor::new(norm, &Device::Cpu)?)
    }

    /// Multiplies tensors by a scalar of their device.
    fn scale(&mut self, factor: &Tensor, counts: impl Fn(&Param) -> bool) -> Result<()> {
        for (id, grad) in &mut self.values {
            if let Grad::Tensor(t) = grad
                && counts(&self.params.get(*id))
            {
                *t = t.broadcast_mul(&factor.to_dtype(t.dtype())?)?;
            }
        }
        Ok(())
    }

    /// A value for each gradient, `[n]` in f64 in the order of [`Gradients::ids`]: 0 where all of the
    /// gradient is finite, not a number else. On a card it stays there, and nothing waits for it.
    pub fn zeros(&self) -> Result<Tensor> {
        // A sum of zeros unless a value is infinite or not a number: one pass without branches.
        fn zero<T: Float>(values: &[T]) -> f64 {
            values.iter().fold(T::ZERO, |sum, v| sum + *v * T::ZERO).wide()
        }
        let each = self.values.values().map(|grad| {
            let zero = match grad {
                Grad::F32(v) => zero(v),
                Grad::F64(v) => zero(v),
                Grad::Tensor(t) if !t.device().is_cpu() => return zero_there(t),
                Grad::Tensor(t) if t.dtype() == DType::F64 => with_values::<f64, _>(t, zero)?,
                Grad::Tensor(t) => with_values::<f32, _>(t, zero)?,
            };
            Ok(Tensor::new(zero, &Device::Cpu)?)
        });
        match each.collect::<Result<Vec<Tensor>>>()? {
            none if none.is_empty() => Ok(Tensor::zeros(0, DType::F64, &Device::Cpu)?),
            each => Ok(Tensor::stack(&each, 0)?),
        }
    }

    /// The first parameter whose gradient has a value that is not finite, if there is one. Waits for a
    /// card.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        let zeros = self.zeros()?.to_vec1::<f64>()?;
        let found = self.ids().zip(zeros).find(|(_, zero)| *zero != 0.0);
        Ok(found.map(|(id, _)| self.params.get(id).name))
    }

    /// The largest absolute value of a parameter's gradient, an f64 scalar. On a card it stays there,
    /// and nothing waits for it.
    pub fn largest(&self, name: &str) -> Result<Option<Tensor>> {
        fn largest<T: Float>(values: &[T]) -> f64 {
            values.iter().map(|v| v.wide().abs()).fold(0.0, f64::max)
        }
        let Some(id) = self.params.id(name) else {
            return Err(Error::Param { name: name.into(), what: "not in the store".into() });
        };
        let largest = match self.values.get(&id) {
            None => return Ok(None),
            Some(Grad::F32(v)) => largest(v),
            Some(Grad::F64(v)) => largest(v),
            Some(Grad::Tensor(t)) => {
                return Ok(Some(t.flatten_all()?.abs()?.max(0)?.to_dtype(DType::F64)?));
            }
        };
        Ok(Some(Tensor::new(largest, &Device::Cpu)?))
    }

    /// The gradient as a tensor, where candle's graph has made it.
    pub(crate) fn tensor(&self, id: ParamId) -> Option<&Tensor> {
        match self.values.get(&id) {
            Some(Grad::Tensor(t)) => Some(t),
            _ => None,
        }
    }

    /// The stored values of a gradient; `convert` allows another element type.
    pub(crate) fn with<T: Float, R>(
        &self,
        id: ParamId,
        convert: bool,
        f: impl FnOnce(&[T]) -> R,
    ) -> Result<Option<R>> {
        let cast = |wide: Vec<f64>| wide.into_iter().map(T::of).collect::<Vec<T>>();
        let mismatch = || Error::usage("gradient", format!("expected {:?} values", T::TYPE));
        let cpu = |t: &Tensor| t.to_device(&Device::Cpu);
        Ok(match self.values.get(&id) {
            None => None,
            Some(Grad::Tensor(t)) if t.dtype() == T::TYPE => Some(with_values::<T, _>(&cpu(t)?, f)?),
            Some(Grad::Tensor(t)) if convert => Some(with_values::<T, _>(&cpu(t)?.to_dtype(T::TYPE)?, f)?),
            Some(Grad::F32(v)) => match T::TYPE {
                candle_core::DType::F32 => Some(f(same(v).ok_or_else(mismatch)?)),
                _ if convert => Some(f(&cast(v.iter().map(|x| f64::from(*x)).collect()))),
                _ => return Err(mismatch()),
            },
            Some(Grad::F64(v)) => match T::TYPE {
                candle_core::DType::F64 => Some(f(same(v).ok_or_else(mismatch)?)),
                _ if convert => Some(f(&cast(v.to_vec()))),
                _ => return Err(mismatch()),
            },
            Some(Grad::Tensor(_)) => return Err(mismatch()),
        })
    }
}

/// `min(1, most / (norm + 1e-6))`, on the device of the norm.
fn clip_factor(norm: &Tensor, most: f64) -> Result<Tensor> {
    Ok(((norm + 1e-6)?.recip()? * most)?.minimum(1.0)?)
}

/// 0 if all values are finite, on their device.
fn zero_there(t: &Tensor) -> Result<Tensor> {
    Ok(t.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F64)?)
}

/// The slice itself if the two types are the same.
fn same<A: 'static, B: 'static>(values: &[A]) -> Option<&[B]> {
    let any: &dyn std::any::Any = &std::marker::PhantomData::<A>;
    if any.is::<std::marker::PhantomData<B>>() {
        // SAFETY: A and B are the same type.
        #[allow(unsafe_code)]
        Some(unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<B>(), values.len()) })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Engine;
    use crate::{Init, Rng};
    use stillhouse_testkit::device;

    /// Gradients of `sum(scale * w)` and `sum(b)` as candle's graph has them.
    fn gradients(scale: f64) -> Gradients {
        let params = ParamStore::with_engine(DType::F32, &device(), Engine::Graph).unwrap();
        let p = params.builder(Rng::new(0));
        let [w, b] = ["w", "b"].map(|name| p.var(name, &[2, 3], Init::Uniform(1.0)).unwrap());
        let loss = ((w.sum_all().unwrap() * scale).unwrap() + b.sum_all().unwrap()).unwrap();
        Gradients::of_graph(&params, &loss).unwrap()
    }

    fn values(gradients: &Gradients, name: &str) -> Vec<f64> {
        gradients
            .param(name)
            .unwrap()
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    /// What a card computes, on any device.
    #[test]
    fn the_factor_of_a_card_is_that_of_the_processor() {
        for most in [0.5, 100.0] {
            let (mut here, mut there) = (gradients(3.0), gradients(3.0));
            let norm = here.clip_norm(most, |p| p.name == "w").unwrap();
            assert!((norm.to_scalar::<f64>().unwrap() - 54f64.sqrt()).abs() < 1e-12);
            there.scale(&clip_factor(&norm, most).unwrap(), |p| p.name == "w").unwrap();
            for (a, b) in values(&here, "w").iter().zip(values(&there, "w")) {
                assert!((a - b).abs() < 1e-6 * a.abs(), "{most}: {a} {b}");
            }
            assert_eq!(values(&there, "b"), [1.0; 6]);
        }
    }

    #[test]
    fn what_is_not_finite_is_told_by_its_place() {
        for (scale, found) in [(3.0, None), (f64::INFINITY, Some("w")), (f64::NAN, Some("w"))] {
            let gradients = gradients(scale);
            assert_eq!(gradients.first_non_finite().unwrap().as_deref(), found, "{scale}");
            for id in gradients.ids() {
                let zero = zero_there(gradients.tensor(id).unwrap()).unwrap().to_scalar::<f64>().unwrap();
                let is_found = Some(gradients.params.get(id).name.as_str()) == found;
                assert_eq!(zero != 0.0, is_found, "{scale}");
            }
        }
        let largest = gradients(-3.0).largest("w").unwrap().unwrap();
        assert_eq!(largest.to_scalar::<f64>().unwrap(), 3.0);
        assert!(gradients(1.0).largest("other").is_err());
    }
}
