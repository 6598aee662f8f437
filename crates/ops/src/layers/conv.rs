//! Convolution, batch norm and activation as one block.

use std::sync::{Arc, OnceLock};

use crate::buffers::Buf;
use crate::kernels::depthwise::{self, Depthwise, DepthwiseGradient, gradient_scratch};
use crate::kernels::geometry::{ConvGeo, ConvSpec, pad_images};
use crate::kernels::norm::Sums;
use crate::kernels::tap_gemm::{self, Act, Epilogue, TapGemm};
use crate::kernels::wgrad::{self, WeightGradient};
use crate::kernels::winograd::{self, Tiles};
use crate::kernels::{Shared, norm};
use crate::layers::Record;
use crate::panels::Panels;
use crate::params::{Builder, Init};
use crate::real::with_values;
use crate::tape::{Backward, Elem, Folded, Mode, Node, Tape};
use crate::{Error, ParamId, Result};

/// Batch norm: names as in PyTorch, momentum 0.1.
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
/// Images that the choice of an algorithm counts with outside of training.
const NOMINAL_BATCH: usize = 8;

/// `act(bn(conv(x)))`, or `act(bn(conv(x)) + shortcut)`; `[B, C, H, W]` to `[B, O, H', W']`.
///
/// Batch norm is as in PyTorch: eps 1e-5, momentum 0.1, biased variance in the normalisation and
/// unbiased in the running statistics.
#[derive(Debug, Clone)]
pub struct ConvBnAct {
    spec: ConvSpec,
    panels: Panels,
    weight: ParamId,
    bias: Option<ParamId>,
    norm: Option<Norm>,
    act: Act,
}

impl ConvBnAct {
    /// Makes `<conv>.weight` and `<bn>.weight`, `.bias`, `.running_mean`, `.running_var`.
    pub fn new(spec: ConvSpec, conv: &str, bn: &str, act: Act, init: Init, p: &Builder) -> Result<Self> {
        Self::build(spec, &spec.weight_shape(), conv, Some(bn), None, act, init, p)
    }

    /// Without batch norm; with `bias`, makes `<conv>.bias` (zeros).
    pub fn without_bn(
        spec: ConvSpec,
        conv: &str,
        bias: bool,
        act: Act,
        init: Init,
        p: &Builder,
    ) -> Result<Self> {
        let bias = bias.then_some(Init::Constant(0.0));
        Self::build(spec, &spec.weight_shape(), conv, None, bias, act, init, p)
    }

    /// With a bias and, if `bn` names one, batch norm: makes `<conv>.weight`, `<conv>.bias` and the
    /// batch norm's. A bias before batch norm moves only its running mean.
    pub fn biased(
        spec: ConvSpec,
        conv: &str,
        bn: Option<&str>,
        act: Act,
        (weight, bias): (Init, Init),
        p: &Builder,
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
        act: Act,
        init: Init,
        p: &Builder,
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
        let panels = Panels::new(weight_shape, spec.groups)?;
        Ok(Self { spec, panels, weight, bias, norm, act })
    }

    /// Its bias, if it has one.
    pub(crate) fn bias(&self) -> Option<ParamId> {
        self.bias
    }

    /// Its convolution.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// Output rows and columns for an input of `h` x `w`.
    pub fn output_size(&self, h: usize, w: usize) -> Result<(usize, usize)> {
        self.spec.output_size(h, w)
    }

    /// Multiply-accumulates for one image of `h` x `w`.
    pub fn macs(&self, h: usize, w: usize) -> Result<u64> {
        self.spec.macs(h, w)
    }

