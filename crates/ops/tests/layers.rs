//! Layers compared with naive loops, central differences, other element types and other thread counts.

mod child;

use candle_core::{DType, Tensor};
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, Init, Linear, Mode, Node, Padding, ParamStore, Result, Rng, Tape,
};
use stillhouse_testkit::device;
use stillhouse_testkit::finite_diff::assert_close;

const SIZES: [(usize, usize); 3] = [(5, 7), (4, 4), (1, 1)];

/// Convolutions of every kind: kernel, stride, padding, dilation, groups, odd channel counts.
fn specs() -> Vec<ConvSpec> {
    let c = ConvSpec::new;
    vec![
        c(6, 5, 1).padding(Padding::Symmetric(0)),
        c(6, 20, 3),
        c(6, 17, 3).stride(2),
        c(6, 8, 1).padding(Padding::Symmetric(0)).stride(2),
        c(6, 8, 3).stride(3),
        c(6, 8, 2).stride(1).padding(Padding::Same),
        c(6, 8, 3).stride(2).padding(Padding::Same),
        c(6, 80, 5).stride(2).padding(Padding::Symmetric(2)),
        c(6, 9, 3).dilation(2).padding(Padding::Symmetric(2)),
        c(6, 9, 3).dilation(3).stride(2).padding(Padding::Same),
        c(6, 8, 3).groups(2),
        c(6, 6, 3).groups(6),
        c(6, 6, 3).groups(6).stride(2).padding(Padding::Same),
        c(20, 20, 5).groups(20).stride(2).padding(Padding::Symmetric(2)),
        // Several channel vectors and a partial one.
        c(48, 48, 3).groups(48).stride(2),
        c(150, 150, 3).groups(150),
        c(32, 32, 3).groups(32).stride(2).padding(Padding::Same),
        c(20, 40, 3).groups(4).stride(2),
        c(20, 33, 3).stride(2),
        c(24, 70, 1).padding(Padding::Symmetric(0)),
        c(16, 96, 1).padding(Padding::Symmetric(0)),
    ]
}

fn random(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let mut draw = Rng::new(9).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.uniform_in(-1.0, 1.0)).collect();
    Tensor::from_vec(values, shape, &device()).unwrap().to_dtype(dtype).unwrap()
}

/// A 1x1 convolution (so that the input of the tested block needs a gradient) and the block, with a
/// shortcut if the shapes permit it.
struct Net {
    params: ParamStore,
    front: ConvBnAct,
    block: ConvBnAct,
    shortcut: bool,
}

impl Net {
    fn new(spec: ConvSpec, bn: bool, act: Activation, dtype: DType) -> Self {
        let params = ParamStore::new(dtype, &device()).unwrap();
        let p = params.builder(Rng::new(3));
        let front = ConvSpec::new(2, spec.inputs, 1).padding(Padding::Symmetric(0));
        let front =
            ConvBnAct::without_bn(front, "front", true, Activation::None, Init::Uniform(1.0), &p).unwrap();
        let block = if bn {
            ConvBnAct::new(spec, "conv", "bn", act, Init::Uniform(0.7), &p).unwrap()
        } else {
            ConvBnAct::without_bn(spec, "conv", true, act, Init::Uniform(0.7), &p).unwrap()
        };
        // No parameter at its default: scales, shifts and statistics must all take effect.
        for param in params.all() {
            if param.shape.len() == 1 {
                let shift =
                    if param.name.ends_with("var") || param.name.ends_with("bn.weight") { 1.5 } else { 0.0 };
                let values = (random(&param.name, &param.shape, dtype).affine(0.5, shift)).unwrap();
                params.import(params.id(&param.name).unwrap(), &values).unwrap();
            }
        }
        Self { params, front, block, shortcut: spec.inputs == spec.outputs && spec.stride == 1 }
    }

    fn run(&self, images: &Tensor, tape: &mut Tape) -> Result<Tensor> {
        tape.select_features(&["out"]);
        tape.begin(Rng::new(0), 0);
        let x = tape.input(images)?;
        let x = self.front.forward(&x, tape)?;
        let y = if self.shortcut {
            self.block.forward_add(&x, &x, tape)?
        } else {
            self.block.forward(&x, tape)?
        };
        tape.mark_feature("out", &y)?;
        Ok(tape.outputs()?.remove(0).1)
    }

