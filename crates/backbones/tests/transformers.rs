//! candle-transformers' networks against timm's (`transformers/golden.json`, made by `make.py` beside
//! it with the parameters of the generator), and one of them as a teacher.

use candle_core::{D, DType, Device, Tensor};
use serde_json::Value;
use stillhouse_backbones::{count, is_frozen, load_weights, onnx, registry, save, usual_size};
use stillhouse_core::model::{Features, Model, ModelSpec};
use stillhouse_core::{ParamStore, Result, Rng, Tape};
use stillhouse_ops::optim::{Hyper, Sgd};
use stillhouse_ops::{ParamKind, Mode};
use stillhouse_testkit::generator;

fn request(name: &str) -> ModelSpec {
    ModelSpec { name: name.into(), classes: 5, ..Default::default() }
}

fn network(name: &str) -> (Box<dyn Model>, ParamStore) {
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let row = *registry().get(name).unwrap();
    let net = (row.build)(&request(name), &params.builder(Rng::new(3))).unwrap();
    (net, params)
}

/// Puts the generator's values in; `make.py` has the same rules.
fn fill(params: &ParamStore) {
    for param in params.all() {
        let mut name = param.name.clone();
        if name.ends_with("gamma") {
            name.push_str(".weight");
        } else if name == "cls_token" || name == "pos_embed" {
            name.push_str(".relative_position_bias_table");
        }
        let values = generator::parameter(&name, &param.shape, 1.0, 0.0);
        let values = Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu).unwrap();
        params.import(params.id(&param.name).unwrap(), &values).unwrap();
    }
}

fn images(size: usize) -> Tensor {
    let shape = [2, 3, size, size];
    Tensor::from_vec(generator::input("input.eval", &shape), shape.as_slice(), &Device::Cpu).unwrap()
}

