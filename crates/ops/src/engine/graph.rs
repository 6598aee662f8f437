//! Graph engine: runs operations as a candle graph instead of on the CPU kernels.
//!
//! A node holds a candle tensor, `[B, C, H, W]` or `[B, D]`; operations are composed of [`crate::graph`] and
//! candle operations, and candle's backward computes the gradients. Memory order of a map (channels last or
//! first) is up to the operation: a permuted view costs nothing.
//!
//! In bf16, nodes are bf16 and parameters f32. An operation takes its precision from its input map,
//! rounds weights that are multiplied with it, and reduces over pixels, channels or tokens in f32, in
//! both directions ([`crate::graph::upcast`]).

mod conv;
mod state;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

pub(crate) use self::state::GraphEngine;
use self::state::weight;
use super::{Context, Engine, Expression, Source, shape_of};
use crate::element::{Float, dispatch_dtype};
use crate::gradients::Gradients;
use crate::graph::{self, WindowTables};
use crate::kernels::activation::Activation;
use crate::kernels::attention::Windows;
use crate::kernels::dropout;
use crate::kernels::pool::MaxPool;
use crate::kernels::resample::AxisWeights;
use crate::mode::Mode;
use crate::node::{Data, Feature, Node};
use crate::op::{Attention, Entry, Op, Value};
use crate::{Error, Result};

/// Returns the tensor of a node.
fn tensor(op: &'static str, x: &Node) -> Result<Tensor> {
    match &x.data {
        Data::Tensor(t) => Ok(t.clone()),
        _ => Err(Error::usage(op, "the node belongs to a tape with another engine")),
    }
}

impl Engine for GraphEngine {
    fn begin(&mut self) {
        self.probes.clear();
    }

    /// candle keeps the graph.
    fn records(&self, _: &Value) -> bool {
        false
    }

    fn forward(&mut self, op: &Op, inputs: &[&Node], output: &Value, context: &mut Context) -> Result<Data> {
        let tensors: Vec<Tensor> = inputs.iter().map(|x| tensor(op.name(), x)).collect::<Result<_>>()?;
        let x = &tensors[0];
        let y = match op {
            Op::Input | Op::Opaque(_) | Op::Expression => {
                return Err(Error::usage(op.name(), "is not computed from nodes"));
            }
            Op::Conv(conv) => self.conv(conv, &inputs[0].value, x, tensors.get(1), context)?,
            &Op::MaxPool { kernel, stride, padding } => {
                let ([input, output], channels) = ([inputs[0].value.size(), output.size()], output.shape[3]);
                graph::max_pool(x, MaxPool { input, output, channels, kernel, stride, padding })?
            }
            Op::GlobalAveragePool => graph::global_average(x)?,
            Op::Relu => graph::activate(x, Activation::Relu)?,
            Op::Add => graph::add(x, &tensors[1])?,
            Op::Concat => Tensor::cat(&tensors, 1)?,
            Op::Resize { align_corners, .. } => {
                let along = |axis: usize| {
                    AxisWeights::bilinear(inputs[0].value.shape[axis], output.shape[axis], *align_corners)
                };
                graph::resample(x, &along(1), &along(2))?
            }
            Op::AdaptiveAveragePool { .. } => {
                let along = |axis: usize| {
                    AxisWeights::adaptive_average(inputs[0].value.shape[axis], output.shape[axis])
                };
                graph::resample(x, &along(1), &along(2))?
            }
            Op::Expand { size } => graph::expand(x, (size[0], size[1]))?,
            Op::LayerNorm { weight: gamma, bias, eps, .. } => {
                graph::layer_norm(x, &weight(*gamma, context), &weight(*bias, context), *eps)?
            }
            Op::GroupNorm { groups, weight: gamma, bias, eps, .. } => {
                graph::group_norm(x, *groups, &weight(*gamma, context), &weight(*bias, context), *eps)?
            }
            Op::Gelu => graph::gelu(x)?,
            Op::Elu => x.elu(1.0)?,
            Op::Dropout { p } => {
                let key = context.draw_key(output.index);
                dispatch_dtype!(context.params, T => {
                    let mut scale = vec![T::ZERO; output.count()];
                    dropout::fill_mask(&mut scale, key, *p);
                    graph::scale(x, scale, output.shape)?
                })
            }
            Op::DropPath { p } => {
                let key = context.draw_key(output.index);
                graph::scale_images(x, &dropout::image_factors(output.shape[0], key, *p))?
            }
            Op::WindowAttention(attention) => self.attention(attention, x, output, context)?,
            Op::MergePatches => graph::merge_patches(x)?,
        };
        self.wrap(y, output.index, context)
    }

