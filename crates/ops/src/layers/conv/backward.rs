//! The backward pass of a block.

use std::sync::Arc;

use super::pass::Pass;
use super::{ConvBnAct, Stats};
use crate::Result;
use crate::buffers::Buf;
use crate::element::with_values;
use crate::kernels::elementwise;
use crate::kernels::geometry::ConvGeo;
use crate::kernels::norm::{self, Slopes};
use crate::tape::{Backward, Elem, Tape};

/// What the backward pass of a block needs.
#[derive(Debug)]
pub(crate) struct ConvRecord<T> {
    pub(crate) out: usize,
    pub(super) layer: ConvBnAct,
    pub(super) geo: Arc<ConvGeo>,
    pub(super) images: usize,
    pub(super) x: (usize, bool),
    pub(super) values: Arc<Buf<T>>,
    pub(super) padded: Option<Buf<T>>,
    /// Before batch norm.
    pub(super) raw: Option<Buf<T>>,
    pub(super) stats: Option<Stats<T>>,
    /// What came out, where the activation's derivative is read off it.
    pub(super) result: Option<Arc<Buf<T>>>,
    /// The shortcut, if it needs a gradient.
    pub(super) shortcut: Option<usize>,
    /// Whether a shortcut was added at all.
    pub(super) shifted: bool,
}

impl<T: Elem> ConvRecord<T> {
    pub(crate) fn backward(self, mut dz: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        let started = tape.started();
        let layer = &self.layer;
        let c = layer.spec.outputs;
        let rows = dz.len() / c;
        let pool = Arc::clone(&back.pool);
        let vector = |values: &mut dyn Iterator<Item = f64>| {
            let mut buf = pool.take(c);
            buf.iter_mut().zip(values).for_each(|(b, v)| *b = T::of(v));
            buf
        };
        let mut scratch = pool.take(norm::scratch_len(rows, c));
        // A shortcut without batch norm shares its gradient with the convolution, which goes first.
        let mut shared = None;
        // After this dz is the gradient before the activation.
        let dy = if let (Some(norm), Some(stats), Some(y)) = (layer.norm, &self.stats, &self.raw) {
            // A shortcut takes the masked gradient; without one the mask is made where it is used.
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
                // Statistics of the batch take any shift away again.
                let through = if stats.batch { 0.0 } else { 1.0 };
                back.param(id, vector(&mut sum.iter().zip(&stats.wide_a).map(|(s, a)| through * a * s)));
            }
            let (mut k1, mut k2) = (vec![T::ZERO; c], vec![T::ZERO; c]);
            if stats.batch {
                let n = rows as f64;
                for i in 0..c {
                    let slope = -stats.wide_a[i] * stats.inverse[i] * stats.inverse[i] * product[i] / n;
                    k2[i] = T::of(slope);
                    k1[i] = T::of(-stats.wide_a[i] * sum[i] / n - slope * stats.wide_mean[i]);
                }
            }
            let pass = Pass { layer, geo: &self.geo, images: self.images };
            if let (id, true) = self.x
                && tape.trains(layer.weight)
                && self.shortcut != Some(id)
                && pass.is_pointwise()
            {
                let (a, k2, k1) = (&stats.a[..], &k2[..], &k1[..]);
                let slopes = Slopes { a, k2, k1, open: open.then_some((&stats.b[..], layer.act)) };
                drop(scratch);
                tape.ended(started, || self.geo.work("norm gradient"), 0);
                let started = tape.started();
                let (mut dx, holds) = back.slot(id, self.values.len());
                let weight = tape.params().get(layer.weight);
                let gradient = with_values::<T, _>(weight.var(), |w| {
                    pass.pointwise(&self.values, (&dz, y), slopes, w, &mut dx, holds, tape)
                })?;
                tape.ended(started, || self.geo.work("gradients"), 2 * self.geo.macs(self.images));
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
                elementwise::mask(&mut dz, out, T::of(bounds.0), T::of(bounds.1));
            }
            if let Some(id) = bias {
                let sum = norm::column_sums(&dz, c, &mut scratch);
                back.param(id, vector(&mut sum.iter().copied()));
            }
            shared = self.shortcut;
            dz
        };
        drop(scratch);
        tape.ended(started, || self.geo.work("norm gradient"), 0);
        drop(self.raw);
        let pass = Pass { layer, geo: &self.geo, images: self.images };
        if tape.trains(layer.weight) {
            let source = self.padded.as_deref().unwrap_or(&self.values);
            let started = tape.started();
            let gradient = pass.weight_gradient(source, &dy, tape);
            tape.ended(started, || self.geo.work("weight gradient"), self.geo.macs(self.images));
            back.param(layer.weight, gradient);
        }
        if let (id, true) = self.x {
            let started = tape.started();
            let (mut dx, holds) = back.slot(id, self.values.len());
            let weight = tape.params().get(layer.weight);
            with_values::<T, _>(weight.var(), |w| pass.data_gradient(&dy, w, &mut dx, holds, tape))?;
            back.grads[id] = Some(dx);
            tape.ended(started, || self.geo.work("data gradient"), self.geo.macs(self.images));
        }
        if let Some(id) = shared {
            back.add(id, dy);
        }
        Ok(())
    }
}
