//! Convolution, batch norm and activation as one block.

mod backward;
mod dispatch;
mod graph;

use std::sync::{Arc, OnceLock};

use crate::buffers::Buf;
use crate::element::with_values;
use crate::kernels::geometry::ConvSpec;
use crate::kernels::indirect_gemm::{Activation, Epilogue};
use crate::kernels::norm::Sums;
use crate::kernels::winograd;
use crate::kernels::{SharedSlice, allocator, norm};
use crate::layers::Record;
use crate::params::{Init, ParamBuilder, RELEASED};
use crate::tape::{Elem, Folded, Mode, Node, Tape};
use crate::trace::{NormIds, Op};
use crate::weight_packing::PackedLayout;
use crate::{Error, ParamId, Result};

pub(crate) use backward::ConvRecord;
use dispatch::Dispatch;

/// Batch norm parameters, named as in PyTorch.
#[derive(Debug, Clone, Copy)]
struct Norm {
    weight: ParamId,
    bias: ParamId,
    mean: ParamId,
    variance: ParamId,
    eps: f64,
}

const BN_EPS: f64 = 1e-5;
const BN_MOMENTUM: f64 = 0.1;
/// Smallest weight, in values, whose release is worth trimming the heap.
const MIN_TRIM_VALUES: usize = 1 << 18;
/// Batch size assumed for the choice of an algorithm outside training.
const NOMINAL_BATCH: usize = 8;

/// `act(bn(conv(x)))`, or `act(bn(conv(x)) + shortcut)`; `[B, C, H, W]` to `[B, O, H', W']`.
///
/// Batch norm as in PyTorch: eps 1e-5, momentum 0.1, biased variance for normalization and unbiased
/// variance in the running statistics.
#[derive(Debug, Clone)]
pub struct ConvBnAct {
    spec: ConvSpec,
    packing: PackedLayout,
    weight: ParamId,
    bias: Option<ParamId>,
    norm: Option<Norm>,
    act: Activation,
}

impl ConvBnAct {
    /// Creates `<conv>.weight` and `<bn>.weight`, `.bias`, `.running_mean`, `.running_var`.
    pub fn new(
        spec: ConvSpec,
        conv: &str,
        bn: &str,
        act: Activation,
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        Self::build(spec, &spec.weight_shape(), conv, Some(bn), None, act, init, p)
    }

    /// Creates a block without batch norm; with `bias`, also `<conv>.bias` (zeros).
    pub fn without_bn(
        spec: ConvSpec,
        conv: &str,
        bias: bool,
        act: Activation,
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        let bias = bias.then_some(Init::Constant(0.0));
        Self::build(spec, &spec.weight_shape(), conv, None, bias, act, init, p)
    }

    /// Creates a block with a bias and, if `bn` is given, batch norm: `<conv>.weight`, `<conv>.bias` and
    /// the batch norm's parameters. A bias before batch norm affects only its running mean.
    pub fn with_bias(
        spec: ConvSpec,
        conv: &str,
        bn: Option<&str>,
        act: Activation,
        (weight, bias): (Init, Init),
        p: &ParamBuilder,
    ) -> Result<Self> {
        Self::build(spec, &spec.weight_shape(), conv, bn, Some(bias), act, weight, p)
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn build(
        spec: ConvSpec,
        weight_shape: &[usize],
        conv: &str,
        bn: Option<&str>,
        bias: Option<Init>,
        act: Activation,
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        spec.check()?;
        let at = p.pp(conv);
        let weight = at.packed("weight", weight_shape, spec.groups, init)?;
        let bias = bias.map(|init| at.weight("bias", &[spec.outputs], init)).transpose()?;
        let norm = bn
            .map(|bn| {
                let (at, c) = (p.pp(bn), [spec.outputs]);
                Ok::<_, Error>(Norm {
                    weight: at.weight("weight", &c, Init::Constant(1.0))?,
                    bias: at.weight("bias", &c, Init::Constant(0.0))?,
                    mean: at.buffer("running_mean", &c, Init::Constant(0.0))?,
                    variance: at.buffer("running_var", &c, Init::Constant(1.0))?,
                    eps: BN_EPS,
                })
            })
            .transpose()?;
        let packing = PackedLayout::new(weight_shape, spec.groups)?;
        Ok(Self { spec, packing, weight, bias, norm, act })
    }

    /// Returns the block on the same parameters with another activation.
    #[must_use]
    pub fn with_activation(&self, act: Activation) -> Self {
        Self { act, ..self.clone() }
    }

    /// Returns the bias, if any.
    pub(crate) fn bias(&self) -> Option<ParamId> {
        self.bias
    }

    /// Returns the convolution's hyperparameters.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// Returns the output rows and columns for an input of `h` x `w`.
    pub fn output_size(&self, h: usize, w: usize) -> Result<(usize, usize)> {
        self.spec.output_size(h, w)
    }

    /// Returns the multiply-accumulates for one image of `h` x `w`.
    pub fn macs(&self, h: usize, w: usize) -> Result<u64> {
        self.spec.macs(h, w)
    }

    /// Describes the block in a trace.
    fn op(&self) -> Op {
        let norm = self.norm.map(|n| NormIds {
            weight: n.weight,
            bias: n.bias,
            mean: n.mean,
            variance: n.variance,
            eps: n.eps,
        });
        Op::Conv { spec: self.spec, weight: self.weight, bias: self.bias, norm, act: self.act }
    }

    /// Runs the block.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        crate::tape::dispatch_dtype!(tape, T => self.run::<T>(x, None, tape))
    }

