//! Kernels engine: NHWC maps in pooled buffers, and the crate's own CPU kernels.

mod attention;
mod conv;
mod conv_backward;
mod dispatch;
mod expression;
mod state;

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use self::state::Saved;
pub(crate) use self::state::{Elem, KernelsEngine};
use super::{Context, Engine, Expression, Source};
use crate::buffers::Pools;
use crate::element::with_values;
use crate::gradients::Gradients;
use crate::kernels::group_norm::Groups;
use crate::kernels::pool::{MaxPool, spread, sum_pixels};
use crate::kernels::resample::{AxisWeights, resample};
use crate::kernels::{dropout, elementwise, layer_norm, patches};
use crate::mode::Mode;
use crate::node::{Data, Feature, Node};
use crate::op::{Entry, Op, Value};
use crate::{Error, Result};

impl<T: Elem> Engine for KernelsEngine<T> {
    fn begin(&mut self) {
        self.saved.clear();
        self.shifts.clear();
    }

    fn records(&self, output: &Value) -> bool {
        output.needs_grad
    }

    fn forward(&mut self, op: &Op, inputs: &[&Node], output: &Value, context: &mut Context) -> Result<Data> {
        let started = context.profile.start();
        let input = &inputs.first().ok_or_else(|| Error::usage(op.name(), "needs an input"))?.value;
        let [images, h, w, channels] = input.shape;
        let x = self.values(op, inputs[0])?;
        let (mut saved, mut saves_result) = (Saved::None, false);
        let out = match op {
            Op::Input | Op::Opaque(_) | Op::Expression => {
                return Err(Error::usage(op.name(), "is not computed from nodes"));
            }
            Op::Conv(conv) => {
                let shortcut = inputs.get(1).map(|s| self.values(op, s)).transpose()?;
                return self.conv(conv, x, input, shortcut, output, context);
            }
            &Op::MaxPool { kernel, stride, padding } => {
                let len = output.count();
                let (mut out, mut which) = (self.pool().take(len), self.pools.bytes.take(len));
                max_pool([kernel, stride, padding], input, output).forward(images, &x, &mut out, &mut which);
                saved = Saved::Indices(which);
                out
            }
            Op::GlobalAveragePool => {
                let mut out = self.map(output, context);
                sum_pixels(&x, h * w, channels, T::narrow(1.0 / (h * w) as f64), &mut out);
                out
            }
            Op::Relu => {
                let mut out = self.map(output, context);
                elementwise::clamp(&x, T::ZERO, T::narrow(f64::INFINITY), &mut out);
                saves_result = true;
                out
            }
            Op::Add => {
                let mut out = self.map(output, context);
                elementwise::add(&x, &self.values(op, inputs[1])?, &mut out);
                out
            }
            Op::Concat => {
                let (mut out, mut first) = (self.map(output, context), 0);
                for x in inputs {
                    let (values, part) = (self.values(op, x)?, x.channels());
                    elementwise::copy_columns(&values, (part, 0), &mut out, (output.shape[3], first), part);
                    first += part;
                }
                out
            }
            Op::Resize { .. } | Op::AdaptiveAveragePool { .. } => {
                let [rows, columns] = axes(op, input, output);
                let mut out = self.map(output, context);
                resample(&x, &rows, &columns, channels, false, &mut out);
                saved = Saved::Axes(rows, columns);
                out
            }
            Op::Expand { size } => {
                let mut out = self.map(output, context);
                spread(&x, size[0] * size[1], channels, T::narrow(1.0), false, &mut out);
                out
            }
            Op::LayerNorm { weight, bias, eps, .. } => {
                let mut out = self.pool().take(x.len());
                let mut stats = self.pool().take(x.len() / channels * 2);
                with_values::<T, _>(context.params.get(*weight).var(), |gamma| {
                    with_values::<T, _>(context.params.get(*bias).var(), |beta| {
                        layer_norm::forward(&x, (gamma, beta), *eps, &mut out, &mut stats);
                    })
                })??;
                saved = Saved::Normalized(x, stats);
                out
            }
            Op::GroupNorm { groups, weight, bias, eps, .. } => {
                let mut out = self.pool().take(x.len());
                let mut stats = self.pool().take(2 * images * groups);
                with_values::<T, _>(context.params.get(*weight).var(), |gamma| {
                    with_values::<T, _>(context.params.get(*bias).var(), |beta| {
                        group_norm(input, *groups).forward(&x, (gamma, beta), *eps, &mut out, &mut stats);
                    })
                })??;
                saved = Saved::Normalized(x, stats);
                out
            }
            Op::Gelu => {
                let mut out = self.map(output, context);
                elementwise::gelu(&x, &mut out);
                saved = Saved::Values(x);
                out
            }
            Op::Elu => {
                let mut out = self.map(output, context);
                elementwise::elu(&x, &mut out);
                saves_result = true;
                out
            }
            Op::Dropout { p } => {
                let mut mask = self.pool().take(x.len());
                dropout::fill_mask(&mut mask, context.draw_key(output.index), *p);
                let mut out = self.pool().take(x.len());
                elementwise::multiply(&x, &mask, &mut out);
                saved = Saved::Mask(mask);
                out
            }
            Op::DropPath { p } => {
                let factors = dropout::image_factors(images, context.draw_key(output.index), *p);
                let mut out = self.map(output, context);
                elementwise::scale_images(&x, &factors, &mut out);
                saved = Saved::Factors(factors);
                out
            }
            Op::WindowAttention(attention) => {
                let (out, inner) = self.attention(attention, x, output, context)?;
                saved = Saved::Attention(Box::new(inner));
                out
            }
            Op::MergePatches => {
                let mut out = self.map(output, context);
                patches::merge(&x, input.shape, &mut out);
                out
            }
        };
        context.profile.stop(started, || label(op, input, "forward"), 0);
        let out = Arc::new(out);
        if saves_result {
            saved = Saved::Values(Arc::clone(&out));
        }
        self.save(output, saved);
        Ok(T::wrap(out))
    }

