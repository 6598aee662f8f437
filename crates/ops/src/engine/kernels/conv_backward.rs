//! Backward pass of a convolution block.

use std::sync::Arc;

use super::dispatch::Dispatch;
use super::state::{ConvSaved, Elem, KernelsEngine};
use crate::Result;
use crate::buffers::Buf;
use crate::element::with_values;
use crate::engine::Context;
use crate::kernels::elementwise;
use crate::kernels::norm::{self, Slopes};
use crate::op::{Conv, Value};

impl<T: Elem> KernelsEngine<T> {
    pub(super) fn conv_backward(
        &mut self,
        op: &Conv,
        saved: ConvSaved<T>,
        inputs: &[Value],
        mut dz: Buf<T>,
        context: &mut Context,
    ) -> Result<()> {
        let started = context.profile.start();
        let (x, images) = (&inputs[0], inputs[0].shape[0]);
        // The shortcut, if it needs a gradient.
        let shortcut = inputs.get(1).filter(|s| s.needs_grad).map(|s| s.index);
        let c = op.spec.outputs;
        let rows = dz.len() / c;
        let pool = Arc::clone(self.pool());
        let vector = |values: &mut dyn Iterator<Item = f64>| {
            let mut buf = pool.take(c);
            buf.iter_mut().zip(values).for_each(|(b, v)| *b = T::narrow(v));
            buf
        };
        let mut scratch = pool.take(norm::scratch_len(rows, c));
        // A shortcut without batch norm shares its gradient with the convolution, which reads it first.
        let mut shared = None;
        // After this, dz is the gradient before the activation.
        let dy = if let (Some(norm), Some(stats), Some(y)) = (op.norm, &saved.stats, &saved.raw) {
            // A shortcut receives the masked gradient; without one the mask is applied on the fly.
            let affine = (&stats.a[..], &stats.b[..]);
            let open = inputs.len() == 1;
            let (sum, product) = if open {
                norm::open_backward_sums(&dz, affine, op.act, y, &stats.mean, &mut scratch)
            } else {
                let out = saved.result.as_deref().unwrap_or(y);
                norm::backward_sums(&mut dz, out, op.act, y, &stats.mean, &mut scratch)
            };
            if context.trains(norm.weight) {
                self.param(norm.weight, vector(&mut product.iter().zip(&stats.inverse).map(|(p, i)| p * i)));
            }
            if context.trains(norm.bias) {
                self.param(norm.bias, vector(&mut sum.iter().copied()));
            }
            if let Some(id) = op.bias.filter(|id| context.trains(*id)) {
                // Batch statistics cancel any shift.
                let through = if stats.batch { 0.0 } else { 1.0 };
                self.param(id, vector(&mut sum.iter().zip(&stats.wide_a).map(|(s, a)| through * a * s)));
            }
            let (mut k1, mut k2) = (vec![T::ZERO; c], vec![T::ZERO; c]);
            if stats.batch {
                let n = rows as f64;
                for i in 0..c {
                    let slope = -stats.wide_a[i] * stats.inverse[i] * stats.inverse[i] * product[i] / n;
                    k2[i] = T::narrow(slope);
                    k1[i] = T::narrow(-stats.wide_a[i] * sum[i] / n - slope * stats.wide_mean[i]);
                }
            }
            let pass = Dispatch::new(op, &saved.geo, x, context);
            if x.needs_grad && context.trains(op.weight) && shortcut != Some(x.index) && pass.is_pointwise() {
                let (a, k2, k1) = (&stats.a[..], &k2[..], &k1[..]);
                let slopes = Slopes { a, k2, k1, open: open.then_some((&stats.b[..], op.act)) };
                drop(scratch);
                context.profile.stop(started, || saved.geo.label("norm gradient"), 0);
                let started = context.profile.start();
                let (mut dx, holds) = self.slot(x);
                let weight = context.params.get(op.weight);
                let gradient = with_values::<T, _>(weight.var(), |w| {
                    pass.pointwise(&saved.values, (&dz, y), slopes, w, &mut dx, holds, self)
                })?;
                context.profile.stop(started, || saved.geo.label("gradients"), 2 * saved.geo.macs(images));
                self.param(op.weight, gradient);
                self.set(x, dx);
                if let Some(id) = shortcut {
                    self.add(id, dz);
                }
                return Ok(());
            }
            match shortcut {
                None if open => {
                    norm::open_backward_input(&mut dz, affine, op.act, y, &k2, &k1);
                    dz
                }
                shortcut => {
                    let mut dy = pool.take(dz.len());
                    norm::backward_input(&dz, y, &stats.a, &k2, &k1, &mut dy);
                    if let Some(id) = shortcut {
                        self.add(id, dz);
                    }
                    dy
                }
            }
        } else {
            let bias = op.bias.filter(|id| context.trains(*id));
            if let (Some(bounds), Some(out)) = (op.act.bounds(), &saved.result) {
                elementwise::mask(&mut dz, out, T::narrow(bounds.0), T::narrow(bounds.1));
            }
            if let Some(id) = bias {
                let sum = norm::column_sums(&dz, c, &mut scratch);
                self.param(id, vector(&mut sum.iter().copied()));
            }
            shared = shortcut;
            dz
        };
        drop(scratch);
        context.profile.stop(started, || saved.geo.label("norm gradient"), 0);
        drop(saved.raw);
        let pass = Dispatch::new(op, &saved.geo, x, context);
        if context.trains(op.weight) {
            let source = saved.padded.as_deref().unwrap_or(&saved.values);
            let started = context.profile.start();
            let gradient = pass.weight_gradient(source, &dy, self);
            context.profile.stop(started, || saved.geo.label("weight gradient"), saved.geo.macs(images));
            self.param(op.weight, gradient);
        }
        if x.needs_grad {
            let started = context.profile.start();
            let (mut dx, holds) = self.slot(x);
            let weight = context.params.get(op.weight);
            with_values::<T, _>(weight.var(), |w| pass.data_gradient(&dy, w, &mut dx, holds, self))?;
            self.set(x, dx);
            context.profile.stop(started, || saved.geo.label("data gradient"), saved.geo.macs(images));
        }
        if let Some(id) = shared {
            self.add(id, dy);
        }
        Ok(())
    }
}
