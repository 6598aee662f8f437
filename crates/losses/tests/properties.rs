//! Properties of `class_centric`, `nst`, `nst_all`, `kd` and `ce` on random data.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use stillhouse_core::data::{Labels, Target, Task};
use stillhouse_core::distiller::{FeatureShapes, LossContext};
use stillhouse_core::model::Features;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_losses::mmd::{GroupWeight, Groups, Kernel, grouped_mmd2};
use stillhouse_losses::registry;
use stillhouse_testkit::finite_diff;

const CPU: Device = Device::Cpu;

/// Normal values, optionally rectified.
fn random(seed: u64, name: &str, shape: &[usize], rectified: bool) -> Tensor {
    let mut draw = Rng::new(seed).stream(name).at(0, 0);
    let value = |v: f64| if rectified { v.max(0.0) } else { v };
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| value(draw.normal())).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Value of a method's first term, and gradient of the student's feature.
fn run(
    method: &str,
    settings: &str,
    feature: &str,
    student: &Tensor,
    teacher: &Tensor,
    y: &[u32],
) -> (f64, Vec<f64>) {
    let entry = *registry().get(method).unwrap();
    let mut method = (entry.build)(&toml::from_str(settings).unwrap()).unwrap();
    let var = Var::from_tensor(student).unwrap();
    let mut features = [Features::default(), Features::default()];
    features[0].insert(feature, var.as_tensor().clone());
    features[1].insert(feature, teacher.clone());
    let classes = if feature == "logits" { student.dims()[1] } else { 9 };
    let params = ParamStore::new(student.dtype(), &CPU).unwrap();
    let shapes = FeatureShapes {
        student: features[0].shapes(),
        teacher: features[1].shapes(),
        task: Task::Classification,
        classes,
        batch: y.len(),
        samples: y.len(),
    };
    method.connect(&shapes, &params.builder(Rng::new(0))).unwrap();
    let target = Target::on_cpu(Labels::Classes(Tensor::new(y, &CPU).unwrap()));
    let context = LossContext::new(&features[0], &features[1], &target);
    let value = method.terms(&context).unwrap().remove(0).value;
    let grads = value.backward().unwrap();
    let gradient = grads.get(&var).map_or_else(|| vec![0.0; student.elem_count()], list);
    (list(&value)[0], gradient)
}

/// `class_centric` at one stage.
fn center(settings: &str, student: &Tensor, teacher: &Tensor, y: &[u32]) -> (f64, Vec<f64>) {
    run("class_centric", &format!("stages = [\"F1\"]\n{settings}"), "F1", student, teacher, y)
}

fn nst(method: &str, settings: &str, student: &Tensor, teacher: &Tensor, y: &[u32]) -> (f64, Vec<f64>) {
    run(method, &format!("stages = [\"F1\"]\n{settings}"), "F1", student, teacher, y)
}

/// Settings of class_centric that support maps of 3 channels.
const SETTINGS: &[&str] = &[
    "",
    "kernel = \"linear\"",
    "kernel = \"gaussian\"",
    "distance = \"mmd\"",
    "distance = \"mean_map_l2\"",
    "class_weight = \"uniform\"",
    "feature = \"pooled\"",
    "feature = \"pooled\"\nkernel = \"gaussian\"",
    "feature = \"pooled\"\ndistance = \"mean_map_l2\"",
];