    fn import(&mut self, tensor: Source, output: &Value, context: &Context) -> Result<Data> {
        let t = tensor()?.to_device(context.params.device())?;
        self.wrap(t.to_dtype(context.map_type())?, output.index, context)
    }

    fn expression(
        &mut self,
        f: Expression,
        inputs: &[&Node],
        (index, _): (usize, bool),
        context: &Context,
    ) -> Result<([usize; 4], bool, Data)> {
        let dtype = context.params.dtype();
        let inputs = inputs.iter().map(|x| Ok(tensor("graph", x)?.to_dtype(dtype)?));
        let y = f(&inputs.collect::<Result<Vec<_>>>()?)?;
        let (shape, flat) = shape_of("graph", y.dims())?;
        Ok((shape, flat, self.wrap(y, index, context)?))
    }

    fn export(&self, x: &Node, context: &Context) -> Result<(Tensor, Option<Var>)> {
        Ok((tensor("feature", x)?.to_dtype(context.params.dtype())?, None))
    }

    fn begin_backward(&mut self, features: &[Feature], store: &GradStore, context: &Context) -> Result<()> {
        let found = features.iter().filter_map(|feature| {
            let gradient = store.get(self.probes.get(&feature.index)?)?.to_dtype(context.params.dtype());
            Some(gradient.map(|g| (feature.name.clone(), g)).map_err(Error::from))
        });
        self.features = found.collect::<Result<_>>()?;
        Ok(())
    }

    /// candle propagated the gradients.
    fn backward(&mut self, _: &Entry, _: &mut Context) -> Result<()> {
        Ok(())
    }

    fn end_backward(&mut self, gradients: &mut Gradients) -> Result<()> {
        gradients.features.append(&mut self.features);
        Ok(())
    }

    fn discard_folded(&mut self) {
        self.folded.clear();
    }
}

impl GraphEngine {
    /// Makes a value of a tensor of the dtype of the maps or of the parameters.
    fn wrap(&mut self, t: Tensor, index: usize, context: &Context) -> Result<Data> {
        let dtype = context.params.dtype();
        if ![dtype, context.map_type()].contains(&t.dtype()) {
            return Err(Error::shape("graph", format!("a result of {dtype:?}"), t.dtype()));
        }
        let t = t.to_dtype(context.map_type())?;
        Ok(Data::Tensor(match context.mode {
            Mode::EvalWithGrad => {
                let probe = Var::zeros(t.shape(), t.dtype(), t.device())?;
                let probed = (&t + probe.as_tensor())?;
                self.probes.insert(index, probe);
                probed
            }
            mode if mode.records() => t,
            _ => t.detach(),
        }))
    }

    fn attention(
        &mut self,
        op: &Attention,
        qkv: &Tensor,
        output: &Value,
        context: &Context,
    ) -> Result<Tensor> {
        let (dtype, device) = (context.params.dtype(), context.params.device());
        let table = weight(op.table, context);
        let outside = match op.bias {
            Some(id) => weight(id, context),
            None => Tensor::zeros(3 * output.shape[3], dtype, device)?,
        };
        let key = [output.size(), op.window, op.shift];
        let tables = match self.windows.get(&key) {
            Some(tables) => tables.clone(),
            None => {
                let windows = Windows::new(output.size(), op.window, op.shift);
                let tables = WindowTables::new(&windows, dtype, device)?;
                self.windows.insert(key, tables.clone());
                tables
            }
        };
        graph::window_attention(qkv, &outside, &table, op.heads, &tables)
    }
}
