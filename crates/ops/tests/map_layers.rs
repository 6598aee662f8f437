//! Layers on maps and tokens compared with naive loops and central differences.

mod child;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, EngineKind, GroupNorm, Init, LayerNorm, Linear, Mode, Node, Padding,
    ParamStore, Result, Rng, Tape, WindowAttention,
};
use stillhouse_testkit::device;
use stillhouse_testkit::finite_diff::{assert_close, central_difference};

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut draw = Rng::new(9).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.uniform_in(-1.0, 1.0)).collect();
    Tensor::from_vec(values, shape, &device()).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// A layer on some maps `[B, C, H, W]`.
struct Case<'a> {
    what: String,
    shapes: Vec<[usize; 4]>,
    params: &'a ParamStore,
    layer: &'a dyn Fn(&[Node], &mut Tape) -> Result<Node>,
}

impl Case<'_> {
    /// Inputs are maps that come out of a graph, each with its own parameter `input0`, ...
    fn run(&self, mode: Mode) -> (Tensor, Vec<(String, Tensor)>) {
        let dtype = self.params.dtype();
        let mut tape = Tape::new(self.params, mode).unwrap();
        tape.select_features(&["out"]);
        tape.begin(Rng::new(0), 0);
        let mut nodes = Vec::new();
        for i in 0..self.shapes.len() {
            let [b, _, h, w] = self.shapes[i];
            let seed = tape.input(&Tensor::zeros((b, 1, h, w), dtype, &device()).unwrap()).unwrap();
            let var =
                self.params.get(self.params.id(&format!("input{i}")).unwrap()).var().as_tensor().clone();
            nodes.push(tape.graph(&[&seed], |_| Ok(var)).unwrap());
        }
        let y = (self.layer)(&nodes, &mut tape).unwrap();
        tape.mark_feature("out", &y).unwrap();
        let out = tape.outputs().unwrap().remove(0).1;
        if !mode.records() {
            return (out, Vec::new());
        }
        let weights = random("loss", out.dims()).to_dtype(dtype).unwrap();
        let grads = tape.backward(&(&out * weights).unwrap().sum_all().unwrap()).unwrap();
        let all = self.params.all().into_iter();
        let found = all.filter_map(|p| grads.param(&p.name).unwrap().map(|g| (p.name, g)));
        (out, found.collect())
    }

    /// Compares values with naive loops, gradients with central differences, and f32 with f64.
    fn check(&self, naive: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
        for (i, shape) in self.shapes.iter().enumerate() {
            let name = format!("input{i}");
            match self.params.id(&name) {
                Some(id) => self.params.import(id, &random(&name, shape)).unwrap(),
                None => {
                    let p = self.params.builder(Rng::new(5));
                    p.weight(&name, shape, Init::Uniform(1.0)).unwrap();
                }
            }
        }
        let values = |name: &str| flat(&self.params.export(self.params.id(name).unwrap()).unwrap());
        let inputs: Vec<Vec<f64>> = (0..self.shapes.len()).map(|i| values(&format!("input{i}"))).collect();
        let want = naive(&inputs);
        let (out, grads) = self.run(Mode::Train);
        let tolerance = if self.params.dtype() == DType::F64 { 1e-12 } else { 2e-5 };
        assert_close(&flat(&out), &want, 0.0, tolerance * 10.0, &self.what);
        for mode in [Mode::Eval, Mode::Inference] {
            assert_eq!(flat(&self.run(mode).0), flat(&out), "{} in {mode:?}", self.what);
        }
        if self.params.dtype() != DType::F64 {
            return;
        }
        assert!(grads.len() >= self.shapes.len(), "{}", self.what);
        for (name, grad) in grads {
            let id = self.params.id(&name).unwrap();
            let (start, shape) = (values(&name), self.params.get(id).shape);
            let import = |v: &[f64]| {
                let t = Tensor::from_slice(v, shape.as_slice(), &device()).unwrap();
                self.params.import(id, &t).unwrap();
            };
            // A sample of the entries of large ones.
            let some: Vec<usize> = (0..start.len()).step_by(start.len().div_ceil(24)).collect();
            let at = |v: &[f64]| {
                let mut moved = start.clone();
                some.iter().zip(v).for_each(|(i, v)| moved[*i] = *v);
                import(&moved);
                let out = self.run(Mode::Eval).0;
                let weights = flat(&random("loss", out.dims()));
                flat(&out).iter().zip(weights).map(|(o, w)| o * w).sum::<f64>()
            };
            let pick = |v: &[f64]| some.iter().map(|i| v[*i]).collect::<Vec<f64>>();
            let want = central_difference(at, &pick(&start), 1e-5);
            import(&start);
            assert_close(
                &pick(&flat(&grad)),
                &want,
                1e-6,
                1e-7,
                &format!("gradient of {name}: {}", self.what),
            );
        }
    }
}

