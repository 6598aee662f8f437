//! Requirements of every registered model.

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::{count, default_image_size, is_frozen, registry};
use stillhouse_core::model::{Model, ModelSpec};
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::optim::{Adam, Hyper};
use stillhouse_ops::{EngineKind, Mode, ParamKind};
use stillhouse_testkit::finite_diff::{assert_close, central_difference};

fn request(name: &str, variant: &str) -> ModelSpec {
    ModelSpec { name: name.into(), classes: 5, variant: toml::from_str(variant).unwrap() }
}

fn build(request: &ModelSpec) -> (Box<dyn Model>, ParamStore) {
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let entry = *registry().get(&request.name).unwrap();
    let net = (entry.build)(request, &params.builder(Rng::new(3))).unwrap();
    (net, params)
}

fn build_for(request: &ModelSpec, engine: EngineKind) -> (Box<dyn Model>, ParamStore) {
    let params = ParamStore::with_engine(DType::F64, &Device::Cpu, engine).unwrap();
    let entry = *registry().get(&request.name).unwrap();
    let net = (entry.build)(request, &params.builder(Rng::new(3))).unwrap();
    (net, params)
}

fn images(size: usize) -> Tensor {
    several_images(2, size)
}

fn several_images(count: usize, size: usize) -> Tensor {
    let mut draw = Rng::new(4).at(0, 0);
    let values: Vec<f32> = (0..count * 3 * size * size).map(|_| draw.uniform_in(-1.0, 1.0) as f32).collect();
    Tensor::from_vec(values, (count, 3, size, size), &Device::Cpu).unwrap()
}

/// Returns the names of all logits; models with early exits have several.
fn all_logits(net: &dyn Model) -> Vec<&str> {
    net.features().iter().map(|t| t.name.as_str()).filter(|name| name.ends_with("logits")).collect()
}

/// Returns whether a bias is canceled by the following batch norm: convolutions of `vgg*_bn`, linear
/// layers of exits with batch norm.
fn is_canceled_bias(name: &str, params: &ParamStore) -> bool {
    if let Some(opm) = name.strip_suffix(".fc.bias") {
        return params.id(&format!("{opm}.bn.running_mean")).is_some();
    }
    let index = |n: &str| n.strip_prefix("features.")?.strip_suffix(".bias")?.parse::<usize>().ok();
    index(name).is_some_and(|n| params.id(&format!("features.{}.running_mean", n + 1)).is_some())
}