    /// Runs the block.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        crate::tape::by_type!(tape, T => self.run::<T>(x, None, tape))
    }

    /// Runs the block with a shortcut that is added before the activation.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        crate::tape::by_type!(tape, T => self.run::<T>(x, Some(shortcut), tape))
    }

    fn run<T: Elem>(&self, x: &Node, shortcut: Option<&Node>, tape: &mut Tape) -> Result<Node> {
        let [b, h, w, c] = x.shape;
        if c != self.spec.inputs {
            return Err(Error::shape("conv", format!("{} input channels", self.spec.inputs), x.shape));
        }
        let geo = tape.geo(self.spec, h, w)?;
        let shape = [b, geo.output[0], geo.output[1], self.spec.outputs];
        if let Some(s) = shortcut
            && s.shape != shape
        {
            return Err(Error::shape("conv + shortcut", format!("a shortcut of shape {shape:?}"), s.shape));
        }
        let values = Arc::clone(tape.values::<T>("conv", x)?);
        let shortcut_values = shortcut.map(|s| tape.values::<T>("conv", s).map(Arc::clone)).transpose()?;
        let extra = shortcut_values.as_ref().map(|s| &s[..]);
        let pass = Pass { layer: self, geo: &geo, images: b };
        let padded = pass.pad::<T>(&values, tape);
        let source = padded.as_deref().unwrap_or(&values);
        let params = tape.params().clone();
        let len = shape.iter().product();
        let mut out = T::lane(tape).pool.take(len);

        if !tape.mode().records() {
            if self.norm.is_some() {
                let folded = self.folded::<T>(tape)?;
                let epilogue =
                    Epilogue { accumulate: false, bias: Some(&folded.bias), shortcut: extra, act: self.act };
                if let Some(tiles) = pass.tiles::<T>(winograd::FORWARD, tape) {
                    let weight = folded.points.get_or_init(|| {
                        let mut points = vec![T::ZERO; tiles.weight_len()];
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
            return Ok(tape.node(shape, false, false, out));
        }

        let trains = |id: ParamId| tape.trains(id);
        let weights = trains(self.weight)
            || self.bias.is_some_and(trains)
            || self.norm.is_some_and(|n| trains(n.weight) || trains(n.bias));
        let needs_grad = x.needs_grad || weights || shortcut.is_some_and(|s| s.needs_grad);
        let (mut raw, mut stats) = (None, None);
        if let Some(norm) = self.norm {
            let mut y = T::lane(tape).pool.take(len);
            let weight = params.get(self.weight);
            // Sums for the batch's statistics, taken while the values are in the cache.
            let mut parts = match tape.mode() {
                Mode::Train => {
                    let shift = with_values::<T, _>(params.get(norm.mean).var(), <[T]>::to_vec)?;
                    let tasks = pass.sum_tasks::<T>(tape);
                    Some((shift, T::lane(tape).pool.take(tasks * 2 * self.spec.outputs)))
                }
                _ => None,
            };
            let sums = parts.as_mut().map(|(shift, parts)| Sums { shift, parts: Shared::new(parts) });
            with_values::<T, _>(weight.var(), |w| {
                pass.forward(source, w, &mut y, Epilogue::store(false), sums, tape)
            })?;
            let found =
                parts.and_then(|(shift, parts)| norm::from_sums(&parts, &shift, y.len() / self.spec.outputs));
            let s = self.statistics::<T>(&norm, &y, found, tape)?;
            norm::affine(&y, &s.a, &s.b, extra, self.act, &mut out);
            raw = Some(y);
            stats = Some(s);
        } else {
            self.plain(&pass, source, extra, &mut out, tape)?;
        }
        let node = tape.node(shape, false, needs_grad, out);
        if needs_grad {
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
                result: Arc::clone(tape.values::<T>("conv", &node)?),
                shortcut: shortcut.filter(|s| s.needs_grad).map(|s| s.id),
                shifted: shortcut.is_some(),
            };
            T::lane(tape).records.push(Record::Conv(Box::new(record)));
        }
        Ok(node)
    }

    /// Without batch norm: bias, shortcut and activation in the kernel.
    fn plain<T: Elem>(
        &self,
        pass: &Pass,
        source: &[T],
        shortcut: Option<&[T]>,
        out: &mut [T],
        tape: &mut Tape,
    ) -> Result<()> {
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

    /// Batch or running statistics as the affine pass and the backward pass need them. Those of the
    /// batch may have been found already.
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
            with_values::<T, _>(params.get(id).var(), |v| v.iter().map(|x| x.wide()).collect::<Vec<f64>>())
        };
        let batch = tape.mode() == Mode::Train;
        // `y` comes without the bias: shifting it shifts the mean alone.
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
                let mut scratch = T::lane(tape).pool.take(norm::scratch_len(rows, c));
                norm::statistics(y, c, &mut scratch)
            });
            let unbiased = rows as f64 / (rows as f64 - 1.0);
            let blend = |running: &mut [T], now: &dyn Fn(usize) -> f64| {
                for (i, r) in running.iter_mut().enumerate() {
                    *r = T::of((1.0 - BN_MOMENTUM) * r.wide() + BN_MOMENTUM * now(i));
                }
            };
            params.modify::<T>(norm.mean, |r| blend(r, &|i| mean[i] + bias[i]))?;
            params.modify::<T>(norm.variance, |r| blend(r, &|i| variance[i] * unbiased))?;
            (mean, variance)
        } else {
            let mean = wide(norm.mean)?.iter().zip(&bias).map(|(m, b)| m - b).collect();
            (mean, wide(norm.variance)?)
        };
        let (gamma, beta) = (wide(norm.weight)?, wide(norm.bias)?);
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + norm.eps).sqrt()).collect();
        let a: Vec<f64> = gamma.iter().zip(&inverse).map(|(g, i)| g * i).collect();
        let b = (0..c).map(|i| T::of(beta[i] - mean[i] * a[i])).collect();
        let narrow = |v: &[f64]| v.iter().map(|x| T::of(*x)).collect::<Vec<T>>();
        Ok(Stats { batch, a: narrow(&a), b, mean: narrow(&mean), wide_mean: mean, wide_a: a, inverse })
    }

    /// Weights with batch norm folded in, kept until the parameters change.
    fn folded<T: Elem>(&self, tape: &mut Tape) -> Result<Arc<Folded<T>>> {
        let version = tape.params().version();
        let frozen = tape.mode() == Mode::Frozen;
        if let Some(found) = T::lane(tape).folded.get(&self.weight)
            && (frozen || found.version == version)
        {
            return Ok(Arc::clone(found));
        }
        let params = tape.params().clone();
        let wide = |id: ParamId| {
            with_values::<T, _>(params.get(id).var(), |v| v.iter().map(|x| x.wide()).collect::<Vec<f64>>())
        };
        let mut weight = self.panels.unpack(&wide(self.weight)?);
        let mut bias = match self.bias {
            Some(id) => wide(id)?,
            None => vec![0.0; self.spec.outputs],
        };
        if let Some(norm) = self.norm {
            let (mean, variance) = (wide(norm.mean)?, wide(norm.variance)?);
            let (gamma, beta) = (wide(norm.weight)?, wide(norm.bias)?);
            let per = weight.len() / self.spec.outputs;
            for o in 0..self.spec.outputs {
                let a = gamma[o] / (variance[o] + norm.eps).sqrt();
                weight[o * per..(o + 1) * per].iter_mut().for_each(|w| *w *= a);
                bias[o] = beta[o] + (bias[o] - mean[o]) * a;
            }
        }
        let narrow = |v: Vec<f64>| v.into_iter().map(T::of).collect::<Vec<T>>();
        let weight = narrow(self.panels.pack(&weight));
        let folded = Arc::new(Folded { version, weight, points: OnceLock::new(), bias: narrow(bias) });
        T::lane(tape).folded.insert(self.weight, Arc::clone(&folded));
        Ok(folded)
    }
}