const BOTH: [DType; 2] = [DType::F64, DType::F32];

fn store(dtype: DType) -> ParamStore {
    ParamStore::new(dtype, &device()).unwrap()
}

/// Randomizes all parameters.
fn shake(params: &ParamStore) {
    for param in params.all() {
        let values = random(&param.name, &param.shape);
        params.import(params.id(&param.name).unwrap(), &values).unwrap();
    }
}

/// Value at `[b, c, y, x]`.
fn at(x: &[f64], [_, channels, h, w]: [usize; 4], [b, c, y, i]: [usize; 4]) -> f64 {
    x[((b * channels + c) * h + y) * w + i]
}

/// Calls `f([b, c, y, x])` for every value of a shape.
fn fill([b, c, h, w]: [usize; 4], f: impl Fn([usize; 4]) -> f64) -> Vec<f64> {
    let mut out = Vec::new();
    for i in 0..b * c * h * w {
        out.push(f([i / (c * h * w), i / (h * w) % c, i / w % h, i % w]));
    }
    out
}

#[test]
fn bilinear() {
    for dtype in BOTH {
        for (from, to) in
            [([3, 5], [7, 4]), ([4, 4], [9, 12]), ([1, 1], [3, 2]), ([5, 7], [1, 1]), ([6, 5], [3, 5])]
        {
            for corners in [false, true] {
                let shape = [2, 3, from[0], from[1]];
                let params = store(dtype);
                let layer = |x: &[Node], t: &mut Tape| t.resize_bilinear(&x[0], (to[0], to[1]), corners);
                let what = format!("bilinear {from:?} to {to:?}, corners {corners}, {dtype:?}");
                let source = |i: usize, d: usize| {
                    let (n, m) = (from[d] as f64, to[d] as f64);
                    let s = match (corners, to[d]) {
                        (true, 1) => 0.0,
                        (true, _) => i as f64 * (n - 1.0) / (m - 1.0),
                        (false, _) => ((i as f64 + 0.5) * n / m - 0.5).max(0.0),
                    };
                    let low = s.floor() as usize;
                    (low, (low + 1).min(from[d] - 1), s - s.floor())
                };
                Case { what, shapes: vec![shape], params: &params, layer: &layer }.check(|x| {
                    fill([2, 3, to[0], to[1]], |[b, c, y, i]| {
                        let ((y0, y1, fy), (x0, x1, fx)) = (source(y, 0), source(i, 1));
                        let v = |y, i| at(&x[0], shape, [b, c, y, i]);
                        (1.0 - fy) * ((1.0 - fx) * v(y0, x0) + fx * v(y0, x1))
                            + fy * ((1.0 - fx) * v(y1, x0) + fx * v(y1, x1))
                    })
                });
            }
        }
    }
}