/// Checks the shapes of features, nonzero finite gradients of all parameters, and that only selected
/// features are kept.
fn check_model(request: &ModelSpec, size: usize) {
    let (net, params) = build(request);
    let what = format!("{} {:?}", request.name, request.variant);
    assert_eq!((net.name(), net.classes()), (request.name.as_str(), 5), "{what}");
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    let features: Vec<&str> = net.features().iter().map(|t| t.name.as_str()).collect();
    tape.select_features(&features);
    tape.begin(Rng::new(0), 0);
    let features = net.forward(&images(size), &mut tape).unwrap();
    for feature in net.features() {
        let expected = match feature.stride {
            0 => vec![feature.channels],
            stride => vec![feature.channels, size / stride, size / stride],
        };
        assert_eq!(features.shapes()[&feature.name], expected, "{what}: {}", feature.name);
    }
    let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    for name in all_logits(net.as_ref()) {
        // Neither even nor odd in the logits, so that gradients do not cancel.
        let logits = features.get(name).unwrap();
        loss =
            (loss + (logits.sqr().unwrap() + logits.powf(3.0).unwrap()).unwrap().sum_all().unwrap()).unwrap();
    }
    let grads = tape.backward(&loss).unwrap();
    for param in params.all().into_iter().filter(|p| p.kind == ParamKind::Weight) {
        let grad = grads
            .param(&param.name)
            .unwrap()
            .unwrap_or_else(|| panic!("{what}: no gradient for {}", param.name));
        assert_eq!(grad.dims(), param.shape, "{what}: {}", param.name);
        let sum = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{what}: gradient of {}", param.name);
        assert!(sum > 0.0 || is_canceled_bias(&param.name, &params), "{what}: no gradient in {}", param.name);
    }
    tape.select_features(&["logits"]);
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

/// Returns a variant of a model for images of 64 px, and its number of parameters.
fn small(name: &str) -> (ModelSpec, usize) {
    let variant = match name {
        "mksmt" => "backbone = 'swin_tiny_patch4_window7_224'\nk = 32\nimg_size = 64\ndrop_path = 0.0",
        _ if name.starts_with("swin_") => "img_size = 64\ndrop_path = 0.0",
        _ => "",
    };
    let request = request(name, variant);
    let parameters = count(&request, 64, 64).unwrap().parameters;
    (request, parameters)
}

/// Returns the smallest model of every family. A family shares the leading letters of its names.
fn smallest() -> Vec<ModelSpec> {
    let family = |name: &str| name.chars().take_while(|c| c.is_alphabetic()).collect::<String>();
    let mut found: Vec<(String, ModelSpec, usize)> = Vec::new();
    for entry in registry().entries().iter().filter(|entry| !is_frozen(entry.name)) {
        let (request, parameters) = small(entry.name);
        match found.iter_mut().find(|(name, ..)| *name == family(entry.name)) {
            Some((_, least, fewest)) if parameters < *fewest => (*least, *fewest) = (request, parameters),
            Some(_) => {}
            None => found.push((family(entry.name), request, parameters)),
        }
    }
    found.into_iter().map(|(_, request, _)| request).collect()
}

/// Models with more parameters run in the long test, except for the smallest of a family.
const LARGE: usize = 50_000_000;

fn check_models(large: bool) {
    let small_ones = smallest();
    // deeplabv3plus_* are variants of deeplabv3plus.
    let registry = registry();
    for entry in registry
        .entries()
        .iter()
        .filter(|entry| !entry.name.starts_with("deeplabv3plus_") && !is_frozen(entry.name))
    {
        let (request, parameters) = small(entry.name);
        let is_large = parameters > LARGE && small_ones.iter().all(|r| r.name != entry.name);
        if is_large == large {
            check_model(&request, 64);
        }
    }
}

#[test]
fn every_model_trains() {
    check_models(false);
}

#[test]
#[ignore = "takes minutes"]
fn every_large_model_trains() {
    check_models(true);
}

#[test]
fn documented_defaults_are_the_defaults() {
    for entry in registry().entries() {
        let defaults = (entry.defaults)();
        assert!(!entry.summary.is_empty() && !entry.source.is_empty(), "{}", entry.name);
        assert!(
            defaults.lines().all(|line| line.contains("  # ")),
            "{}: a default without a source",
            entry.name
        );
        let outline = |variant: &str| {
            let params = ParamStore::meta();
            let net = (entry.build)(&request(entry.name, variant), &params.builder(Rng::new(0))).unwrap();
            let names: Vec<_> = params.all().into_iter().map(|p| (p.name, p.shape)).collect();
            (names, net.features().to_vec())
        };
        assert_eq!(outline(&defaults), outline(""), "{}", entry.name);
        let side = default_image_size(entry.name);
        assert!(count(&request(entry.name, ""), side, side).unwrap().macs > 0, "{}", entry.name);
    }
}

#[test]
fn every_variant_trains() {
    for (name, variant) in [
        ("resnet18", "output_stride = 16"),
        ("resnet50", "output_stride = 8\nstride_in_1x1 = true"),
        ("mobilenetv2_035", "output_stride = 16\npadding = 'same'"),
        ("mobilenetv2_050", "output_stride = 8"),
        ("deeplabv3plus", "backbone = 'mobilenetv2_035'\noutput_stride = 8\npadding = 'same'"),
        ("deeplabv3plus", "backbone = 'resnet50'\noutput_stride = 32\ndropout = 0.0"),
        ("exits", "backbone = 'resnet18'\nat = [2]\nkind = 'linear'"),
        ("exits", "backbone = 'mobilenetv2_035'\nat = [1, 3]\nkind = 'opm'\nk = 24"),
        ("exits", "backbone = 'mobilenetv2_035'\nkind = 'opm'\nopm = 'ln_pool_linear_bn_elu'\nk = 24"),
        ("exits", "backbone = 'mobilenetv2_035'\nkind = 'opm'\nopm = 'ln_pool_linear'\nk = 24"),
        ("exits", "backbone = 'cifar_resnet20'"),
        ("swin_tiny_patch4_window7_224", "img_size = [64, 64]\ndrop_path = 0.0"),
    ] {
        check_model(&request(name, variant), 64);
    }
}

#[test]
fn variants_share_parameters_but_compute_other_logits() {
    for (name, variant) in [("resnet50", "stride_in_1x1 = true"), ("mobilenetv2_035", "padding = 'same'")] {
        let images = images(64);
        let logits = |variant: &str| {
            let (net, params) = build(&request(name, variant));
            let mut tape = Tape::new(&params, Mode::Eval).unwrap();
            tape.select_features(&["logits"]);
            tape.begin(Rng::new(0), 0);
            let features = net.forward(&images, &mut tape).unwrap();
            (params, features.logits().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let ((a, plain), (b, other)) = (logits(""), logits(variant));
        let names = |p: &ParamStore| p.all().into_iter().map(|p| (p.name, p.shape)).collect::<Vec<_>>();
        assert_eq!(names(&a), names(&b), "{name}");
        assert_ne!(plain, other, "{name}");
    }
}

/// The forms of MKSMT's module against plain loops, and their gradients against central differences.
#[test]
fn residual_blocks_may_start_as_the_identity() {
    for (name, last) in [("resnet18", "bn2.weight"), ("resnet50", "bn3.weight")] {
        let [zeroed, plain] = ["zero_init_last = true", ""].map(|variant| build(&request(name, variant)).1);
        let mut blocks = 0;
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for ((param, own), (_, usual)) in
            zeroed.export_all().unwrap().into_iter().zip(plain.export_all().unwrap())
        {
            let is_last = param.starts_with("layer") && param.ends_with(last);
            blocks += usize::from(is_last);
            let (own, usual) = (values(own), values(usual));
            match is_last {
                true => assert!(own.iter().all(|v| *v == 0.0) && usual.iter().all(|v| *v == 1.0), "{param}"),
                false => assert!(own == usual, "{param} starts with other values"),
            }
        }
        assert_eq!(blocks, if name == "resnet18" { 8 } else { 16 });
    }
}

#[test]
fn output_processing_modules_match_plain_loops() {
    const K: usize = 4;
    for form in ["gelu", "bn_elu", ""] {
        let variant = format!(
            "backbone = 'cifar_resnet20'\nat = [1]\nkind = 'opm'\nk = {K}\nopm = '{}'",
            format!("ln_pool_linear_{form}").trim_end_matches('_')
        );
        let params = ParamStore::new(DType::F64, &Device::Cpu).unwrap();
        let entry = *registry().get("exits").unwrap();
        let net = (entry.build)(&request("exits", &variant), &params.builder(Rng::new(3))).unwrap();
        let images = several_images(3, 8);
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let value = |name: &str| flat(&params.export(params.id(&format!("opm1.{name}")).unwrap()).unwrap());
        let pass = || {
            let mut tape = Tape::new(&params, Mode::Train).unwrap();
            tape.select_features(&["F1", "exit1.feat"]);
            tape.begin(Rng::new(0), 0);
            let features = net.forward(&images, &mut tape).unwrap();
            let feat = features.get("exit1.feat").unwrap().clone();
            let weights =
                Tensor::arange(0f64, (3 * K) as f64, &Device::Cpu).unwrap().reshape((3, K)).unwrap();
            let loss = (&feat * weights.cos().unwrap()).unwrap().sum_all().unwrap();
            (tape, features, loss)
        };
        let loss = || pass().2.to_scalar::<f64>().unwrap();

        let (mut tape, features, total) = pass();
        let map = features.get("F1").unwrap();
        let (_, channels, height, width) = map.dims4().unwrap();
        let (x, pixels) = (flat(map), height * width);
        let (gain, shift, fc, bias) =
            (value("norm.weight"), value("norm.bias"), value("fc.weight"), value("fc.bias"));
        let mut linear = [[0.0; K]; 3];
        for (n, linear) in linear.iter_mut().enumerate() {
            let mut mean = vec![0.0; channels];
            for p in 0..pixels {
                let v: Vec<f64> = (0..channels).map(|c| x[(n * channels + c) * pixels + p]).collect();
                let center = v.iter().sum::<f64>() / channels as f64;
                let variance = v.iter().map(|v| (v - center).powi(2)).sum::<f64>() / channels as f64;
                for c in 0..channels {
                    mean[c] +=
                        ((v[c] - center) / (variance + 1e-5).sqrt() * gain[c] + shift[c]) / pixels as f64;
                }
            }
            for (k, y) in linear.iter_mut().enumerate() {
                *y = bias[k] + (0..channels).map(|c| fc[k * channels + c] * mean[c]).sum::<f64>();
            }
        }
        let gelu = |x: f64| x * 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(x / 2f64.sqrt()));
        let mut want = Vec::new();
        for n in 0..3 {
            for k in 0..K {
                let y = linear[n][k];
                want.push(match form {
                    "gelu" => gelu(y),
                    "bn_elu" => {
                        let mean = linear.iter().map(|l| l[k]).sum::<f64>() / 3.0;
                        let variance = linear.iter().map(|l| (l[k] - mean).powi(2)).sum::<f64>() / 3.0;
                        let y = (y - mean) / (variance + 1e-5).sqrt();
                        if y > 0.0 { y } else { y.exp() - 1.0 }
                    }
                    _ => y,
                });
            }
        }
        assert_close(&flat(features.get("exit1.feat").unwrap()), &want, 0.0, 1e-10, form);

        let gradients = tape.backward(&total).unwrap();
        let own =
            params.all().into_iter().filter(|p| p.name.starts_with("opm1.") && p.kind == ParamKind::Weight);
        for param in own.filter(|p| !is_canceled_bias(&p.name, &params)) {
            let id = params.id(&param.name).unwrap();
            let start = flat(&params.export(id).unwrap());
            let import = |v: &[f64]| {
                let t = Tensor::from_slice(v, param.shape.as_slice(), &Device::Cpu).unwrap();
                params.import(id, &t).unwrap();
            };
            let some: Vec<usize> = (0..start.len()).step_by(start.len().div_ceil(6)).collect();
            let at = |v: &[f64]| {
                let mut moved = start.clone();
                some.iter().zip(v).for_each(|(i, v)| moved[*i] = *v);
                import(&moved);
                loss()
            };
            let pick = |v: &[f64]| some.iter().map(|i| v[*i]).collect::<Vec<f64>>();
            let want = central_difference(at, &pick(&start), 1e-5);
            import(&start);
            let found = flat(&gradients.param(&param.name).unwrap().unwrap());
            assert_close(&pick(&found), &want, 1e-6, 1e-8, &format!("{form}: {}", param.name));
        }
    }
}

#[test]
fn rejects_invalid_variants() {
    for (name, variant, expected) in [
        ("resnet50", "stride_in_1x1 = 3", "stride_in_1x1"),
        ("resnet50", "stride_in_1x = true", "did you mean `stride_in_1x1`"),
        ("resnet18", "stride_in_1x1 = true", "basic blocks"),
        ("resnet18", "output_stride = 4", "expected 8, 16 or 32"),
        ("mobilenetv2_100", "padding = 'sane'", "did you mean `same`"),
        ("mobilenetv2_100", "output_stride = 64", "expected 8, 16 or 32"),
        ("cifar_resnet20", "output_stride = 8", "output_stride"),
        ("vgg11", "dropout = 1.0", "found 1"),
        ("swin_tiny_patch4_window7_224", "img_size = 16", "img_size"),
        ("swin_tiny_patch4_window7_224", "drop_path = -0.1", "found -0.1"),
        ("deeplabv3plus", "backbone = 'mksmt'", "not available as the backbone"),
        ("deeplabv3plus", "backbone = 'resnet19'", "did you mean"),
        ("deeplabv3plus", "backbone = 'vgg11'", "vgg11"),
        ("deeplabv3plus", "output_stride = 12", "expected 8, 16 or 32"),
        ("deeplabv3plus_resnet18", "backbone = 'resnet50'", "expected `resnet18`"),
        ("deeplabv3plus", "stride_in_1x = true", "stride_in_1x1"),
        ("mksmt", "kind = 'conv'", "`exits`"),
        ("mksmt", "at = [4]", "stages 1 to 3"),
        ("mksmt", "backbone = 'cifar_resnet20'", "cifar_resnet20"),
        ("mksmt", "opm = 'ln_pool_linear_elu'", "ln_pool_linear_bn_elu"),
        ("exits", "opm = 'ln_pool_linear'", "kind = \"opm\""),
        ("exits", "at = [2, 1]", "ascending order"),
        ("exits", "at = [4]", "stages 1 to 3"),
    ] {
        let params = ParamStore::meta();
        let entry = *registry().get(name).unwrap();
        let error =
            (entry.build)(&request(name, variant), &params.builder(Rng::new(0))).err().unwrap().to_string();
        let inner = variant.contains("backbone") || name == "deeplabv3plus";
        assert!(error.contains(expected) && (inner || error.contains(name)), "{name} {variant}: {error}");
    }
}

/// Parameters in millions with 1,000 classes as in timm's tables, and of CIFAR ResNets with 100.
#[test]
fn numbers_of_parameters_match_timm() {
    for (name, classes, millions) in [
        ("resnet18", 1000, "11.69"),
        ("resnet34", 1000, "21.80"),
        ("resnet50", 1000, "25.56"),
        ("resnet101", 1000, "44.55"),
        ("resnet152", 1000, "60.19"),
        ("mobilenetv2_035", 1000, "1.68"),
        ("mobilenetv2_050", 1000, "1.97"),
        ("mobilenetv2_075", 1000, "2.64"),
        ("mobilenetv2_100", 1000, "3.50"),
        ("mobilenetv2_140", 1000, "6.11"),
        ("vgg11", 1000, "132.86"),
        ("vgg11_bn", 1000, "132.87"),
        ("vgg13", 1000, "133.05"),
        ("vgg13_bn", 1000, "133.05"),
        ("vgg16", 1000, "138.36"),
        ("vgg16_bn", 1000, "138.37"),
        ("vgg19", 1000, "143.67"),
        ("vgg19_bn", 1000, "143.68"),
        ("cifar_resnet20", 100, "0.28"),
        ("cifar_resnet56", 100, "0.86"),
        ("cifar_resnet110", 100, "1.74"),
        ("cifar_resnet8x4", 100, "1.23"),
        ("cifar_resnet32x4", 100, "7.43"),
        ("swin_tiny_patch4_window7_224", 1000, "28.29"),
        ("swin_small_patch4_window7_224", 1000, "49.61"),
        ("swin_base_patch4_window7_224", 1000, "87.77"),
        ("swin_base_patch4_window12_384", 1000, "87.90"),
        ("swin_large_patch4_window7_224", 1000, "196.53"),
        ("swin_large_patch4_window12_384", 1000, "196.74"),
    ] {
        let side = default_image_size(name);
        let request = ModelSpec { classes, ..request(name, "") };
        let parameters = count(&request, side, side).unwrap().parameters;
        assert_eq!(format!("{:.2}", parameters as f64 / 1e6), millions, "{name}");
    }
}

/// Table 7 of the MKSMT paper, for 200 classes.
#[test]
fn mksmt_adds_1_1_percent_of_parameters() {
    let parameters = |name: &str| {
        let request = ModelSpec { classes: 200, ..request(name, "") };
        count(&request, 384, 384).unwrap().parameters as f64
    };
    let more = parameters("mksmt") / parameters("swin_large_patch4_window12_384") - 1.0;
    assert_eq!(format!("{:.1}", 100.0 * more), "1.1");
}

/// Computes features, gradients of parameters and features, and running statistics.
fn all_outputs(request: &ModelSpec, engine: EngineKind, modes: &[Mode]) -> Vec<(String, Vec<f64>)> {
    let size = if request.variant.contains_key("img_size") { 64 } else { 48 };
    let (net, params) = build_for(request, engine);
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let names: Vec<&str> = net.features().iter().map(|t| t.name.as_str()).collect();
    let mut found = Vec::new();
    for mode in modes.iter().copied() {
        let mut tape = Tape::new(&params, mode).unwrap();
        tape.select_features(&names);
        tape.begin(Rng::new(7), 3);
        let features = net.forward(&images(size), &mut tape).unwrap();
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu).unwrap();
        for (name, t) in features.iter() {
            found.push((format!("{name} in {mode:?}"), flat(t)));
            loss = (loss + t.sqr().unwrap().mean_all().unwrap()).unwrap();
        }
        if mode == Mode::Inference {
            continue;
        }
        let gradients = tape.backward(&loss).unwrap();
        for param in params.all() {
            let gradient = gradients.param(&param.name).unwrap();
            found.extend(gradient.map(|g| (format!("gradient of {} in {mode:?}", param.name), flat(&g))));
        }
        for feature in &names {
            found.extend(gradients.feature(feature).map(|g| (format!("gradient of {feature}"), flat(g))));
        }
    }
    let buffers = params.export_all().unwrap().into_iter().filter(|(name, _)| name.contains("running"));
    found.extend(buffers.map(|(name, t)| (name, flat(&t))));
    found
}

fn assert_engines_agree(request: &ModelSpec, modes: &[Mode]) {
    let (want, got) =
        (all_outputs(request, EngineKind::Kernels, modes), all_outputs(request, EngineKind::Graph, modes));
    assert_eq!(want.len(), got.len(), "{}", request.name);
    for ((name, want), (other, got)) in want.iter().zip(&got) {
        assert_eq!(name, other, "{}", request.name);
        let size = want.iter().fold(1e-3, |most: f64, v| most.max(v.abs()));
        assert_close(got, want, 0.0, 1e-9 * size, &format!("{name} of {}", request.name));
    }
}

#[test]
fn kernels_and_graph_agree() {
    for name in ["mobilenetv2_035", "cifar_resnet20"] {
        assert_engines_agree(&request(name, ""), &[Mode::Train, Mode::EvalWithGrad]);
    }
}

#[test]
#[ignore = "takes minutes"]
fn kernels_and_graph_agree_for_every_family() {
    for request in smallest() {
        assert_engines_agree(
            &request,
            &[Mode::Train, Mode::TrainFrozenBn, Mode::EvalWithGrad, Mode::Inference],
        );
    }
}

#[test]
fn early_exits_stop_at_the_last_selected_feature() {
    let (net, params) = build(&small("mksmt").0);
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    tape.select_features(&["exit3.logits"]);
    tape.begin(Rng::new(0), 0);
    let features = net.forward(&images(64), &mut tape).unwrap();
    let loss = features.get("exit3.logits").unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = tape.backward(&loss).unwrap();
    for param in params.all() {
        let skipped = ["layers.3.", "opm4", "out4"].iter().any(|part| param.name.contains(part));
        assert_eq!(grads.param(&param.name).unwrap().is_none(), skipped, "{}", param.name);
    }
}

#[test]
fn every_family_overfits_one_batch() {
    for request in smallest() {
        let (net, params) = build(&request);
        let mut tape = Tape::new(&params, Mode::Train).unwrap();
        let logits = all_logits(net.as_ref());
        tape.select_features(&logits);
        let images = several_images(4, 64);
        let mut adam = Adam::new([0.9, 0.99], 1e-8);
        // Without batch norm, training requires a smaller learning rate.
        let lr = if params.all().iter().any(|p| p.kind == ParamKind::Buffer) { 1e-3 } else { 1e-4 };
        let mut losses = Vec::new();
        for step in 0..8 {
            tape.begin(Rng::new(0), step);
            let features = net.forward(&images, &mut tape).unwrap();
            let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
            for name in &logits {
                let mut logits = features.get(name).unwrap().clone();
                if logits.rank() == 4 {
                    logits = logits.flatten_from(2).unwrap().mean(2).unwrap(); // [B, 5]
                }
                let log_p =
                    logits.broadcast_sub(&logits.log_sum_exp(1).unwrap().unsqueeze(1).unwrap()).unwrap();
                let labels = Tensor::new(&[[1u32], [3], [0], [4]], &Device::Cpu).unwrap();
                loss = (loss - log_p.gather(&labels, 1).unwrap().mean_all().unwrap()).unwrap();
            }
            losses.push(loss.to_scalar::<f32>().unwrap());
            let grads = tape.backward(&loss).unwrap();
            adam.step(&params, &grads, |_| Some(Hyper { lr, weight_decay: 0.0 })).unwrap();
        }
        println!("{}: {losses:?}", request.name);
        assert!(losses[7] < 0.7 * losses[0], "{}: {losses:?}", request.name);
    }
}

/// Computes gradients of a small Swin with early exits, and the memory of the tape.
fn exit_gradients(gradient_checkpointing: bool) -> (Vec<(String, Vec<f32>)>, usize) {
    let (net, params) =
        build(&request("mksmt", "backbone = 'swin_tiny_patch4_window7_224'\nimg_size = 64\nk = 16"));
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    tape.set_gradient_checkpointing(gradient_checkpointing);
    tape.select_features(&["exit3.logits", "logits"]);
    tape.begin(Rng::new(2), 5);
    let features = net.forward(&several_images(8, 64), &mut tape).unwrap();
    let sum = |name: &str| features.get(name).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = tape.backward(&(sum("exit3.logits") + sum("logits")).unwrap()).unwrap();
    let values =
        |name: &str| gradients.param(name).unwrap().unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let names: Vec<String> = gradients.ids().map(|id| params.get(id).name).collect();
    (names.into_iter().map(|name| (name.clone(), values(&name))).collect(), tape.memory_bytes())
}

#[test]
fn gradient_checkpointing_preserves_gradients() {
    let ((plain, memory), (checkpointed, reduced)) = (exit_gradients(false), exit_gradients(true));
    assert!(
        plain.iter().any(|(name, g)| name.contains("layers.3.blocks.1.mlp") && g.iter().any(|v| *v != 0.0))
    );
    assert!(plain == checkpointed, "the gradients differ");
    // Most of the memory holds gradients of parameters.
    assert!(10 * reduced < 9 * memory, "{reduced} bytes of {memory}");
}

/// Peak memory of this process in GiB, if the system reports it.
fn peak() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / (1 << 20) as f64)
}

