//! Properties of `dkd`, `rkd`, `vid`, `crd`, `reviewkd` and `kdsvd`: invariances, edge cases, gradients.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use stillhouse_core::data::{Labels, Target, Task};
use stillhouse_core::distiller::{Distiller, FeatureShapes, LossContext};
use stillhouse_core::model::Features;
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_losses::registry;
use stillhouse_testkit::finite_diff;

const CPU: Device = Device::Cpu;

/// Normal values.
fn random(seed: u64, name: &str, shape: &[usize]) -> Tensor {
    let mut draw = Rng::new(seed).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn single(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F32).unwrap()
}

/// Features by name.
type Named<'a> = &'a [(&'a str, &'a Tensor)];

/// A connected method.
struct Bench {
    method: Box<dyn Distiller>,
    params: ParamStore,
}

/// Terms by name, and gradients of the weighted sum by feature or parameter.
struct Outcome {
    terms: BTreeMap<String, f64>,
    gradients: BTreeMap<String, Vec<f64>>,
}

impl Outcome {
    fn is_finite(&self) -> bool {
        self.terms.values().chain(self.gradients.values().flatten()).all(|v| v.is_finite())
    }
    fn is_below(&self, bound: f64) -> bool {
        self.terms.values().chain(self.gradients.values().flatten()).all(|v| v.abs() < bound)
    }
}

impl Bench {
    fn new(name: &str, settings: &str, student: Named, teacher: Named) -> Result<Self> {
        let entry = *registry().get(name)?;
        let mut method = (entry.build)(&toml::from_str(settings).unwrap())?;
        let first = student[0].1;
        let params = ParamStore::new(first.dtype(), &CPU)?;
        let features = |named: Named| -> Features {
            named.iter().map(|(name, t)| (name.to_string(), (*t).clone())).collect()
        };
        let logits = student.iter().find(|(name, _)| *name == "logits");
        let shapes = FeatureShapes {
            student: features(student).shapes(),
            teacher: features(teacher).shapes(),
            task: Task::Classification,
            classes: logits.map_or(9, |(_, t)| t.dims()[1]),
            batch: first.dims()[0],
            samples: 20,
        };
        method.connect(&shapes, &params.builder(Rng::new(3)))?;
        Ok(Self { method, params })
    }

    fn run(&self, student: Named, teacher: Named, y: &[u32]) -> Result<Outcome> {
        let vars: Vec<(String, Var)> =
            student.iter().map(|(name, t)| (name.to_string(), Var::from_tensor(t).unwrap())).collect();
        let features: Features = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
        let teacher: Features = teacher.iter().map(|(n, t)| (n.to_string(), (*t).clone())).collect();
        let ids: Vec<u64> = (0..y.len() as u64).map(|i| 7 * i + 1).collect();
        let target = Target::on_cpu(Labels::Classes(Tensor::new(y, &CPU)?));
        let context =
            LossContext { ids: &ids, rng: Rng::new(5), ..LossContext::new(&features, &teacher, &target) };
        let terms = self.method.terms(&context)?;
        let weights: Vec<(String, f64)> = terms.iter().map(|t| (t.name.clone(), t.weight)).collect();
        assert_eq!(weights, self.method.term_weights());
        let mut total = Tensor::zeros((), features.iter().next().unwrap().1.dtype(), &CPU)?;
        for term in &terms {
            assert_eq!(term.value.dims().len(), 0, "{} is a scalar", term.name);
            total = (total + (&term.value * term.weight)?)?;
        }
        let grads = total.backward()?;
        let of = |var: &Var| grads.get(var).map_or_else(|| vec![0.0; var.elem_count()], list);
        let mut gradients: BTreeMap<String, Vec<f64>> =
            vars.iter().map(|(n, v)| (n.clone(), of(v))).collect();
        gradients.extend(self.params.all().iter().map(|p| (p.name.clone(), of(p.var()))));
        Ok(Outcome { terms: terms.iter().map(|t| (t.name.clone(), list(&t.value)[0])).collect(), gradients })
    }
}

/// Connects and runs a method once.
fn run(name: &str, settings: &str, student: Named, teacher: Named, y: &[u32]) -> Outcome {
    Bench::new(name, settings, student, teacher).unwrap().run(student, teacher, y).unwrap()
}

fn on_logits(name: &str, settings: &str, student: &Tensor, teacher: &Tensor, y: &[u32]) -> Outcome {
    run(name, settings, &[("logits", student)], &[("logits", teacher)], y)
}