    fn import(&mut self, tensor: Source, output: &Value, context: &Context) -> Result<Data> {
        let tensor = tensor()?.to_dtype(T::TYPE)?;
        let mut values = self.map(output, context);
        let [_, h, w, c] = output.shape;
        with_values::<T, _>(&tensor, |x| elementwise::channels_last(x, c, h * w, &mut values))?;
        Ok(T::wrap(Arc::new(values)))
    }

    fn expression(
        &mut self,
        f: Expression,
        inputs: &[&Node],
        output: (usize, bool),
        context: &Context,
    ) -> Result<([usize; 4], bool, Data)> {
        self.run_expression(f, inputs, output, context)
    }

    fn export(&self, x: &Node, context: &Context) -> Result<(Tensor, Option<Var>)> {
        let values = state::values::<T>("feature", x)?;
        let [b, h, w, c] = x.value.shape;
        let shape = if x.value.flat { vec![b, c] } else { vec![b, h, w, c] };
        let (stored, leaf) = if context.mode.records() && x.value.needs_grad {
            let leaf = Var::from_slice(values, shape, &Device::Cpu)?;
            (leaf.as_tensor().clone(), Some(leaf))
        } else {
            (Tensor::from_slice(values, shape, &Device::Cpu)?, None)
        };
        Ok((if x.value.flat { stored } else { stored.permute((0, 3, 1, 2))? }, leaf))
    }

    fn begin_backward(&mut self, features: &[Feature], store: &GradStore, context: &Context) -> Result<()> {
        for feature in features {
            if let Some(g) = feature.leaf.as_ref().and_then(|leaf| store.get(leaf)) {
                let mut buf = self.pool().take(g.elem_count());
                with_values::<T, _>(g, |g| buf.copy_from_slice(g))?;
                self.add(feature.index, buf);
            }
            if context.mode == Mode::EvalWithGrad {
                self.back.probes.push((feature.index, feature.name.clone()));
            }
        }
        Ok(())
    }