const KERNELS: [Kernel; 3] = [Kernel::Poly2, Kernel::Linear, Kernel::Gaussian];

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 + 1e-10 * b.abs()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// nst_all <= class_centric <= nst, for any labels and any kernel.
    #[test]
    fn orders_groupings(seed: u64, y in prop::collection::vec(0u32..4, 1..8), ct in 1usize..6, cs in 1usize..6, d in 1usize..9) {
        let unit = |name: &str, c: usize| {
            let x = random(seed, name, &[y.len(), c, d], true);
            let norm = x.sqr().unwrap().sum_keepdim(2).unwrap().sqrt().unwrap().maximum(1e-12).unwrap();
            x.broadcast_div(&norm).unwrap()
        };
        let (t, s) = (unit("t", ct), unit("s", cs));
        for kernel in KERNELS {
            let loss = |groups: Groups| {
                let values = grouped_mmd2(&t, &s, &groups, kernel).unwrap();
                list(&groups.average(&values, GroupWeight::NOverB).unwrap())[0]
            };
            let (whole, center, each) = (
                loss(Groups::whole_batch(y.len()).unwrap()),
                loss(Groups::by_id(&y).unwrap()),
                loss(Groups::per_image(y.len()).unwrap()),
            );
            prop_assert!(whole <= center + 1e-12 && center <= each + 1e-12, "{kernel:?}: {whole} {center} {each}");
            prop_assert!(whole >= -1e-12, "{kernel:?}: {whole}");
        }
    }

    /// With one image per class it is nst, with one class nst_all, including gradients.
    #[test]
    fn equals_nst_for_single_images_and_classes(seed: u64, b in 1usize..6, h in 1usize..4, w in 1usize..4) {
        let (s, t) = (random(seed, "s", &[b, 3, h, w], true), random(seed, "t", &[b, 4, h, w], true));
        for kernel in ["poly2", "linear", "gaussian"] {
            let each: Vec<u32> = (0..b as u32).rev().collect();
            for (method, y) in [("nst", each), ("nst_all", vec![3; b])] {
                let (a, da) = center(&format!("kernel = \"{kernel}\""), &s, &t, &y);
                let (n, dn) = nst(method, &format!("kernel = \"{kernel}\""), &s, &t, &y);
                prop_assert!(near(a, n), "{method} {kernel}: {a} {n}");
                prop_assert!(da.iter().zip(&dn).all(|(a, b)| near(*a, *b)));
            }
        }
    }

    /// Loss and gradient are zero if the student is the teacher.
    #[test]
    fn vanishes_if_student_is_teacher(seed: u64, y in prop::collection::vec(0u32..3, 1..6), single: bool) {
        let dtype = if single { DType::F32 } else { DType::F64 };
        let tiny = if single { 1e-5 } else { 1e-12 };
        let x = random(seed, "x", &[y.len(), 3, 2, 3], true).to_dtype(dtype).unwrap();
        let mut found = vec![nst("nst", "", &x, &x, &y), nst("nst_all", "", &x, &x, &y)];
        // A square root amplifies rounding errors at zero.
        found.extend(SETTINGS.iter().filter(|s| !s.ends_with("\"mmd\"")).map(|s| center(s, &x, &x, &y)));
        let z = random(seed, "z", &[y.len(), 5], false).to_dtype(dtype).unwrap();
        found.push(run("kd", "", "logits", &z, &z, &y));
        for (i, (value, gradient)) in found.iter().enumerate() {
            prop_assert!(value.abs() < tiny && gradient.iter().all(|g| g.abs() < tiny), "{i}: {value} {gradient:?}");
        }
    }

    /// Invariant under permutations of channels, scaling of channels, and permutations of the student's
    /// images within a class.
    #[test]
    fn class_centric_is_invariant(seed: u64, p in 1usize..4, k in 1usize..4) {
        let b = p * k;
        let y: Vec<u32> = (0..b).map(|i| (i % p) as u32).collect();
        let (s, t) = (random(seed, "s", &[b, 4, 2, 3], true), random(seed, "t", &[b, 5, 2, 3], true));
        let mut draw = Rng::new(seed).stream("order").at(0, 0);
        let mut channels = [0u32, 1, 2, 3];
        draw.shuffle(&mut channels);
        let permuted = s.index_select(&Tensor::new(&channels, &CPU).unwrap(), 1).unwrap();
        let scales = Tensor::new(&[0.01f64, 1.0, 30.0, draw.uniform_in(0.1, 9.0)], &CPU).unwrap();
        let scaled = s.broadcast_mul(&scales.reshape((1, 4, 1, 1)).unwrap()).unwrap();
        let rolled = s.roll(p as i32, 0).unwrap(); // each image becomes the next of its class
        for kernel in ["poly2", "linear", "gaussian"] {
            let value = |s: &Tensor| center(&format!("kernel = \"{kernel}\""), s, &t, &y).0;
            let plain = value(&s);
            for (what, other) in [("channels", &permuted), ("scale", &scaled), ("images", &rolled)] {
                let v = value(other);
                prop_assert!(near(v, plain), "{what}, {kernel}: {v} {plain}");
            }
        }
    }

    /// Repeating every image keeps the value.
    #[test]
    fn is_invariant_under_duplication(seed: u64, y in prop::collection::vec(0u32..3, 1..5)) {
        let (s, t) = (random(seed, "s", &[y.len(), 3, 2, 2], true), random(seed, "t", &[y.len(), 3, 2, 2], true));
        let twice = |x: &Tensor| Tensor::cat(&[x, x], 0).unwrap();
        let (s2, t2, y2) = (twice(&s), twice(&t), [y.clone(), y.clone()].concat());
        for settings in SETTINGS {
            let (a, b) = (center(settings, &s, &t, &y).0, center(settings, &s2, &t2, &y2).0);
            prop_assert!(near(a, b), "{settings}: {a} {b}");
        }
        for method in ["nst", "nst_all"] {
            let (a, b) = (nst(method, "", &s, &t, &y).0, nst(method, "", &s2, &t2, &y2).0);
            prop_assert!(near(a, b), "{method}: {a} {b}");
        }
        let (zs, zt) = (random(seed, "zs", &[y.len(), 4], false), random(seed, "zt", &[y.len(), 4], false));
        for method in ["kd", "ce"] {
            let a = run(method, "", "logits", &zs, &zt, &y).0;
            let b = run(method, "", "logits", &twice(&zs), &twice(&zt), &y2).0;
            prop_assert!(near(a, b), "{method}: {a} {b}");
        }
    }

    /// Values and gradients of logits of +-1e4 are finite in f32.
    #[test]
    fn is_finite_for_large_logits(seed: u64, b in 1usize..5, n in 1usize..6, t in prop::sample::select(vec![0.5, 1.0, 4.0])) {
        let huge = |name| random(seed, name, &[b, n], false).ge(0.0).unwrap().to_dtype(DType::F32).unwrap().affine(2e4, -1e4).unwrap();
        let (s, teacher, y) = (huge("s"), huge("t"), vec![0; b]);
        let found = [
            run("kd", &format!("temperature = {t}"), "logits", &s, &teacher, &y),
            run("ce", "label_smoothing = 0.1", "logits", &s, &teacher, &y),
        ];
        for (value, gradient) in &found {
            prop_assert!(value.is_finite() && gradient.iter().all(|g| g.is_finite()), "{value} {gradient:?}");
        }
        // The gradient of ce with respect to the logits of a row sums to 0.
        for row in found[1].1.chunks(n) {
            prop_assert!(row.iter().sum::<f64>().abs() < 1e-5, "{row:?}");
        }
    }

    /// For one image class_centric, nst and nst_all are equal.
    #[test]
    fn groupings_agree_for_one_image(seed: u64, c in 1usize..5) {
        let (s, t) = (random(seed, "s", &[1, c, 3, 2], true), random(seed, "t", &[1, 3, 3, 2], true));
        let (a, da) = center("", &s, &t, &[5]);
        for method in ["nst", "nst_all"] {
            let (n, dn) = nst(method, "", &s, &t, &[5]);
            prop_assert!(near(a, n) && da.iter().zip(&dn).all(|(a, b)| near(*a, *b)), "{method}");
        }
    }
}

