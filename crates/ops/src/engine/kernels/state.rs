//! State of the kernels engine: memory, what operations save for the backward pass, and gradients.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use crate::buffers::{Buf, Pool, Pools};
use crate::element::Float;
use crate::engine::Context;
use crate::gradients::Grad;
use crate::kernels::attention::Windows;
use crate::kernels::elementwise;
use crate::kernels::geometry::{ConvGeo, ConvSpec};
use crate::kernels::resample::AxisWeights;
use crate::node::{Data, Node};
use crate::op::{Op, Value};
use crate::{Error, ParamId, Result};

/// Runs operations of element type `T` on the CPU.
#[derive(Debug)]
pub(crate) struct KernelsEngine<T> {
    pub(super) pools: Pools,
    zeros: Arc<Vec<T>>,
    geometry: HashMap<(ConvSpec, [usize; 2]), Arc<ConvGeo>>,
    pub(super) folded: HashMap<ParamId, Arc<Folded<T>>>,
    /// By index of the result.
    pub(super) saved: Vec<Saved<T>>,
    /// Shifts of the batch statistics inside segments of gradient checkpointing, by index of the result.
    pub(super) shifts: HashMap<usize, Vec<T>>,
    pub(super) back: Backward<T>,
}

/// What an operation saves for the backward pass.
#[derive(Debug, Default)]
pub(super) enum Saved<T> {
    /// Nothing but shapes.
    #[default]
    None,
    Conv(Box<ConvSaved<T>>),
    /// Index of the maximum of each window.
    Indices(Buf<u8>),
    /// Input or result, from which the derivative is computed.
    Values(Arc<Buf<T>>),
    /// Factor of each value.
    Mask(Buf<T>),
    /// Factor of each image.
    Factors(Vec<f64>),
    /// Input, mean and inverse deviation.
    Normalized(Arc<Buf<T>>, Buf<T>),
    Attention(Box<AttentionSaved<T>>),
    /// Weights of a resampling, of rows and of columns.
    Axes(AxisWeights, AxisWeights),
    /// Result in candle's graph, and the inputs that it depends on.
    Expression(Tensor, Vec<(usize, Var)>),
}

/// Weights with batch norm folded in, at one version of the parameters.
#[derive(Debug)]
pub(super) struct Folded<T> {
    pub(super) version: u64,
    pub(super) weight: Buf<T>,
    /// The weight in Winograd's domain, computed on first use.
    pub(super) points: OnceLock<Buf<T>>,
    pub(super) bias: Vec<T>,
}

/// Values saved for the backward pass of a block.
#[derive(Debug)]
pub(super) struct ConvSaved<T> {
    pub(super) geo: Arc<ConvGeo>,
    /// Input.
    pub(super) values: Arc<Buf<T>>,
    pub(super) padded: Option<Buf<T>>,
    /// Input of batch norm.
    pub(super) raw: Option<Buf<T>>,
    pub(super) stats: Option<Stats<T>>,
    /// Result, if the activation's derivative is computed from it.
    pub(super) result: Option<Arc<Buf<T>>>,
}

/// Batch norm of one pass: `out = a * y + b`.
#[derive(Debug)]
pub(super) struct Stats<T> {
    /// Batch statistics, through which gradients flow.
    pub(super) batch: bool,
    pub(super) a: Vec<T>,
    pub(super) b: Vec<T>,
    pub(super) mean: Vec<T>,
    pub(super) wide_mean: Vec<f64>,
    pub(super) wide_a: Vec<f64>,
    pub(super) inverse: Vec<f64>,
}

/// Inputs of window attention.
#[derive(Debug)]
pub(super) struct AttentionSaved<T> {
    pub(super) windows: Windows,
    pub(super) qkv: Arc<Buf<T>>,
    /// Expanded relative position bias.
    pub(super) bias: Buf<T>,
    /// Projection of a zero pixel.
    pub(super) outside: Buf<T>,
}

