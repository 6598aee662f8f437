//! Memory banks of `crd`: assignment and update of rows, resuming, gradients.

use candle_core::{DType, Device, Tensor, Var};
use stillhouse_core::data::{Labels, Target, Task};
use stillhouse_core::distiller::{Distiller, FeatureShapes, LossContext};
use stillhouse_core::model::Features;
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_losses::registry;
use stillhouse_testkit::finite_diff;

const CPU: Device = Device::Cpu;
const SETTINGS: &str = "feature_dim = 4\nk = 6";

fn random(name: &str, step: u64, shape: &[usize], dtype: DType) -> Tensor {
    let mut draw = Rng::new(2).stream(name).at(step, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

struct Bench {
    method: Box<dyn Distiller>,
    params: ParamStore,
}

impl Bench {
    fn new(settings: &str, samples: usize, dtype: DType) -> Result<Self> {
        let mut method = (registry().get("crd")?.build)(&toml::from_str(settings).unwrap())?;
        let params = ParamStore::new(dtype, &CPU)?;
        let features = |d: usize| [("pooled".to_string(), vec![d])].into();
        let (task, classes, batch) = (Task::Classification, 3, 1);
        let shapes =
            FeatureShapes { student: features(5), teacher: features(7), task, classes, batch, samples };
        method.connect(&shapes, &params.builder(Rng::new(1)))?;
        Ok(Self { method, params })
    }

    fn list(&self, name: &str) -> Vec<f64> {
        let values = self.params.export(self.params.id(name).unwrap()).unwrap();
        values.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn row(&self, bank: &str, row: usize) -> Vec<f64> {
        self.list(bank)[row * 4..(row + 1) * 4].to_vec()
    }

    /// Runs a step. Returns the terms, and the gradients of their sum (features first, then weights).
    fn step(&mut self, number: u64, ids: &[u64], train: bool) -> Result<(Vec<f64>, Vec<f64>)> {
        let dtype = self.params.dtype();
        let features = Var::from_tensor(&random("s", number, &[ids.len(), 5], dtype))?;
        self.step_with(features, number, ids, train)
    }

    fn step_with(&mut self, own: Var, number: u64, ids: &[u64], train: bool) -> Result<(Vec<f64>, Vec<f64>)> {
        let features = |t: Tensor| Features::from_iter([("pooled".to_string(), t)]);
        let student = features(own.as_tensor().clone());
        let teacher = features(random("t", number, &[ids.len(), 7], self.params.dtype()));
        let target = Target::on_cpu(Labels::Classes(Tensor::zeros(ids.len(), DType::U32, &CPU)?));
        let context = LossContext {
            ids,
            step: number,
            train,
            rng: Rng::new(4),
            ..LossContext::new(&student, &teacher, &target)
        };
        let terms = self.method.terms(&context)?;
        let grads = (&terms[0].value + &terms[1].value)?.backward()?;
        let list = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let mut gradients = list(grads.get(&own).unwrap())?;
        for param in self.params.all() {
            if let Some(gradient) = grads.get(param.var()) {
                gradients.extend(list(gradient)?);
            }
        }
        let values =
            terms.iter().map(|t| list(&t.value).map(|v| v[0])).collect::<candle_core::Result<_>>()?;
        self.method.after_step(&context, &self.params)?;
        Ok((values, gradients))
    }
}

#[test]
fn assigns_rows_at_first_occurrence() {
    let mut bench = Bench::new(SETTINGS, 5, DType::F32).unwrap();
    let before = bench.list("bank_s");
    bench.step(0, &[900, 7], true).unwrap();
    bench.step(1, &[7, 41, 900], true).unwrap();
    assert_eq!(bench.list("image"), [900., 7., 41., -1., -1.]);
    // Assigned rows are unit vectors, others unchanged.
    for bank in ["bank_s", "bank_t"] {
        for row in 0..3 {
            let norm: f64 = bench.row(bank, row).iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{bank} {row}: {norm}");
        }
    }
    assert_eq!(bench.row("bank_s", 4), before[16..]);

    bench.step(2, &[1, 2], true).unwrap();
    let e = bench.step(3, &[3], true).unwrap_err().to_string();
    assert!(e.contains("at most 5") && e.contains("n_data"), "{e}");
    let e = Bench::new(SETTINGS, 5, DType::F32).unwrap().step(0, &[1 << 40], true).unwrap_err().to_string();
    assert!(e.contains("1099511627776"), "{e}");
}

/// The row is the normalized, weighted sum of the old row and the embedding, independent of Z.
#[test]
fn updates_rows_by_momentum() {
    let settings = format!("{SETTINGS}\nmomentum = 0.25\nz_student = 30.0\nz_teacher = 30.0");
    let mut bench = Bench::new(&settings, 3, DType::F64).unwrap();
    assert_eq!(bench.list("log_z_student"), [30f64.ln()]);
    let old = bench.row("bank_s", 0);
    let (weight, bias) = (bench.list("embed_student.weight"), bench.list("embed_student.bias"));
    let x: Vec<f64> = random("s", 0, &[1, 5], DType::F64).flatten_all().unwrap().to_vec1().unwrap();
    let unit = |v: Vec<f64>| {
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.into_iter().map(|v| v / norm).collect::<Vec<_>>()
    };
    let dot = |row: &[f64]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
    let embedding = unit(weight.chunks(5).zip(&bias).map(|(w, b)| dot(w) + b).collect());
    let want = unit(old.iter().zip(&embedding).map(|(o, e)| 0.25 * o + 0.75 * e).collect());
    bench.step(0, &[77], true).unwrap();
    finite_diff::assert_close(&bench.row("bank_s", 0), &want, 1e-12, 1e-14, "row");
    assert_eq!(bench.list("log_z_student"), [30f64.ln()]);
}

#[test]
fn estimates_z_from_the_first_batch() {
    let mut bench = Bench::new(SETTINGS, 9, DType::F32).unwrap();
    assert!(bench.list("log_z_teacher")[0].is_nan());
    let untouched = bench.list("bank_t");
    bench.step(0, &[1, 2], false).unwrap();
    assert!(bench.list("log_z_teacher")[0].is_nan(), "evaluation has no effect");
    assert_eq!(bench.list("bank_t"), untouched);
    bench.step(0, &[1, 2], true).unwrap();
    let z = bench.list("log_z_teacher");
    assert!(z[0].is_finite());
    bench.step(1, &[1, 2], true).unwrap();
    assert_eq!(bench.list("log_z_teacher"), z);
}

/// All state is in the parameters: an instance that loads them continues with the same bits.
#[test]
fn resumes_bitwise() {
    let batches: [&[u64]; 5] = [&[3, 9], &[12, 3], &[40, 1], &[9, 40, 5], &[3, 1]];
    let mut whole = Bench::new(SETTINGS, 8, DType::F32).unwrap();
    for (stop, batch) in batches.into_iter().enumerate() {
        let mut resumed = Bench::new(SETTINGS, 8, DType::F32).unwrap();
        for (name, values) in whole.params.export_all().unwrap() {
            resumed.params.import(resumed.params.id(&name).unwrap(), &values).unwrap();
        }
        let (a, b) = (whole.step(stop as u64, batch, true), resumed.step(stop as u64, batch, true));
        assert_eq!(a.unwrap(), b.unwrap(), "step {stop}");
        for name in ["bank_s", "bank_t", "image", "log_z_student"] {
            assert_eq!(whole.list(name), resumed.list(name), "{name} after step {stop}");
        }
    }
}

#[test]
fn gradients_match_central_differences() {
    let settings = format!("{SETTINGS}\nz_student = 40.0\nz_teacher = 30.0\ntemperature = 0.3");
    let value = |x: &Tensor| {
        let mut bench = Bench::new(&settings, 6, DType::F64).unwrap();
        bench.step_with(Var::from_tensor(x).unwrap(), 0, &[5, 6], true).unwrap()
    };
    let x = random("s", 0, &[2, 5], DType::F64);
    let (_, gradients) = value(&x);
    let at = |v: &[f64]| value(&Tensor::from_slice(v, (2, 5), &CPU).unwrap()).0.iter().sum::<f64>();
    let list: Vec<f64> = x.flatten_all().unwrap().to_vec1().unwrap();
    finite_diff::assert_close(
        &gradients[..10],
        &finite_diff::central_difference(at, &list, 1e-5),
        1e-6,
        1e-8,
        "features",
    );
    // followed by the two weights and two biases of the embeddings
    assert_eq!(gradients.len(), 10 + 4 * 5 + 4 + 4 * 7 + 4);
    assert!(gradients[10..].iter().filter(|g| g.abs() > 1e-9).count() > 50);
}

/// Two rows, duplicates, and a temperature near zero.
#[test]
fn is_finite_for_small_banks_and_temperatures() {
    let mut bench = Bench::new("feature_dim = 4\nk = 6\ntemperature = 0.001", 2, DType::F32).unwrap();
    for (number, ids) in [(0, &[4][..]), (1, &[4, 4]), (2, &[9])] {
        let (values, gradients) = bench.step(number, ids, true).unwrap();
        assert!(values.iter().chain(&gradients).all(|v| v.is_finite()), "{values:?} {gradients:?}");
    }
}

#[test]
fn rejects_invalid_settings() {
    let error =
        |settings: &str, samples| Bench::new(settings, samples, DType::F32).err().unwrap().to_string();
    assert!(error("", 1).contains("1 rows for 1 images"));
    assert!(error("n_data = 10", 20).contains("10 rows for 20 images"));
    assert!(error("k = 0", 20).contains("invalid `k`"));
    assert!(error("momentum = 1.5", 20).contains("invalid `momentum`"));
    assert!(error("z_student = 0.0", 20).contains("invalid `z_student`"));
}
