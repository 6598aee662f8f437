//! Comparison with timm, torchvision, transformers and onnxruntime: weights of either side give the same
//! logits on the other.
//!
//! `STILLHOUSE_PYTHON` names a Python with torch, torchvision, timm, onnxruntime and safetensors, and
//! optionally transformers (three models are skipped without it).

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::registry;
use stillhouse_backbones::weights::{ModelCard, Precision, export, load_weights, onnx};
use stillhouse_core::model::Model;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::{Init, Mode, ParamKind};
use stillhouse_testkit::command::CmdOutput;

use crate::onnx::{NETWORKS, request};

/// Runs the Python script and returns its output.
fn python(command: &str, folder: &Path) -> String {
    let python = std::env::var_os("STILLHOUSE_PYTHON").expect("set STILLHOUSE_PYTHON");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/needs_python/other_collections.py");
    CmdOutput::run(Command::new(python).arg(script).arg(command).arg(folder)).expect_code(0).stdout
}

/// Writes two images of each size, and returns them by size.
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

/// Randomizes statistics and affine parameters, so that all of them matter.
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

/// Maximum difference, relative to the largest logit if that exceeds 1.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let most =
        |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    most(&(a - b).unwrap()) / most(b).max(1.0)
}

#[test]
#[ignore = "set STILLHOUSE_PYTHON"]
fn loads_weights_of_other_collections() {
    let folder = tempfile::tempdir().unwrap();
    let images = write_images(folder.path());
    let output = python("save", folder.path());
    let expected =
        candle_core::safetensors::load(folder.path().join("logits.safetensors"), &Device::Cpu).unwrap();
    let mut read = 0;
    for line in output.lines() {
        let Some((name, size)) = line.split_once(' ').filter(|(name, _)| *name != "-") else {
            println!("skipped: {line}");
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
        let skipped = load_weights(&path, &params, &net.head(), &LoadOptions::default()).unwrap();
        assert!(skipped.is_empty(), "{name}: {skipped:?}");
        std::fs::remove_file(path).unwrap();
        let found = difference(&logits(net.as_ref(), &params, &images[size]), &expected[name]);
        println!("{name}: {found:.1e}");
        assert!(found < 1e-4, "{name}: {found}");
        read += 1;
    }
    assert!(read >= 8, "{output}");
}

#[test]
#[ignore = "set STILLHOUSE_PYTHON"]
fn other_runtimes_compute_the_same_logits() {
    let folder = tempfile::tempdir().unwrap();
    let images = write_images(folder.path());
    let mut computed = HashMap::new();
    let vgg = [("vgg11_bn", "", 64)];
    for (i, (name, variant, size)) in NETWORKS.iter().chain(&vgg).enumerate() {
        let (net, params) = build(name, variant);
        randomize(&params);
        let title = format!("{name}-{i}");
        let info = onnx::OnnxInfo { name: title.clone(), metadata: Vec::new() };
        let path = folder.path().join(format!("{title}.onnx"));
        onnx::write(net.as_ref(), &params, (*size, *size), &["logits"], &info, &path).unwrap();
        let card = ModelCard {
            arch: name.to_string(),
            variant: request(name, variant).variant,
            class_count: 5,
            size: (*size, *size),
            std: [1.0; 3],
            ..ModelCard::default()
        };
        let (_, missing) = export(&params, &card, &folder.path().join(&title), Precision::F32).unwrap();
        let logits = logits(net.as_ref(), &params, &images[&size.to_string()]);
        if missing.is_none() {
            computed.insert(title.clone(), logits.clone());
        }
        computed.insert(format!("{title}.onnx"), logits);
    }
    let output = python("load", folder.path());
    let expected =
        candle_core::safetensors::load(folder.path().join("logits.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(expected.len(), computed.len(), "{output}");
    assert!(computed.len() > NETWORKS.len() + 4, "timm has some of them");
    for (name, logits) in &computed {
        let found = difference(logits, &expected[name]);
        println!("{name}: {found:.1e}");
        assert!(found < 1e-4, "{name}: {found}");
    }
}