#[test]
fn adaptive_average() {
    for dtype in BOTH {
        for (from, to) in [([5, 7], [3, 2]), ([2, 2], [7, 7]), ([1, 3], [2, 1]), ([8, 6], [4, 3])] {
            let shape = [2, 3, from[0], from[1]];
            let params = store(dtype);
            let layer = |x: &[Node], t: &mut Tape| t.adaptive_avg_pool(&x[0], (to[0], to[1]));
            let what = format!("adaptive average {from:?} to {to:?} {dtype:?}");
            let bin = |i: usize, d: usize| i * from[d] / to[d]..((i + 1) * from[d]).div_ceil(to[d]);
            Case { what, shapes: vec![shape], params: &params, layer: &layer }.check(|x| {
                fill([2, 3, to[0], to[1]], |[b, c, y, i]| {
                    let pixels: Vec<f64> = bin(y, 0)
                        .flat_map(|y| bin(i, 1).map(move |i| (y, i)))
                        .map(|(y, i)| at(&x[0], shape, [b, c, y, i]))
                        .collect();
                    pixels.iter().sum::<f64>() / pixels.len() as f64
                })
            });
        }
    }
}

/// A map with several consumers, one of them twice, concatenated with a broadcast vector.
#[test]
fn concat_and_expand() {
    for dtype in BOTH {
        let params = store(dtype);
        let (a, b) = ([2, 3, 2, 4], [2, 17, 2, 4]);
        let layer = |x: &[Node], t: &mut Tape| {
            let mean = t.global_avg_pool(&x[1])?;
            let mean = t.expand(&mean, (2, 4))?;
            t.concat(&[&x[0], &mean, &x[1], &x[0]])
        };
        let what = format!("concat {dtype:?}");
        Case { what, shapes: vec![a, b], params: &params, layer: &layer }.check(|x| {
            fill([2, 40, 2, 4], |[n, c, y, i]| match c {
                0..3 => at(&x[0], a, [n, c, y, i]),
                3..20 => (0..8).map(|p| at(&x[1], b, [n, c - 3, p / 4, p % 4])).sum::<f64>() / 8.0,
                20..37 => at(&x[1], b, [n, c - 20, y, i]),
                _ => at(&x[0], a, [n, c - 37, y, i]),
            })
        });
    }
}

#[test]
fn merge_patches_on_maps() {
    for dtype in BOTH {
        for [h, w] in [[4, 6], [3, 5], [1, 1]] {
            let (params, shape) = (store(dtype), [2, 3, h, w]);
            let layer = |x: &[Node], t: &mut Tape| t.merge_patches(&x[0]);
            let what = format!("merged patches {h}x{w} {dtype:?}");
            Case { what, shapes: vec![shape], params: &params, layer: &layer }.check(|x| {
                fill([2, 12, h.div_ceil(2), w.div_ceil(2)], |[b, c, y, i]| {
                    let (y, i) = (2 * y + c / 3 % 2, 2 * i + c / 6);
                    if y < h && i < w { at(&x[0], shape, [b, c % 3, y, i]) } else { 0.0 }
                })
            });
        }
    }
}

#[test]
fn layer_norm_gelu_and_linear_on_maps() {
    for dtype in BOTH {
        for channels in [1, 5, 21] {
            let params = store(dtype);
            let p = params.builder(Rng::new(1));
            let norm = LayerNorm::new(channels, "norm", &p).unwrap();
            let linear =
                Linear::new(channels, 7, "fc", Init::Uniform(1.0), Some(Init::Uniform(1.0)), &p).unwrap();
            let short = Linear::new(channels, 7, "short", Init::Uniform(1.0), None, &p).unwrap();
            shake(&params);
            let layer = |x: &[Node], t: &mut Tape| {
                let y = norm.forward(&x[0], t)?;
                let y = t.gelu(&y)?;
                let other = short.forward(&x[0], t)?;
                linear.forward_add(&y, &other, t)
            };
            let value = |name: &str| flat(&params.export(params.id(name).unwrap()).unwrap());
            let shape = [2, channels, 3, 2];
            let what = format!("layer norm, gelu, linear on {channels} channels {dtype:?}");
            Case { what, shapes: vec![shape], params: &params, layer: &layer }.check(|x| {
                let (g, b, fc, bias, s) = (
                    value("norm.weight"),
                    value("norm.bias"),
                    value("fc.weight"),
                    value("fc.bias"),
                    value("short.weight"),
                );
                fill([2, 7, 3, 2], |[n, o, y, i]| {
                    let v: Vec<f64> = (0..channels).map(|c| at(&x[0], shape, [n, c, y, i])).collect();
                    let mean = v.iter().sum::<f64>() / channels as f64;
                    let variance = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / channels as f64;
                    let inner = (0..channels).map(|c| {
                        let u = (v[c] - mean) / (variance + 1e-5).sqrt() * g[c] + b[c];
                        let gelu = u * 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(u / 2f64.sqrt()));
                        fc[o * channels + c] * gelu + s[o * channels + c] * v[c]
                    });
                    inner.sum::<f64>() + bias[o]
                })
            });
        }
    }
}

