//! Our networks beside those of timm, torchvision, transformers and onnxruntime: their weights in our
//! networks and ours in theirs give the same logits.
//!
//! Needs `STILLHOUSE_PYTHON`, a Python with torch, torchvision, timm, onnxruntime and safetensors (and
//! transformers, without which its three networks are left out); without it these tests say so and
//! pass.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::{Card, Precision, export, load_weights, onnx, registry};
use stillhouse_core::model::Model;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::{Init, ParamKind, Mode};

use crate::onnx::{NETWORKS, request};

fn python(what: &str, folder: &Path) -> Option<String> {
    let Some(python) = std::env::var_os("STILLHOUSE_PYTHON").filter(|p| !p.is_empty()) else {
        println!("not run: STILLHOUSE_PYTHON is not set");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/other_collections.py");
    let output = Command::new(python).arg(script).arg(what).arg(folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

/// Two images of every size that is used, by the size.
fn write_images(folder: &Path) -> HashMap<String, Tensor> {
    let images = |size: usize| {
        let mut draw = Rng::new(9).at(size as u64, 0);
        let values: Vec<f32> = (0..2 * 3 * size * size).map(|_| draw.normal() as f32).collect();
        (size.to_string(), Tensor::from_vec(values, (2, 3, size, size), &Device::Cpu).unwrap())
    };
    let all: HashMap<String, Tensor> = [32, 64, 65, 224].map(images).into();
    candle_core::safetensors::save(&all, folder.join("images.safetensors")).unwrap();
    all
}

fn build(name: &str, variant: &str) -> (Box<dyn Model>, ParamStore) {
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let request = request(name, variant);
    let net = (registry().get(name).unwrap().build)(&request, &params.builder(Rng::new(1))).unwrap();
    (net, params)
}

/// Statistics and affine values other than 0 and 1, so that all of them count.
fn randomize(params: &ParamStore) {
    let other = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let draw = other.builder(Rng::new(2));
    for param in params.all().into_iter().filter(|p| p.shape.len() == 1) {
        let around =
            if param.name.ends_with("bias") || param.name.ends_with("running_mean") { 0.0 } else { 1.0 };
        let id = draw.weight(&param.name, &param.shape, Init::Uniform(0.3)).unwrap();
        let values = (other.export(id).unwrap() + around).unwrap();
        params.import(params.id(&param.name).unwrap(), &values).unwrap();
    }
    assert!(params.all().iter().any(|p| p.kind == ParamKind::Weight));
}

fn logits(net: &dyn Model, params: &ParamStore, images: &Tensor) -> Tensor {
    let mut tape = Tape::new(params, Mode::Eval).unwrap();
    tape.set_winograd(false);
    tape.begin(Rng::new(0), 0);
    net.forward(images, &mut tape).unwrap().logits().unwrap().contiguous().unwrap()
}

/// The largest difference, in units of the largest logit where that is above 1.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let most =
        |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    most(&(a - b).unwrap()) / most(b).max(1.0)
}

#[test]
fn weights_of_other_collections_give_their_logits() {
    let folder = tempfile::tempdir().unwrap();
    let images = write_images(folder.path());
    let Some(said) = python("save", folder.path()) else { return };
    let expected =
        candle_core::safetensors::load(folder.path().join("logits.safetensors"), &Device::Cpu).unwrap();
    let mut read = 0;
    for line in said.lines() {
        let Some((name, size)) = line.split_once(' ').filter(|(name, _)| *name != "-") else {
            println!("left out: {line}");
            continue;
        };
        let (arch, variant) = match name.split_once('-').unwrap().1.split_once('.').unwrap().0 {
            "swin" => ("swin_tiny_patch4_window7_224", ""),
            "mobilenet" if name.starts_with("hub") => ("mobilenetv2_100", "padding = 'same'"),
            "mobilenet" => ("mobilenetv2_100", ""),
            arch => (arch, ""),
        };
        let (net, params) = build(arch, variant);
        let path = folder.path().join(name);
        let left = load_weights(&path, &params, &net.head(), false).unwrap();
        assert!(left.is_empty(), "{name}: {left:?}");
        std::fs::remove_file(path).unwrap();
        let found = difference(&logits(net.as_ref(), &params, &images[size]), &expected[name]);
        println!("{name}: {found:.1e}");
        assert!(found < 1e-4, "{name}: {found}");
        read += 1;
    }
    assert!(read >= 8, "{said}");
}

#[test]
fn other_runtimes_give_our_logits() {
    let folder = tempfile::tempdir().unwrap();
    let images = write_images(folder.path());
    let mut ours = HashMap::new();
    let vgg = [("vgg11_bn", "", 64)];
    for (i, (name, variant, size)) in NETWORKS.iter().chain(&vgg).enumerate() {
        if std::env::var_os("STILLHOUSE_PYTHON").is_none() {
            break;
        }
        let (net, params) = build(name, variant);
        randomize(&params);
        let title = format!("{name}-{i}");
        let about = onnx::About { name: title.clone(), metadata: Vec::new() };
        let path = folder.path().join(format!("{title}.onnx"));
        onnx::write(net.as_ref(), &params, (*size, *size), &["logits"], &about, &path).unwrap();
        let card = Card {
            arch: name.to_string(),
            variant: request(name, variant).variant,
            class_count: 5,
            size: *size,
            std: [1.0; 3],
            ..Card::default()
        };
        let (_, missing) = export(&params, &card, &folder.path().join(&title), Precision::F32).unwrap();
        let logits = logits(net.as_ref(), &params, &images[&size.to_string()]);
        if missing.is_none() {
            ours.insert(title.clone(), logits.clone());
        }
        ours.insert(format!("{title}.onnx"), logits);
    }
    let Some(said) = python("load", folder.path()) else { return };
    let theirs =
        candle_core::safetensors::load(folder.path().join("logits.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(theirs.len(), ours.len(), "{said}");
    assert!(ours.len() > NETWORKS.len() + 4, "timm has some of them");
    for (name, ours) in &ours {
        let found = difference(ours, &theirs[name]);
        println!("{name}: {found:.1e}");
        assert!(found < 1e-4, "{name}: {found}");
    }
}
