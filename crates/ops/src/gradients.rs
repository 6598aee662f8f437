//! Result of a backward pass.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::buffers::Buf;
use crate::element::{Float, with_values};
use crate::kernels::elementwise;
use crate::kernels::optim::all_finite;
use crate::params::{Layout, Param, ParamKind, ParamStore};
use crate::{Error, ParamId, Result};

/// One gradient, in the storage order of its parameter.
#[derive(Debug)]
pub(crate) enum Grad {
    F32(Buf<f32>),
    F64(Buf<f64>),
    Tensor(Tensor),
}

/// Gradients by parameter and, in modes that record them, of features.
#[derive(Debug)]
pub struct Gradients {
    params: ParamStore,
    pub(crate) values: BTreeMap<ParamId, Grad>,
    pub(crate) features: Vec<(String, Tensor)>,
}

/// Returns 0 if all values are finite, NaN otherwise.
fn zero_if_finite<T: Float>(values: &[T]) -> f64 {
    if all_finite(values) { 0.0 } else { f64::NAN }
}

impl Gradients {
    pub(crate) fn new(params: &ParamStore) -> Self {
        Self { params: params.clone(), values: BTreeMap::new(), features: Vec::new() }
    }

    /// Computes the gradients of a scalar candle expression that does not involve a tape, for the
    /// parameters of the store that it depends on.
    pub fn from_graph(params: &ParamStore, loss: &Tensor) -> Result<Self> {
        let mut gradients = Self::new(params);
        gradients.collect(&loss.backward()?)?;
        Ok(gradients)
    }

    /// Collects the gradients that candle computed for parameters.
    pub(crate) fn collect(&mut self, store: &GradStore) -> Result<()> {
        for (i, param) in self.params.all().iter().enumerate() {
            if param.trainable
                && param.kind == ParamKind::Weight
                && let Some(g) = store.get(param.var())
            {
                self.insert(ParamId(i), Grad::Tensor(g.contiguous()?))?;
            }
        }
        Ok(())
    }