#[test]
fn group_norm_on_maps() {
    for dtype in BOTH {
        let params = store(dtype);
        let norm = GroupNorm::new(2, 6, "norm", &params.builder(Rng::new(1))).unwrap();
        shake(&params);
        let (shape, [b, h, w]) = ([2, 6, 3, 5], [2, 3, 5]);
        let values = |name: &str| flat(&params.export(params.id(name).unwrap()).unwrap());
        let (weight, bias) = (values("norm.weight"), values("norm.bias"));
        let naive = |x: &[Vec<f64>]| {
            let group = |image: usize, g: usize| {
                let count = 3 * h * w;
                let of = &x[0][(image * 2 + g) * count..][..count];
                let mean = of.iter().sum::<f64>() / count as f64;
                let variance = of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
                (mean, (variance + 1e-5).sqrt())
            };
            let stats: Vec<_> = (0..2 * b).map(|i| group(i / 2, i % 2)).collect();
            fill(shape, |[image, c, y, i]| {
                let (mean, deviation) = stats[image * 2 + c / 3];
                (at(&x[0], shape, [image, c, y, i]) - mean) / deviation * weight[c] + bias[c]
            })
        };
        let layer = |x: &[Node], tape: &mut Tape| norm.forward(&x[0], tape);
        Case { what: format!("group norm {dtype:?}"), shapes: vec![shape], params: &params, layer: &layer }
            .check(naive);
    }
}

#[test]
fn elu_on_maps() {
    for dtype in BOTH {
        let (params, shape) = (store(dtype), [2, 3, 2, 4]);
        let layer = |x: &[Node], t: &mut Tape| t.elu(&x[0]);
        Case { what: format!("elu {dtype:?}"), shapes: vec![shape], params: &params, layer: &layer }
            .check(|x| x[0].iter().map(|x| if *x > 0.0 { *x } else { x.exp() - 1.0 }).collect());
    }
}