    fn loss(&self, images: &Tensor, mode: Mode) -> Result<f64> {
        let out = self.run(images, &mut Tape::new(&self.params, mode)?)?;
        let weights = random("loss", out.dims(), out.dtype());
        Ok((out * weights)?.sum_all()?.to_dtype(DType::F64)?.to_scalar()?)
    }

    fn gradients(&self, images: &Tensor, mode: Mode) -> Result<Vec<(String, Vec<f64>)>> {
        let mut tape = Tape::new(&self.params, mode)?;
        let out = self.run(images, &mut tape)?;
        let weights = random("loss", out.dims(), out.dtype());
        let grads = tape.backward(&(out * weights)?.sum_all()?)?;
        let mut all = Vec::new();
        for param in self.params.all() {
            if let Some(g) = grads.param(&param.name)? {
                all.push((param.name, g.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?));
            }
        }
        Ok(all)
    }

    fn value(&self, name: &str) -> Vec<f64> {
        let t = self.params.export(self.params.id(name).unwrap()).unwrap();
        t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    /// Reference in naive loops, NCHW, f64, with running statistics.
    fn naive(&self, images: &Tensor) -> Vec<f64> {
        let (b, c, h, w) = images.dims4().unwrap();
        let x = images.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        let front = *self.front.spec();
        let x = naive_conv(&x, [b, c, h, w], &self.value("front.weight"), &front);
        let bias = self.value("front.bias");
        let x: Vec<f64> = x.iter().enumerate().map(|(i, v)| v + bias[i / (h * w) % front.outputs]).collect();
        let spec = *self.block.spec();
        let (oh, ow) = spec.output_size(h, w).unwrap();
        let mut y = naive_conv(&x, [b, spec.inputs, h, w], &self.value("conv.weight"), &spec);
        for (i, v) in y.iter_mut().enumerate() {
            let o = i / (oh * ow) % spec.outputs;
            *v = if self.params.id("bn.weight").is_some() {
                let scale = self.value("bn.weight")[o] / (self.value("bn.running_var")[o] + 1e-5).sqrt();
                (*v - self.value("bn.running_mean")[o]) * scale + self.value("bn.bias")[o]
            } else {
                *v + self.value("conv.bias")[o]
            };
            if self.shortcut {
                *v += x[i];
            }
            *v = v.max(0.0);
        }
        y
    }
}

fn naive_conv(x: &[f64], [b, c, h, w]: [usize; 4], weight: &[f64], spec: &ConvSpec) -> Vec<f64> {
    let (oh, ow) = spec.output_size(h, w).unwrap();
    let (k, ci, per) = (spec.kernel, c / spec.groups, spec.outputs / spec.groups);
    let before = |size: usize, out: usize| match spec.padding {
        Padding::Symmetric(p) => p as isize,
        Padding::Same => {
            let need = ((out - 1) * spec.stride + spec.dilation * (k - 1) + 1) as isize - size as isize;
            need.max(0) / 2
        }
    };
    let (top, left) = (before(h, oh), before(w, ow));
    let mut y = vec![0.0; b * spec.outputs * oh * ow];
    for (at, y) in y.iter_mut().enumerate() {
        let (ox, oy, o, n) =
            (at % ow, at / ow % oh, at / (ow * oh) % spec.outputs, at / (ow * oh * spec.outputs));
        for i in 0..ci {
            for ky in 0..k {
                for kx in 0..k {
                    let iy = (oy * spec.stride + ky * spec.dilation) as isize - top;
                    let ix = (ox * spec.stride + kx * spec.dilation) as isize - left;
                    if iy >= 0 && ix >= 0 && iy < h as isize && ix < w as isize {
                        let channel = o / per * ci + i;
                        *y += x[((n * c + channel) * h + iy as usize) * w + ix as usize]
                            * weight[((o * ci + i) * k + ky) * k + kx];
                    }
                }
            }
        }
    }
    y
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn forward_matches_naive_loops() {
    let mut cases = 0;
    for spec in specs() {
        for bn in [true, false] {
            for (h, w) in SIZES {
                for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
                    let net = Net::new(spec, bn, Activation::Relu, dtype);
                    let images = random("images", &[2, 2, h, w], dtype);
                    let want = net.naive(&images);
                    for mode in [Mode::Eval, Mode::Inference, Mode::TrainFrozenBn, Mode::EvalWithGrad] {
                        let got = net.run(&images, &mut Tape::new(&net.params, mode).unwrap()).unwrap();
                        assert_close(
                            &flat(&got),
                            &want,
                            0.0,
                            tolerance * 10.0,
                            &format!("{spec:?} {h}x{w} {mode:?}"),
                        );
                    }
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 100);
}

#[test]
fn gradients_match_central_differences() {
    for spec in specs() {
        for (bn, act, mode) in [
            (true, Activation::Relu, Mode::Train),
            (true, Activation::Relu6, Mode::TrainFrozenBn),
            (false, Activation::None, Mode::Train),
        ] {
            let net = Net::new(spec, bn, act, DType::F64);
            let images = random("images", &[2, 2, 5, 4], DType::F64);
            for (name, got) in net.gradients(&images, mode).unwrap() {
                let start = net.value(&name);
                let id = net.params.id(&name).unwrap();
                let shape = net.params.get(id).shape;
                // A sample of the entries of large weights.
                for i in (0..start.len()).step_by(start.len().div_ceil(12)) {
                    let at = |delta: f64| {
                        let mut moved = start.clone();
                        moved[i] += delta;
                        net.params
                            .import(id, &Tensor::from_vec(moved, shape.clone(), &device()).unwrap())
                            .unwrap();
                        net.loss(&images, mode).unwrap()
                    };
                    let want = (at(1e-6) - at(-1e-6)) / 2e-6;
                    at(0.0);
                    assert_close(
                        &[got[i]],
                        &[want],
                        1e-5,
                        1e-6,
                        &format!("{name}[{i}] of {spec:?} {mode:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn f32_gradients_match_f64() {
    for spec in specs() {
        for bn in [true, false] {
            let images = random("images", &[3, 2, 9, 8], DType::F64);
            let wide =
                Net::new(spec, bn, Activation::None, DType::F64).gradients(&images, Mode::Train).unwrap();
            let images = images.to_dtype(DType::F32).unwrap();
            let narrow =
                Net::new(spec, bn, Activation::None, DType::F32).gradients(&images, Mode::Train).unwrap();
            assert_eq!(wide.len(), narrow.len());
            for ((name, want), (_, got)) in wide.iter().zip(&narrow) {
                let scale = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                assert_close(got, want, 0.0, 3e-4 * scale, &format!("{name} of {spec:?}"));
            }
        }
    }
}

/// Runs the tests above on every lower instruction set, in a child process.
#[test]
fn kernels_match_on_every_instruction_set() {
    if std::env::var_os("STILLHOUSE_ISA").is_some() {
        return;
    }
    let tests = ["--exact", "f32_gradients_match_f64", "forward_matches_naive_loops"];
    for isa in ["scalar", "avx2"] {
        child::rerun(("STILLHOUSE_ISA", isa), &tests, 2);
    }
}

/// Runs the layer tests on the graph engine, in a child process. Tests of the kernels alone have the
/// prefix `kernels`.
#[test]
fn kernels_and_graph_engine_agree() {
    child::rerun(("STILLHOUSE_ENGINE", "graph"), &["--skip", "kernels_"], 9);
}

/// A small residual network with every layer.
fn network(params: &ParamStore) -> impl Fn(&Tensor, &mut Tape) -> Result<Tensor> {
    let p = params.builder(Rng::new(1));
    let he = Init::Normal(0.2);
    let stem =
        ConvBnAct::new(ConvSpec::new(3, 24, 7).stride(2), "stem", "bn", Activation::Relu, he, &p).unwrap();
    let a = ConvBnAct::new(ConvSpec::new(24, 24, 3), "a", "abn", Activation::Relu6, he, &p).unwrap();
    let d =
        ConvBnAct::new(ConvSpec::new(24, 24, 3).groups(24).stride(2), "d", "dbn", Activation::Relu6, he, &p)
            .unwrap();
    let e = ConvBnAct::new(ConvSpec::new(24, 70, 1), "e", "ebn", Activation::None, he, &p).unwrap();
    let fc = Linear::new(70, 5, "fc", he, Some(Init::Constant(0.0)), &p).unwrap();
    move |images, tape| {
        tape.select_features(&["mid", "logits"]);
        let mut x: Node = tape.input(images)?;
        x = stem.forward(&x, tape)?;
        x = tape.max_pool(&x, 3, 2, 1)?;
        x = a.forward_add(&x, &x, tape)?;
        tape.mark_feature("mid", &x)?;
        x = d.forward(&x, tape)?;
        x = e.forward(&x, tape)?;
        x = tape.global_avg_pool(&x)?;
        x = tape.dropout(&x, 0.2)?;
        x = fc.forward(&x, tape)?;
        tape.mark_feature("logits", &x)?;
        let out = tape.outputs()?;
        let find = |n: &str| out.iter().find(|(name, _)| name == n).map(|(_, t)| t.clone());
        let (mid, logits) = (find("mid").unwrap(), find("logits").unwrap());
        Ok((logits.sqr()?.sum_all()? + mid.mean_all()?)?)
    }
}

fn train(threads: usize) -> (Vec<f64>, Vec<u32>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let params = ParamStore::new(DType::F32, &device()).unwrap();
        let forward = network(&params);
        let mut tape = Tape::new(&params, Mode::Train).unwrap();
        let mut sgd = stillhouse_ops::optim::Sgd::new(0.9, true);
        let mut losses = Vec::new();
        for step in 0..4 {
            tape.begin(Rng::new(2), step);
            let loss = forward(&random("images", &[9, 3, 64, 48], DType::F32), &mut tape).unwrap();
            losses.push(f64::from(loss.to_scalar::<f32>().unwrap()));
            let grads = tape.backward(&loss).unwrap();
            sgd.step(&params, &grads, |_| {
                Some(stillhouse_ops::optim::Hyper { lr: 1e-3, weight_decay: 1e-4 })
            })
            .unwrap();
        }
        let weights = params.export_all().unwrap();
        let bits = weights
            .iter()
            .flat_map(|(_, t)| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .map(f32::to_bits)
            .collect();
        (losses, bits)
    })
}

#[test]
fn results_do_not_depend_on_thread_count() {
    let (losses, one) = train(1);
    assert!(losses.windows(2).all(|w| w[1] < w[0]), "the loss must fall: {losses:?}");
    for threads in [2, 4] {
        assert_eq!(train(threads).1, one, "{threads} threads");
    }
}

#[test]
fn max_pool_uses_first_maximum() {
    let params = ParamStore::new(DType::F64, &device()).unwrap();
    let mut tape = Tape::new(&params, Mode::EvalWithGrad).unwrap();
    for (k, s, p, h, w) in
        [(3, 2, 1, 5, 6), (2, 2, 0, 5, 5), (2, 1, 0, 3, 3), (3, 3, 1, 7, 4), (3, 2, 1, 1, 1)]
    {
        tape.select_features(&["x", "y"]);
        tape.begin(Rng::new(0), 0);
        // Few distinct values, so that there are ties.
        let x = (random("pool", &[2, 3, h, w], DType::F64).affine(2.0, 0.0).unwrap()).round().unwrap();
        let node = tape.input(&x).unwrap();
        let node = tape.relu(&node).unwrap();
        tape.mark_feature("x", &node).unwrap();
        let y = tape.max_pool(&node, k, s, p).unwrap();
        tape.mark_feature("y", &y).unwrap();
        let out = tape.outputs().unwrap();
        let (x, y) = (flat(&out[0].1), out[1].1.clone());
        let weights = random("weights", y.dims(), DType::F64);
        let grads = tape.backward(&(&y * &weights).unwrap().sum_all().unwrap()).unwrap();
        let got = flat(grads.feature("x").unwrap());
        let (_, _, oh, ow) = y.dims4().unwrap();
        let (mut want_y, mut want_g) = (Vec::new(), vec![0.0; x.len()]);
        for (i, weight) in flat(&weights).iter().enumerate() {
            let (ox, oy, plane) = (i % ow, i / ow % oh, i / (ow * oh));
            let mut best: Option<usize> = None;
            for iy in (oy * s).saturating_sub(p)..(oy * s + k).saturating_sub(p).min(h) {
                for ix in (ox * s).saturating_sub(p)..(ox * s + k).saturating_sub(p).min(w) {
                    let at = (plane * h + iy) * w + ix;
                    if best.is_none_or(|b| x[at] > x[b]) {
                        best = Some(at);
                    }
                }
            }
            want_y.push(x[best.unwrap()]);
            want_g[best.unwrap()] += weight;
        }
        assert_eq!(flat(&y), want_y, "{k} {s} {p}");
        assert_close(&got, &want_g, 0.0, 1e-14, "gradient");
    }
}

#[test]
fn candle_expression_as_node() {
    let params = ParamStore::new(DType::F64, &device()).unwrap();
    let p = params.builder(Rng::new(1));
    let conv =
        ConvBnAct::without_bn(ConvSpec::new(2, 3, 3), "conv", true, Activation::Relu, Init::Uniform(0.5), &p)
            .unwrap();
    let scale = p.var("scale", &[1, 3, 1, 1], Init::Uniform(1.0)).unwrap();
    let images = random("images", &[2, 2, 4, 5], DType::F64);
    let run = |through_graph: bool| {
        let mut tape = Tape::new(&params, Mode::Train).unwrap();
        tape.select_features(&["out"]);
        let x = tape.input(&images).unwrap();
        let y = conv.forward(&x, &mut tape).unwrap();
        let f = |y: &Tensor| y.broadcast_mul(&scale)?.tanh()?.sqr();
        let loss = if through_graph {
            let z = tape.graph(&[&y], |y| f(&y[0])).unwrap();
            tape.mark_feature("out", &z).unwrap();
            tape.outputs().unwrap()[0].1.sum_all().unwrap()
        } else {
            tape.mark_feature("out", &y).unwrap();
            f(&tape.outputs().unwrap()[0].1).unwrap().sum_all().unwrap()
        };
        let grads = tape.backward(&loss).unwrap();
        ["conv.weight", "conv.bias", "scale"].map(|n| flat(&grads.param(n).unwrap().unwrap()))
    };
    for (a, b) in run(true).iter().zip(&run(false)) {
        assert!(a.iter().any(|v| *v != 0.0));
        assert_close(a, b, 1e-12, 1e-14, "graph");
    }
}

#[test]
fn frozen_parameters_get_no_gradient() {
    let net = Net::new(ConvSpec::new(6, 8, 3), true, Activation::Relu, DType::F64);
    net.params.set_trainable(net.params.id("conv.weight").unwrap(), false);
    let names: Vec<String> = net
        .gradients(&random("images", &[2, 2, 4, 4], DType::F64), Mode::Train)
        .unwrap()
        .into_iter()
        .map(|(n, _)| n)
        .collect();
    assert_eq!(names, ["front.weight", "front.bias", "bn.weight", "bn.bias"]);
}

#[test]
fn names_non_finite_gradient() {
    let net = Net::new(ConvSpec::new(6, 8, 3), false, Activation::None, DType::F32);
    let run = |scale: f64| {
        let mut tape = Tape::new(&net.params, Mode::Train).unwrap();
        let out = net.run(&random("images", &[2, 2, 4, 4], DType::F32), &mut tape).unwrap();
        tape.backward(&(out.sum_all().unwrap() * scale).unwrap()).unwrap().first_non_finite().unwrap()
    };
    assert_eq!(run(1.0), None);
    assert_eq!(run(f64::INFINITY).as_deref(), Some("front.weight"));
    assert_eq!(run(f64::NAN).as_deref(), Some("front.weight"));
}

#[test]
fn rejects_misuse() {
    let net = Net::new(ConvSpec::new(6, 8, 3), true, Activation::Relu, DType::F32);
    let mut tape = Tape::new(&net.params, Mode::Train).unwrap();
    let images = random("images", &[2, 2, 4, 4], DType::F32);
    let text = |e: stillhouse_ops::Error| e.to_string();
    assert!(text(tape.input(&random("x", &[2, 4], DType::F32)).unwrap_err()).contains("[B, C, H, W]"));
    let x = tape.input(&images).unwrap();
    assert!(text(net.block.forward(&x, &mut tape).unwrap_err()).contains("6 input channels"));
    assert!(text(tape.max_pool(&x, 9, 1, 0).unwrap_err()).contains("max_pool"));
    assert!(text(tape.dropout(&x, 1.5).unwrap_err()).contains("probability"));
    tape.begin(Rng::new(0), 1);
    assert!(text(net.front.forward(&x, &mut tape).unwrap_err()).contains("earlier pass"));
    tape.select_features(&["nothing"]);
    assert!(text(tape.outputs().unwrap_err()).contains("no feature `nothing`"));
    let loss = Tensor::new(1f32, &device()).unwrap();
    assert!(text(tape.backward(&loss).unwrap_err()).contains("nothing is recorded"));
    let mut eval = Tape::new(&net.params, Mode::Eval).unwrap();
    let out = net.run(&images, &mut eval).unwrap();
    assert!(text(eval.backward(&out.sum_all().unwrap()).unwrap_err()).contains("records nothing"));
    // One value per channel has no batch statistics.
    let mut tape = Tape::new(&net.params, Mode::Train).unwrap();
    let e = net.run(&random("one", &[1, 2, 1, 1], DType::F32), &mut tape).unwrap_err();
    assert!(text(e).contains("more than one value per channel"));
}

/// Large maps of 1x1 convolutions use the fused backward pass with few threads, bit-identical to the
/// separate passes with many threads; the gradient of a second consumer of `x` is added to that of the
/// first.
#[test]
fn kernels_fuse_pointwise_backward() {
    let train = |outputs: usize, act: Activation, add: bool, threads: usize| {
        let params = ParamStore::new(DType::F32, &device()).unwrap();
        let p = params.builder(Rng::new(3));
        let conv = |inputs, outputs, name: &str, act| {
            let (spec, bn) = (ConvSpec::new(inputs, outputs, 1), format!("{name}_bn"));
            ConvBnAct::new(spec, name, &bn, act, Init::Uniform(0.7), &p).unwrap()
        };
        let front = conv(2, 20, "front", Activation::Relu);
        let (first, second) = (conv(20, outputs, "first", act), conv(20, outputs, "second", act));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut tape = Tape::new(&params, Mode::Train).unwrap();
            tape.select_features(&["out"]);
            tape.begin(Rng::new(0), 0);
            tape.set_profiling(true);
            let images = tape.input(&random("images", &[31, 2, 33, 35], DType::F32)).unwrap();
            let x = front.forward(&images, &mut tape).unwrap();
            let y = first.forward(&x, &mut tape).unwrap();
            let y = if add {
                second.forward_add(&x, &y, &mut tape).unwrap()
            } else {
                let z = second.forward(&x, &mut tape).unwrap();
                tape.concat(&[&y, &z]).unwrap()
            };
            tape.mark_feature("out", &y).unwrap();
            let out = tape.outputs().unwrap().remove(0).1;
            let weights = random("loss", out.dims(), DType::F32);
            let grads = tape.backward(&(out * weights).unwrap().sum_all().unwrap()).unwrap();
            let timings = tape.layer_timings();
            let one_pass = timings.iter().filter(|s| s.name.ends_with("1x1, stride 1, on 33x35: gradients"));
            let calls: usize = one_pass.map(|s| s.calls).sum();
            assert_eq!(calls, if threads > 32 { 0 } else { 2 }, "{timings:?}");
            let bits = params.all().into_iter().filter_map(|param| {
                let gradient = grads.param(&param.name).unwrap()?.flatten_all().unwrap().to_vec1::<f32>();
                Some((param.name, gradient.unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()))
            });
            bits.collect::<Vec<_>>()
        })
    };
    for (outputs, act, add) in
        [(70, Activation::Relu6, false), (20, Activation::None, true), (33, Activation::Relu, true)]
    {
        let separate = train(outputs, act, add, 40);
        assert!(separate.len() >= 9);
        for threads in [1, 3] {
            assert!(train(outputs, act, add, threads) == separate, "{outputs}, {act:?}, {threads} threads");
        }
    }
}

#[test]
fn kernels_report_layer_timings() {
    let net = Net::new(ConvSpec::new(6, 8, 3), true, Activation::Relu, DType::F32);
    let images = random("images", &[2, 2, 5, 7], DType::F32);
    let mut tape = Tape::new(&net.params, Mode::Train).unwrap();
    net.run(&images, &mut tape).unwrap();
    assert!(tape.layer_timings().is_empty());
    tape.set_profiling(true);
    let out = net.run(&images, &mut tape).unwrap();
    tape.backward(&out.sum_all().unwrap()).unwrap();
    let timings = tape.layer_timings();
    for (part, macs) in
        [("forward", 2 * 5 * 7 * 6 * 8 * 9), ("weight gradient", 2 * 5 * 7 * 6 * 8 * 9), ("norm", 0)]
    {
        let name = format!("conv 6 to 8, 3x3, stride 1, on 5x7: {part}");
        let found =
            timings.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name} in {timings:?}"));
        assert_eq!((found.calls, found.macs), (1, macs), "{name}");
    }
}
