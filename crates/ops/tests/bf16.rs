//! Networks in bf16 on the graph engine, compared with f32.

use candle_core::{DType, Tensor};
use stillhouse_ops::optim::{Hyper, Sgd};
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, EngineKind, Init, LayerNorm, Linear, Mode, Node, Padding, ParamKind,
    ParamStore, Precision, Result, Rng, Tape, WindowAttention,
};
use stillhouse_testkit::device;

const CLASSES: usize = 5;

fn images() -> Tensor {
    let mut draw = Rng::new(4).at(0, 0);
    let values: Vec<f32> = (0..8 * 3 * 16 * 16).map(|_| draw.normal() as f32).collect();
    Tensor::from_vec(values, (8, 3, 16, 16), &device()).unwrap()
}

fn labels() -> Tensor {
    Tensor::new(&[0u32, 1, 2, 3, 4, 0, 1, 2], &device()).unwrap()
}

type Run = Box<dyn Fn(&Node, &mut Tape) -> Result<Node>>;

struct Net {
    params: ParamStore,
    run: Run,
}

/// Convolutions with batch norm, pooling, a residual sum, groups, a linear layer.
fn residual(params: &ParamStore) -> Result<Run> {
    let p = params.builder(Rng::new(1));
    let conv = |inputs, outputs, kernel: usize, groups, act, name: &str| {
        let spec =
            ConvSpec::new(inputs, outputs, kernel).padding(Padding::Symmetric(kernel / 2)).groups(groups);
        let init = Init::kaiming_fan_out(&spec.weight_shape());
        ConvBnAct::new(spec, name, &format!("{name}_bn"), act, init, &p)
    };
    let stem = conv(3, 16, 3, 1, Activation::Relu, "stem")?;
    let first = conv(16, 16, 3, 1, Activation::Relu, "first")?;
    let second = conv(16, 16, 3, 1, Activation::Relu, "second")?;
    let deep = conv(16, 16, 3, 16, Activation::Relu6, "deep")?;
    let plain = ConvSpec::new(16, 24, 1);
    let plain = ConvBnAct::without_bn(plain, "plain", true, Activation::Relu, Init::Normal(0.3), &p)?;
    let init = Init::Uniform(0.3);
    let head = Linear::new(24, CLASSES, "head", init, Some(init), &p)?;
    Ok(Box::new(move |x, tape| {
        let x = stem.forward(x, tape)?;
        let x = tape.max_pool(&x, 3, 2, 1)?;
        let y = first.forward(&x, tape)?;
        let x = second.forward_add(&y, &x, tape)?;
        let x = deep.forward(&x, tape)?;
        tape.mark_feature("map", &x)?;
        let x = plain.forward(&x, tape)?;
        let x = tape.global_avg_pool(&x)?;
        head.forward(&x, tape)
    }))
}

/// Patches, shifted window attention on an odd map, an MLP, patch merging.
fn swin(params: &ParamStore) -> Result<Run> {
    let p = params.builder(Rng::new(2));
    let (init, zero) = (Init::Normal(0.2), Some(Init::Constant(0.0)));
    let patches = ConvSpec::new(3, 24, 3).stride(3).padding(Padding::Symmetric(0));
    let patches = ConvBnAct::without_bn(patches, "patches", true, Activation::None, init, &p)?;
    let before = LayerNorm::new(24, "norm1", &p)?;
    let attention = WindowAttention::new(24, 3, [4, 4], [2, 2], init, &p.pp("attn"))?;
    let between = LayerNorm::new(24, "norm2", &p)?;
    let up = Linear::new(24, 96, "fc1", init, zero, &p)?;
    let down = Linear::new(96, 24, "fc2", init, zero, &p)?;
    let merged = LayerNorm::new(96, "norm3", &p)?;
    let reduce = Linear::new(96, 48, "reduction", init, None, &p)?;
    let head = Linear::new(48, CLASSES, "head", init, zero, &p)?;
    Ok(Box::new(move |x, tape| {
        let x = patches.forward(x, tape)?;
        let y = before.forward(&x, tape)?;
        let x = attention.forward_add(&y, &x, tape)?;
        tape.mark_feature("map", &x)?;
        let y = between.forward(&x, tape)?;
        let y = up.forward(&y, tape)?;
        let y = tape.gelu(&y)?;
        let x = down.forward_add(&y, &x, tape)?;
        let x = tape.merge_patches(&x)?;
        let x = merged.forward(&x, tape)?;
        let x = reduce.forward(&x, tape)?;
        let x = tape.global_avg_pool(&x)?;
        head.forward(&x, tape)
    }))
}