/// Swin's attention, pixel by pixel and without partitioning: each pixel collects the others of its
/// window.
fn naive_attention(
    value: &dyn Fn(&str) -> Vec<f64>,
    x: &[f64],
    [b, channels, h, w]: [usize; 4],
    heads: usize,
    window: [usize; 2],
    shift: [usize; 2],
) -> Vec<f64> {
    let (qkv, bias, table) = (value("qkv.weight"), value("qkv.bias"), value("relative_position_bias_table"));
    let (proj, proj_bias) = (value("proj.weight"), value("proj.bias"));
    let d = channels / heads;
    let padded = [h.div_ceil(window[0]) * window[0], w.div_ceil(window[1]) * window[1]];
    // Position in the shifted and padded map, input, and region.
    let token = |n: usize, r: usize, c: usize, o: usize| {
        let mut sum = bias[o];
        if r < h && c < w {
            for i in 0..channels {
                let v = at(x, [b, channels, h, w], [n, i, (r + shift[0]) % h, (c + shift[1]) % w]);
                sum += qkv[o * channels + i] * v;
            }
        }
        sum
    };
    let region = |i: usize, k: usize| {
        if shift[k] == 0 || i < padded[k] - window[k] {
            0
        } else if i < padded[k] - shift[k] {
            1
        } else {
            2
        }
    };
    let mut attended = vec![0.0; b * channels * h * w];
    for n in 0..b {
        for r in 0..h {
            for c in 0..w {
                let (top, left) = (r / window[0] * window[0], c / window[1] * window[1]);
                for head in 0..heads {
                    let q: Vec<f64> =
                        (0..d).map(|i| token(n, r, c, head * d + i) / (d as f64).sqrt()).collect();
                    let (mut weights, mut values) = (Vec::new(), Vec::new());
                    for kr in top..top + window[0] {
                        for kc in left..left + window[1] {
                            let row =
                                (r + window[0] - 1 - kr) * (2 * window[1] - 1) + (c + window[1] - 1 - kc);
                            let mut s = table[row * heads + head];
                            for (i, q) in q.iter().enumerate() {
                                s += q * token(n, kr, kc, channels + head * d + i);
                            }
                            if (region(r, 0), region(c, 1)) != (region(kr, 0), region(kc, 1)) {
                                s -= 100.0;
                            }
                            weights.push(s.exp());
                            values.push((kr, kc));
                        }
                    }
                    let total: f64 = weights.iter().sum();
                    for i in 0..d {
                        let sum: f64 = weights
                            .iter()
                            .zip(&values)
                            .map(|(p, (kr, kc))| p / total * token(n, *kr, *kc, 2 * channels + head * d + i))
                            .sum();
                        let (y, z) = ((r + shift[0]) % h, (c + shift[1]) % w);
                        attended[((n * channels + head * d + i) * h + y) * w + z] = sum;
                    }
                }
            }
        }
    }
    fill([b, channels, h, w], |[n, o, y, i]| {
        let inner =
            (0..channels).map(|c| proj[o * channels + c] * at(&attended, [b, channels, h, w], [n, c, y, i]));
        inner.sum::<f64>() + proj_bias[o]
    })
}

#[test]
fn window_attention() {
    for dtype in BOTH {
        for (map, window, shift, heads, channels) in [
            ([4, 4], [2, 2], [0, 0], 2, 6),
            ([4, 6], [2, 3], [1, 1], 1, 5),
            ([5, 7], [3, 3], [1, 1], 2, 4),
            ([5, 4], [3, 2], [1, 0], 2, 4),
            ([1, 1], [1, 1], [0, 0], 3, 3),
            ([10, 5], [5, 5], [2, 0], 1, 18),
        ] {
            let params = store(dtype);
            let p = params.builder(Rng::new(1));
            let attention =
                WindowAttention::new(channels, heads, window, shift, Init::Normal(0.02), &p).unwrap();
            shake(&params);
            let layer = |x: &[Node], t: &mut Tape| attention.forward(&x[0], t);
            let value = |name: &str| flat(&params.export(params.id(name).unwrap()).unwrap());
            let shape = [2, channels, map[0], map[1]];
            let what = format!("attention on {map:?}, window {window:?}, shift {shift:?} {dtype:?}");
            Case { what, shapes: vec![shape], params: &params, layer: &layer }
                .check(|x| naive_attention(&value, &x[0], shape, heads, window, shift));
        }
    }
}