/// Batch norm of one pass: `out = a * y + b`.
#[derive(Debug)]
struct Stats<T> {
    /// Statistics of the batch, through which gradients pass.
    batch: bool,
    a: Vec<T>,
    b: Vec<T>,
    mean: Vec<T>,
    wide_mean: Vec<f64>,
    wide_a: Vec<f64>,
    inverse: Vec<f64>,
}

/// A layer on maps of one size.
struct Pass<'a> {
    layer: &'a ConvBnAct,
    geo: &'a ConvGeo,
    images: usize,
}

impl Pass<'_> {
    /// The zero-padded copy that convolutions of few channels read.
    fn pad<T: Elem>(&self, values: &[T], tape: &mut Tape) -> Option<Buf<T>> {
        let size = self.geo.padded?;
        let mut copy = T::lane(tape).pool.take(self.images * self.geo.source_len());
        pad_images(values, self.geo.input, self.geo.spec.inputs, self.geo.before, size, &mut copy);
        Some(copy)
    }

    /// Tiles of the forward pass, where Winograd's algorithm serves; `per_weight` as in
    /// [`Tiles::pay`].
    fn tiles<T: Elem>(&self, per_weight: usize, tape: &Tape) -> Option<Tiles> {
        let spec = &self.geo.spec;
        let fits = spec.kernel == 3 && spec.stride == 1 && spec.dilation == 1 && spec.groups == 1;
        if !fits || self.geo.before != [1, 1] || self.geo.output != self.geo.input || !tape.winograd::<T>() {
            return None;
        }
        let size = self.geo.input;
        let (images, before) = (self.images, self.geo.before);
        let tiles =
            Tiles { images, source: size, target: size, before, inputs: spec.inputs, outputs: spec.outputs };
        // Outside of training the choice must not depend on how many images there are, so that a
        // single image gets the very logits that it has in a batch.
        let nominal = if tape.mode().records() { images } else { NOMINAL_BATCH };
        tiles.pay(nominal, per_weight).then_some(tiles)
    }

    /// Parts that the forward pass leaves in [`Sums`].
    fn sum_tasks<T: Elem>(&self, tape: &Tape) -> usize {
        let rows = self.images * self.geo.forward.p;
        if let Some(tiles) = self.tiles::<T>(winograd::FORWARD, tape) {
            tiles.sum_tasks()
        } else if self.layer.panels.depthwise() {
            depthwise::sum_tasks(rows, self.geo.spec.outputs)
        } else {
            tap_gemm::sum_tasks(rows)
        }
    }

    /// Winograd's convolution with transformed weights.
    #[allow(clippy::too_many_arguments)]
    fn convolve<T: Elem>(
        &self,
        tiles: Tiles,
        source: &[T],
        weight: &[T],
        out: &mut [T],
        epilogue: Epilogue<T>,
        sums: Option<Sums<T>>,
        tape: &mut Tape,
    ) {
        let mut scratch = T::lane(tape).pool.take(tiles.scratch_len());
        let target_len = out.len();
        let target = Shared::new(out);
        let scratch = &mut scratch[..];
        winograd::Convolution { tiles, source, weight, target, target_len, epilogue, sums, scratch }.run();
    }

    fn output_len(&self) -> usize {
        self.geo.output[0] * self.geo.output[1] * self.geo.spec.outputs
    }

    fn forward<T: Elem>(
        &self,
        source: &[T],
        weight: &[T],
        out: &mut [T],
        epilogue: Epilogue<T>,
        sums: Option<Sums<T>>,
        tape: &mut Tape,
    ) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        if let Some(tiles) = self.tiles::<T>(winograd::FORWARD, tape) {
            let mut points = T::lane(tape).pool.take(tiles.weight_len());
            winograd::transform_weight(weight, tiles.inputs, tiles.outputs, false, &mut points);
            self.convolve(tiles, source, &points, out, epilogue, sums, tape);
            return;
        }
        let target = Shared::new(out);
        let (source_len, target_len) = (self.geo.source_len(), self.output_len());
        if panels.depthwise() {
            Depthwise {
                images: self.images,
                channels: spec.outputs,
                rows: &self.geo.forward,
                source,
                source_len,
                weight,
                target,
                target_len,
                epilogue,
                sums,
            }
            .run();
            return;
        }
        let zeros = T::lane(tape).zeros(self.geo.forward.kc);
        let cut = panels.panels();
        for (g, weight) in weight.chunks_exact(panels.group_len()).enumerate() {
            TapGemm {
                images: self.images,
                rows: &self.geo.forward,
                source,
                source_len,
                source_first: g * spec.inputs / spec.groups,
                target_first: g * spec.outputs / spec.groups,
                weight,
                panels: &cut,
                target,
                target_len,
                epilogue,
                zeros: &zeros,
                sums,
            }
            .run();
        }
    }

    /// Gradient of the input, added to what is there if `accumulate`.
    fn data_gradient<T: Elem>(
        &self,
        dy: &[T],
        weight: &[T],
        dx: &mut [T],
        accumulate: bool,
        tape: &mut Tape,
    ) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let [h, w] = self.geo.input;
        let (source_len, target_len) = (self.output_len(), h * w * spec.inputs);
        // Pixels that no output reads: stride larger than the kernel, or the cut edge.
        if !accumulate && self.geo.backward.iter().any(|r| r.taps.is_empty()) {
            dx.fill(T::ZERO);
        }
        let target = Shared::new(dx);
        if panels.depthwise() {
            for rows in self.geo.backward.iter().filter(|r| !r.taps.is_empty()) {
                Depthwise {
                    images: self.images,
                    channels: spec.inputs,
                    rows,
                    source: dy,
                    source_len,
                    weight,
                    target,
                    target_len,
                    epilogue: Epilogue::store(accumulate),
                    sums: None,
                }
                .run();
            }
            return;
        }
        let cut = panels.transposed_panels();
        let mut turned = T::lane(tape).pool.take(panels.transposed_len());
        if let Some(tiles) = self.tiles::<T>(winograd::FORWARD, tape) {
            let tiles = Tiles { inputs: tiles.outputs, outputs: tiles.inputs, ..tiles };
            panels.transpose(weight, &mut turned);
            let mut points = T::lane(tape).pool.take(tiles.weight_len());
            winograd::transform_weight(&turned, tiles.inputs, tiles.outputs, true, &mut points);
            self.convolve(tiles, dy, &points, dx, Epilogue::store(accumulate), None, tape);
            return;
        }
        let zeros = T::lane(tape).zeros(spec.outputs / spec.groups);
        for (g, weight) in weight.chunks_exact(panels.group_len()).enumerate() {
            panels.transpose(weight, &mut turned);
            for rows in self.geo.backward.iter().filter(|r| !r.taps.is_empty()) {
                TapGemm {
                    images: self.images,
                    rows,
                    source: dy,
                    source_len,
                    source_first: g * spec.outputs / spec.groups,
                    target_first: g * spec.inputs / spec.groups,
                    weight: &turned,
                    panels: &cut,
                    target,
                    target_len,
                    epilogue: Epilogue::store(accumulate),
                    zeros: &zeros,
                    sums: None,
                }
                .run();
            }
        }
    }

    /// Gradient of the weight in panel order.
    fn weight_gradient<T: Elem>(&self, source: &[T], dy: &[T], tape: &mut Tape) -> Buf<T> {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let rows = self.images * self.geo.forward.p;
        let pool = Arc::clone(&T::lane(tape).pool);
        let mut gradient = pool.take(panels.stored());
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        if panels.depthwise() {
            let mut scratch = pool.take(gradient_scratch(rows, panels.stored()));
            DepthwiseGradient {
                images: self.images,
                channels: spec.outputs,
                rows: &self.geo.forward,
                source,
                source_len,
                dy,
                dy_len,
                gradient: &mut gradient,
                scratch: &mut scratch,
            }
            .run();
            return gradient;
        }
        if let Some(tiles) = self.tiles::<T>(winograd::GRADIENT, tape) {
            let mut scratch = pool.take(tiles.gradient_scratch_len());
            let (gradient, scratch) = (&mut gradient[..], &mut scratch[..]);
            winograd::WeightGradient { tiles, source, dy, gradient, scratch }.run();
        } else {
            self.direct_weight_gradient(source, dy, &mut gradient, tape);
        }
        gradient
    }

    fn direct_weight_gradient<T: Elem>(&self, source: &[T], dy: &[T], gradient: &mut [T], tape: &mut Tape) {
        let (spec, panels) = (&self.geo.spec, &self.layer.panels);
        let (source_len, dy_len) = (self.geo.source_len(), self.output_len());
        let rows = self.images * self.geo.forward.p;
        let mut scratch = T::lane(tape).pool.take(wgrad::scratch_len(rows, panels.group_len()));
        let cut = panels.panels();
        for (g, gradient) in gradient.chunks_exact_mut(panels.group_len()).enumerate() {
            WeightGradient {
                images: self.images,
                rows: &self.geo.forward,
                source,
                source_len,
                source_first: g * spec.inputs / spec.groups,
                dy,
                dy_len,
                dy_first: g * spec.outputs / spec.groups,
                panels: &cut,
                gradient,
                scratch: &mut scratch,
            }
            .run();
        }
    }
}

