//! Optimizers compared with naive loops, and their states.

mod child;

use candle_core::{DType, Device, Tensor};
use stillhouse_ops::optim::{Adam, Hyper, Optimizer, Sgd};
use stillhouse_ops::{EngineKind, Error, Gradients, Init, Linear, Mode, ParamStore, Rng, Tape};
use stillhouse_testkit::device;
use stillhouse_testkit::finite_diff::assert_close;

const HYPER: Hyper = Hyper { lr: 0.03, weight_decay: 0.2 };
const BETAS: [f64; 2] = [0.8, 0.95];

fn store(dtype: DType) -> (ParamStore, Linear) {
    let params = ParamStore::new(dtype, &device()).unwrap();
    let p = params.builder(Rng::new(1));
    let init = Init::Uniform(1.0);
    let linear = Linear::new(5, 19, "fc", init, Some(init), &p).unwrap();
    (params, linear)
}

fn value(params: &ParamStore, name: &str) -> Vec<f64> {
    let value = params.export(params.id(name).unwrap()).unwrap();
    value.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn gradients(params: &ParamStore, linear: &Linear, step: u64) -> Gradients {
    let mut tape = Tape::new(params, Mode::Train).unwrap();
    tape.begin(Rng::new(0), step);
    let mut draw = Rng::new(3).at(step, 0);
    let values: Vec<f64> = (0..10).map(|_| draw.normal()).collect();
    let x = Tensor::from_vec(values, (2, 5, 1, 1), &device()).unwrap().to_dtype(params.dtype()).unwrap();
    let x = tape.input(&x).unwrap();
    let y = linear.forward(&x, &mut tape).unwrap();
    tape.mark_feature("logits", &y).unwrap();
    let logits = tape.outputs().unwrap().remove(0).1;
    tape.backward(&logits.sqr().unwrap().mean_all().unwrap()).unwrap()
}

fn flat(grads: &Gradients, name: &str) -> Vec<f64> {
    let grad = grads.param(name).unwrap().unwrap();
    grad.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn adam_matches_reference() {
    for dtype in [DType::F64, DType::F32] {
        for decoupled in [false, true] {
            let (params, linear) = store(dtype);
            let mut optimizer = if decoupled { Adam::decoupled(BETAS, 1e-3) } else { Adam::new(BETAS, 1e-3) };
            let names = ["fc.weight", "fc.bias"];
            let mut want = names.map(|n| value(&params, n));
            let mut means = want.clone().map(|p| vec![[0.0; 2]; p.len()]);
            for t in 1..=4 {
                let grads = gradients(&params, &linear, t);
                for (i, name) in names.into_iter().enumerate() {
                    for ((p, g), [m, v]) in want[i].iter_mut().zip(flat(&grads, name)).zip(&mut means[i]) {
                        let g = if decoupled { g } else { g + HYPER.weight_decay * *p };
                        if decoupled {
                            *p -= HYPER.lr * HYPER.weight_decay * *p;
                        }
                        *m += (1.0 - BETAS[0]) * (g - *m);
                        *v += (1.0 - BETAS[1]) * (g * g - *v);
                        let (m, v) =
                            (*m / (1.0 - BETAS[0].powi(t as i32)), *v / (1.0 - BETAS[1].powi(t as i32)));
                        *p -= HYPER.lr * m / (v.sqrt() + 1e-3);
                    }
                }
                optimizer.step(&params, &grads, |_| Some(HYPER)).unwrap();
                let tolerance = if dtype == DType::F64 { 1e-13 } else { 2e-6 };
                for (name, want) in names.into_iter().zip(&want) {
                    assert_close(
                        &value(&params, name),
                        want,
                        0.0,
                        tolerance,
                        &format!("{name} {dtype:?} {t}"),
                    );
                }
            }
        }
    }
}

/// A parameter without an update keeps its step count, and padding of packed weights stays zero.
#[test]
fn counts_steps_per_parameter() {
    let (params, linear) = store(DType::F64);
    let (other, _) = store(DType::F64);
    let mut optimizer = Adam::decoupled(BETAS, 1e-8);
    let mut late = Adam::decoupled(BETAS, 1e-8);
    let start = value(&params, "fc.bias");
    optimizer
        .step(&params, &gradients(&params, &linear, 1), |p| (p.name == "fc.weight").then_some(HYPER))
        .unwrap();
    assert_eq!(value(&params, "fc.bias"), start);
    params
        .import(params.id("fc.weight").unwrap(), &other.export(other.id("fc.weight").unwrap()).unwrap())
        .unwrap();
    optimizer.step(&params, &gradients(&params, &linear, 2), |_| Some(HYPER)).unwrap();
    late.step(&other, &gradients(&other, &linear, 2), |_| Some(HYPER)).unwrap();
    assert_eq!(value(&params, "fc.bias"), value(&other, "fc.bias"));
    assert_ne!(value(&params, "fc.weight"), value(&other, "fc.weight"));
}

#[test]
fn restores_state() {
    let optimizers: [fn() -> Optimizer; 3] = [
        || Optimizer::Sgd(Sgd::new(0.9, true)),
        || Optimizer::Adam(Adam::new(BETAS, 1e-8)),
        || Optimizer::Adam(Adam::decoupled(BETAS, 1e-8)),
    ];
    for make in optimizers {
        let (params, linear) = store(DType::F32);
        let mut optimizer = make();
        for t in 0..2 {
            optimizer.step(&params, &gradients(&params, &linear, t), |_| Some(HYPER)).unwrap();
        }
        let (again, _) = store(DType::F32);
        for (name, values) in params.export_all().unwrap() {
            again.import(again.id(&name).unwrap(), &values).unwrap();
        }
        let state = optimizer.state(&params).unwrap();
        let mut other = make();
        other.load_state(&again, &state).unwrap();
        optimizer.step(&params, &gradients(&params, &linear, 2), |_| Some(HYPER)).unwrap();
        other.step(&again, &gradients(&again, &linear, 2), |_| Some(HYPER)).unwrap();
        assert_eq!(value(&params, "fc.weight"), value(&again, "fc.weight"));
        assert!(make().load_state(&again, &[("nothing.step".into(), state[0].1.clone())]).is_err());
        if matches!(optimizer, Optimizer::Adam(_)) {
            assert!(make().load_state(&again, &state[..2]).unwrap_err().to_string().contains("exp_avg_sq"));
        }
    }
}

/// The same number of values in another order.
#[test]
fn kernels_reject_state_of_graph_engine() {
    let of = |engine: EngineKind| {
        let params = ParamStore::with_engine(DType::F32, &Device::Cpu, engine).unwrap();
        let init = Init::Uniform(1.0);
        let linear = Linear::new(5, 16, "fc", init, None, &params.builder(Rng::new(1))).unwrap();
        let mut optimizer = Optimizer::Sgd(Sgd::new(0.9, false));
        optimizer.step(&params, &gradients(&params, &linear, 0), |_| Some(HYPER)).unwrap();
        let state = optimizer.state(&params).unwrap();
        (params, state)
    };
    let ((one, a), (other, b)) = (of(EngineKind::Kernels), of(EngineKind::Graph));
    assert_eq!(a[0].1.elem_count(), b[0].1.elem_count());
    for (params, state) in [(&one, &b), (&other, &a)] {
        let refused = Sgd::new(0.9, false).load_state(params, state).unwrap_err().to_string();
        assert!(refused.contains("fc.weight") && refused.contains("another engine"), "{refused}");
    }
}

#[test]
fn clips_norm_of_selected_parameters() {
    let (params, linear) = store(DType::F64);
    let mut grads = gradients(&params, &linear, 1);
    let before = [flat(&grads, "fc.weight"), flat(&grads, "fc.bias")];
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let all = norm(&before.concat());
    assert!((grads.norm().unwrap() - all).abs() < 1e-12 * all);
    let clip = |grads: &mut Gradients, most: f64, name: &str| {
        let norm_before = grads.clip_norm(most, |p| p.name.starts_with(name)).unwrap();
        norm_before.to_scalar::<f64>().unwrap()
    };
    assert!((clip(&mut grads, 10.0 * all, "") - all).abs() < 1e-12 * all);
    assert_eq!(flat(&grads, "fc.weight"), before[0]);
    let weight = norm(&before[0]);
    let norm_before = clip(&mut grads, 0.5 * weight, "fc.weight");
    assert!((norm_before - weight).abs() < 1e-12 * weight);
    assert!((norm(&flat(&grads, "fc.weight")) - 0.5 * weight).abs() < 1e-5 * weight);
    assert_eq!(flat(&grads, "fc.bias"), before[1]);
}

/// Runs these tests on the graph engine, in a child process.
#[test]
fn kernels_and_graph_engine_agree() {
    child::rerun(("STILLHOUSE_ENGINE", "graph"), &["--skip", "kernels_"], 4);
}

#[test]
fn kernels_name_a_gradient_that_is_not_finite() {
    for (dtype, huge) in [(DType::F32, 1e38), (DType::F64, 5e307)] {
        let optimizers = || [Optimizer::Sgd(Sgd::new(0.9, false)), Optimizer::Adam(Adam::new(BETAS, 1e-3))];
        for (scale, mut optimizer) in
            optimizers().map(|o| (1.0, o)).into_iter().chain(optimizers().map(|o| (huge, o)))
        {
            let (params, linear) = store(dtype);
            let mut tape = Tape::new(&params, Mode::Train).unwrap();
            tape.begin(Rng::new(0), 0);
            let x = Tensor::full(10f64, (2, 5, 1, 1), &device()).unwrap().to_dtype(dtype).unwrap();
            let x = tape.input(&x).unwrap();
            let y = linear.forward(&x, &mut tape).unwrap();
            tape.mark_feature("logits", &y).unwrap();
            let loss = (tape.outputs().unwrap().remove(0).1.sum_all().unwrap() * scale).unwrap();
            let grads = tape.backward(&loss).unwrap();
            let result = optimizer.step(&params, &grads, |_| Some(HYPER));
            match (scale == 1.0, result) {
                (true, result) => result.unwrap(),
                // The weight's gradient, 20 times the scale, overflows; that of the bias, twice the scale, does not.
                (false, Err(Error::NonFiniteGradient { name })) => assert_eq!(name, "fc.weight"),
                (false, other) => panic!("{other:?}"),
            }
        }
    }
}