/// A bias before batch norm affects only the running mean.
#[test]
fn bias_before_batch_norm() {
    let run = |biased: bool, mode: Mode| {
        let params = store(DType::F64);
        let p = params.builder(Rng::new(2));
        let spec = ConvSpec::new(2, 3, 3);
        let init = (Init::Uniform(1.0), Init::Constant(0.0));
        let conv = ConvBnAct::with_bias(spec, "conv", Some("bn"), Activation::Relu, init, &p).unwrap();
        let value = |name: &str| flat(&params.export(params.id(name).unwrap()).unwrap());
        let set = |name: &str, v: [f64; 3]| {
            params.import(params.id(name).unwrap(), &Tensor::new(&v, &device()).unwrap()).unwrap();
        };
        set("bn.running_var", [0.5, 1.5, 2.0]);
        set("bn.running_mean", if biased { [0.3, -0.2, 0.1] } else { [0.1, -0.5, 0.5] });
        set("conv.bias", if biased { [0.2, 0.3, -0.4] } else { [0.0; 3] });
        let mut tape = Tape::new(&params, mode).unwrap();
        tape.select_features(&["out"]);
        tape.begin(Rng::new(0), 0);
        let x = tape.input(&random("images", &[2, 2, 4, 5])).unwrap();
        let y = conv.forward(&x, &mut tape).unwrap();
        tape.mark_feature("out", &y).unwrap();
        let out = tape.outputs().unwrap().remove(0).1;
        let mut grads = Vec::new();
        if mode.records() {
            let weights = random("loss", out.dims());
            let found = tape.backward(&(&out * weights).unwrap().sum_all().unwrap()).unwrap();
            for name in ["conv.weight", "conv.bias", "bn.weight", "bn.bias"] {
                grads.push(flat(&found.param(name).unwrap().unwrap()));
            }
        }
        (flat(&out), grads, value("bn.running_mean"))
    };
    for mode in [Mode::Train, Mode::TrainFrozenBn, Mode::Eval, Mode::Inference] {
        let (with, without) = (run(true, mode), run(false, mode));
        assert_close(&with.0, &without.0, 0.0, 1e-12, &format!("{mode:?}"));
        for (a, b) in with.1.iter().zip(&without.1) {
            assert_close(a, b, 0.0, 1e-11, &format!("gradient in {mode:?}"));
        }
        if mode == Mode::Train {
            // 0.9 * running + 0.1 * (mean of the convolution + bias)
            let shift: Vec<f64> = with.2.iter().zip(&without.2).map(|(a, b)| a - b).collect();
            assert_close(&shift, &[0.2, 0.3, -0.4], 0.0, 1e-12, "running mean");
            assert_eq!(with.1[1], [0.0; 3]);
        }
        if mode == Mode::TrainFrozenBn {
            assert!(with.1[1].iter().all(|g| *g != 0.0));
        }
    }
}