fn forward(
    net: &dyn Model,
    params: &ParamStore,
    images: &Tensor,
    taps: &[&str],
    mode: Mode,
) -> Result<Features> {
    let mut tape = Tape::new(params, mode)?;
    tape.select_features(taps);
    tape.begin(Rng::new(0), 0);
    net.forward(images, &mut tape)
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Names, shapes, operations, and every tap.
#[test]
fn timm_gives_the_same() {
    let golden: Value = serde_json::from_str(include_str!("transformers/golden.json")).unwrap();
    assert_eq!(golden["format"], "stillhouse-transformers-1");
    for case in golden["cases"].as_array().unwrap() {
        let (arch, size) = (case["arch"].as_str().unwrap(), number(&case["size"]));
        let what = format!("{arch} at {size}");
        let (net, params) = network(arch);
        assert_eq!(params.count_weights(), number(&case["parameters"]), "{what}");
        let mut names: Vec<String> =
            params.all().iter().map(|p| format!("{} {:?}", p.name, p.shape)).collect();
        names.sort();
        assert_eq!(net.macs(size, size).unwrap(), case["macs"].as_u64().unwrap(), "{what}");
        assert_eq!(format!("{:016x}", generator::fnv1a64(&names.join("\n"))), case["names"], "{what}");
        // The model is made at its first pass, from the values of then.
        fill(&params);
        let taps: Vec<&str> = net.features().iter().map(|t| t.name.as_str()).collect();
        let features = forward(net.as_ref(), &params, &images(size), &taps, Mode::Inference).unwrap();
        for (name, wanted) in case["taps"].as_object().unwrap() {
            let found = features.get(name).unwrap_or_else(|e| panic!("{what}: {e}"));
            let shape: Vec<usize> = wanted["shape"].as_array().unwrap().iter().map(number).collect();
            assert_eq!(found.dims(), shape, "{what}: {name}");
            let (values, absmax) = (flat(found), wanted["absmax"].as_f64().unwrap());
            let samples = wanted["values"].as_array().unwrap();
            for (k, sample) in samples.iter().enumerate() {
                let at = (2 * k + 1) * values.len() / (2 * samples.len());
                let off = (f64::from(values[at]) - sample.as_f64().unwrap()).abs();
                assert!(off < 2e-5 * absmax, "{what}: {name}[{at}] is {}, timm has {sample}", values[at]);
            }
        }
        assert_eq!(features.iter().count(), case["taps"].as_object().unwrap().len(), "{what}");
        // Alone, a tap is the same.
        let alone = forward(net.as_ref(), &params, &images(size), &["logits"], Mode::Eval).unwrap();
        assert_eq!(flat(alone.logits().unwrap()), flat(features.logits().unwrap()), "{what}");
    }
}

/// Multiply-accumulates as hooks on timm's layers count them, and every row's parameters.
#[test]
fn sizes() {
    for (name, size, macs) in [
        ("convnext_nano", 224, 2_445_528_320),
        ("convnext_base", 224, 15_354_729_472),
        ("convnextv2_huge", 224, 114_922_100_480),
        ("tf_efficientnet_b1", 224, 569_651_680),
        ("tf_efficientnet_b7", 224, 5_169_865_152),
        ("vit_small_patch16_384", 384, 12_422_077_440),
    ] {
        let counts = count(&ModelSpec { classes: 1000, ..request(name) }, size, size).unwrap();
        assert_eq!(counts.macs, macs, "{name}");
    }
    for row in registry().entries().iter().filter(|row| is_frozen(row.name)) {
        let side = usual_size(row.name);
        let counts = count(&ModelSpec { classes: 1000, ..request(row.name) }, side, side).unwrap();
        let stated = format!("; {:.1} M parameters", counts.parameters as f64 / 1e6);
        assert!(row.summary.ends_with(&stated), "{}: {} of {stated}", row.name, row.summary);
    }
}

/// A student learns from it, and nothing of it but its head learns itself.
#[test]
fn teaches_and_stays() {
    let (teacher, of_teacher) = network("convnext_atto");
    fill(&of_teacher);
    let (student, of_student) = network("resnet18");
    let (images, labels) = (images(64), Tensor::new(&[1u32, 3], &Device::Cpu).unwrap());
    let values = |params: &ParamStore| {
        params.all().iter().map(|p| flat(&params.export(params.id(&p.name).unwrap()).unwrap())).collect()
    };
    let kept: Vec<Vec<f32>> = values(&of_teacher);
    let hyper = |_: &stillhouse_ops::Param| Some(Hyper { lr: 0.01, weight_decay: 1e-4 });
    let log_softmax = |logits: &Tensor| {
        let logits = (logits / 4.0).unwrap();
        logits.broadcast_sub(&logits.log_sum_exp(D::Minus1).unwrap().unsqueeze(1).unwrap()).unwrap()
    };
    // KL(teacher || student) at temperature 4.
    let kd = |step: u64, tape: &mut Tape| {
        let told = forward(teacher.as_ref(), &of_teacher, &images, &["logits"], Mode::Inference).unwrap();
        tape.begin(Rng::new(0), step);
        let own = student.forward(&images, tape).unwrap();
        let (p, q) = (log_softmax(own.logits().unwrap()), log_softmax(told.logits().unwrap()));
        (q.exp().unwrap() * (q - p).unwrap()).unwrap().sum_all().unwrap()
    };
    let mut tape = Tape::new(&of_student, Mode::Train).unwrap();
    let mut sgd = Sgd::new(0.9, false);
    let mut losses = Vec::new();
    for step in 0..4 {
        let loss = kd(step, &mut tape);
        losses.push(loss.to_scalar::<f32>().unwrap());
        let gradients = tape.backward(&loss).unwrap();
        sgd.step(&of_student, &gradients, hyper).unwrap();
    }
    assert!(losses[0] > 0.0 && losses[3] < 0.9 * losses[0], "{losses:?}");
    assert_eq!(values(&of_teacher) as Vec<Vec<f32>>, kept);

    // A linear probe: its own training moves the head alone.
    let mut tape = Tape::new(&of_teacher, Mode::Train).unwrap();
    tape.begin(Rng::new(0), 0);
    let logits = teacher.forward(&images, &mut tape).unwrap().logits().unwrap().clone();
    let chosen = logits.gather(&labels.unsqueeze(1).unwrap(), 1).unwrap();
    let gradients = tape.backward(&chosen.sum_all().unwrap()).unwrap();
    Sgd::new(0.0, false).step(&of_teacher, &gradients, hyper).unwrap();
    let moved: Vec<String> = of_teacher
        .all()
        .into_iter()
        .zip(values(&of_teacher) as Vec<Vec<f32>>)
        .zip(&kept)
        .filter(|((_, now), before)| now != *before)
        .map(|((param, _), _)| param.name)
        .collect();
    assert_eq!(moved, teacher.head());
    assert_eq!(moved, ["head.fc.weight", "head.fc.bias"]);
}

/// Whoever would train on its features is told, before anything runs.
#[test]
fn cannot_be_a_student_of_features() {
    let (net, params) = network("convnext_atto");
    let ask = |taps: &[&str], mode| forward(net.as_ref(), &params, &images(64), taps, mode);
    for mode in [Mode::Train, Mode::TrainFrozenBn] {
        let text = ask(&["logits", "embedding"], mode).unwrap_err().to_string();
        for part in ["convnext_atto", "cannot be trained", "`embedding`", "student"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(ask(&["logits"], mode).is_ok());
    }
    assert!(ask(&["logits", "embedding"], Mode::Eval).is_ok());
    let text = ask(&["F4"], Mode::Eval).unwrap_err().to_string();
    assert!(text.contains("no tap `F4`"), "{text}");
}

#[test]
fn mistakes_are_named() {
    for (name, size, part) in [
        ("convnext_atto", 65, "multiples of 32"),
        ("vit_tiny_patch16_224", 64, "224 x 224"),
        ("vit_small_patch14_dinov2", 64, "multiple of 14"),
        ("vit_small_patch14_dinov2", 532, "at most 518"),
    ] {
        let params = ParamStore::meta();
        let row = *registry().get(name).unwrap();
        let net = (row.build)(&request(name), &params.builder(Rng::new(0))).unwrap();
        let mut tape = Tape::trace(&params);
        let image = Tensor::zeros((1, 3, size, size), DType::F32, &Device::Cpu).unwrap();
        let text = net.forward(&image, &mut tape).unwrap_err().to_string();
        assert!(text.contains(part) && text.contains(name), "{text}");
    }
    let params = ParamStore::meta();
    let row = *registry().get("convnext_tiny").unwrap();
    let variant = toml::from_str("output_stride = 8").unwrap();
    let error = (row.build)(&ModelSpec { variant, ..request("convnext_tiny") }, &params.builder(Rng::new(0)));
    assert!(error.err().unwrap().to_string().contains("output_stride"));
    let (net, params) = network("convnext_atto");
    let error = onnx::model(net.as_ref(), &params, (64, 64), &["logits"], &Default::default());
    assert!(error.unwrap_err().to_string().contains("ONNX"));
}

/// A file in timm's names loads like any other, strictly; heads of other classes are replaced.
#[test]
fn files_load_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("teacher.safetensors");
    let (net, params) = network("tf_efficientnet_b0");
    fill(&params);
    save(&params, &path, &Default::default()).unwrap();
    let statistics = params.all().into_iter().filter(|p| p.kind == ParamKind::Buffer).count();
    assert_eq!(statistics, 2 * 49);

    let (other, fresh) = network("tf_efficientnet_b0");
    // What the first pass has made is not kept: the statistics that candle copies are read again.
    forward(other.as_ref(), &fresh, &images(32), &["logits"], Mode::Inference).unwrap();
    assert!(load_weights(&path, &fresh, &other.head(), false).unwrap().is_empty());
    let logits = |net: &dyn Model, params: &ParamStore| {
        flat(forward(net, params, &images(32), &["logits"], Mode::Inference).unwrap().logits().unwrap())
    };
    assert_eq!(logits(net.as_ref(), &params), logits(other.as_ref(), &fresh));

    let (wrong, of_wrong) = network("convnext_atto");
    let error = load_weights(&path, &of_wrong, &wrong.head(), true).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}
