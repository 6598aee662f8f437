//! Convolution, batch norm, shortcut and activation as one block: forward pass.

use std::sync::{Arc, OnceLock};

use super::dispatch::Dispatch;
use super::state::{ConvSaved, Elem, Folded, KernelsEngine, Saved, Stats};
use crate::buffers::Buf;
use crate::element::with_values;
use crate::engine::{Context, Segment};
use crate::kernels::activation::Activation;
use crate::kernels::indirect_gemm::Epilogue;
use crate::kernels::norm::Sums;
use crate::kernels::{SharedSlice, norm, winograd};
use crate::mode::Mode;
use crate::node::Data;
use crate::op::{BN_MOMENTUM, BatchNorm, Conv, Value};
use crate::{Error, ParamId, Result};

/// Values of a parameter in f64.
fn wide<T: Elem>(id: ParamId, context: &Context) -> Result<Vec<f64>> {
    let param = context.params.get(id);
    Ok(with_values::<T, _>(param.var(), |v| v.iter().map(|x| x.widen()).collect())?)
}

fn narrow<T: Elem>(values: &[f64]) -> Vec<T> {
    values.iter().map(|x| T::narrow(*x)).collect()
}

impl<T: Elem> KernelsEngine<T> {
    pub(super) fn conv(
        &mut self,
        op: &Conv,
        values: Arc<Buf<T>>,
        input: &Value,
        shortcut: Option<Arc<Buf<T>>>,
        output: &Value,
        context: &mut Context,
    ) -> Result<Data> {
        let geo = self.geometry(op.spec, input.size())?;
        let (pass, images) = (Dispatch::new(op, &geo, input, context), input.shape[0]);
        let started = context.profile.start();
        let extra = shortcut.as_ref().map(|s| &s[..]);
        let padded = pass.pad::<T>(&values, self);
        let source = padded.as_deref().unwrap_or(&values);
        let mut out = self.map(output, context);

        if !context.mode.records() {
            if op.norm.is_some() {
                self.folded_conv(op, &pass, source, extra, &mut out, context)?;
            } else {
                self.plain_conv(op, &pass, source, extra, &mut out, context)?;
            }
            context.profile.stop(started, || geo.label("forward"), geo.macs(images));
            return Ok(T::wrap(Arc::new(out)));
        }

        context.params.require_values(op.weight)?;
        let (mut raw, mut stats) = (None, None);
        if let Some(norm) = op.norm {
            let mut y = self.pool().take(output.count());
            let weight = context.params.get(op.weight);
            // Sums for the batch statistics, accumulated while the values are in the cache.
            let mut parts = match context.mode {
                Mode::Train => {
                    let shift = self.shift(norm.mean, output.index, context)?;
                    let tasks = pass.sum_tasks::<T>();
                    Some((shift, self.pool().take(tasks * 2 * op.spec.outputs)))
                }
                _ => None,
            };
            let sums = parts.as_mut().map(|(shift, parts)| Sums { shift, parts: SharedSlice::new(parts) });
            with_values::<T, _>(weight.var(), |w| {
                pass.forward(source, w, &mut y, Epilogue::store(false), sums, self)
            })?;
            context.profile.stop(started, || geo.label("forward"), geo.macs(images));
            let started = context.profile.start();
            let found =
                parts.and_then(|(shift, parts)| norm::from_sums(&parts, &shift, y.len() / op.spec.outputs));
            let s = self.statistics(op, &norm, &y, found, context)?;
            norm::affine(&y, &s.a, &s.b, extra, op.act, &mut out);
            raw = Some(y);
            stats = Some(s);
            context.profile.stop(started, || geo.label("norm"), 0);
        } else {
            self.plain_conv(op, &pass, source, extra, &mut out, context)?;
            context.profile.stop(started, || geo.label("forward"), geo.macs(images));
        }
        let out = Arc::new(out);
        if output.needs_grad {
            // The derivative of the activation is computed from the result, unless batch norm recomputes
            // it.
            let reads = op.act != Activation::None && (op.norm.is_none() || shortcut.is_some());
            let result = reads.then(|| Arc::clone(&out));
            let saved = ConvSaved { geo, values, padded, raw, stats, result };
            self.save(output, Saved::Conv(Box::new(saved)));
        }
        Ok(T::wrap(out))
    }

    /// With batch norm folded into the weight.
    fn folded_conv(
        &mut self,
        op: &Conv,
        pass: &Dispatch,
        source: &[T],
        shortcut: Option<&[T]>,
        out: &mut [T],
        context: &Context,
    ) -> Result<()> {
        let folded = self.folded(op, context)?;
        let epilogue = Epilogue { accumulate: false, bias: Some(&folded.bias), shortcut, act: op.act };
        if let Some(tiles) = pass.tiles::<T>() {
            let weight = folded.points.get_or_init(|| {
                let mut points = self.pool().keep(tiles.weight_len());
                winograd::transform_weight(&folded.weight, tiles.inputs, tiles.outputs, false, &mut points);
                points
            });
            pass.convolve(tiles, source, weight, out, epilogue, None, self);
        } else {
            pass.forward(source, &folded.weight, out, epilogue, None, self);
        }
        Ok(())
    }