#[test]
fn drop_path_drops_whole_images() {
    let params = store(DType::F32);
    params.builder(Rng::new(1)).weight("input0", &[64, 3, 2, 2], Init::Constant(1.0)).unwrap();
    let run = |p: f64, mode: Mode, step: u64| {
        let mut tape = Tape::new(&params, mode).unwrap();
        tape.select_features(&["out"]);
        tape.begin(Rng::new(7), step);
        let seed = tape.input(&Tensor::zeros((64, 1, 2, 2), DType::F32, &device()).unwrap()).unwrap();
        let var = params.get(params.id("input0").unwrap()).var().as_tensor().clone();
        let x = tape.graph(&[&seed], |_| Ok(var)).unwrap();
        let y = tape.drop_path(&x, p)?;
        tape.mark_feature("out", &y).unwrap();
        let out = tape.outputs().unwrap().remove(0).1;
        let grad = mode.records().then(|| {
            let grads = tape.backward(&out.sum_all().unwrap()).unwrap();
            flat(&grads.param("input0").unwrap().unwrap())
        });
        Result::Ok((flat(&out), grad))
    };
    let (out, grad) = run(0.25, Mode::Train, 1).unwrap();
    let kept = out.chunks(12).filter(|image| image[0] != 0.0).count();
    assert!((36..60).contains(&kept), "{kept} of 64 kept");
    assert!(out.chunks(12).all(|image| image.iter().all(|v| *v == image[0])));
    assert!(out.iter().all(|v| *v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
    assert_eq!(grad.unwrap(), out);
    assert_eq!(run(0.25, Mode::Train, 1).unwrap().0, out);
    assert_ne!(run(0.25, Mode::Train, 2).unwrap().0, out);
    assert!(run(0.25, Mode::Eval, 1).unwrap().0.iter().all(|v| *v == 1.0));
    assert!(run(1.0, Mode::Train, 1).unwrap_err().to_string().contains("probability"));
}

#[test]
fn results_do_not_depend_on_thread_count() {
    let train = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let params = store(DType::F32);
            let p = params.builder(Rng::new(1));
            let patch = ConvSpec::new(3, 32, 4).stride(4).padding(Padding::Symmetric(0));
            let init = Init::Normal(0.1);
            let patch = ConvBnAct::without_bn(patch, "patch", true, Activation::None, init, &p).unwrap();
            let norm = LayerNorm::new(32, "norm", &p).unwrap();
            let attention = WindowAttention::new(32, 2, [7, 7], [3, 3], init, &p).unwrap();
            let mut tape = Tape::new(&params, Mode::Train).unwrap();
            tape.select_features(&["out"]);
            tape.begin(Rng::new(2), 0);
            let images = random("images", &[5, 3, 64, 44]).to_dtype(DType::F32).unwrap();
            let x = tape.input(&images).unwrap();
            let x = patch.forward(&x, &mut tape).unwrap();
            let y = norm.forward(&x, &mut tape).unwrap();
            let y = attention.forward_add(&y, &x, &mut tape).unwrap();
            let y = tape.gelu(&y).unwrap();
            let y = tape.drop_path(&y, 0.3).unwrap();
            let y = tape.merge_patches(&y).unwrap();
            let y = tape.resize_bilinear(&y, (19, 7), false).unwrap();
            tape.mark_feature("out", &y).unwrap();
            let out = tape.outputs().unwrap().remove(0).1;
            let grads = tape.backward(&out.sqr().unwrap().mean_all().unwrap()).unwrap();
            let all = params.all();
            all.iter()
                .flat_map(|p| flat(&grads.param(&p.name).unwrap().unwrap()))
                .map(f64::to_bits)
                .collect::<Vec<_>>()
        })
    };
    let one = train(1);
    assert!(one.iter().any(|b| *b != 0));
    for threads in [2, 4] {
        assert_eq!(train(threads), one, "{threads} threads");
    }
}

#[test]
fn rejects_misuse() {
    let params = store(DType::F32);
    let p = params.builder(Rng::new(1));
    let norm = LayerNorm::new(4, "norm", &p).unwrap();
    let linear = Linear::new(4, 2, "fc", Init::Constant(0.0), None, &p).unwrap();
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    let node = |tape: &mut Tape, shape: &[usize]| tape.input(&random("x", shape)).unwrap();
    let (a, b) = (node(&mut tape, &[2, 3, 2, 2]), node(&mut tape, &[2, 3, 2, 3]));
    let text = |r: Result<Node>| r.unwrap_err().to_string();
    assert!(text(tape.concat(&[&a, &b])).contains("one batch and size"));
    assert!(text(tape.concat(&[])).contains("at least one map"));
    assert!(text(tape.resize_bilinear(&a, (0, 2), false)).contains("at least one pixel"));
    assert!(text(tape.expand(&a, (2, 2))).contains("a vector"));
    assert!(text(norm.forward(&a, &mut tape)).contains("4 channels"));
    assert!(text(linear.forward(&a, &mut tape)).contains("4 values"));
    let meta = ParamStore::meta();
    Linear::new(4, 2, "fc", Init::Constant(0.0), None, &meta.builder(Rng::new(0))).unwrap();
    assert_eq!(meta.count_weights(), 8);
    assert!(Tape::new(&meta, Mode::Eval).unwrap_err().to_string().contains("meta"));
    let e = WindowAttention::new(5, 2, [2, 2], [1, 1], Init::Constant(0.0), &p).unwrap_err();
    assert!(e.to_string().contains("divisible by the heads"));
}

