//! Properties of the losses for dense prediction on random data.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use stillhouse_core::data::{Labels, Target, Task};
use stillhouse_core::distiller::{Distiller, FeatureShapes, LossContext, Term};
use stillhouse_core::model::Features;
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_losses::registry;
use stillhouse_testkit::finite_diff;

const CPU: Device = Device::Cpu;

/// Methods and settings.
const FORMS: &[(&str, &str)] = &[
    ("cwd", ""),
    ("cwd", "norm = 'spatial'"),
    ("cwd", "feature = 'F4'"),
    ("cd", ""),
    ("ifvd", ""),
    ("skd_pixelwise", ""),
    ("skd_pixelwise", "reduction = 'sum_over_hw'\ntemperature = 2.0"),
    ("skd_pixelwise", "reduction = 'element_mean'\nt_squared = false"),
    ("skd_pairwise", ""),
    ("skd_pairwise", "pool = 'avg'\ndetach_norm = false\npool_scale = 0.3"),
    ("skd_affinity", ""),
    ("skd_affinity", "squared = false\nnorm_over = 'sample'"),
    ("skd_affinity", "form = 'channel'"),
    ("ka", ""),
    ("skd_holistic", "widths = [3, 4]"),
    ("skd_holistic", "widths = [3, 4]\nform = 'hinge'\npreprocess = 'tanh'\ncondition = false"),
    ("skd_holistic", "widths = [3, 4]\npreprocess = 'softmax'"),
    ("skd_holistic", "widths = [3, 4]\npreprocess = 'tanh'"),
    ("skdd", ""),
    ("frkd", "similarity_weight = 1.0"),
    ("frkd", "contribution = 'spatial_softmax'\nmask = 'soft'\nscale = 'mean'"),
    ("frkd", "keep = 'top_ratio'\ncenters = 'label'\nedge = 'margin'\ntotal = 'additive'"),
    ("frkd", "keep = 'argmax'\ncenters = 'teacher_argmax'\nscale = 'mean'"),
    ("frkd", "centers = 'coordinate'\nmask = 'soft'"),
    ("frkd", "centers = 'coordinate'\ncontribution = 'spatial_softmax'\nedge = 'margin'"),
];

