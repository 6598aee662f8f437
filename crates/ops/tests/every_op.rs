//! Every operation on every engine: a new one without a case, or without one of its forms, fails.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use stillhouse_ops::op::Cost;
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, EngineKind, GroupNorm, Init, LayerNorm, Linear, Mode, Node, Op, Padding,
    ParamBuilder, ParamStore, Result, Rng, Tape, WindowAttention,
};

type Layer = Box<dyn Fn(&Node, &mut Tape) -> Result<Node>>;

/// An operation, the name of its entry, and why a trace does not have it, if so.
struct Case {
    name: &'static str,
    untraced: Option<&'static str>,
    build: fn(&ParamBuilder) -> Layer,
}

const fn case(name: &'static str, build: fn(&ParamBuilder) -> Layer) -> Case {
    Case { name, untraced: None, build }
}

const CHANNELS: usize = 6;

/// Each layer gets a map `[2, 6, 5, 7]`.
const CASES: &[Case] = &[
    case("input", |_| Box::new(|x, _| Ok(x.clone()))),
    case("opaque", |_| {
        Box::new(|x, tape| {
            let values = Tensor::arange(0f64, 84.0, &Device::Cpu)?.reshape((2, 6, 7, 1))?;
            let y = tape.opaque_op(&[x.batch(), 6, 7, 1], Cost::default, || Ok(values))?;
            let y = tape.global_avg_pool(&y)?;
            let y = tape.expand(&y, x.size())?;
            tape.add(x, &y)
        })
    }),
    Case {
        name: "expression",
        untraced: Some("cannot be traced"),
        build: |_| Box::new(|x, tape| tape.graph(&[x], |x| x[0].tanh())),
    },
    case("conv", |p| {
        let spec = ConvSpec::new(CHANNELS, CHANNELS, 3);
        let init = Init::Uniform(0.7);
        let block = ConvBnAct::new(spec, "conv", "bn", Activation::Relu, init, p).unwrap();
        let plain = spec.groups(CHANNELS).stride(2).padding(Padding::Same);
        let plain = ConvBnAct::without_bn(plain, "plain", true, Activation::Relu6, init, p).unwrap();
        let fc = Linear::with_bn(CHANNELS, 3, ("fc", "fc_bn"), (init, init), p).unwrap();
        Box::new(move |x, tape| {
            let y = block.forward_add(x, x, tape)?;
            let y = plain.forward(&y, tape)?;
            fc.forward(&y, tape)
        })
    }),
    case("max_pool", |_| Box::new(|x, tape| tape.max_pool(x, 3, 2, 1))),
    case("global_avg_pool", |_| Box::new(|x, tape| tape.global_avg_pool(x))),
    case("relu", |_| Box::new(|x, tape| tape.relu(x))),
    case("add", |_| {
        Box::new(|x, tape| {
            let y = tape.gelu(x)?;
            tape.add(x, &y)
        })
    }),
    case("concat", |_| {
        Box::new(|x, tape| {
            let y = tape.gelu(x)?;
            tape.concat(&[x, &y, x])
        })
    }),
    case("resize_bilinear", |_| {
        Box::new(|x, tape| {
            let y = tape.resize_bilinear(x, (9, 3), false)?;
            tape.resize_bilinear(&y, (4, 4), true)
        })
    }),
    case("adaptive_avg_pool", |_| Box::new(|x, tape| tape.adaptive_avg_pool(x, (3, 9)))),
    case("expand", |_| {
        Box::new(|x, tape| {
            let y = tape.global_avg_pool(x)?;
            tape.expand(&y, (2, 3))
        })
    }),
    case("layer_norm", |p| {
        let norm = LayerNorm::new(CHANNELS, "norm", p).unwrap();
        Box::new(move |x, tape| norm.forward(x, tape))
    }),
    case("group_norm", |p| {
        let norm = GroupNorm::new(3, CHANNELS, "norm", p).unwrap();
        Box::new(move |x, tape| {
            let y = norm.forward(x, tape)?;
            let vector = tape.global_avg_pool(&y)?;
            let vector = norm.forward(&vector, tape)?;
            let y = tape.add(x, &y)?;
            let z = tape.expand(&vector, y.size())?;
            tape.add(&y, &z)
        })
    }),
    case("gelu", |_| Box::new(|x, tape| tape.gelu(x))),
    case("elu", |_| Box::new(|x, tape| tape.elu(x))),
    Case {
        name: "dropout",
        untraced: Some("runs in training only"),
        build: |_| Box::new(|x, tape| tape.dropout(x, 0.4)),
    },
    Case {
        name: "drop_path",
        untraced: Some("runs in training only"),
        build: |_| Box::new(|x, tape| tape.drop_path(x, 0.4)),
    },
    case("window_attention", |p| {
        let attention = WindowAttention::new(CHANNELS, 2, [4, 4], [2, 1], Init::Uniform(0.5), p).unwrap();
        Box::new(move |x, tape| attention.forward(x, tape))
    }),
    case("merge_patches", |_| Box::new(|x, tape| tape.merge_patches(x))),
];

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut draw = Rng::new(9).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.uniform_in(-1.0, 1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// The layer after a convolution, so that its input gets a gradient.
fn network(case: &Case, p: &ParamBuilder) -> Layer {
    let spec = ConvSpec::new(3, CHANNELS, 1);
    let front = ConvBnAct::without_bn(spec, "front", true, Activation::None, Init::Uniform(1.0), p).unwrap();
    let layer = (case.build)(p);
    Box::new(move |x, tape| {
        let x = front.forward(x, tape)?;
        layer(&x, tape)
    })
}

/// Result, gradients and changed statistics.
fn run(case: &Case, engine: EngineKind, mode: Mode) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let params = ParamStore::with_engine(DType::F64, &Device::Cpu, engine).unwrap();
    let layer = network(case, &params.builder(Rng::new(3)));
    for param in params.all().iter().filter(|param| param.shape.len() == 1) {
        let values = random(&param.name, &param.shape).affine(0.3, 1.0).unwrap();
        params.import(params.id(&param.name).unwrap(), &values).unwrap();
    }
    let mut tape = Tape::new(&params, mode).unwrap();
    tape.select_features(&["out"]);
    tape.begin(Rng::new(4), 5);
    let x = tape.input(&random("images", &[2, 3, 5, 7])).unwrap();
    let y = layer(&x, &mut tape).unwrap();
    tape.mark_feature("out", &y).unwrap();
    let out = tape.outputs().unwrap().remove(0).1;
    let mut found = vec![("out".to_string(), out.dims().to_vec(), flat(&out))];
    if mode.records() {
        let loss = (&out * random("loss", out.dims())).unwrap().sum_all().unwrap();
        let gradients = tape.backward(&loss).unwrap();
        for param in params.all() {
            if let Some(gradient) = gradients.param(&param.name).unwrap() {
                found.push((param.name, gradient.dims().to_vec(), flat(&gradient)));
            }
        }
    }
    let buffers = params.export_all().unwrap().into_iter().filter(|(name, _)| name.contains("running"));
    found.extend(buffers.map(|(name, t)| (name, t.dims().to_vec(), flat(&t))));
    found
}