/// A training pass over three segments: values, gradients, running mean, and the tape's memory.
fn in_segments(dtype: DType, gradient_checkpointing: bool) -> (Vec<(String, Vec<f64>)>, usize) {
    let params = store(dtype);
    let p = params.builder(Rng::new(6));
    let block = |i: usize| {
        let (p, spec) = (p.pp(format!("b{i}")), ConvSpec::new(8, 8, 3));
        let conv =
            ConvBnAct::new(spec, "conv", "bn", Activation::Relu, Init::kaiming_fan_out(&[8, 8, 3, 3]), &p)
                .unwrap();
        let norm = LayerNorm::new(8, "norm", &p).unwrap();
        let attention = WindowAttention::new(8, 2, [4, 4], [2, 2], Init::Normal(0.2), &p).unwrap();
        Arc::new((conv, norm, attention))
    };
    let blocks = [0, 1, 2].map(block);
    let stem = ConvBnAct::new(
        ConvSpec::new(3, 8, 3),
        "conv",
        "bn",
        Activation::Relu,
        Init::kaiming_fan_out(&[8, 3, 3, 3]),
        &p,
    );
    let stem = stem.unwrap();
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    tape.set_gradient_checkpointing(gradient_checkpointing);
    tape.select_features(&["middle", "out"]);
    let mut found = Vec::new();
    for step in 0..2 {
        tape.begin(Rng::new(8), step);
        let images = random(&format!("images{step}"), &[2, 3, 12, 12]).to_dtype(dtype).unwrap();
        let x = tape.input(&images).unwrap();
        let mut x = stem.forward(&x, &mut tape).unwrap();
        for (i, block) in blocks.iter().enumerate() {
            let block = Arc::clone(block);
            let run = move |x: &Node, tape: &mut Tape| {
                let (conv, norm, attention) = &*block;
                let y = norm.forward(x, tape)?;
                let y = attention.forward(&y, tape)?;
                let y = tape.drop_path(&y, 0.4)?;
                let x = tape.add(x, &y)?;
                let y = conv.forward(&x, tape)?;
                let y = tape.dropout(&y, 0.3)?;
                tape.add(&x, &y)
            };
            x = tape.gradient_checkpoint(&x, run).unwrap();
            tape.mark_feature(if i == 2 { "out" } else { "middle" }, &x).unwrap();
        }
        let outputs = tape.outputs().unwrap();
        let loss = outputs.iter().map(|(_, t)| t.sqr().unwrap().mean_all().unwrap());
        let loss = loss.reduce(|a, b| (a + b).unwrap()).unwrap();
        found.extend(outputs.iter().map(|(name, t)| (format!("{name}{step}"), flat(t))));
        let gradients = tape.backward(&loss).unwrap();
        for param in params.all() {
            let gradient = gradients.param(&param.name).unwrap();
            found.extend(gradient.map(|g| (format!("{}{step}", param.name), flat(&g))));
        }
    }
    let all = params.export_all().unwrap().into_iter();
    found.extend(all.filter(|(name, _)| name.contains("running")).map(|(name, t)| (name, flat(&t))));
    (found, tape.memory_bytes())
}

/// Recomputed random numbers, batch statistics and gradients are bit-identical, in less memory.
#[test]
fn gradient_checkpointing_is_bit_identical() {
    for dtype in [DType::F32, DType::F64] {
        let ((whole, held), (again, less)) = (in_segments(dtype, false), in_segments(dtype, true));
        assert_eq!(whole.len(), again.len());
        for ((name, a), (other, b)) in whole.iter().zip(&again) {
            assert_eq!(name, other);
            assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} in {dtype:?}");
        }
        let gradient = whole.iter().find(|(name, _)| name == "b1.qkv.weight1");
        assert!(gradient.is_some_and(|(_, g)| g.iter().all(|v| *v != 0.0)));
        // The graph engine manages its own memory.
        let kernels = store(dtype).engine() == EngineKind::Kernels;
        assert!(!kernels || 10 * less < 8 * held, "{less} bytes of {held}");
    }
}

/// Runs these tests on the graph engine, in a child process.
#[test]
fn kernels_and_graph_engine_agree() {
    child::rerun(("STILLHOUSE_ENGINE", "graph"), &["--skip", "kernels_"], 13);
}