/// Normal values.
fn random(seed: u64, name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let mut draw = Rng::new(seed).stream(name).at(0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Label patches in which every seventh pixel is ignored.
fn patches(seed: u64, b: usize, h: usize, w: usize, classes: usize) -> Tensor {
    let mut draw = Rng::new(seed).stream("labels").at(0, 0);
    let corner: Vec<u64> = (0..b * 9).map(|_| draw.below(classes as u64)).collect();
    let label = |i: usize| {
        let (image, row, column) = (i / (h * w), i / w % h, i % w);
        if i % 7 == 3 { 255 } else { corner[image * 9 + row * 3 / h * 3 + column * 3 / w] as u32 }
    };
    Tensor::from_iter((0..b * h * w).map(label), &CPU).unwrap().reshape((b, h, w)).unwrap()
}

/// A connected method, and the inputs of a step without the student.
struct Rig {
    method: Box<dyn Distiller>,
    params: ParamStore,
    teacher: Features,
    target: Target,
    images: Tensor,
}

/// `logits` and `F4` of a network.
fn network_features(logits: &Tensor, map: &Tensor) -> Features {
    Features::from_iter([("logits".to_string(), logits.clone()), ("F4".to_string(), map.clone())])
}

impl Rig {
    fn new(
        method: &str,
        settings: &str,
        student: &Features,
        teacher: Features,
        mask: &Tensor,
    ) -> Result<Self> {
        let logits = student.logits()?;
        let mut method = (registry().get(method)?.build)(&toml::from_str(settings).unwrap())?;
        let params = ParamStore::new(logits.dtype(), &CPU)?;
        let b = logits.dims()[0];
        let shapes = FeatureShapes {
            student: student.shapes(),
            teacher: teacher.shapes(),
            task: Task::Segmentation,
            classes: logits.dims()[1],
            batch: b,
            samples: b,
        };
        method.connect(&shapes, &params.builder(Rng::new(9)))?;
        let images = random(8, "images", &[b, 3, 18, 16], logits.dtype());
        Ok(Self { method, params, teacher, target: Target::on_cpu(Labels::Mask(mask.clone())), images })
    }

    fn terms(&self, student: &Features, adversary: bool) -> Vec<Term> {
        let context = LossContext {
            images: Some(&self.images),
            step: 5,
            rng: Rng::new(4),
            ..LossContext::new(student, &self.teacher, &self.target)
        };
        let terms =
            if adversary { self.method.adversary_terms(&context) } else { self.method.terms(&context) };
        terms.unwrap()
    }

    /// Weighted sum of the terms, with weights of at least 0.1.
    fn total(&self, student: &Features, adversary: bool) -> Tensor {
        let terms = self.terms(student, adversary);
        let values = terms.iter().map(|t| (&t.value * t.weight.max(0.1)).unwrap());
        values.reduce(|a, b| (a + b).unwrap()).unwrap()
    }

    fn weights(&self) -> Vec<(String, Var)> {
        self.params.all().into_iter().map(|p| (p.name.clone(), p.var().clone())).collect()
    }
}

fn gradient(store: &GradStore, var: &Var) -> Vec<f64> {
    store.get(var).map_or_else(|| vec![0.0; var.elem_count()], list)
}

/// The student's features as variables.
fn leaves(logits: &Tensor, map: &Tensor) -> (Var, Var, Features) {
    let (logits, map) = (Var::from_tensor(logits).unwrap(), Var::from_tensor(map).unwrap());
    let features = network_features(logits.as_tensor(), map.as_tensor());
    (logits, map, features)
}

/// Terms by name, and the largest gradient of the student's features.
fn run(
    (method, settings): (&str, &str),
    (logits, map): (&Tensor, &Tensor),
    (teacher_logits, teacher_map): (&Tensor, &Tensor),
    mask: &Tensor,
) -> (Vec<(String, f64)>, f64) {
    let (l, m, student) = leaves(logits, map);
    let rig =
        Rig::new(method, settings, &student, network_features(teacher_logits, teacher_map), mask).unwrap();
    let store = rig.total(&student, false).backward().unwrap();
    let (mut all, weights) = ([gradient(&store, &l), gradient(&store, &m)].concat(), rig.weights());
    let mut terms = rig.terms(&student, false);
    let adversary = rig.terms(&student, true);
    if !adversary.is_empty() {
        let store = rig.total(&student, true).backward().unwrap();
        assert!(store.get(&l).is_none() && store.get(&m).is_none(), "the adversary reaches the student");
        for (name, weight) in &weights {
            assert!(gradient(&store, weight).iter().all(|g| g.is_finite()), "{method} {settings} {name}");
        }
        terms.extend(adversary);
    }
    for (_, weight) in &weights {
        all.extend(gradient(&store, weight).iter().filter(|g| !g.is_finite()));
    }
    let largest = all.iter().fold(0.0f64, |a, g| if g.is_nan() { f64::NAN } else { a.max(g.abs()) });
    (terms.iter().map(|t| (t.name.clone(), list(&t.value)[0])).collect(), largest)
}

/// Loss and gradient are zero if the student is the teacher.
#[test]
fn vanishes_if_student_is_teacher() {
    for dtype in [DType::F64, DType::F32] {
        let single = dtype == DType::F32;
        for seed in 0..3 {
            let logits = random(seed, "logits", &[2, 3, 9, 8], dtype);
            let map = random(seed, "map", &[2, 4, 6, 7], dtype);
            let mask = patches(seed, 2, 13, 16, 3);
            for &(method, settings) in FORMS {
                // Cross entropies and discriminator scores do not vanish.
                if ["skd_holistic", "skdd"].contains(&method) || settings.contains("sum_over_hw") {
                    continue;
                }
                let (terms, mut largest) = run((method, settings), (&logits, &map), (&logits, &map), &mask);
                // Roots amplify rounding errors.
                let root = settings.contains("squared = false");
                let tiny = if single { 1e-5 } else { 1e-12 } * if root { 1e6 } else { 1.0 };
                for (name, value) in terms.iter().filter(|(name, _)| name != "ce") {
                    assert!(value.abs() < tiny, "{method} {settings} {name}: {value}");
                }
                if method == "frkd" {
                    largest = 0.0; // gradient of the cross entropy
                }
                assert!(largest < tiny * 100.0, "{method} {settings}: gradient {largest}");
            }
        }
    }
}

/// Zero maps, logits of +-1e4, one image, one or two classes, masks without labels.
#[test]
fn is_finite_for_edge_cases() {
    for dtype in [DType::F64, DType::F32] {
        for (b, n) in [(1, 3), (2, 2), (1, 1)] {
            let maps =
                |seed| (random(seed, "z", &[b, n, 9, 8], dtype), random(seed, "f", &[b, 4, 6, 7], dtype));
            let ((sz, sf), (tz, tf)) = (maps(1), maps(2));
            let zero = |t: &Tensor| t.zeros_like().unwrap();
            let huge = |t: &Tensor| (t.sign().unwrap() * 1e4).unwrap();
            let full = |label: u32| Tensor::full(label, (b, 18, 16), &CPU).unwrap();
            let masks = [patches(3, b, 18, 16, n), full(255), full(0)];
            let (zeros, huges) = ((zero(&sz), zero(&sf)), (huge(&sz), huge(&sf)));
            let teachers = [(tz.clone(), tf.clone()), (huge(&tz), huge(&tf)), (zero(&tz), zero(&tf))];
            for (student, teacher) in [
                ((&sz, &sf), &teachers[0]),
                ((&zeros.0, &zeros.1), &teachers[0]),
                ((&sz, &sf), &teachers[2]),
                ((&zeros.0, &zeros.1), &teachers[2]),
                ((&huges.0, &huges.1), &teachers[1]),
                ((&huges.0, &huges.1), &teachers[0]),
                ((&sz, &sf), &teachers[1]),
            ] {
                for (i, mask) in masks.iter().enumerate() {
                    let reads = |method: &str| i == 0 || ["ifvd", "frkd"].contains(&method);
                    for form in FORMS.iter().filter(|(method, _)| reads(method)) {
                        let (terms, largest) = run(*form, student, (&teacher.0, &teacher.1), mask);
                        assert!(terms.iter().all(|(_, v)| v.is_finite()), "{form:?} {terms:?}");
                        assert!(largest.is_finite(), "{form:?} of {n} classes: gradient {largest}");
                    }
                }
            }
        }
    }
}

#[test]
fn vanishes_if_all_pixels_are_ignored() {
    let maps =
        |seed| (random(seed, "z", &[2, 3, 9, 8], DType::F64), random(seed, "f", &[2, 4, 6, 7], DType::F64));
    let ((sz, sf), (tz, tf)) = (maps(1), maps(2));
    let mask = Tensor::full(255u32, (2, 18, 16), &CPU).unwrap();
    for form in FORMS.iter().filter(|(method, _)| ["ifvd", "frkd"].contains(method)) {
        let settings = form.1.replace("similarity_weight = 1.0", "");
        let (l, m, student) = leaves(&sz, &sf);
        let rig = Rig::new(form.0, &settings, &student, network_features(&tz, &tf), &mask).unwrap();
        for term in rig.terms(&student, false).iter().filter(|t| t.name != "similarity") {
            assert!(list(&term.value)[0].abs() < 1e-20, "{form:?} {}", term.name);
            let store = term.value.backward().unwrap();
            let all = [gradient(&store, &l), gradient(&store, &m)].concat();
            assert!(all.iter().all(|g| g.abs() < 1e-12), "{form:?} {}", term.name);
        }
    }
}

/// Gradients of the student's features, of connectors (the channels differ), and of the adversary's
/// parameters by its own terms.
#[test]
fn gradients_match_central_differences() {
    let student = [random(1, "z", &[2, 3, 9, 8], DType::F64), random(1, "f", &[2, 3, 4, 5], DType::F64)];
    let teacher = network_features(
        &random(2, "z", &[2, 3, 9, 8], DType::F64),
        &random(2, "f", &[2, 4, 4, 5], DType::F64),
    );
    let mask = patches(5, 2, 13, 16, 3);
    for &(method, settings) in FORMS {
        // With a detached norm the gradient is not that of the value.
        if method == "skd_pairwise" && settings.is_empty() {
            continue;
        }
        let (l, m, features) = leaves(&student[0], &student[1]);
        // skdd without the pairwise term, for the same reason.
        let settings = if method == "skdd" { "pairwise_weight = 0.0\nform = 'hinge'" } else { settings };
        let rig = Rig::new(method, settings, &features, teacher.clone(), &mask).unwrap();
        for adversary in [false, true] {
            let mut steepest = 0f64;
            if adversary && rig.terms(&features, true).is_empty() {
                continue;
            }
            let total = |features: &Features| match method {
                "skdd" => {
                    let terms = rig.terms(features, adversary).into_iter();
                    let values = terms.map(|t| (t.value * t.weight).unwrap());
                    values.reduce(|a, b| (a + b).unwrap()).unwrap()
                }
                _ => rig.total(features, adversary),
            };
            let store = total(&features).backward().unwrap();
            let mut directions = vec![(l.clone(), "logits".to_string()), (m.clone(), "F4".to_string())];
            directions.extend(rig.weights().into_iter().map(|(name, var)| (var, name)));
            for (var, name) in directions {
                let of_student = ["logits", "F4"].contains(&name.as_str());
                if adversary && of_student {
                    continue; // detached
                }
                // Along one random direction, for speed.
                let direction = random(7, &name, var.dims(), DType::F64);
                let got: f64 = gradient(&store, &var).iter().zip(list(&direction)).map(|(g, v)| g * v).sum();
                let start = var.as_tensor().copy().unwrap();
                let at = |x: &[f64]| {
                    let moved = (&start + (&direction * x[0]).unwrap()).unwrap();
                    if of_student {
                        let pick = |feature: &str, own: &Var| {
                            if name == feature { moved.clone() } else { own.as_tensor().clone() }
                        };
                        return list(&total(&network_features(&pick("logits", &l), &pick("F4", &m))))[0];
                    }
                    let id = rig.params.id(&name).unwrap();
                    rig.params.import(id, &moved).unwrap();
                    let value = list(&total(&features))[0];
                    rig.params.import(id, &start).unwrap();
                    value
                };
                let want = finite_diff::central_difference(at, &[0.0], 1e-6);
                steepest = steepest.max(want[0].abs());
                let what = format!("{method} {settings} {name} adversary: {adversary}");
                finite_diff::assert_close(&[got], &want, 1e-5, 1e-7, &what);
            }
            assert!(steepest > 1e-4, "{method} {settings}: nothing to compare");
        }
    }
}

#[test]
fn skdd_combines_three_methods() {
    let maps =
        |seed| (random(seed, "z", &[2, 3, 9, 8], DType::F64), random(seed, "f", &[2, 4, 6, 7], DType::F64));
    let ((sz, sf), (tz, tf)) = (maps(1), maps(2));
    let mask = patches(5, 2, 9, 8, 3);
    let of = |method, settings| run((method, settings), (&sz, &sf), (&tz, &tf), &mask).0;
    let mut want = of("skd_pixelwise", "reduction = 'sum_over_hw'");
    want.extend(of("skd_pairwise", ""));
    want.extend(of("skd_holistic", ""));
    assert_eq!(of("skdd", ""), want);
    let names: Vec<&str> = want.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pixelwise", "pairwise", "adversarial", "real", "fake", "gradient_penalty"]);
}

#[test]
fn presets_equal_their_methods() {
    let maps =
        |seed| (random(seed, "z", &[2, 3, 5, 4], DType::F64), random(seed, "f", &[2, 4, 6, 7], DType::F64));
    let ((sz, sf), (tz, tf)) = (maps(1), maps(2));
    let mask = patches(5, 2, 5, 4, 3);
    let of = |method| run((method, ""), (&sz, &sf), (&tz, &tf), &mask);
    assert_eq!(of("cd"), of("cwd"));
    assert_eq!(of("ka"), of("skd_affinity"));
}

#[test]
fn frkd_is_invariant_under_permutations_of_classes() {
    let order = [2u32, 0, 1]; // class i becomes the index of i
    let index = Tensor::new(&order, &CPU).unwrap();
    let (s, t) = (random(1, "s", &[2, 3, 6, 7], DType::F64), random(1, "t", &[2, 3, 6, 7], DType::F64));
    let map = random(1, "f", &[2, 2, 3, 3], DType::F64);
    let mask = patches(2, 2, 6, 7, 3);
    let moved = |y: u32| order.iter().position(|o| *o == y).map_or(y, |i| i as u32);
    let labels = mask.flatten_all().unwrap().to_vec1::<u32>().unwrap().into_iter().map(moved);
    let other = Tensor::from_iter(labels, &CPU).unwrap().reshape(mask.shape()).unwrap();
    let permuted = |x: &Tensor| x.index_select(&index, 1).unwrap();
    for form in FORMS.iter().filter(|(method, _)| *method == "frkd") {
        let a = run(*form, (&s, &map), (&t, &map), &mask).0;
        let b = run(*form, (&permuted(&s), &map), (&permuted(&t), &map), &other).0;
        for ((name, a), (_, b)) in a.iter().zip(&b) {
            assert!(*a > 0.0 && (a - b).abs() < 1e-12 * a.max(1.0), "{form:?} {name}: {a} {b}");
        }
    }
}

#[test]
fn rejects_incompatible_features_and_settings() {
    let f = |shape: &[usize]| random(1, "x", shape, DType::F32);
    let mask = patches(1, 2, 9, 8, 3);
    let error = |method: &str, settings: &str, s: (&[usize], &[usize]), t: (&[usize], &[usize])| {
        let rig = Rig::new(
            method,
            settings,
            &network_features(&f(s.0), &f(s.1)),
            network_features(&f(t.0), &f(t.1)),
            &mask,
        );
        rig.err().unwrap_or_else(|| panic!("{method} {settings} is not refused")).to_string()
    };
    let (z, m) = (&[2, 3, 9, 8][..], &[2, 4, 6, 7][..]);
    for method in ["ifvd", "skd_pairwise"] {
        let e = error(method, "", (z, m), (z, &[2, 4, 3, 7]));
        assert!(e.contains(method) && e.contains("[4, 6, 7]") && e.contains("[4, 3, 7]"), "{e}");
    }
    for method in ["cwd", "skd_pixelwise", "skd_holistic", "frkd"] {
        let e = error(method, "", (z, m), (&[2, 4, 9, 8], m));
        assert!(e.contains(method) && e.contains("[4, 9, 8]"), "{e}");
        let e = error(method, "", (&[2, 3], m), (&[2, 3], m));
        assert!(e.contains("dense prediction"), "{e}");
    }
    let e = error("skd_holistic", "", (&[2, 3, 7, 9], m), (&[2, 3, 7, 9], m));
    assert!(e.contains("8 x 8"), "{e}");
    let e = error("skd_pairwise", "pool_scale = 0.1", (z, m), (z, m));
    assert!(e.contains("at least one pixel"), "{e}");

    for method in ["ifvd", "frkd"] {
        let mut built = (registry().get(method).unwrap().build)(&toml::Table::new()).unwrap();
        let features = network_features(&f(z), &f(m)).shapes();
        let shapes =
            FeatureShapes { student: features.clone(), teacher: features, classes: 3, ..Default::default() };
        let params = ParamStore::new(DType::F32, &CPU).unwrap();
        let e = built.connect(&shapes, &params.builder(Rng::new(0))).unwrap_err().to_string();
        assert!(e.contains(method) && e.contains("masks"), "{e}");
    }
    for (method, wrong) in [
        ("cwd", "temperature = 0.0"),
        ("frkd", "gamma = 1.5"),
        ("frkd", "rho = 0.0"),
        ("skd_pairwise", "pool_scale = 2.0"),
        ("skd_holistic", "widths = [0, 4]"),
        ("ifvd", "classes = 0"),
    ] {
        let e = (registry().get(method).unwrap().build)(&toml::from_str(wrong).unwrap())
            .err()
            .unwrap()
            .to_string();
        let key = wrong.split(' ').next().unwrap_or_default();
        assert!(e.contains(method) && e.contains(&format!("`{key}`")), "{e}");
    }
}
