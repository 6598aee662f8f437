//! What a backward pass returns.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::buffers::Buf;
use crate::kernels::elementwise;
use crate::params::{Kind, Layout, Param, Params};
use crate::real::{Real, with_values};
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
    params: Params,
    pub(crate) values: BTreeMap<ParamId, Grad>,
    pub(crate) taps: Vec<(String, Tensor)>,
}

impl Gradients {
    pub(crate) fn new(params: &Params) -> Self {
        Self { params: params.clone(), values: BTreeMap::new(), taps: Vec::new() }
    }

    /// Gradients of a scalar that is a candle graph alone, without a tape: of the parameters of the
    /// store that it is made of.
    pub fn of_graph(params: &Params, loss: &Tensor) -> Result<Self> {
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

    /// Total gradient of a tap ([`Mode::EvalRecord`](crate::Mode::EvalRecord) only): `[B, C, H, W]` or `[B, D]`.
    pub fn tap(&self, name: &str) -> Option<&Tensor> {
        self.taps.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Euclidean norm over all parameters.
    pub fn norm(&self) -> Result<f64> {
        self.norm_of(|_| true)
    }

    fn norm_of(&self, counts: impl Fn(&Param) -> bool) -> Result<f64> {
        // Parts of one size, added in their order: the same for any number of threads.
        fn squares<T: Real>(values: &[T]) -> f64 {
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
        // One value comes from the device, whatever the number of parameters.
        if !elsewhere.is_empty() {
            sum += Tensor::stack(&elsewhere, 0)?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum.sqrt())
    }

    /// Scales the gradients of the parameters that `counts` names so that their Euclidean norm is at
    /// most `most`, as PyTorch's `clip_grad_norm_`: by `most / (norm + 1e-6)` where that is below 1.
    /// Gives the norm before.
    pub fn clip_norm(&mut self, most: f64, counts: impl Fn(&Param) -> bool) -> Result<f64> {
        let norm = self.norm_of(&counts)?;
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
        Ok(norm)
    }

    /// The first parameter whose gradient has a value that is not finite, if there is one.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        // A sum of zeros unless a value is infinite or not a number: one pass without branches.
        fn finite<T: Real>(values: &[T]) -> bool {
            let zero = values.iter().fold(T::ZERO, |sum, v| sum + *v * T::ZERO);
            zero == T::ZERO
        }
        let mut elsewhere = Vec::new();
        for (id, grad) in &self.values {
            let finite = match grad {
                Grad::F32(v) => finite(v),
                Grad::F64(v) => finite(v),
                Grad::Tensor(t) if !t.device().is_cpu() => {
                    elsewhere.push((*id, t.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F64)?));
                    true
                }
                Grad::Tensor(t) if t.dtype() == candle_core::DType::F64 => with_values::<f64, _>(t, finite)?,
                Grad::Tensor(t) => with_values::<f32, _>(t, finite)?,
            };
            if !finite {
                return Ok(Some(self.params.get(*id).name));
            }
        }
        if elsewhere.is_empty() {
            return Ok(None);
        }
        let sums: Vec<&Tensor> = elsewhere.iter().map(|(_, sum)| sum).collect();
        let zeros = Tensor::stack(&sums, 0)?.to_vec1::<f64>()?;
        let found = elsewhere.iter().zip(zeros).find(|(_, zero)| *zero != 0.0);
        Ok(found.map(|((id, _), _)| self.params.get(*id).name))
    }

    /// The gradient as a tensor, where candle's graph has made it.
    pub(crate) fn tensor(&self, id: ParamId) -> Option<&Tensor> {
        match self.values.get(&id) {
            Some(Grad::Tensor(t)) => Some(t),
            _ => None,
        }
    }

    /// The stored values of a gradient; `convert` allows another element type.
    pub(crate) fn with<T: Real, R>(
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
