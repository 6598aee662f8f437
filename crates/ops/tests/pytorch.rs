//! Layers compared with stored PyTorch results (`pytorch/generate.py`), in f64 and f32.

mod child;

use candle_core::{DType, Tensor};
use serde_json::Value;
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, Init, LayerNorm, Mode, Padding, ParamStore, Rng, Tape,
};
use stillhouse_testkit::{device, finite_diff::assert_close, generator};

/// Uniform in [low, high) from the named stream, rounded to f32.
fn tensor(name: &str, shape: &[usize], low: f64, high: f64, dtype: DType) -> Tensor {
    let unit = |z: u64| (z >> 11) as f64 / (1u64 << 53) as f64;
    let count = shape.iter().product();
    let values: Vec<f32> =
        generator::stream(name).take(count).map(|z| (low + (high - low) * unit(z)) as f32).collect();
    Tensor::from_vec(values, shape, &device()).unwrap().to_dtype(dtype).unwrap()
}

fn number(v: &Value) -> usize {
    v.as_u64().unwrap() as usize
}

fn check(case: &Value, dtype: DType) {
    let s = &case["spec"];
    let spec = ConvSpec {
        inputs: number(&s["inputs"]),
        outputs: number(&s["outputs"]),
        kernel: number(&s["kernel"]),
        stride: number(&s["stride"]),
        padding: s["padding"].as_u64().map_or(Padding::Same, |p| Padding::Symmetric(p as usize)),
        dilation: number(&s["dilation"]),
        groups: number(&s["groups"]),
    };
    let act = match case["act"].as_str().unwrap() {
        "none" => Activation::None,
        "relu" => Activation::Relu,
        "relu6" => Activation::Relu6,
        other => panic!("unknown activation {other}"),
    };
    let params = ParamStore::new(dtype, &device()).unwrap();
    let (p, zero) = (params.builder(Rng::new(0)), Init::Constant(0.0));
    let front = ConvSpec::new(2, spec.inputs, 1);
    let front = ConvBnAct::without_bn(front, "front", true, Activation::None, zero, &p).unwrap();
    let block = if case["bn"].as_bool().unwrap() {
        ConvBnAct::new(spec, "conv", "bn", act, zero, &p).unwrap()
    } else {
        ConvBnAct::without_bn(spec, "conv", true, act, zero, &p).unwrap()
    };
    for param in params.all() {
        let scale = param.name == "bn.weight" || param.name.ends_with("var");
        let (low, high) = if scale { (0.5, 1.5) } else { (-1.0, 1.0) };
        let values = tensor(&param.name, &param.shape, low, high, dtype);
        params.import(params.id(&param.name).unwrap(), &values).unwrap();
    }
    let mode = if case["mode"] == "train" { Mode::Train } else { Mode::TrainFrozenBn };
    let mut tape = Tape::new(&params, mode).unwrap();
    tape.select_features(&["out"]);
    let input: Vec<usize> = case["input"].as_array().unwrap().iter().map(number).collect();
    let images = tensor("images", &[input[0], 2, input[1], input[2]], -1.0, 1.0, dtype);
    let x = tape.input(&images).unwrap();
    let x = front.forward(&x, &mut tape).unwrap();
    let mut y = if case["shortcut"].as_bool().unwrap() {
        block.forward_add(&x, &x, &mut tape).unwrap()
    } else {
        block.forward(&x, &mut tape).unwrap()
    };
    if let Some(pool) = case["pool"].as_array() {
        y = tape.max_pool(&y, number(&pool[0]), number(&pool[1]), number(&pool[2])).unwrap();
    }
    tape.mark_feature("out", &y).unwrap();
    let out = tape.outputs().unwrap().remove(0).1;
    let weight = tensor("loss_weight", out.dims(), -1.0, 1.0, dtype);
    let grads = tape.backward(&(&out * weight).unwrap().sum_all().unwrap()).unwrap();
    for (name, want) in case["expected"].as_object().unwrap() {
        let got = match name.split_once('.') {
            None => out.clone(),
            Some(("grad", param)) => grads.param(param).unwrap().unwrap(),
            Some(("after", param)) => params.export(params.id(param).unwrap()).unwrap(),
            _ => panic!("unknown result {name}"),
        };
        let shape: Vec<usize> = want["shape"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(got.dims(), shape, "{name} of {s}");
        let got: Vec<f64> = got.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let want: Vec<f64> = want["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let scale = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let tolerance = if dtype == DType::F64 { 1e-10 } else { 3e-5 };
        assert_close(&got, &want, 0.0, tolerance * scale, &format!("{name} of {s} {dtype:?}"));
    }
}

#[test]
fn layers_match_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pytorch/layers.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = stored["cases"].as_array().unwrap();
    for case in cases {
        check(case, DType::F64);
        check(case, DType::F32);
    }
    assert!(cases.len() >= 20);
    println!("{} layers against PyTorch {}, f64 and f32", cases.len(), stored["torch"]);
}

fn check_map(case: &Value, dtype: DType) {
    let params = ParamStore::new(dtype, &device()).unwrap();
    let input: Vec<usize> = case["input"].as_array().unwrap().iter().map(number).collect();
    let size: Vec<usize> = case["size"].as_array().map_or(vec![], |s| s.iter().map(number).collect());
    let norm = LayerNorm::new(input[1], "norm", &params.builder(Rng::new(0))).unwrap();
    let mut tape = Tape::new(&params, Mode::EvalWithGrad).unwrap();
    tape.select_features(&["copy", "out"]);
    let x = tape.input(&tensor("x", &input, -3.0, 3.0, dtype)).unwrap();
    // The input has no record of its own that would return its gradient.
    let x = tape.graph(&[&x], |x| Ok(x[0].clone())).unwrap();
    let y = match case["op"].as_str().unwrap() {
        "bilinear" => {
            tape.resize_bilinear(&x, (size[0], size[1]), case["align_corners"].as_bool().unwrap()).unwrap()
        }
        "adaptive_avg_pool" => tape.adaptive_avg_pool(&x, (size[0], size[1])).unwrap(),
        "max_pool" => tape.max_pool(&x, size[0], size[1], size[2]).unwrap(),
        "gelu" => tape.gelu(&x).unwrap(),
        "layer_norm" => norm.forward(&x, &mut tape).unwrap(),
        other => panic!("unknown operation {other}"),
    };
    tape.mark_feature("copy", &x).unwrap();
    tape.mark_feature("out", &y).unwrap();
    let out = tape.outputs().unwrap().into_iter().find(|(name, _)| name == "out").unwrap().1;
    let weight = tensor("loss_weight", out.dims(), -1.0, 1.0, dtype);
    let grads = tape.backward(&(&out * weight).unwrap().sum_all().unwrap()).unwrap();
    for (name, want) in case["expected"].as_object().unwrap() {
        let got = if name == "out" { out.clone() } else { grads.feature("copy").unwrap().clone() };
        let shape: Vec<usize> = want["shape"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(got.dims(), shape, "{name} of {case}");
        let got: Vec<f64> = got.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let want: Vec<f64> = want["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let tolerance = if dtype == DType::F64 { 1e-11 } else { 1e-5 };
        assert_close(&got, &want, 0.0, 4.0 * tolerance, &format!("{name} of {} {dtype:?}", case["op"]));
    }
}

#[test]
fn map_layers_match_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pytorch/map_layers.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = stored["cases"].as_array().unwrap();
    for case in cases {
        check_map(case, DType::F64);
        check_map(case, DType::F32);
    }
    assert!(cases.len() >= 15);
}

/// Runs these tests on the graph engine, in a child process.
#[test]
fn kernels_and_graph_engine_agree() {
    child::rerun(("STILLHOUSE_ENGINE", "graph"), &["--skip", "kernels_"], 2);
}
