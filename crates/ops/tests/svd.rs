//! `graph::svd`: reconstruction, gradients, and points without a gradient.

use candle_core::{DType, Tensor, Var};
use stillhouse_ops::{Rng, graph};
use stillhouse_testkit::{device, finite_diff};

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut draw = Rng::new(11).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
    Tensor::from_vec(values, shape, &device()).unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

const SHAPES: [[usize; 3]; 5] = [[3, 7, 4], [2, 4, 7], [1, 5, 5], [2, 1, 3], [2, 6, 1]];

/// `V^T S^2 V = X^T X`, and V has orthonormal rows.
#[test]
fn reconstructs_the_gram_matrix() {
    for shape in SHAPES {
        let x = random("x", &shape);
        let n = shape[1].min(shape[2]);
        let (s, v) = graph::svd(&x, 99).unwrap();
        assert_eq!((s.dims(), v.dims()), (&[shape[0], n][..], &[shape[0], n, shape[2]][..]));
        let vt = v.transpose(1, 2).unwrap();
        let scaled = vt.broadcast_mul(&s.sqr().unwrap().unsqueeze(1).unwrap()).unwrap();
        let products = x.transpose(1, 2).unwrap().matmul(&x).unwrap();
        let what = format!("{shape:?}");
        finite_diff::assert_close(&list(&scaled.matmul(&v).unwrap()), &list(&products), 1e-12, 1e-12, &what);
        let eye = Tensor::eye(n, DType::F64, &device()).unwrap().broadcast_as((shape[0], n, n)).unwrap();
        finite_diff::assert_close(&list(&v.matmul(&vt).unwrap()), &list(&eye), 0.0, 1e-12, &what);
        for row in list(&s).chunks(n) {
            assert!(row.windows(2).all(|w| w[0] >= w[1]) && row[n - 1] > 0.0, "{row:?}");
        }
        // In f32, up to its rounding.
        let (s32, _) = graph::svd(&x.to_dtype(DType::F32).unwrap(), 99).unwrap();
        assert_eq!(s32.dtype(), DType::F32);
        finite_diff::assert_close(&list(&s32), &list(&s), 1e-5, 1e-6, &what);
    }
}

/// A loss that does not depend on the arbitrary signs.
fn loss(x: &Tensor, n: usize) -> Tensor {
    let (s, v) = graph::svd(x, n).unwrap();
    let scaled = v.transpose(1, 2).unwrap().broadcast_mul(&s.unsqueeze(1).unwrap()).unwrap();
    let projection = scaled.matmul(&v.contiguous().unwrap()).unwrap(); // [B, C, C]
    let count = projection.elem_count() as f64;
    let weights = Tensor::arange(0f64, count, &device()).unwrap().cos().unwrap().to_dtype(x.dtype()).unwrap();
    let first = (projection.sqr().unwrap() * weights.reshape(projection.shape()).unwrap()).unwrap();
    (first.sum_all().unwrap() + s.sqr().unwrap().sum_all().unwrap()).unwrap()
}

fn gradient(x: &Tensor, n: usize) -> Vec<f64> {
    let var = Var::from_tensor(x).unwrap();
    let grads = loss(var.as_tensor(), n).backward().unwrap();
    list(grads.get(&var).unwrap())
}

#[test]
fn gradients_match_central_differences() {
    for shape in SHAPES {
        for n in 1..=shape[1].min(shape[2]) {
            let x = random("x", &shape);
            let at = |v: &[f64]| {
                loss(&Tensor::from_slice(v, &shape[..], &device()).unwrap(), n).to_scalar::<f64>().unwrap()
            };
            let want = finite_diff::central_difference(at, &list(&x), 1e-5);
            finite_diff::assert_close(
                &gradient(&x, n),
                &want,
                1e-6,
                1e-7,
                &format!("{shape:?}, {n} vectors"),
            );
        }
    }
}

/// Rank two of four: vectors of zero values are zero, and the rest is correct.
#[test]
fn zero_values_have_zero_vectors() {
    for (r, c) in [(6, 4), (4, 6)] {
        let x = random("left", &[1, r, 2]).matmul(&random("right", &[1, 2, c])).unwrap();
        let (s, v) = graph::svd(&x, 4).unwrap();
        let s = list(&s);
        assert!(s[1] > 0.1 && s[2..] == [0.0, 0.0], "{s:?}");
        assert!(list(&v.narrow(1, 2, 2).unwrap()).iter().all(|v| *v == 0.0));
        let at = |v: &[f64]| {
            loss(&Tensor::from_slice(v, (1, r, c), &device()).unwrap(), 2).to_scalar::<f64>().unwrap()
        };
        // Only the first two: the others vary as the root of a difference.
        let want = finite_diff::central_difference(at, &list(&x), 1e-5);
        finite_diff::assert_close(&gradient(&x, 2), &want, 1e-6, 1e-7, "rank two");
    }
}

#[test]
fn degenerate_points_are_finite() {
    let eye = Tensor::eye(4, DType::F64, &device()).unwrap().unsqueeze(0).unwrap();
    let twice = Tensor::cat(&[&eye, &eye], 1).unwrap();
    let mut points =
        vec![eye.clone(), twice, (eye * 1e-200).unwrap(), random("x", &[1, 3, 5]).zeros_like().unwrap()];
    points.push(Tensor::ones((1, 5, 3), DType::F64, &device()).unwrap());
    for x in &points {
        for x in [x.clone(), x.to_dtype(DType::F32).unwrap()] {
            let (s, v) = graph::svd(&x, 3).unwrap();
            let all = [list(&s), list(&v), gradient(&x, 3)].concat();
            assert!(all.iter().all(|v| v.is_finite() && v.abs() < 1e3), "{x}: {all:?}");
        }
    }
    let bad = Tensor::new(&[[[1f64, f64::NAN], [0., 1.]]], &device()).unwrap();
    assert!(list(&graph::svd(&bad, 1).unwrap().0)[0].is_nan(), "not taken for zero");
    assert!(gradient(&points[3], 3).iter().all(|g| *g == 0.0), "a zero matrix has gradient zero");
}

/// Rows and columns may be views; f32 and f64; any number of threads.
#[test]
fn results_do_not_depend_on_threads_or_views() {
    let x = random("x", &[9, 5, 6]).to_dtype(DType::F32).unwrap();
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gradient(&x, 3).iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    assert_eq!(bits(1), bits(3));
    let transposed = x.transpose(1, 2).unwrap();
    let a = list(&graph::svd(&transposed, 4).unwrap().0);
    let b = list(&graph::svd(&transposed.contiguous().unwrap(), 4).unwrap().0);
    assert_eq!(a, b);
}

#[test]
fn rejects_mismatched_shapes() {
    let x = random("x", &[2, 3]);
    assert!(graph::svd(&x, 1).unwrap_err().to_string().contains("[B, R, C]"));
    let x = random("x", &[1, 2, 3]);
    assert!(graph::svd(&x, 0).unwrap_err().to_string().contains("svd"));
}