    /// Runs the block with a shortcut added before the activation.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        crate::tape::dispatch_dtype!(tape, T => self.run::<T>(x, Some(shortcut), tape))
    }

    fn run<T: Elem>(&self, x: &Node, shortcut: Option<&Node>, tape: &mut Tape) -> Result<Node> {
        let [b, h, w, c] = x.shape;
        if c != self.spec.inputs {
            return Err(Error::shape("conv", format!("{} input channels", self.spec.inputs), x.shape));
        }
        let (oh, ow) = self.spec.output_size(h, w)?;
        let shape = [b, oh, ow, self.spec.outputs];
        if let Some(s) = shortcut
            && s.shape != shape
        {
            return Err(Error::shape("conv + shortcut", format!("a shortcut of shape {shape:?}"), s.shape));
        }
        let inputs: Vec<&Node> = [Some(x), shortcut].into_iter().flatten().collect();
        let flat = x.flat && tape.params().get(self.weight).shape.len() == 2;
        if let Some(node) = tape.traced(|| self.op(), &inputs, shape, flat) {
            return Ok(node);
        }
        if tape.graph_state.is_some() {
            return self.graph_op(x, shortcut, tape);
        }
        let geo = tape.geo(self.spec, h, w)?;
        let pass = Dispatch { layer: self, geo: &geo, images: b };
        let started = tape.start_timer();
        let values = tape.values::<T>("conv", x)?;
        let shortcut_values = shortcut.map(|s| tape.values::<T>("conv", s)).transpose()?;
        let extra = shortcut_values.as_ref().map(|s| &s[..]);
        let padded = pass.pad::<T>(&values, tape);
        let source = padded.as_deref().unwrap_or(&values);
        let params = tape.params().clone();
        let len = shape.iter().product();
        let mut out = tape.map::<T>(len);

        if !tape.mode().records() {
            if self.norm.is_some() {
                let folded = self.folded::<T>(tape)?;
                let epilogue =
                    Epilogue { accumulate: false, bias: Some(&folded.bias), shortcut: extra, act: self.act };
                if let Some(tiles) = pass.tiles::<T>(tape) {
                    let weight = folded.points.get_or_init(|| {
                        let mut points = T::state(tape).pool.keep(tiles.weight_len());
                        winograd::transform_weight(
                            &folded.weight,
                            tiles.inputs,
                            tiles.outputs,
                            false,
                            &mut points,
                        );
                        points
                    });
                    pass.convolve(tiles, source, weight, &mut out, epilogue, None, tape);
                } else {
                    pass.forward(source, &folded.weight, &mut out, epilogue, None, tape);
                }
            } else {
                self.plain(&pass, source, extra, &mut out, tape)?;
            }
            let node = tape.node(shape, false, false, out);
            tape.stop_timer(started, || geo.label("forward"), geo.macs(b));
            return Ok(node);
        }

        self.has_values(tape)?;
        let trains = |id: ParamId| tape.trains(id);
        let weights = trains(self.weight)
            || self.bias.is_some_and(trains)
            || self.norm.is_some_and(|n| trains(n.weight) || trains(n.bias));
        let needs_grad = x.needs_grad || weights || shortcut.is_some_and(|s| s.needs_grad);
        let (mut raw, mut stats) = (None, None);
        if let Some(norm) = self.norm {
            let mut y = T::state(tape).pool.take(len);
            let weight = params.get(self.weight);
            // Sums for the batch statistics, accumulated while the values are in the cache.
            let mut parts = match tape.mode() {
                Mode::Train => {
                    let shift = tape.shift::<T>(norm.mean)?;
                    let tasks = pass.sum_tasks::<T>(tape);
                    Some((shift, T::state(tape).pool.take(tasks * 2 * self.spec.outputs)))
                }
                _ => None,
            };
            let sums = parts.as_mut().map(|(shift, parts)| Sums { shift, parts: SharedSlice::new(parts) });
            with_values::<T, _>(weight.var(), |w| {
                pass.forward(source, w, &mut y, Epilogue::store(false), sums, tape)
            })?;
            tape.stop_timer(started, || geo.label("forward"), geo.macs(b));
            let started = tape.start_timer();
            let found =
                parts.and_then(|(shift, parts)| norm::from_sums(&parts, &shift, y.len() / self.spec.outputs));
            let s = self.statistics::<T>(&norm, &y, found, tape)?;
            norm::affine(&y, &s.a, &s.b, extra, self.act, &mut out);
            raw = Some(y);
            stats = Some(s);
            tape.stop_timer(started, || geo.label("norm"), 0);
        } else {
            self.plain(&pass, source, extra, &mut out, tape)?;
            tape.stop_timer(started, || geo.label("forward"), geo.macs(b));
        }
        let node = tape.node(shape, false, needs_grad, out);
        if needs_grad {
            // The derivative of the activation is computed from the result, unless batch norm recomputes
            // it.
            let reads = self.act != Activation::None && (self.norm.is_none() || shortcut.is_some());
            let result = if reads { Some(tape.values::<T>("conv", &node)?) } else { None };
            let record = ConvRecord {
                out: node.id,
                layer: self.clone(),
                geo,
                images: b,
                x: (x.id, x.needs_grad),
                values,
                padded,
                raw,
                stats,
                result,
                shortcut: shortcut.filter(|s| s.needs_grad).map(|s| s.id),
                shifted: shortcut.is_some(),
            };
            T::state(tape).records.push(Record::Conv(Box::new(record)));
        }
        Ok(node)
    }

    /// Without batch norm: bias, shortcut and activation in the epilogue.
    fn plain<T: Elem>(
        &self,
        pass: &Dispatch,
        source: &[T],
        shortcut: Option<&[T]>,
        out: &mut [T],
        tape: &mut Tape,
    ) -> Result<()> {
        self.has_values(tape)?;
        let params = tape.params().clone();
        let bias = match self.bias {
            Some(id) => Some(with_values::<T, _>(params.get(id).var(), <[T]>::to_vec)?),
            None => None,
        };
        let epilogue = Epilogue { accumulate: false, bias: bias.as_deref(), shortcut, act: self.act };
        with_values::<T, _>(params.get(self.weight).var(), |w| {
            pass.forward(source, w, out, epilogue, None, tape)
        })?;
        Ok(())
    }

    /// Computes the statistics for the affine transform and the backward pass; `found` are batch
    /// statistics accumulated by the convolution.
    fn statistics<T: Elem>(
        &self,
        norm: &Norm,
        y: &[T],
        found: Option<(Vec<f64>, Vec<f64>)>,
        tape: &mut Tape,
    ) -> Result<Stats<T>> {
        let c = self.spec.outputs;
        let rows = y.len() / c;
        let params = tape.params().clone();
        let wide = |id: ParamId| {
            with_values::<T, _>(params.get(id).var(), |v| v.iter().map(|x| x.widen()).collect::<Vec<f64>>())
        };
        let batch = tape.mode() == Mode::Train;
        // `y` excludes the bias, which only shifts the mean.
        let bias = self.bias.map(wide).transpose()?.unwrap_or_else(|| vec![0.0; c]);
        let (mean, variance) = if batch {
            if rows < 2 {
                return Err(Error::shape(
                    "batch norm",
                    "more than one value per channel in training (a larger batch or map)",
                    [rows, c],
                ));
            }
            let (mean, variance) = found.unwrap_or_else(|| {
                let mut scratch = T::state(tape).pool.take(norm::scratch_len(rows, c));
                norm::statistics(y, c, &mut scratch)
            });
            let unbiased = rows as f64 / (rows as f64 - 1.0);
            let blend = |running: &mut [T], now: &dyn Fn(usize) -> f64| {
                for (i, r) in running.iter_mut().enumerate() {
                    *r = T::narrow((1.0 - BN_MOMENTUM) * r.widen() + BN_MOMENTUM * now(i));
                }
            };
            if tape.segment != crate::layers::activation_checkpoint::SegmentPass::Again {
                params.modify::<T>(norm.mean, |r| blend(r, &|i| mean[i] + bias[i]))?;
                params.modify::<T>(norm.variance, |r| blend(r, &|i| variance[i] * unbiased))?;
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
        let narrow = |v: &[f64]| v.iter().map(|x| T::narrow(*x)).collect::<Vec<T>>();
        Ok(Stats { batch, a: narrow(&a), b, mean: narrow(&mean), wide_mean: mean, wide_a: a, inverse })
    }

    /// Returns the weights with batch norm folded in, cached until the parameters change.
    fn folded<T: Elem>(&self, tape: &mut Tape) -> Result<Arc<Folded<T>>> {
        let version = tape.params().version();
        let frozen = tape.mode() == Mode::Inference;
        if let Some(found) = T::state(tape).folded.get(&self.weight)
            && (frozen || found.version == version)
        {
            return Ok(Arc::clone(found));
        }
        self.has_values(tape)?;
        let weight = T::state(tape).pool.keep(self.packing.packed_len());
        let (weight, bias) = self.fold(weight, tape)?;
        let folded = Arc::new(Folded { version, weight, points: OnceLock::new(), bias });
        T::state(tape).folded.insert(self.weight, Arc::clone(&folded));
        self.release_weight(tape)?;
        Ok(folded)
    }

    /// Releases the store's weight after folding, if the tape is set to.
    fn release_weight(&self, tape: &Tape) -> Result<()> {
        if tape.releases_weights() {
            tape.params().release_weight(self.weight)?;
            if self.packing.packed_len() >= MIN_TRIM_VALUES {
                allocator::trim();
            }
        }
        Ok(())
    }

    /// Fails if the store's weight was released by another tape, or in another mode.
    fn has_values(&self, tape: &Tape) -> Result<()> {
        let param = tape.params().get(self.weight);
        match param.released {
            true => Err(Error::Param { name: param.name, what: RELEASED.into() }),
            false => Ok(()),
        }
    }

    /// Folds batch norm with running statistics into the packed weight, in the given buffer, and the
    /// bias.
    fn fold<T: Elem>(&self, mut weight: Buf<T>, tape: &Tape) -> Result<(Buf<T>, Vec<T>)> {
        let params = tape.params().clone();
        let wide = |id: ParamId| {
            with_values::<T, _>(params.get(id).var(), |v| v.iter().map(|x| x.widen()).collect::<Vec<f64>>())
        };
        let mut bias = match self.bias {
            Some(id) => wide(id)?,
            None => vec![0.0; self.spec.outputs],
        };
        let mut factors = vec![1.0; self.spec.outputs];
        if let Some(norm) = self.norm {
            let (mean, variance) = (wide(norm.mean)?, wide(norm.variance)?);
            let (gamma, beta) = (wide(norm.weight)?, wide(norm.bias)?);
            for o in 0..self.spec.outputs {
                factors[o] = gamma[o] / (variance[o] + norm.eps).sqrt();
                bias[o] = beta[o] + (bias[o] - mean[o]) * factors[o];
            }
        }
        with_values::<T, _>(params.get(self.weight).var(), |w| weight.copy_from_slice(w))?;
        self.packing.scale(&mut weight, &factors);
        Ok((weight, bias.into_iter().map(T::narrow).collect()))
    }
}

/// Batch norm of one pass: `out = a * y + b`.
#[derive(Debug)]
struct Stats<T> {
    /// Batch statistics, through which gradients flow.
    batch: bool,
    a: Vec<T>,
    b: Vec<T>,
    mean: Vec<T>,
    wide_mean: Vec<f64>,
    wide_a: Vec<f64>,
    inverse: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::params::ParamStore;
    use crate::rng::Rng;

    #[test]
    fn released_weight_is_an_error() {
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let p = params.builder(Rng::new(1));
        let spec = ConvSpec::new(3, 8, 3);
        let layer = ConvBnAct::new(spec, "conv", "bn", Activation::Relu, Init::Normal(0.3), &p).unwrap();
        let plain = ConvBnAct::without_bn(
            ConvSpec::new(8, 4, 1),
            "head",
            true,
            Activation::None,
            Init::Normal(0.3),
            &p,
        );
        let plain = plain.unwrap();
        let images = Tensor::arange(0f32, 150.0, &Device::Cpu).unwrap().reshape((2, 3, 5, 5)).unwrap();
        let run = |tape: &mut Tape| -> Result<Vec<f32>> {
            tape.begin(Rng::new(0), 0);
            let x = tape.input(&images)?;
            let x = layer.forward(&x, tape)?;
            let x = plain.forward(&x, tape)?;
            tape.mark_feature("logits", &x)?;
            Ok(tape.outputs()?[0].1.flatten_all()?.to_vec1()?)
        };
        let tape = |mode| Tape::new(&params, mode).unwrap();
        let whole = run(&mut tape(Mode::Inference)).unwrap();
        let mut frozen = tape(Mode::Inference);
        frozen.release_weights();
        assert_eq!(run(&mut frozen).unwrap(), whole, "the pass that folds");
        assert_eq!(run(&mut frozen).unwrap(), whole, "the passes after it");
        let id = params.id("conv.weight").unwrap();
        assert_eq!(params.get(id).var().elem_count(), 0);
        assert!(params.export(params.id("head.weight").unwrap()).is_ok(), "still in the store");
        for mode in [Mode::Inference, Mode::Eval, Mode::Train, Mode::EvalWithGrad] {
            let error = run(&mut tape(mode)).unwrap_err().to_string();
            assert!(error.contains("conv.weight") && error.contains("released"), "{mode:?}: {error}");
        }
        let error = params.export(id).unwrap_err().to_string();
        assert!(error.contains("released"), "{error}");
        assert!(params.import(id, &Tensor::zeros((8, 3, 3, 3), DType::F32, &Device::Cpu).unwrap()).is_err());
    }

    /// A shared pool changes no result.
    #[test]
    fn tapes_share_memory() {
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let p = params.builder(Rng::new(1));
        let spec = ConvSpec::new(3, 8, 3);
        let layer = ConvBnAct::new(spec, "conv", "bn", Activation::Relu, Init::Normal(0.3), &p).unwrap();
        let images = Tensor::arange(0f32, 6144.0, &Device::Cpu).unwrap().reshape((2, 3, 32, 32)).unwrap();
        let run = |tape: &mut Tape| -> Result<Vec<f32>> {
            tape.begin(Rng::new(0), 0);
            let x = tape.input(&images)?;
            let x = layer.forward(&x, tape)?;
            tape.mark_feature("logits", &x)?;
            let values = tape.outputs()?[0].1.flatten_all()?.to_vec1()?;
            tape.begin(Rng::new(0), 1);
            Ok(values)
        };
        let tape = || Tape::new(&params, Mode::Eval).unwrap();
        let (mut alone, mut first, mut second) = (tape(), tape(), tape());
        second.share_memory(&first);
        let values = run(&mut alone).unwrap();
        assert_eq!(run(&mut first).unwrap(), values);
        assert_eq!(first.memory_bytes(), alone.memory_bytes());
        assert_eq!(run(&mut second).unwrap(), values);
        // Only the folded weights, which are long-lived, exist twice; without sharing everything would.
        let more = second.memory_bytes() - alone.memory_bytes();
        assert!(more > 0 && more < alone.memory_bytes() / 4, "{more} of {}", alone.memory_bytes());
    }
}