fn on_vectors(name: &str, settings: &str, student: &Tensor, teacher: &Tensor) -> Outcome {
    let y = vec![0; student.dims()[0]];
    run(name, settings, &[("pooled", student)], &[("pooled", teacher)], &y)
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-11 + 1e-9 * b.abs()
}

fn same(a: &Outcome, b: &Outcome) -> bool {
    a.terms.iter().zip(&b.terms).all(|((n, a), (m, b))| n == m && near(*a, *b))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Invariant under constants added to an image's logits.
    #[test]
    fn dkd_is_shift_invariant(seed: u64, n in 2usize..7, y in prop::collection::vec(0u32..2, 1..6)) {
        let (s, t) = (random(seed, "s", &[y.len(), n]), random(seed, "t", &[y.len(), n]));
        let shifted = s.broadcast_add(&(random(seed, "shift", &[y.len(), 1]) * 50.0).unwrap()).unwrap();
        let (a, b) = (on_logits("dkd", "", &s, &t, &y), on_logits("dkd", "", &shifted, &t, &y));
        prop_assert!(same(&a, &b));
        prop_assert!(a.terms["tckd"] >= 0.0 && a.terms["nckd"] >= -1e-15, "{:?}", a.terms);
        prop_assert!(n > 2 || a.terms["nckd"].abs() < 1e-15, "two classes leave one other class");
        // By shift invariance, the gradient of a row sums to 0.
        for row in a.gradients["logits"].chunks(n) {
            prop_assert!(row.iter().sum::<f64>().abs() < 1e-12);
        }
    }

    /// For one image kd is tckd plus nckd weighted by the teacher's probability of the other classes (Zhao
    /// et al., equation 7).
    #[test]
    fn dkd_decomposes_kd(seed: u64, n in 2usize..7, y in 0u32..2) {
        let (s, t) = (random(seed, "s", &[1, n]), random(seed, "t", &[1, n]));
        let outcome = on_logits("dkd", "temperature = 2.0", &s, &t, &[y]);
        let p: Vec<f64> = list(&t).iter().map(|z| (z / 2.0).exp()).collect();
        let rest = 1.0 - p[y as usize] / p.iter().sum::<f64>();
        let kd = on_logits("kd", "temperature = 2.0", &s, &t, &[y]).terms["kd"];
        prop_assert!(near(outcome.terms["tckd"] + rest * outcome.terms["nckd"], kd), "{:?} {kd}", outcome.terms);
    }

    /// Values and gradients of logits of +-1e4 are finite in f32.
    #[test]
    fn dkd_is_finite_for_large_logits(seed: u64, b in 1usize..5, n in 2usize..6, t in prop::sample::select(vec![0.5, 1.0, 4.0])) {
        let huge = |name| single(&random(seed, name, &[b, n]).ge(0.0).unwrap().to_dtype(DType::F64).unwrap().affine(2e4, -1e4).unwrap());
        let (s, teacher) = (huge("s"), huge("t"));
        let outcome = on_logits("dkd", &format!("temperature = {t}"), &s, &teacher, &vec![1; b]);
        prop_assert!(outcome.is_finite(), "{:?}", outcome.terms);
    }

    /// Invariant under rotation, translation and scaling of all features.
    #[test]
    fn rkd_is_invariant_under_similarities(seed: u64, b in 2usize..6, d in 2usize..5, scale in 0.1f64..20.0) {
        let (s, t) = (random(seed, "s", &[b, d]), random(seed, "t", &[b, 3]));
        let angle = scale; // arbitrary
        let mut rotation: Vec<Vec<f64>> = (0..d).map(|i| (0..d).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        (rotation[0][0], rotation[0][1], rotation[1][0], rotation[1][1]) = (angle.cos(), -angle.sin(), angle.sin(), angle.cos());
        let rotated = s.matmul(&Tensor::new(rotation, &CPU).unwrap()).unwrap();
        let moved = (rotated.broadcast_add(&random(seed, "move", &[1, d])).unwrap() * scale).unwrap();
        let (a, b) = (on_vectors("rkd", "", &s, &t), on_vectors("rkd", "", &moved, &t));
        prop_assert!(same(&a, &b), "{:?} {:?}", a.terms, b.terms);
    }

    /// Loss and gradient are zero if the student is the teacher.
    #[test]
    fn vanishes_if_student_is_teacher(seed: u64, b in 2usize..6, in_f32: bool) {
        let x = random(seed, "x", &[b, 4]);
        let x = if in_f32 { single(&x) } else { x };
        let bound = if in_f32 { 1e-3 } else { 1e-11 };
        let maps = [x.reshape((b, 2, 1, 2)).unwrap(), x.reshape((b, 1, 2, 2)).unwrap()];
        let features: Named = &[("F1", &maps[0]), ("F2", &maps[1])];
        let found = [
            on_logits("dkd", "", &x, &x, &vec![2; b]),
            on_vectors("rkd", "", &x, &x),
            run("kdsvd", "stages = [\"F1\", \"F2\"]", features, features, &vec![0; b]),
        ];
        for (i, outcome) in found.iter().enumerate() {
            prop_assert!(outcome.is_below(bound), "{i}: {:?} {:?}", outcome.terms, outcome.gradients);
        }
    }

    /// Duplicates and zero vectors.
    #[test]
    fn rkd_is_finite_for_duplicates(seed: u64, copies in 1usize..4, zero: bool) {
        let once = random(seed, "s", &[2, 3]);
        let once = if zero { once.zeros_like().unwrap() } else { once };
        let s = single(&Tensor::cat(&vec![&once; copies], 0).unwrap());
        let t = single(&random(seed, "t", &[2 * copies, 5]));
        let outcome = on_vectors("rkd", "", &s, &t);
        prop_assert!(outcome.is_finite(), "{:?} {:?}", outcome.terms, outcome.gradients);
        prop_assert!(outcome.gradients["pooled"].iter().all(|g| g.abs() < 1e6), "{:?}", outcome.gradients);
    }

    /// Zero maps, batches of one, maps of one pixel.
    #[test]
    fn vid_is_finite_for_zero_maps(seed: u64, b in 1usize..4, size in 1usize..4) {
        let t = single(&random(seed, "t", &[b, 4, size, size]));
        let zero = Tensor::zeros((b, 3, size, size), DType::F32, &CPU).unwrap();
        for (s, t) in [(&zero, &t), (&zero, &t.zeros_like().unwrap())] {
            let outcome = run("vid", "stages = [\"F1\"]", &[("F1", s)], &[("F1", t)], &vec![0; b]);
            prop_assert!(outcome.is_finite(), "{:?}", outcome.terms);
        }
    }
}

#[test]
fn vid_trains_the_variance() {
    let (s, t) = (random(1, "s", &[3, 2, 4, 4]), random(1, "t", &[3, 5, 4, 4]));
    let (student, teacher): (Named, Named) = (&[("F1", &s)], &[("F1", &t)]);
    let bench = Bench::new("vid", "stages = [\"F1\"]", student, teacher).unwrap();
    let outcome = bench.run(student, teacher, &[0; 3]).unwrap();
    for name in ["F1.log_scale", "F1.regressor0.weight", "F1.regressor1.weight", "F1.regressor2.weight"] {
        assert!(outcome.gradients[name].iter().any(|g| g.abs() > 1e-6), "{name} gets no gradient");
    }
    let start = list(&bench.params.export(bench.params.id("F1.log_scale").unwrap()).unwrap());
    assert!(start.iter().all(|x| near((x.exp() + 1.0).ln() + 1e-5, 5.0)), "{start:?}");
    let e = Bench::new("vid", "init_variance = 0.0", student, teacher).err().unwrap().to_string();
    assert!(e.contains("init_variance") && e.contains("above eps"), "{e}");
}

/// Includes stages of one pixel.
#[test]
fn all_connector_weights_get_gradients() {
    let (f1, f2, pooled) =
        (random(1, "1", &[3, 3, 5, 4]), random(1, "2", &[3, 4, 2, 2]), random(1, "p", &[3, 4]));
    let (t1, t2, tp) =
        (random(2, "1", &[3, 5, 5, 4]), random(2, "2", &[3, 6, 3, 3]), random(2, "p", &[3, 7]));
    let student: Named = &[("F1", &f1), ("F2", &f2), ("pooled", &pooled)];
    let teacher: Named = &[("F1", &t1), ("F2", &t2), ("pooled", &tp)];
    for (name, settings) in [
        ("vid", "stages = [\"F1\", \"F2\"]"),
        ("crd", "feature_dim = 4\nk = 8"),
        ("reviewkd", "stages = [\"F1\", \"F2\", \"pooled\"]\nmid_channels = 4"),
    ] {
        let bench = Bench::new(name, settings, student, teacher).unwrap();
        let outcome = bench.run(student, teacher, &[0, 1, 2]).unwrap();
        for param in bench.params.all().iter().filter(|p| p.kind == stillhouse_ops::ParamKind::Weight) {
            let nonzero = outcome.gradients[&param.name].iter().any(|g| g.abs() > 1e-9);
            assert!(nonzero, "{name}: `{}` gets no gradient", param.name);
        }
    }
}

/// Through attention, both resizings and batch norms, for every feature.
#[test]
fn reviewkd_gradients_match_central_differences() {
    let shapes: [(&str, &[usize], &[usize]); 3] = [
        ("F1", &[2, 2, 5, 4], &[2, 3, 3, 3]),
        ("F2", &[2, 3, 2, 2], &[2, 2, 2, 2]),
        ("pooled", &[2, 3], &[2, 4]),
    ];
    let settings = "stages = [\"F1\", \"F2\", \"pooled\"]\nmid_channels = 2";
    let features = |seed, i: usize| -> Vec<(&str, Tensor)> {
        shapes.iter().map(|s| (s.0, random(seed, s.0, [s.1, s.2][i]))).collect()
    };
    let (own, of_teacher) = (features(3, 0), features(4, 1));
    let refs = |features: &[(&'static str, Tensor)]| {
        features.iter().map(|(n, t)| (*n, t.clone())).collect::<Vec<_>>()
    };
    let value = |features: &[(&'static str, Tensor)]| {
        let student: Vec<(&str, &Tensor)> = features.iter().map(|(n, t)| (*n, t)).collect();
        let teacher: Vec<(&str, &Tensor)> = of_teacher.iter().map(|(n, t)| (*n, t)).collect();
        run("reviewkd", settings, &student, &teacher, &[0, 1])
    };
    let outcome = value(&own);
    for (i, (name, tensor)) in own.iter().enumerate() {
        let at = |v: &[f64]| {
            let mut features = refs(&own);
            features[i].1 = Tensor::from_slice(v, tensor.shape(), &CPU).unwrap();
            value(&features).terms["reviewkd"]
        };
        let want = finite_diff::central_difference(at, &list(tensor), 1e-5);
        finite_diff::assert_close(&outcome.gradients[*name], &want, 1e-5, 1e-7, name);
    }
}

/// Zero maps and batches of one, for which batch norm returns its bias.
#[test]
fn reviewkd_is_finite_for_zero_maps() {
    for b in [1, 3] {
        let (f1, pooled) = (random(1, "f", &[b, 3, 2, 2]), random(1, "p", &[b, 4]));
        let zero = (single(&f1.zeros_like().unwrap()), single(&pooled.zeros_like().unwrap()));
        let (t1, tp) = (single(&random(2, "f", &[b, 5, 2, 2])), single(&random(2, "p", &[b, 6])));
        let (f1, pooled) = (single(&f1), single(&pooled));
        let teacher: Named = &[("F1", &t1), ("pooled", &tp)];
        for features in [[("F1", &zero.0), ("pooled", &zero.1)], [("F1", &f1), ("pooled", &pooled)]] {
            let outcome = run("reviewkd", "stages = [\"F1\", \"pooled\"]", &features, teacher, &vec![0; b]);
            assert!(outcome.is_finite(), "{b} images: {:?}", outcome.terms);
        }
    }
}

/// Zero maps, rank one, equal singular values, and duplicates.
#[test]
fn kdsvd_is_finite_for_degenerate_maps() {
    let settings = "stages = [\"F1\", \"F2\"]";
    let eye = Tensor::eye(4, DType::F64, &CPU).unwrap().broadcast_as((2, 3, 4, 4)).unwrap();
    let maps = [
        eye.zeros_like().unwrap(),
        eye.ones_like().unwrap(),
        eye.contiguous().unwrap(),
        random(1, "x", &[2, 3, 4, 4]),
    ];
    for (i, a) in maps.iter().enumerate() {
        for (j, b) in maps.iter().enumerate() {
            let (s, t) = (single(a), single(b));
            let (small, large) = (s.narrow(2, 0, 2).unwrap(), t.narrow(2, 1, 2).unwrap());
            let (student, teacher): (Named, Named) =
                (&[("F1", &s), ("F2", &small)], &[("F1", &t), ("F2", &large)]);
            let outcome = run("kdsvd", settings, student, teacher, &[0, 1]);
            assert!(outcome.is_finite(), "student {i}, teacher {j}: {:?}", outcome.terms);
            assert!(outcome.gradients.values().flatten().all(|g| g.abs() < 1e4), "student {i}, teacher {j}");
        }
    }
}

/// Invariant under scaling of a map, and for `ch_w` under permutations of channels and rows.
#[test]
fn kdsvd_gradients_and_invariances() {
    for (layout, shapes) in [("ch_w", [[2, 3, 4, 5], [2, 4, 2, 3]]), ("hw_c", [[2, 3, 3, 2], [2, 4, 3, 3]])] {
        let settings = format!("stages = [\"F1\", \"F2\"]\nk = 2\nlayout = \"{layout}\"");
        let maps: Vec<Tensor> = shapes.iter().map(|s| random(4, layout, s)).collect();
        let teachers: Vec<Tensor> = shapes.iter().map(|s| random(5, layout, s)).collect();
        let teacher: Named = &[("F1", &teachers[0]), ("F2", &teachers[1])];
        let value = |a: &Tensor| run("kdsvd", &settings, &[("F1", a), ("F2", &maps[1])], teacher, &[0, 1]);
        let outcome = value(&maps[0]);
        let at = |v: &[f64]| value(&Tensor::from_slice(v, &shapes[0][..], &CPU).unwrap()).terms["kdsvd"];
        let want = finite_diff::central_difference(at, &list(&maps[0]), 1e-6);
        assert!(want.iter().any(|g| g.abs() > 1e-4), "{layout}: nothing to compare");
        finite_diff::assert_close(&outcome.gradients["F1"], &want, 1e-5, 1e-7, layout);
        assert!(same(&outcome, &value(&(&maps[0] * 30.0).unwrap())));
        if layout == "ch_w" {
            assert!(same(&outcome, &value(&maps[0].flip(&[1, 2]).unwrap())));
        }
    }
}

/// 110 images are processed in several blocks of anchors.
#[test]
fn rkd_is_independent_of_blocks() {
    let (s, t) = (random(1, "s", &[110, 2]), random(1, "t", &[110, 90]));
    let outcome = on_vectors("rkd", "", &s, &t);
    let order: Vec<u32> = (0..110).rev().collect();
    let reversed = |x: &Tensor| x.index_select(&Tensor::new(&order[..], &CPU).unwrap(), 0).unwrap();
    let other = on_vectors("rkd", "", &reversed(&s), &reversed(&t));
    assert!(same(&outcome, &other), "{:?} {:?}", outcome.terms, other.terms);
    let back: Vec<f64> = other.gradients["pooled"].chunks(2).rev().flatten().copied().collect();
    finite_diff::assert_close(&outcome.gradients["pooled"], &back, 1e-9, 1e-13, "gradient");
}

#[test]
fn rejects_incompatible_features_and_settings() {
    let error = |name: &str, settings: &str, s: (&str, &[usize]), t: (&str, &[usize])| {
        let (a, b) = (random(0, "s", s.1), random(0, "t", t.1));
        Bench::new(name, settings, &[(s.0, &a)], &[(t.0, &b)]).err().unwrap().to_string()
    };
    let e = error("dkd", "", ("logits", &[2, 1]), ("logits", &[2, 1]));
    assert!(e.contains("dkd") && e.contains("2 or more classes"), "{e}");
    let e = error("dkd", "", ("logits", &[2, 3, 4, 4]), ("logits", &[2, 3, 4, 4]));
    assert!(e.contains("of a classifier"), "{e}");
    let e = error("rkd", "", ("pooled", &[1, 3]), ("pooled", &[1, 3]));
    assert!(e.contains("rkd") && e.contains("2 images"), "{e}");
    let e = error("rkd", "", ("F4", &[2, 3, 1, 1]), ("pooled", &[2, 3]));
    assert!(e.contains("student's feature `pooled`"), "{e}");
    let two = "stages = [\"F1\", \"F2\"]";
    let e = error("kdsvd", two, ("F1", &[2, 3, 4, 4]), ("F1", &[2, 3, 4, 5]));
    assert!(e.contains("equal widths") && e.contains("[3, 4, 4]") && e.contains("[3, 4, 5]"), "{e}");
    let e = error("kdsvd", &format!("{two}\nk = 5"), ("F1", &[2, 3, 4, 4]), ("F1", &[2, 3, 4, 4]));
    assert!(e.contains("k of at most 4") && e.contains("found 5"), "{e}");
    let e = error("kdsvd", "stages = [\"F1\"]", ("F1", &[2, 3, 4, 4]), ("F1", &[2, 3, 4, 4]));
    assert!(e.contains("two or more"), "{e}");
    let e = error("reviewkd", "stages = [\"F1\"]", ("F1", &[2, 3, 4, 4]), ("F1", &[2, 3]));
    assert!(e.contains("expected maps [C, H, W]") && e.contains("teacher's feature `F1`"), "{e}");
    let e = error("reviewkd", "mid_channels = 0", ("F1", &[2, 3, 4, 4]), ("F1", &[2, 3, 4, 4]));
    assert!(e.contains("invalid `mid_channels`"), "{e}");
    let e = error("vid", "", ("F1", &[2, 3, 4, 4]), ("pooled", &[2, 3]));
    assert!(e.contains("teacher's feature `F1`"), "{e}");
}