/// Layers that change the map size, and dropout.
fn shapes(params: &ParamStore) -> Result<Run> {
    let p = params.builder(Rng::new(3));
    let init = Init::Normal(0.3);
    let spec = |inputs| ConvSpec::new(inputs, 12, 1);
    let first = ConvBnAct::new(spec(3), "first", "first_bn", Activation::Relu, init, &p)?;
    let second =
        ConvBnAct::with_bias(spec(36), "second", Some("second_bn"), Activation::None, (init, init), &p)?;
    let head = Linear::with_bn(12, CLASSES, ("head", "head_bn"), (init, init), &p)?;
    Ok(Box::new(move |x, tape| {
        let x = first.forward(x, tape)?;
        let small = tape.adaptive_avg_pool(&x, (3, 5))?;
        let large = tape.resize_bilinear(&small, (16, 16), false)?;
        let mean = tape.global_avg_pool(&x)?;
        let mean = tape.elu(&mean)?;
        let mean = tape.expand(&mean, (16, 16))?;
        let x = tape.concat(&[&x, &large, &mean])?;
        let x = tape.dropout(&x, 0.3)?;
        let x = second.forward(&x, tape)?;
        let y = tape.graph(&[&x], |x| x[0].tanh())?;
        let y = tape.drop_path(&y, 0.2)?;
        let x = tape.add(&x, &y)?;
        tape.mark_feature("map", &x)?;
        let x = tape.relu(&x)?;
        let x = tape.global_avg_pool(&x)?;
        head.forward(&x, tape)
    }))
}

type Build = fn(&ParamStore) -> Result<Run>;
/// With the gradient tolerances for batch statistics and for running statistics.
const NETS: [(&str, Build, [f64; 2]); 3] =
    [("residual", residual, [0.2, 0.08]), ("swin", swin, [0.02, 0.02]), ("shapes", shapes, [0.15, 0.02])];

fn net(build: Build, precision: Precision) -> Net {
    let params = ParamStore::with_engine(DType::F32, &device(), EngineKind::Graph).unwrap();
    let params = params.with_precision(precision).unwrap();
    let run = build(&params).unwrap();
    Net { params, run }
}

impl Net {
    /// The features `logits` and `map` of one pass.
    fn pass(&self, tape: &mut Tape, step: u64) -> [Tensor; 2] {
        tape.select_features(&["logits", "map"]);
        tape.begin(Rng::new(7), step);
        let x = tape.input(&images()).unwrap();
        let y = (self.run)(&x, tape).unwrap();
        tape.mark_feature("logits", &y).unwrap();
        let outputs = tape.outputs().unwrap();
        let of = |name: &str| outputs.iter().find(|(n, _)| n == name).unwrap().1.clone();
        [of("logits"), of("map")]
    }
}

