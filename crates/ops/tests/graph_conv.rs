//! `graph::conv2d` and `graph::batch_norm` compared with candle's own operations.

use candle_core::{DType, Tensor, Var};
use stillhouse_ops::{ConvSpec, Padding, Rng, graph};
use stillhouse_testkit::{device, finite_diff};

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut draw = Rng::new(8).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
    Tensor::from_vec(values, shape, &device()).unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Value, gradient of the map and gradient of the weight.
fn run(x: &Tensor, w: &Tensor, conv: impl Fn(&Tensor, &Tensor) -> Tensor) -> [Vec<f64>; 3] {
    let (x, w) = (Var::from_tensor(x).unwrap(), Var::from_tensor(w).unwrap());
    let y = conv(x.as_tensor(), w.as_tensor());
    let count = y.elem_count() as f64;
    let weights = Tensor::arange(0f64, count, &device()).unwrap().sin().unwrap().reshape(y.shape()).unwrap();
    let grads = (&y * weights.to_dtype(y.dtype()).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    [list(&y), list(grads.get(&x).unwrap()), list(grads.get(&w).unwrap())]
}

#[test]
fn conv2d_matches_candle() {
    // Winograd's algorithm in f32: many tiles, with a partial last row and column.
    let tiled = (ConvSpec::new(16, 32, 3), 23, 18);
    let specs = [
        (ConvSpec::new(18, 33, 3), 5, 4),
        (ConvSpec::new(5, 3, 3), 4, 6),
        (ConvSpec::new(17, 2, 3), 1, 1),
        (ConvSpec::new(20, 16, 1).stride(2), 5, 5),
        (ConvSpec::new(3, 7, 4).stride(2).padding(Padding::Symmetric(1)), 8, 6),
        (ConvSpec::new(16, 5, 3).dilation(2).padding(Padding::Symmetric(2)), 6, 5),
        (ConvSpec::new(16, 5, 2).padding(Padding::Symmetric(0)), 2, 2),
        (ConvSpec::new(6, 4, 3).groups(2).stride(2), 5, 5),
        (ConvSpec::new(5, 5, 3).groups(5), 4, 4),
        tiled,
    ];
    for (spec, h, w) in specs {
        // About five times the rounding error.
        let tolerance = if (spec, h, w) == tiled { 5e-4 } else { 1e-4 };
        let Padding::Symmetric(padding) = spec.padding else { panic!("symmetric in this test") };
        let (x, weight) = (random("x", &[3, spec.inputs, h, w]), random("w", &spec.weight_shape()));
        let want =
            run(&x, &weight, |x, w| x.conv2d(w, padding, spec.stride, spec.dilation, spec.groups).unwrap());
        let single = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let got = run(&x, &weight, |x, w| graph::conv2d(x, w, spec).unwrap());
        let rough = run(&single(&x), &single(&weight), |x, w| graph::conv2d(x, w, spec).unwrap());
        for (i, what) in ["value", "map", "weight"].iter().enumerate() {
            let what = format!("{what} of {spec:?}");
            finite_diff::assert_close(&got[i], &want[i], 1e-12, 1e-12, &what);
            finite_diff::assert_close(&rough[i], &want[i], tolerance, tolerance, &what);
        }
    }
}

/// NHWC views, as returned by a tape, and maps with several consumers.
#[test]
fn accepts_views_and_shared_maps() {
    let spec = ConvSpec::new(4, 6, 3);
    let (rows, weight) = (random("x", &[2, 5, 3, 4]), random("w", &spec.weight_shape()));
    let twice = |conv: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        run(&rows, &weight, |rows, w| {
            let x = rows.permute((0, 3, 1, 2)).unwrap();
            (conv(&x, w) + conv(&x.sqr().unwrap(), w)).unwrap()
        })
    };
    let got = twice(&|x, w| graph::conv2d(x, w, spec).unwrap());
    let want = twice(&|x, w| x.contiguous().unwrap().conv2d(w, 1, 1, 1, 1).unwrap());
    for (got, want) in got.iter().zip(&want) {
        finite_diff::assert_close(got, want, 1e-12, 1e-12, "views");
    }
}

#[test]
fn results_do_not_depend_on_thread_count() {
    // Direct convolution, and Winograd's algorithm.
    for spec in [ConvSpec::new(24, 40, 3), ConvSpec::new(32, 48, 3)] {
        let single = |t: Tensor| t.to_dtype(DType::F32).unwrap();
        let (x, w) = (random("x", &[30, spec.inputs, 7, 6]), random("w", &spec.weight_shape()));
        let (x, w) = (single(x), single(w));
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let all = pool.install(|| run(&x, &w, |x, w| graph::conv2d(x, w, spec).unwrap()));
            all.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(1), bits(3), "{spec:?}");
    }
}

#[test]
fn batch_norm_matches_composed_ops() {
    for rows in [1, 2, 700] {
        let x = (random("x", &[rows, 19]) + 3.0).unwrap();
        let (gamma, beta) = (random("g", &[19]), random("b", &[19]));
        let weights = random("w", &[rows, 19]);
        let eps = 1e-3;
        let run = |dtype: DType, own: bool| {
            let var = |t: &Tensor| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap();
            let (x, gamma, beta) = (var(&x), var(&gamma), var(&beta));
            let y = if own {
                graph::batch_norm(&x, &gamma, &beta, eps).unwrap().y
            } else {
                let centered = x.broadcast_sub(&x.mean_keepdim(0).unwrap()).unwrap();
                let variance = centered.sqr().unwrap().mean_keepdim(0).unwrap();
                let unit = centered.broadcast_div(&(variance + eps).unwrap().sqrt().unwrap()).unwrap();
                unit.broadcast_mul(&gamma).unwrap().broadcast_add(&beta).unwrap()
            };
            let loss = (&y * weights.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            [
                list(&y),
                list(grads.get(&x).unwrap()),
                list(grads.get(&gamma).unwrap()),
                list(grads.get(&beta).unwrap()),
            ]
        };
        let want = run(DType::F64, false);
        for (i, what) in ["value", "rows", "gamma", "beta"].iter().enumerate() {
            let what = format!("{what} of {rows} rows");
            finite_diff::assert_close(&run(DType::F64, true)[i], &want[i], 1e-10, 1e-11, &what);
            finite_diff::assert_close(&run(DType::F32, true)[i], &want[i], 1e-3, 2e-3, &what);
        }
    }
    let result = graph::batch_norm(&random("x", &[4, 2]), &random("g", &[3]), &random("b", &[2]), 1e-5);
    assert!(result.unwrap_err().to_string().contains("[3]"));
}

#[test]
fn rejects_mismatched_shapes() {
    let spec = ConvSpec::new(4, 6, 3);
    let (x, w) = (random("x", &[2, 4, 5, 5]), random("w", &spec.weight_shape()));
    let e = graph::conv2d(&random("x", &[2, 3, 5, 5]), &w, spec).unwrap_err().to_string();
    assert!(e.contains("4 channels") && e.contains("[2, 3, 5, 5]"), "{e}");
    let e = graph::conv2d(&x, &w.to_dtype(DType::F32).unwrap(), spec).unwrap_err().to_string();
    assert!(e.contains("F32") && e.contains("F64"), "{e}");
    let e = graph::conv2d(&x, &w, spec.groups(5)).unwrap_err().to_string();
    assert!(e.contains("groups"), "{e}");
}