    fn has_gradient(&self, index: usize) -> bool {
        self.back.grads.get(index).is_some_and(Option::is_some)
    }

    fn backward(&mut self, entry: &Entry, context: &mut Context) -> Result<()> {
        let Entry { op, inputs, output } = entry;
        let saved = self.saved.get_mut(output.index).map(std::mem::take).unwrap_or_default();
        let Some(mut dy) = self.back.grads.get_mut(output.index).and_then(Option::take) else {
            return Ok(());
        };
        self.probe(output, &dy)?;
        if let (Op::Expression, Saved::Expression(result, leaves)) = (op, &saved) {
            return self.expression_backward(result, leaves, output, &dy);
        }
        let Some(input) = inputs.first() else { return Ok(()) };
        let started = context.profile.start();
        let [_, h, w, channels] = input.shape;
        match (op, saved) {
            (Op::Conv(conv), Saved::Conv(saved)) => {
                return self.conv_backward(conv, *saved, inputs, dy, context);
            }
            (&Op::MaxPool { kernel, stride, padding }, Saved::Indices(which)) => {
                let (mut dx, holds) = self.slot(input);
                if !holds {
                    dx.fill(T::ZERO);
                }
                max_pool([kernel, stride, padding], input, output).backward(
                    input.shape[0],
                    &dy,
                    &which,
                    &mut dx,
                );
                self.set(input, dx);
            }
            (Op::GlobalAveragePool, _) => {
                let (mut dx, holds) = self.slot(input);
                spread(&dy, h * w, channels, T::narrow(1.0 / (h * w) as f64), holds, &mut dx);
                self.set(input, dx);
            }
            (Op::Relu, Saved::Values(y)) => {
                elementwise::mask(&mut dy, &y, T::ZERO, T::narrow(f64::INFINITY));
                self.add(input.index, dy);
            }
            (Op::Add, _) => {
                let mut inputs = inputs.iter().filter(|x| x.needs_grad);
                let last = inputs.next_back();
                for x in inputs {
                    self.add_copy(x.index, &dy);
                }
                if let Some(x) = last {
                    self.add(x.index, dy);
                }
            }
            (Op::Concat, _) => {
                let (all, mut first) = (output.shape[3], 0);
                for x in inputs {
                    let part = x.shape[3];
                    if x.needs_grad {
                        let mut dx = self.pool().take(x.count());
                        elementwise::copy_columns(&dy, (all, first), &mut dx, (part, 0), part);
                        self.add(x.index, dx);
                    }
                    first += part;
                }
            }
            (Op::Resize { .. } | Op::AdaptiveAveragePool { .. }, Saved::Axes(rows, columns)) => {
                let (mut dx, holds) = self.slot(input);
                resample(&dy, &rows.transposed(), &columns.transposed(), channels, holds, &mut dx);
                self.set(input, dx);
            }
            (Op::Expand { size }, _) => {
                let mut dx = self.pool().take(input.count());
                sum_pixels(&dy, size[0] * size[1], channels, T::narrow(1.0), &mut dx);
                self.add(input.index, dx);
            }
            (Op::LayerNorm { weight, bias, .. }, Saved::Normalized(x, stats)) => {
                let (mut dx, holds) = self.slot(input);
                let mut scratch = self.pool().take(layer_norm::scratch_len(dy.len() / channels, channels));
                let sums = with_values::<T, _>(context.params.get(*weight).var(), |gamma| {
                    layer_norm::backward((&x, &dy), gamma, &stats, holds, &mut dx, &mut scratch)
                })?;
                self.norm_backward([*weight, *bias], sums, input, dx, context);
            }
            (Op::GroupNorm { groups, weight, bias, .. }, Saved::Normalized(x, stats)) => {
                let (mut dx, holds) = self.slot(input);
                let sums = with_values::<T, _>(context.params.get(*weight).var(), |gamma| {
                    group_norm(input, *groups).backward((&x, &dy), gamma, &stats, holds, &mut dx)
                })?;
                self.norm_backward([*weight, *bias], sums, input, dx, context);
            }
            (Op::Gelu, Saved::Values(x)) => {
                elementwise::gelu_backward(&x, &mut dy);
                self.add(input.index, dy);
            }
            (Op::Elu, Saved::Values(y)) => {
                elementwise::elu_backward(&y, &mut dy);
                self.add(input.index, dy);
            }
            (Op::Dropout { .. }, Saved::Mask(mask)) => {
                let mut dx = self.pool().take(dy.len());
                elementwise::multiply(&dy, &mask, &mut dx);
                self.add(input.index, dx);
            }
            (Op::DropPath { .. }, Saved::Factors(factors)) => {
                let mut dx = self.pool().take(dy.len());
                elementwise::scale_images(&dy, &factors, &mut dx);
                self.add(input.index, dx);
            }
            (Op::WindowAttention(attention), Saved::Attention(saved)) => {
                self.attention_backward(attention, &saved, (input, output), &dy, context);
            }
            (Op::MergePatches, _) => {
                let mut dx = self.pool().take(input.count());
                patches::split(&dy, input.shape, &mut dx);
                self.add(input.index, dx);
            }
            (
                Op::Input
                | Op::Opaque(_)
                | Op::Expression
                | Op::Conv(_)
                | Op::MaxPool { .. }
                | Op::Relu
                | Op::Resize { .. }
                | Op::AdaptiveAveragePool { .. }
                | Op::LayerNorm { .. }
                | Op::GroupNorm { .. }
                | Op::Gelu
                | Op::Elu
                | Op::Dropout { .. }
                | Op::DropPath { .. }
                | Op::WindowAttention(_),
                _,
            ) => return Err(Error::usage(op.name(), "the forward pass saved nothing")),
        }
        context.profile.stop(started, || label(op, input, "backward"), 0);
        Ok(())
    }