#[test]
fn every_operation_has_a_case() {
    let tested: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(tested, Op::NAMES.iter().copied().collect());
}

#[test]
fn graph_engine_agrees_with_kernels_for_every_operation() {
    for case in CASES {
        for mode in [Mode::Train, Mode::TrainFrozenBn, Mode::EvalWithGrad, Mode::Eval, Mode::Inference] {
            let kernels = run(case, EngineKind::Kernels, mode);
            let graph = run(case, EngineKind::Graph, mode);
            let what = format!("{} in {mode:?}", case.name);
            assert!(!mode.trains() || kernels.iter().any(|(name, ..)| name == "front.weight"), "{what}");
            assert_eq!(kernels.len(), graph.len(), "{what}");
            for ((name, shape, a), (other, of_other, b)) in kernels.iter().zip(&graph) {
                assert_eq!((name, shape), (other, of_other), "{what}");
                let most = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(most < 1e-10, "{what}: {name} differs by {most}");
            }
        }
    }
}

#[test]
fn trace_has_every_operation() {
    for case in CASES {
        let params = ParamStore::meta();
        let layer = network(case, &params.builder(Rng::new(3)));
        let mut tape = Tape::trace(&params);
        let x = tape.input(&Tensor::zeros((2, 3, 5, 7), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let out = layer(&x, &mut tape);
        let trace = tape.take_trace().unwrap();
        let found = trace.entries.iter().any(|entry| entry.op.name() == case.name);
        assert_eq!(found, case.untraced.is_none(), "{}", case.name);
        let Ok(_) = out else {
            assert!(case.untraced.is_some_and(|reason| out.unwrap_err().to_string().contains(reason)));
            continue;
        };
        let run = run(case, EngineKind::Kernels, Mode::Eval);
        assert_eq!(trace.entries.last().unwrap().output.dims(), run[0].1, "{}", case.name);
        assert_eq!(trace.cost().parameters, params.count_weights(), "{}", case.name);
    }
}