/// The two phases of MKSMT's model on one batch: Swin-L, 384 pixels, 200 classes, AdamW.
#[test]
#[ignore = "takes minutes and 24 GiB"]
fn swin_large_trains_at_384_within_24_gib() {
    let (net, params) = build(&ModelSpec { name: "mksmt".into(), classes: 200, ..Default::default() });
    let mut tape = Tape::new(&params, Mode::Train).unwrap();
    tape.set_gradient_checkpointing(true);
    let mut optimizer = Adam::decoupled([0.9, 0.999], 1e-8);
    let images = images(384);
    for selected in [&["exit3.logits"][..], &["exit3.logits", "exit4.logits"]] {
        let started = std::time::Instant::now();
        tape.select_features(selected);
        tape.begin(Rng::new(0), 0);
        let features = net.forward(&images, &mut tape).unwrap();
        let forward = started.elapsed();
        let terms = selected
            .iter()
            .map(|name| (features.get(name).unwrap() - 1.0).unwrap().sqr().unwrap().mean_all());
        let loss = terms.map(Result::unwrap).reduce(|a, b| (a + b).unwrap()).unwrap();
        let gradients = tape.backward(&loss).unwrap();
        assert!(gradients.first_non_finite().unwrap().is_none());
        let ids: Vec<_> = gradients.ids().collect();
        assert_eq!(
            ids.len() == params.all().iter().filter(|p| p.kind == ParamKind::Weight).count(),
            selected.len() == 2
        );
        optimizer.step(&params, &gradients, |_| Some(Hyper { lr: 5e-6, weight_decay: 5e-4 })).unwrap();
        println!(
            "phase of {}: {:.1} s, forward {:.1} s; tape {:.2} GiB, peak of the process {:.2} GiB",
            selected[selected.len() - 1],
            started.elapsed().as_secs_f64(),
            forward.as_secs_f64(),
            tape.memory_bytes() as f64 / (1 << 30) as f64,
            peak().unwrap_or(f64::NAN)
        );
    }
    assert!(peak().is_none_or(|gib| gib < 24.0), "{:?}", peak());
}

/// Image sides that are not multiples of 32, so that maps are odd and padded to multiples of the window.
#[test]
fn swin_accepts_odd_sizes_and_rejects_other_images() {
    let variant =
        |size: usize| format!("backbone = 'swin_tiny_patch4_window7_224'\nimg_size = {size}\nk = 8");
    for size in [33, 50, 100] {
        let (net, params) = build(&request("mksmt", &variant(size)));
        let mut tape = Tape::new(&params, Mode::Train).unwrap();
        tape.select_features(&["exit3.logits", "logits"]);
        tape.begin(Rng::new(0), 0);
        let features = net.forward(&images(size), &mut tape).unwrap();
        let loss = (features.get("exit3.logits").unwrap() + features.logits().unwrap()).unwrap();
        let gradients = tape.backward(&loss.sqr().unwrap().sum_all().unwrap()).unwrap();
        assert!(gradients.first_non_finite().unwrap().is_none() && gradients.norm().unwrap() > 0.0, "{size}");
        tape.begin(Rng::new(0), 0);
        let e = net.forward(&images(64), &mut tape).map(drop).unwrap_err().to_string();
        assert!(e.contains(&format!("expected {size} x {size}, found 64 x 64; set img_size")), "{e}");
    }
}