    /// Adds a gradient to the accumulated one.
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
            _ => return Err(Error::usage("backward", "gradients of different dtypes")),
        };
        self.values.insert(id, sum);
        Ok(())
    }

    /// Adds the parameter gradients of another pass; feature gradients are not changed.
    pub fn add(&mut self, other: Self) -> Result<()> {
        for (id, grad) in other.values {
            self.insert(id, grad)?;
        }
        Ok(())
    }

    /// Returns the parameters that have a gradient.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + '_ {
        self.values.keys().copied()
    }

    /// Returns their names, in the same order.
    pub fn names(&self) -> Vec<String> {
        self.ids().map(|id| self.params.get(id).name).collect()
    }

    /// Returns a copy of a parameter's gradient in PyTorch's shape and order.
    pub fn param(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(id) = self.params.id(name) else {
            return Err(Error::Param { name: name.into(), what: "unknown".into() });
        };
        let param = self.params.get(id);
        let plain = |values: &[f64]| match &param.layout {
            Layout::Plain => values.to_vec(),
            Layout::Packed(packing) => packing.unpack(values),
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

    /// Returns the total gradient of a feature, `[B, C, H, W]` or `[B, D]`
    /// ([`Mode::EvalWithGrad`](crate::Mode::EvalWithGrad) only).
    pub fn feature(&self, name: &str) -> Option<&Tensor> {
        self.features.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Returns the Euclidean norm over all parameters.
    pub fn norm(&self) -> Result<f64> {
        self.norm_of(|_| true)
    }

    fn norm_of(&self, selected: impl Fn(&Param) -> bool) -> Result<f64> {
        let (mut sum, on_device) = self.sum_of_squares(selected)?;
        // A single transfer from the device, independent of the number of parameters.
        if !on_device.is_empty() {
            sum += Tensor::stack(&on_device, 0)?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum.sqrt())
    }

    /// Returns the sum of squares of the gradients in host memory, and one scalar for each gradient on a
    /// GPU.
    fn sum_of_squares(&self, selected: impl Fn(&Param) -> bool) -> Result<(f64, Vec<Tensor>)> {
        // Chunks of fixed size, added in order: independent of the number of threads.
        fn sum_of_squares<T: Float>(values: &[T]) -> f64 {
            let parts =
                values.par_chunks(1 << 15).map(|part| part.iter().map(|x| x.widen() * x.widen()).sum());
            parts.collect::<Vec<f64>>().into_iter().sum()
        }
        let (mut sum, mut on_device) = (0.0, Vec::new());
        for (id, grad) in &self.values {
            if !selected(&self.params.get(*id)) {
                continue;
            }
            sum += match grad {
                Grad::F32(v) => sum_of_squares::<f32>(v),
                Grad::F64(v) => sum_of_squares::<f64>(v),
                Grad::Tensor(t) if t.device().is_cpu() => {
                    with_values::<f64, _>(&t.to_dtype(DType::F64)?, sum_of_squares)?
                }
                Grad::Tensor(t) => {
                    on_device.push(t.to_dtype(DType::F64)?.sqr()?.sum_all()?);
                    0.0
                }
            };
        }
        Ok((sum, on_device))
    }

    /// Clips the gradients of the `selected` parameters to a Euclidean norm of at most `max_norm`, as
    /// PyTorch's `clip_grad_norm_`: multiplies them by `max_norm / (norm + 1e-6)` if that is below 1.
    ///
    /// Returns the norm before clipping as an f64 scalar. On a GPU it stays on the device without
    /// synchronization.
    pub fn clip_norm(&mut self, max_norm: f64, selected: impl Fn(&Param) -> bool) -> Result<Tensor> {
        let (sum, on_device) = self.sum_of_squares(&selected)?;
        if !on_device.is_empty() {
            let norm = (Tensor::stack(&on_device, 0)?.sum_all()? + sum)?.sqrt()?;
            self.scale(&clip_factor(&norm, max_norm)?, selected)?;
            return Ok(norm);
        }
        let norm = sum.sqrt();
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            for (id, grad) in &mut self.values {
                if !selected(&self.params.get(*id)) {
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

    /// Multiplies tensors by a scalar on the same device.
    fn scale(&mut self, factor: &Tensor, selected: impl Fn(&Param) -> bool) -> Result<()> {
        for (id, grad) in &mut self.values {
            if let Grad::Tensor(t) = grad
                && selected(&self.params.get(*id))
            {
                *t = t.broadcast_mul(&factor.to_dtype(t.dtype())?)?;
            }
        }
        Ok(())
    }

    /// Returns one f64 value per gradient, `[n]` in the order of [`Gradients::ids`]: 0 if the gradient is
    /// finite, NaN otherwise. On a GPU it stays on the device without synchronization.
    pub fn non_finite_flags(&self) -> Result<Tensor> {
        let each = self.values.values().map(|grad| {
            let zero = match grad {
                Grad::F32(v) => zero_if_finite(v),
                Grad::F64(v) => zero_if_finite(v),
                Grad::Tensor(t) if !t.device().is_cpu() => return zero_if_finite_tensor(t),
                Grad::Tensor(t) if t.dtype() == DType::F64 => with_values::<f64, _>(t, zero_if_finite)?,
                Grad::Tensor(t) => with_values::<f32, _>(t, zero_if_finite)?,
            };
            Ok(Tensor::new(zero, &Device::Cpu)?)
        });
        match each.collect::<Result<Vec<Tensor>>>()? {
            none if none.is_empty() => Ok(Tensor::zeros(0, DType::F64, &Device::Cpu)?),
            each => Ok(Tensor::stack(&each, 0)?),
        }
    }

    /// Returns the name of the first parameter with a non-finite gradient. Synchronizes with a GPU.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        let flags = self.non_finite_flags()?.to_vec1::<f64>()?;
        let found = self.ids().zip(flags).find(|(_, flag)| *flag != 0.0);
        Ok(found.map(|(id, _)| self.params.get(id).name))
    }

    /// Returns the largest absolute value of a parameter's gradient as an f64 scalar. On a GPU it stays
    /// on the device without synchronization.
    pub fn max_abs(&self, name: &str) -> Result<Option<Tensor>> {
        fn max_abs<T: Float>(values: &[T]) -> f64 {
            values.iter().map(|v| v.widen().abs()).fold(0.0, f64::max)
        }
        let Some(id) = self.params.id(name) else {
            return Err(Error::Param { name: name.into(), what: "unknown".into() });
        };
        let max_abs = match self.values.get(&id) {
            None => return Ok(None),
            Some(Grad::F32(v)) => max_abs(v),
            Some(Grad::F64(v)) => max_abs(v),
            Some(Grad::Tensor(t)) => {
                return Ok(Some(t.flatten_all()?.abs()?.max(0)?.to_dtype(DType::F64)?));
            }
        };
        Ok(Some(Tensor::new(max_abs, &Device::Cpu)?))
    }

    /// Returns the gradient as a tensor if the graph engine computed it.
    pub(crate) fn tensor(&self, id: ParamId) -> Option<&Tensor> {
        match self.values.get(&id) {
            Some(Grad::Tensor(t)) => Some(t),
            _ => None,
        }
    }

    /// Calls `f` with the stored values of a gradient; `convert` permits a dtype conversion.
    pub(crate) fn with<T: Float, R>(
        &self,
        id: ParamId,
        convert: bool,
        f: impl FnOnce(&[T]) -> R,
    ) -> Result<Option<R>> {
        let cast = |wide: Vec<f64>| wide.into_iter().map(T::narrow).collect::<Vec<T>>();
        let mismatch = || Error::usage("gradient", format!("expected {:?} values", T::TYPE));
        let cpu = |t: &Tensor| t.to_device(&Device::Cpu);
        Ok(match self.values.get(&id) {
            None => None,
            Some(Grad::Tensor(t)) if t.dtype() == T::TYPE => Some(with_values::<T, _>(&cpu(t)?, f)?),
            Some(Grad::Tensor(t)) if convert => Some(with_values::<T, _>(&cpu(t)?.to_dtype(T::TYPE)?, f)?),
            Some(Grad::F32(v)) => match T::TYPE {
                candle_core::DType::F32 => Some(f(reinterpret(v).ok_or_else(mismatch)?)),
                _ if convert => Some(f(&cast(v.iter().map(|x| f64::from(*x)).collect()))),
                _ => return Err(mismatch()),
            },
            Some(Grad::F64(v)) => match T::TYPE {
                candle_core::DType::F64 => Some(f(reinterpret(v).ok_or_else(mismatch)?)),
                _ if convert => Some(f(&cast(v.to_vec()))),
                _ => return Err(mismatch()),
            },
            Some(Grad::Tensor(_)) => return Err(mismatch()),
        })
    }
}

/// Computes `min(1, max_norm / (norm + 1e-6))` on the device of the norm.
fn clip_factor(norm: &Tensor, max_norm: f64) -> Result<Tensor> {
    Ok(((norm + 1e-6)?.recip()? * max_norm)?.minimum(1.0)?)
}

/// Returns 0 if all values are finite and NaN otherwise, on the tensor's device.
fn zero_if_finite_tensor(t: &Tensor) -> Result<Tensor> {
    Ok(t.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F64)?)
}

/// Returns the slice itself if the two types are the same.
fn reinterpret<A: 'static, B: 'static>(values: &[A]) -> Option<&[B]> {
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
    use crate::mode::EngineKind;
    use crate::{Init, Rng};
    use stillhouse_testkit::device;

    /// Gradients of `sum(scale * w)` and `sum(b)` on the graph engine.
    fn gradients(scale: f64) -> Gradients {
        let params = ParamStore::with_engine(DType::F32, &device(), EngineKind::Graph).unwrap();
        let p = params.builder(Rng::new(0));
        let [w, b] = ["w", "b"].map(|name| p.var(name, &[2, 3], Init::Uniform(1.0)).unwrap());
        let loss = ((w.sum_all().unwrap() * scale).unwrap() + b.sum_all().unwrap()).unwrap();
        Gradients::from_graph(&params, &loss).unwrap()
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

    #[test]
    fn device_clipping_matches_cpu() {
        for max_norm in [0.5, 100.0] {
            let (mut here, mut there) = (gradients(3.0), gradients(3.0));
            let norm = here.clip_norm(max_norm, |p| p.name == "w").unwrap();
            assert!((norm.to_scalar::<f64>().unwrap() - 54f64.sqrt()).abs() < 1e-12);
            there.scale(&clip_factor(&norm, max_norm).unwrap(), |p| p.name == "w").unwrap();
            for (a, b) in values(&here, "w").iter().zip(values(&there, "w")) {
                assert!((a - b).abs() < 1e-6 * a.abs(), "{max_norm}: {a} {b}");
            }
            assert_eq!(values(&there, "b"), [1.0; 6]);
        }
    }

    #[test]
    fn names_non_finite_gradient() {
        for (scale, found) in [(3.0, None), (f64::INFINITY, Some("w")), (f64::NAN, Some("w"))] {
            let gradients = gradients(scale);
            assert_eq!(gradients.first_non_finite().unwrap().as_deref(), found, "{scale}");
            for id in gradients.ids() {
                let zero =
                    zero_if_finite_tensor(gradients.tensor(id).unwrap()).unwrap().to_scalar::<f64>().unwrap();
                let is_found = Some(gradients.params.get(id).name.as_str()) == found;
                assert_eq!(zero != 0.0, is_found, "{scale}");
            }
        }
        let max_abs = gradients(-3.0).max_abs("w").unwrap().unwrap();
        assert_eq!(max_abs.to_scalar::<f64>().unwrap(), 3.0);
        assert!(gradients(1.0).max_abs("other").is_err());
    }
}