/// What the backward pass of a block needs.
#[derive(Debug)]
pub(crate) struct ConvRecord<T> {
    pub(crate) out: usize,
    layer: ConvBnAct,
    geo: Arc<ConvGeo>,
    images: usize,
    x: (usize, bool),
    values: Arc<Buf<T>>,
    padded: Option<Buf<T>>,
    /// Before batch norm.
    raw: Option<Buf<T>>,
    stats: Option<Stats<T>>,
    result: Arc<Buf<T>>,
    /// The shortcut, if it needs a gradient.
    shortcut: Option<usize>,
    /// Whether a shortcut was added at all.
    shifted: bool,
}

impl<T: Elem> ConvRecord<T> {
    pub(crate) fn backward(self, mut dz: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
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
        // After this dz is the gradient before the activation.
        let dy = if let (Some(norm), Some(stats), Some(y)) = (layer.norm, &self.stats, &self.raw) {
            // A shortcut takes the masked gradient; without one the mask is made where it is used.
            let affine = (&stats.a[..], &stats.b[..]);
            let (sum, product) = if self.shortcut.is_none() && !self.shifted {
                norm::open_backward_sums(&dz, affine, layer.act, y, &stats.mean, &mut scratch)
            } else {
                norm::backward_sums(&mut dz, &self.result, layer.act, y, &stats.mean, &mut scratch)
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
            match self.shortcut {
                None if !self.shifted => {
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
            let zeros = vec![T::ZERO; c];
            let (sum, _) =
                norm::backward_sums(&mut dz, &self.result, layer.act, &self.result, &zeros, &mut scratch);
            if let Some(id) = layer.bias.filter(|id| tape.trains(*id)) {
                back.param(id, vector(&mut sum.iter().copied()));
            }
            if let Some(id) = self.shortcut {
                let mut copy = pool.take(dz.len());
                copy.copy_from_slice(&dz);
                back.add(id, copy);
            }
            dz
        };
        drop(scratch);
        drop(self.raw);
        let pass = Pass { layer, geo: &self.geo, images: self.images };
        if tape.trains(layer.weight) {
            let source = self.padded.as_deref().unwrap_or(&self.values);
            let gradient = pass.weight_gradient(source, &dy, tape);
            back.param(layer.weight, gradient);
        }
        if let (id, true) = self.x {
            let (mut dx, holds) = back.slot(id, self.values.len());
            let weight = tape.params().get(layer.weight);
            with_values::<T, _>(weight.var(), |w| pass.data_gradient(&dy, w, &mut dx, holds, tape))?;
            back.grads[id] = Some(dx);
        }
        Ok(())
    }
}
