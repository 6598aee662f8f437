//! Backward pass of a block.

use std::sync::Arc;

use super::dispatch::Dispatch;
use super::{ConvBnAct, Stats};
use crate::Result;
use crate::buffers::Buf;
use crate::element::with_values;
use crate::kernels::elementwise;
use crate::kernels::geometry::ConvGeo;
use crate::kernels::norm::{self, Slopes};
use crate::tape::{Backward, Elem, Tape};

/// Values saved for the backward pass of a block.
#[derive(Debug)]
pub(crate) struct ConvRecord<T> {
    pub(crate) out: usize,
    pub(super) layer: ConvBnAct,
    pub(super) geo: Arc<ConvGeo>,
    pub(super) images: usize,
    pub(super) x: (usize, bool),
    pub(super) values: Arc<Buf<T>>,
    pub(super) padded: Option<Buf<T>>,
    /// Input of batch norm.
    pub(super) raw: Option<Buf<T>>,
    pub(super) stats: Option<Stats<T>>,
    /// Result, if the activation's derivative is computed from it.
    pub(super) result: Option<Arc<Buf<T>>>,
    /// The shortcut, if it needs a gradient.
    pub(super) shortcut: Option<usize>,
    /// Whether a shortcut was added.
    pub(super) shifted: bool,
}

impl<T: Elem> ConvRecord<T> {
    pub(crate) fn backward(self, mut dz: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        let started = tape.start_timer();
        let layer = &self.layer;
        let c = layer.spec.outputs;
        let rows = dz.len() / c;
        let pool = Arc::clone(&back.pool);
        let vector = |values: &mut dyn Iterator<Item = f64>| {
            let mut buf = pool.take(c);
            buf.iter_mut().zip(values).for_each(|(b, v)| *b = T::narrow(v));
            buf
        };
        let mut scratch = pool.take(norm::scratch_len(rows, c));
        // A shortcut without batch norm shares its gradient with the convolution, which reads it first.
        let mut shared = None;
        // After this, dz is the gradient before the activation.
        let dy = if let (Some(norm), Some(stats), Some(y)) = (layer.norm, &self.stats, &self.raw) {
            // A shortcut receives the masked gradient; without one the mask is applied on the fly.
            let affine = (&stats.a[..], &stats.b[..]);
            let open = self.shortcut.is_none() && !self.shifted;
            let (sum, product) = if open {
                norm::open_backward_sums(&dz, affine, layer.act, y, &stats.mean, &mut scratch)
            } else {
                let out = self.result.as_deref().unwrap_or(y);
                norm::backward_sums(&mut dz, out, layer.act, y, &stats.mean, &mut scratch)
            };
            if tape.trains(norm.weight) {
                back.param(norm.weight, vector(&mut product.iter().zip(&stats.inverse).map(|(p, i)| p * i)));
            }
            if tape.trains(norm.bias) {
                back.param(norm.bias, vector(&mut sum.iter().copied()));
            }
            if let Some(id) = layer.bias.filter(|id| tape.trains(*id)) {
                // Batch statistics cancel any shift.
                let through = if stats.batch { 0.0 } else { 1.0 };
                back.param(id, vector(&mut sum.iter().zip(&stats.wide_a).map(|(s, a)| through * a * s)));
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
            let pass = Dispatch { layer, geo: &self.geo, images: self.images };
            if let (id, true) = self.x
                && tape.trains(layer.weight)
                && self.shortcut != Some(id)
                && pass.is_pointwise()
            {
                let (a, k2, k1) = (&stats.a[..], &k2[..], &k1[..]);
                let slopes = Slopes { a, k2, k1, open: open.then_some((&stats.b[..], layer.act)) };
                drop(scratch);
                tape.stop_timer(started, || self.geo.label("norm gradient"), 0);
                let started = tape.start_timer();
                let (mut dx, holds) = back.slot(id, self.values.len());
                let weight = tape.params().get(layer.weight);
                let gradient = with_values::<T, _>(weight.var(), |w| {
                    pass.pointwise(&self.values, (&dz, y), slopes, w, &mut dx, holds, tape)
                })?;
                tape.stop_timer(started, || self.geo.label("gradients"), 2 * self.geo.macs(self.images));
                back.param(layer.weight, gradient);
                back.grads[id] = Some(dx);
                if let Some(id) = self.shortcut {
                    back.add(id, dz);
                }
                return Ok(());
            }
            match self.shortcut {
                None if open => {
                    norm::open_backward_input(&mut dz, affine, layer.act, y, &k2, &k1);
                    dz
                }
                shortcut => {
                    let mut dy = pool.take(dz.len());
                    norm::backward_input(&dz, y, &stats.a, &k2, &k1, &mut dy);
                    if let Some(id) = shortcut {
                        back.add(id, dz);
                    }
                    dy
                }
            }
        } else {
            let bias = layer.bias.filter(|id| tape.trains(*id));
            if let (Some(bounds), Some(out)) = (layer.act.bounds(), &self.result) {
                elementwise::mask(&mut dz, out, T::narrow(bounds.0), T::narrow(bounds.1));
            }
            if let Some(id) = bias {
                let sum = norm::column_sums(&dz, c, &mut scratch);
                back.param(id, vector(&mut sum.iter().copied()));
            }
            shared = self.shortcut;
            dz
        };
        drop(scratch);
        tape.stop_timer(started, || self.geo.label("norm gradient"), 0);
        drop(self.raw);
        let pass = Dispatch { layer, geo: &self.geo, images: self.images };
        if tape.trains(layer.weight) {
            let source = self.padded.as_deref().unwrap_or(&self.values);
            let started = tape.start_timer();
            let gradient = pass.weight_gradient(source, &dy, tape);
            tape.stop_timer(started, || self.geo.label("weight gradient"), self.geo.macs(self.images));
            back.param(layer.weight, gradient);
        }
        if let (id, true) = self.x {
            let started = tape.start_timer();
            let (mut dx, holds) = back.slot(id, self.values.len());
            let weight = tape.params().get(layer.weight);
            with_values::<T, _>(weight.var(), |w| pass.data_gradient(&dy, w, &mut dx, holds, tape))?;
            back.grads[id] = Some(dx);
            tape.stop_timer(started, || self.geo.label("data gradient"), self.geo.macs(self.images));
        }
        if let Some(id) = shared {
            back.add(id, dy);
        }
        Ok(())
    }
}