/// Cross-entropy plus a term of the map.
fn loss([logits, map]: &[Tensor; 2]) -> Tensor {
    let entropy = stillhouse_ops::graph::cross_entropy(logits, &labels(), 0.0).unwrap().mean_all().unwrap();
    (entropy + (map.sqr().unwrap().mean_all().unwrap() * 0.05).unwrap()).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Root mean square error relative to the expected root mean square.
fn off(got: &[f64], want: &[f64]) -> f64 {
    let square = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>();
    let difference = square(&mut got.iter().zip(want).map(|(a, b)| a - b));
    (difference / square(&mut want.iter().copied()).max(1e-12)).sqrt()
}

/// Logits agree within 2 % (bf16 has 8 bits of mantissa), as do gradients of networks without ReLU. Where
/// about one activation in a hundred flips its sign, gradients differ by a tenth; batch statistics
/// amplify that to less than a fifth. Parameters, gradients, running statistics and extracted features
/// stay f32.
#[test]
fn training_in_bf16_is_near_f32() {
    for (name, build, [of_batch, of_running]) in NETS {
        for mode in [Mode::Train, Mode::TrainFrozenBn] {
            let [full, low] = [Precision::Full, Precision::Bf16].map(|precision| {
                let net = net(build, precision);
                let mut tape = Tape::new(&net.params, mode).unwrap();
                let features = net.pass(&mut tape, 0);
                assert!(features.iter().all(|t| t.dtype() == DType::F32), "{name}");
                let gradients = tape.backward(&loss(&features)).unwrap();
                (net.params, features, gradients)
            });
            for i in 0..2 {
                let (got, want) = (flat(&low.1[i]), flat(&full.1[i]));
                let off = off(&got, &want);
                assert!(off > 0.0 && off < 0.02, "{name} {mode:?}: feature {i} is off by {off}");
            }
            for param in full.0.all() {
                assert_eq!(low.0.get(low.0.id(&param.name).unwrap()).var().dtype(), DType::F32);
                if param.kind == ParamKind::Buffer {
                    let of = |p: &ParamStore| flat(&p.export(p.id(&param.name).unwrap()).unwrap());
                    let off = off(&of(&low.0), &of(&full.0));
                    assert!(off < 0.01, "{name} {mode:?}: {} is off by {off}", param.name);
                    continue;
                }
                let of = |g: &stillhouse_ops::Gradients| g.param(&param.name).unwrap().unwrap();
                let (got, want) = (of(&low.2), of(&full.2));
                assert_eq!(got.dtype(), DType::F32);
                let off = off(&flat(&got), &flat(&want));
                // A bias before batch norm has zero gradient.
                let most = if mode == Mode::Train { of_batch } else { of_running };
                assert!(off < most, "{name} {mode:?}: gradient of {} is off by {off}", param.name);
            }
        }
    }
}

/// The loss decreases as in f32, and parameters stay f32.
#[test]
fn training_in_bf16_lowers_the_loss() {
    for (name, build, _) in NETS {
        let [full, low] = [Precision::Full, Precision::Bf16].map(|precision| {
            let net = net(build, precision);
            let mut tape = Tape::new(&net.params, Mode::Train).unwrap();
            let mut optimizer = Sgd::new(0.9, false);
            let mut losses = Vec::new();
            for step in 0..12 {
                let loss = loss(&net.pass(&mut tape, step));
                losses.push(flat(&loss)[0]);
                let gradients = tape.backward(&loss).unwrap();
                optimizer
                    .step(&net.params, &gradients, |_| Some(Hyper { lr: 0.02, weight_decay: 1e-4 }))
                    .unwrap();
            }
            assert!(optimizer.state(&net.params).unwrap().iter().all(|(_, t)| t.dtype() == DType::F32));
            losses
        });
        assert!(low[11] < 0.9 * low[0], "{name}: {low:?}");
        assert!(off(&low, &full) < 0.02, "{name}: {low:?} vs {full:?}");
    }
}

/// Without gradients, with folded batch norm, and for Grad-CAM; the precision set on a tape takes effect.
#[test]
fn other_modes_in_bf16_are_near_f32() {
    for (name, build, _) in NETS {
        let net = net(build, Precision::Full);
        for mode in [Mode::Eval, Mode::Inference, Mode::EvalWithGrad] {
            let mut tape = Tape::new(&net.params, mode).unwrap();
            let [want, _] = net.pass(&mut tape, 0);
            tape.set_precision(Precision::Bf16).unwrap();
            let features = net.pass(&mut tape, 0);
            let off = off(&flat(&features[0]), &flat(&want));
            assert!(off > 0.0 && off < 0.02, "{name} {mode:?}: off by {off}");
            if mode == Mode::EvalWithGrad {
                let gradients = tape.backward(&loss(&features)).unwrap();
                assert_eq!(gradients.feature("map").unwrap().dtype(), DType::F32);
            }
            tape.set_precision(Precision::Full).unwrap();
            assert_eq!(flat(&net.pass(&mut tape, 0)[0]), flat(&want), "{name} {mode:?}");
        }
    }
}

#[test]
fn rejects_bf16_on_cpu_kernels_and_f64() {
    let store = |dtype, engine| ParamStore::with_engine(dtype, &candle_core::Device::Cpu, engine).unwrap();
    let kernels = store(DType::F32, EngineKind::Kernels);
    for mode in [Mode::Train, Mode::Inference] {
        let error = Tape::new(&kernels, mode).unwrap().set_precision(Precision::Bf16).unwrap_err();
        assert!(error.to_string().contains("requires a GPU"), "{error}");
    }
    let error = kernels.with_precision(Precision::Bf16).unwrap_err();
    assert!(error.to_string().contains("requires a GPU"), "{error}");
    let error = store(DType::F64, EngineKind::Graph).with_precision(Precision::Bf16).unwrap_err();
    assert!(error.to_string().contains("expected f32 parameters"), "{error}");
}