    /// Without batch norm: bias, shortcut and activation in the epilogue.
    fn plain_conv(
        &mut self,
        op: &Conv,
        pass: &Dispatch,
        source: &[T],
        shortcut: Option<&[T]>,
        out: &mut [T],
        context: &Context,
    ) -> Result<()> {
        context.params.require_values(op.weight)?;
        let bias = match op.bias {
            Some(id) => Some(with_values::<T, _>(context.params.get(id).var(), <[T]>::to_vec)?),
            None => None,
        };
        let epilogue = Epilogue { accumulate: false, bias: bias.as_deref(), shortcut, act: op.act };
        with_values::<T, _>(context.params.get(op.weight).var(), |w| {
            pass.forward(source, w, out, epilogue, None, self)
        })?;
        Ok(())
    }

    /// Returns the shift of batch statistics, which avoids cancellation: the running mean or, in a
    /// recomputed segment, the one used in the forward pass, since the running mean has changed.
    fn shift(&mut self, mean: ParamId, index: usize, context: &Context) -> Result<Vec<T>> {
        if context.segment == Segment::Again
            && let Some(shift) = self.shifts.remove(&index)
        {
            return Ok(shift);
        }
        let shift = with_values::<T, _>(context.params.get(mean).var(), <[T]>::to_vec)?;
        if context.segment == Segment::First {
            self.shifts.insert(index, shift.clone());
        }
        Ok(shift)
    }

    /// Computes the statistics for the affine transform and the backward pass; `found` are batch
    /// statistics accumulated by the convolution.
    fn statistics(
        &mut self,
        op: &Conv,
        norm: &BatchNorm,
        y: &[T],
        found: Option<(Vec<f64>, Vec<f64>)>,
        context: &Context,
    ) -> Result<Stats<T>> {
        let c = op.spec.outputs;
        let rows = y.len() / c;
        let wide = |id: ParamId| wide::<T>(id, context);
        let batch = context.mode == Mode::Train;
        // `y` excludes the bias, which only shifts the mean.
        let bias = op.bias.map(wide).transpose()?.unwrap_or_else(|| vec![0.0; c]);
        let (mean, variance) = if batch {
            if rows < 2 {
                return Err(Error::shape(
                    "batch norm",
                    "more than one value per channel in training (a larger batch or map)",
                    [rows, c],
                ));
            }
            let (mean, variance) = found.unwrap_or_else(|| {
                let mut scratch = self.pool().take(norm::scratch_len(rows, c));
                norm::statistics(y, c, &mut scratch)
            });
            let unbiased = rows as f64 / (rows as f64 - 1.0);
            let blend = |running: &mut [T], now: &dyn Fn(usize) -> f64| {
                for (i, r) in running.iter_mut().enumerate() {
                    *r = T::narrow((1.0 - BN_MOMENTUM) * r.widen() + BN_MOMENTUM * now(i));
                }
            };
            if context.segment != Segment::Again {
                context.params.modify::<T>(norm.mean, |r| blend(r, &|i| mean[i] + bias[i]))?;
                context.params.modify::<T>(norm.variance, |r| blend(r, &|i| variance[i] * unbiased))?;
            }
            (mean, variance)
        } else {
            let mean = wide(norm.mean)?.iter().zip(&bias).map(|(m, b)| m - b).collect();
            (mean, wide(norm.variance)?)
        };
        let (gamma, beta) = (wide(norm.weight)?, wide(norm.bias)?);
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + norm.eps).sqrt()).collect();
        let a: Vec<f64> = gamma.iter().zip(&inverse).map(|(g, i)| g * i).collect();
        let b = (0..c).map(|i| T::narrow(beta[i] - mean[i] * a[i])).collect();
        Ok(Stats { batch, a: narrow(&a), b, mean: narrow(&mean), wide_mean: mean, wide_a: a, inverse })
    }

    /// Returns the weights with batch norm folded in, cached until the parameters change.
    fn folded(&mut self, op: &Conv, context: &Context) -> Result<Arc<Folded<T>>> {
        let version = context.params.version();
        let frozen = context.mode == Mode::Inference;
        if let Some(found) = self.folded.get(&op.weight)
            && (frozen || found.version == version)
        {
            return Ok(Arc::clone(found));
        }
        context.params.require_values(op.weight)?;
        let mut weight = self.pool().keep(op.packing().packed_len());
        let bias = fold(op, &mut weight, context)?;
        let folded = Arc::new(Folded { version, weight, points: OnceLock::new(), bias });
        self.folded.insert(op.weight, Arc::clone(&folded));
        context.release_weight(op.weight)?;
        Ok(folded)
    }
}

/// Folds batch norm with running statistics into the packed weight, written to a buffer, and the bias,
/// returned.
fn fold<T: Elem>(op: &Conv, weight: &mut [T], context: &Context) -> Result<Vec<T>> {
    let wide = |id: ParamId| wide::<T>(id, context);
    let mut bias = match op.bias {
        Some(id) => wide(id)?,
        None => vec![0.0; op.spec.outputs],
    };
    let mut factors = vec![1.0; op.spec.outputs];
    if let Some(norm) = op.norm {
        let (mean, variance) = (wide(norm.mean)?, wide(norm.variance)?);
        let (gamma, beta) = (wide(norm.weight)?, wide(norm.bias)?);
        for o in 0..op.spec.outputs {
            factors[o] = gamma[o] / (variance[o] + norm.eps).sqrt();
            bias[o] = beta[o] + (bias[o] - mean[o]) * factors[o];
        }
    }
    with_values::<T, _>(context.params.get(op.weight).var(), |w| weight.copy_from_slice(w))?;
    op.packing().scale(weight, &factors);
    Ok(narrow(&bias))
}