/// Gradients accumulated during a backward pass.
#[derive(Debug)]
pub(super) struct Backward<T> {
    /// By index of the value.
    pub(super) grads: Vec<Option<Buf<T>>>,
    pub(super) params: HashMap<ParamId, Buf<T>>,
    /// Gradients of candle expressions.
    pub(super) stores: Vec<GradStore>,
    /// Features whose gradients are kept.
    pub(super) probes: Vec<(usize, String)>,
    pub(super) features: Vec<(String, Tensor)>,
}

impl<T> Default for Backward<T> {
    fn default() -> Self {
        Self {
            grads: Vec::new(),
            params: HashMap::new(),
            stores: Vec::new(),
            probes: Vec::new(),
            features: Vec::new(),
        }
    }
}

impl<T: Elem> Default for KernelsEngine<T> {
    fn default() -> Self {
        Self {
            pools: Pools::default(),
            zeros: Arc::new(vec![T::ZERO; 4096]),
            geometry: HashMap::new(),
            folded: HashMap::new(),
            saved: Vec::new(),
            shifts: HashMap::new(),
            back: Backward::default(),
        }
    }
}

/// Returns the values of a node.
pub(super) fn values<'a, T: Elem>(op: &'static str, x: &'a Node) -> Result<&'a Arc<Buf<T>>> {
    T::data(&x.data).ok_or_else(|| Error::usage(op, "dtype mismatch between node and tape"))
}

impl<T: Elem> KernelsEngine<T> {
    pub(super) fn pool(&self) -> &Arc<Pool<T>> {
        T::pool(&self.pools)
    }

    pub(super) fn values(&self, op: &Op, x: &Node) -> Result<Arc<Buf<T>>> {
        values(op.name(), x).cloned()
    }

    /// Returns at least `len` zeros.
    pub(super) fn zeros(&mut self, len: usize) -> Arc<Vec<T>> {
        if self.zeros.len() < len {
            self.zeros = Arc::new(vec![T::ZERO; len]);
        }
        Arc::clone(&self.zeros)
    }

    pub(super) fn geometry(&mut self, spec: ConvSpec, size: [usize; 2]) -> Result<Arc<ConvGeo>> {
        if let Some(geo) = self.geometry.get(&(spec, size)) {
            return Ok(Arc::clone(geo));
        }
        let geo = Arc::new(ConvGeo::new(spec, size[0], size[1])?);
        self.geometry.insert((spec, size), Arc::clone(&geo));
        Ok(geo)
    }

    /// Allocates a result.
    pub(super) fn map(&self, output: &Value, context: &Context) -> Buf<T> {
        let (pool, len) = (self.pool(), output.count());
        if context.mode.records() { pool.take(len) } else { pool.borrow(len) }
    }

    /// Keeps what an operation saved, if its result gets a gradient.
    pub(super) fn save(&mut self, output: &Value, saved: Saved<T>) {
        if output.needs_grad {
            if self.saved.len() <= output.index {
                self.saved.resize_with(output.index + 1, Saved::default);
            }
            self.saved[output.index] = saved;
        }
    }

    /// Keeps the gradient of a feature.
    pub(super) fn probe(&mut self, output: &Value, dy: &[T]) -> Result<()> {
        let Backward { probes, features, .. } = &mut self.back;
        for (_, name) in probes.iter().filter(|(index, _)| *index == output.index) {
            features.push((name.clone(), tensor(output, dy)?));
        }
        Ok(())
    }

    /// Adds to the gradient of a value.
    pub(super) fn add(&mut self, index: usize, gradient: Buf<T>) {
        match self.grad(index) {
            Some(sum) => elementwise::add_to(sum, &gradient),
            empty => *empty = Some(gradient),
        }
    }