/// With maps of different sizes, unordered labels and classes of different sizes.
#[test]
fn class_centric_gradients_match_central_differences() {
    let y = [4, 1, 4, 4, 1];
    let t = random(3, "t", &[5, 3, 2, 2], false);
    let s = random(3, "s", &[5, 3, 3, 2], false);
    for settings in SETTINGS {
        let (_, gradient) = center(settings, &s, &t, &y);
        let value = |x: &[f64]| center(settings, &Tensor::from_slice(x, s.shape(), &CPU).unwrap(), &t, &y).0;
        let want = finite_diff::central_difference(value, &list(&s), 1e-5);
        assert!(want.iter().any(|g| g.abs() > 1e-3), "{settings}: nothing to compare");
        finite_diff::assert_close(&gradient, &want, 1e-6, 1e-8, settings);
    }
}

#[test]
fn teachers_get_no_gradient() {
    let teacher = Var::from_tensor(&random(1, "t", &[2, 3, 2, 2], true)).unwrap();
    let student = Var::from_tensor(&random(1, "s", &[2, 3, 2, 2], true)).unwrap();
    let groups = Groups::per_image(2).unwrap();
    let points = |v: &Var| v.flatten_from(2).unwrap();
    let values = grouped_mmd2(&points(&teacher), &points(&student), &groups, Kernel::Poly2).unwrap();
    let grads = values.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&student).is_some() && grads.get(&teacher).is_none());

    let features = |v: &Var| Features::from_iter([("F1".to_string(), v.as_tensor().clone())]);
    let (s, t) = (features(&student), features(&teacher));
    let target = Target::on_cpu(Labels::Classes(Tensor::new(&[0u32, 0], &CPU).unwrap()));
    let context = LossContext::new(&s, &t, &target);
    let method = (registry().get("class_centric").unwrap().build)(&toml::toml! { stages = ["F1"] }).unwrap();
    let grads = method.terms(&context).unwrap()[0].value.backward().unwrap();
    assert!(grads.get(&student).is_some() && grads.get(&teacher).is_none());
}