    fn end_backward(&mut self, gradients: &mut Gradients) -> Result<()> {
        let back = std::mem::take(&mut self.back);
        gradients.features.extend(back.features);
        for store in &back.stores {
            gradients.collect(store)?;
        }
        for (id, values) in back.params {
            gradients.insert(id, T::grad(values))?;
        }
        Ok(())
    }

    fn discard_from(&mut self, first: usize) {
        self.saved.truncate(first);
    }

    fn pools(&self) -> Option<&Pools> {
        Some(&self.pools)
    }

    fn set_pools(&mut self, pools: &Pools) {
        self.pools = pools.clone();
    }
}

/// Name of an operation in a profile.
fn label(op: &Op, input: &Value, part: &str) -> String {
    let [_, h, w, channels] = input.shape;
    format!("{} of {channels}, on {h}x{w}: {part}", op.name())
}

/// Geometry of a max pooling.
fn max_pool(window: [usize; 3], input: &Value, output: &Value) -> MaxPool {
    let ([input, output], channels, [kernel, stride, padding]) =
        ([input.size(), output.size()], input.shape[3], window);
    MaxPool { input, output, channels, kernel, stride, padding }
}

fn group_norm(input: &Value, groups: usize) -> Groups {
    let [images, h, w, channels] = input.shape;
    Groups { images, pixels: h * w, channels, groups }
}

/// Weights of a separable resampling, of rows and of columns.
fn axes(op: &Op, input: &Value, output: &Value) -> [AxisWeights; 2] {
    [1, 2].map(|axis| {
        let (from, to) = (input.shape[axis], output.shape[axis]);
        match op {
            Op::Resize { align_corners, .. } => AxisWeights::bilinear(from, to, *align_corners),
            _ => AxisWeights::adaptive_average(from, to),
        }
    })
}