    /// Adds to the gradient of a value, copying since others still read the gradient.
    pub(super) fn add_copy(&mut self, index: usize, gradient: &[T]) {
        if let Some(sum) = self.grad(index) {
            elementwise::add_to(sum, gradient);
        } else {
            let mut copy = self.pool().take(gradient.len());
            elementwise::copy(gradient, &mut copy);
            *self.grad(index) = Some(copy);
        }
    }

    /// Takes the accumulated gradient of a value, or a new buffer; the flag says whether it holds a sum.
    pub(super) fn slot(&mut self, value: &Value) -> (Buf<T>, bool) {
        match self.grad(value.index).take() {
            Some(sum) => (sum, true),
            None => (self.pool().take(value.count()), false),
        }
    }

    /// Sets the gradient of a value, which [`Self::slot`] returned.
    pub(super) fn set(&mut self, value: &Value, gradient: Buf<T>) {
        *self.grad(value.index) = Some(gradient);
    }

    fn grad(&mut self, index: usize) -> &mut Option<Buf<T>> {
        let grads = &mut self.back.grads;
        if grads.len() <= index {
            grads.resize_with(index + 1, || None);
        }
        &mut grads[index]
    }

    /// Adds to the gradient of a parameter.
    pub(super) fn param(&mut self, id: ParamId, gradient: Buf<T>) {
        match self.back.params.get_mut(&id) {
            Some(sum) => elementwise::add_to(sum, &gradient),
            None => {
                self.back.params.insert(id, gradient);
            }
        }
    }

    /// Sets the gradients of a norm's input, and of its weight and bias.
    pub(super) fn norm_backward(
        &mut self,
        params: [ParamId; 2],
        sums: (Vec<f64>, Vec<f64>),
        input: &Value,
        dx: Buf<T>,
        context: &Context,
    ) {
        for (id, sums) in params.into_iter().zip([sums.0, sums.1]) {
            if context.trains(id) {
                let gradient = self.vector(sums.into_iter());
                self.param(id, gradient);
            }
        }
        if input.needs_grad {
            self.set(input, dx);
        }
    }

    /// Rounds values to a buffer.
    pub(super) fn vector(&self, values: impl ExactSizeIterator<Item = f64>) -> Buf<T> {
        let mut buf = self.pool().take(values.len());
        buf.iter_mut().zip(values).for_each(|(b, v)| *b = T::narrow(v));
        buf
    }
}

/// Copies NHWC values to a tensor `[B, C, H, W]` or `[B, D]`.
pub(super) fn tensor<T: Elem>(value: &Value, values: &[T]) -> Result<Tensor> {
    let [b, h, w, c] = value.shape;
    Ok(match value.flat {
        true => Tensor::from_slice(values, (b, c), &Device::Cpu)?,
        false => Tensor::from_slice(values, (b, h, w, c), &Device::Cpu)?.permute((0, 3, 1, 2))?,
    })
}

/// Element types of the CPU kernels.
pub(crate) trait Elem: Float {
    fn data(data: &Data) -> Option<&Arc<Buf<Self>>>;
    fn wrap(values: Arc<Buf<Self>>) -> Data;
    fn grad(values: Buf<Self>) -> Grad;
    fn pool(pools: &Pools) -> &Arc<Pool<Self>>;
}

macro_rules! elem {
    ($type:ty, $pool:ident, $variant:ident) => {
        impl Elem for $type {
            fn data(data: &Data) -> Option<&Arc<Buf<Self>>> {
                match data {
                    Data::$variant(values) => Some(values),
                    _ => None,
                }
            }
            fn wrap(values: Arc<Buf<Self>>) -> Data {
                Data::$variant(values)
            }
            fn grad(values: Buf<Self>) -> Grad {
                Grad::$variant(values)
            }
            fn pool(pools: &Pools) -> &Arc<Pool<Self>> {
                &pools.$pool
            }
        }
    };
}
elem!(f32, f32, F32);
elem!(f64, f64, F64);
