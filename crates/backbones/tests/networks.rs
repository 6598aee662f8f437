//! The battery that every registered network goes through.

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::{count, registry};
use stillhouse_core::network::{Backbone, BackboneRequest};
use stillhouse_core::{Params, Rng, Tape};
use stillhouse_ops::{Kind, Mode};

fn request(name: &str, variant: &str) -> BackboneRequest {
    BackboneRequest { name: name.into(), classes: 5, variant: toml::from_str(variant).unwrap() }
}

fn build(request: &BackboneRequest) -> (Box<dyn Backbone>, Params) {
    let params = Params::new(DType::F32, &Device::Cpu).unwrap();
    let row = *registry().get(&request.name).unwrap();
    let net = (row.build)(request, &params.builder(Rng::new(3))).unwrap();
    (net, params)
}

fn images(size: usize) -> Tensor {
    Tensor::rand(-1f32, 1f32, (2, 3, size, size), &Device::Cpu).unwrap()
}

/// Shapes as specified, a finite gradient for every parameter, none kept that nobody asked for.
fn battery(request: &BackboneRequest, size: usize) {
    let (net, params) = build(request);
    let what = format!("{} {:?}", request.name, request.variant);
    assert_eq!((net.name(), net.classes()), (request.name.as_str(), 5), "{what}");
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    let taps: Vec<&str> = net.taps().iter().map(|t| t.name.as_str()).collect();
    tape.want(&taps);
    tape.begin(Rng::new(0), 0);
    let features = net.forward(&images(size), &mut tape).unwrap();
    for tap in net.taps() {
        let expected = match tap.stride {
            0 => vec![tap.channels],
            stride => vec![tap.channels, size / stride, size / stride],
        };
        assert_eq!(features.shapes()[&tap.name], expected, "{what}: {}", tap.name);
    }
    let loss = features.logits().unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = tape.backward(&loss).unwrap();
    for param in params.all().into_iter().filter(|p| p.kind == Kind::Weight) {
        let grad = grads
            .param(&param.name)
            .unwrap()
            .unwrap_or_else(|| panic!("{what}: no gradient for {}", param.name));
        assert_eq!(grad.dims(), param.shape, "{what}: {}", param.name);
        let sum = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{what}: gradient of {}", param.name);
    }
    tape.want(&["logits"]);
    tape.begin(Rng::new(0), 1);
    let features = net.forward(&images(size), &mut tape).unwrap();
    assert_eq!(features.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["logits"], "{what}");
    for name in net.head() {
        let param = params.get(params.id(&name).unwrap());
        assert_eq!(param.shape[0], 5, "{what}: {name}");
    }
    let counts = count(request, size, size).unwrap();
    assert_eq!(counts.macs, net.macs(size, size).unwrap(), "{what}");
    assert_eq!(counts.parameters, params.count_weights(), "{what}");
}

#[test]
fn every_row_runs_with_its_defaults() {
    for row in registry().rows() {
        let defaults = (row.defaults)();
        assert!(!row.summary.is_empty() && !row.source.is_empty(), "{}", row.name);
        assert!(
            defaults.lines().all(|line| line.contains("  # ")),
            "{}: a default names its source",
            row.name
        );
        battery(&request(row.name, &defaults), 64);
    }
}

#[test]
fn variants_run() {
    for (name, variant) in [
        ("resnet18", "output_stride = 16"),
        ("resnet50", "output_stride = 8\nstride_in_1x1 = true"),
        ("mobilenetv2_035", "output_stride = 16\npadding = 'same'"),
        ("mobilenetv2_050", "output_stride = 8"),
    ] {
        battery(&request(name, variant), 64);
    }
}

#[test]
fn variants_are_other_functions_of_the_same_parameters() {
    for (name, variant) in [("resnet50", "stride_in_1x1 = true"), ("mobilenetv2_035", "padding = 'same'")] {
        let images = images(64);
        let logits = |variant: &str| {
            let (net, params) = build(&request(name, variant));
            let mut tape = Tape::new(&params, Mode::Eval).unwrap();
            tape.want(&["logits"]);
            tape.begin(Rng::new(0), 0);
            let features = net.forward(&images, &mut tape).unwrap();
            (params, features.logits().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let ((a, plain), (b, other)) = (logits(""), logits(variant));
        let names = |p: &Params| p.all().into_iter().map(|p| (p.name, p.shape)).collect::<Vec<_>>();
        assert_eq!(names(&a), names(&b), "{name}");
        assert_ne!(plain, other, "{name}");
    }
}

#[test]
fn mistakes_are_named() {
    for (name, variant, expected) in [
        ("resnet50", "stride_in_1x1 = 3", "stride_in_1x1"),
        ("resnet50", "stride_in_1x = true", "did you mean `stride_in_1x1`"),
        ("resnet18", "stride_in_1x1 = true", "basic blocks"),
        ("resnet18", "output_stride = 4", "32, 16, 8"),
        ("mobilenetv2_100", "padding = 'sane'", "did you mean `same`"),
        ("mobilenetv2_100", "output_stride = 64", "32, 16, 8"),
    ] {
        let params = Params::new(DType::F32, &Device::Cpu).unwrap();
        let row = *registry().get(name).unwrap();
        let error =
            (row.build)(&request(name, variant), &params.builder(Rng::new(0))).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains(name), "{name} {variant}: {error}");
    }
}

/// Parameters of timm's networks with 1,000 classes, in millions to two places as timm's tables
/// have them.
#[test]
fn parameters_of_the_sizes() {
    for (name, millions) in [
        ("resnet18", "11.69"),
        ("resnet34", "21.80"),
        ("resnet50", "25.56"),
        ("resnet101", "44.55"),
        ("resnet152", "60.19"),
        ("mobilenetv2_035", "1.68"),
        ("mobilenetv2_050", "1.97"),
        ("mobilenetv2_075", "2.64"),
        ("mobilenetv2_100", "3.50"),
        ("mobilenetv2_140", "6.11"),
    ] {
        let request = BackboneRequest { classes: 1000, ..request(name, "") };
        let parameters = count(&request, 32, 32).unwrap().parameters;
        assert_eq!(format!("{:.2}", parameters as f64 / 1e6), millions, "{name}");
    }
}
