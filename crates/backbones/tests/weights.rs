//! Search, verification, loading, saving and export of weights.

mod foreign_files;
mod needs_python;
mod onnx;
mod torch_files;
mod torch_writer;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::weights::{
    ModelCard, Precision, Preprocessing, Resize, WeightsFile, export, find_weights, load_weights, manifests,
    save, save_as,
};
use stillhouse_backbones::{Error, registry};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_ops::Init;
use stillhouse_testkit::corruption;

/// All parameters are required.
const EXACT: LoadOptions<'_> = LoadOptions { key: None, replace_head: false };
/// The head may be missing or have another number of classes.
const NEW_HEAD: LoadOptions<'_> = LoadOptions { key: None, replace_head: true };

/// Parameters of a small backbone and a head with a number of classes.
fn tiny(seed: u64, classes: usize, dtype: DType) -> ParamStore {
    let params = ParamStore::new(dtype, &Device::Cpu).unwrap();
    let p = params.builder(Rng::new(seed));
    p.weight("conv.weight", &[4, 3, 2, 2], Init::Normal(1.0)).unwrap();
    p.buffer("bn.running_mean", &[4], Init::Uniform(1.0)).unwrap();
    p.weight("fc.weight", &[classes, 4], Init::Normal(1.0)).unwrap();
    p.weight("fc.bias", &[classes], Init::Normal(1.0)).unwrap();
    params
}

fn head() -> Vec<String> {
    vec!["fc.weight".into(), "fc.bias".into()]
}

fn by_name(params: &ParamStore) -> HashMap<String, Tensor> {
    params.export_all().unwrap().into_iter().collect()
}

fn values(params: &ParamStore) -> Vec<Vec<f32>> {
    let all = params.export_all().unwrap().into_iter();
    all.map(|(_, t)| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn write(tensors: &HashMap<String, Tensor>, path: &Path) {
    candle_core::safetensors::save(tensors, path).unwrap();
}

/// Unwraps an error of this crate.
fn own<T: std::fmt::Debug>(result: stillhouse_core::Result<T>) -> Error {
    match result.unwrap_err() {
        stillhouse_core::Error::Other(e) => *e.downcast().unwrap(),
        other => panic!("unexpected error: {other}"),
    }
}

#[test]
fn saves_and_loads_the_same_values() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let request = ModelSpec { name: "mobilenetv2_035".into(), classes: 3, ..Default::default() };
    let build = |seed, dtype| {
        let params = ParamStore::new(dtype, &Device::Cpu).unwrap();
        let entry = *registry().get(&request.name).unwrap();
        let net = (entry.build)(&request, &params.builder(Rng::new(seed))).unwrap();
        (net, params)
    };
    let (net, a) = build(1, DType::F32);
    let metadata = BTreeMap::from([("arch".into(), "mobilenetv2_035".into()), ("note".into(), "ä".into())]);
    save(&a, &first, &metadata).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let (_, b) = build(2, dtype);
        assert_ne!(values(&a), values(&b));
        assert!(load_weights(&first, &b, &net.head(), &EXACT).unwrap().is_empty());
        assert_eq!(values(&a), values(&b));
        save(&b, &second, &metadata).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    }
    // timm's names, shapes and layout
    let read = candle_core::safetensors::load(&first, &Device::Cpu).unwrap();
    assert_eq!(read.len(), a.len());
    assert_eq!(read["conv_stem.weight"].dims(), [16, 3, 3, 3]);
    assert_eq!(read["blocks.0.0.conv_dw.weight"].dims(), [16, 1, 3, 3]);
}

#[test]
fn converts_element_types() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let mut tensors = by_name(&tiny(1, 5, DType::F32));
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_dtype(DType::F16).unwrap().to_dtype(dtype).unwrap();
        }
        let expected = tensors["fc.bias"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        tensors.insert("bn.num_batches_tracked".into(), Tensor::new(7i64, &Device::Cpu).unwrap());
        write(&tensors, &path);
        let params = tiny(2, 5, DType::F32);
        load_weights(&path, &params, &head(), &EXACT).unwrap();
        assert_eq!(by_name(&params)["fc.bias"].to_vec1::<f32>().unwrap(), expected, "{dtype:?}");
    }
}

#[test]
fn reports_all_mismatches_and_loads_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut tensors = by_name(&tiny(1, 5, DType::F32));
    tensors.remove("bn.running_mean");
    tensors.insert("conv.weight".into(), Tensor::zeros((4, 3, 3, 3), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("fc.bias".into(), Tensor::zeros(5, DType::U8, &Device::Cpu).unwrap());
    for i in 0..12 {
        tensors.insert(format!("extra{i}"), Tensor::new(1f32, &Device::Cpu).unwrap());
    }
    write(&tensors, &path);
    let params = tiny(2, 5, DType::F32);
    let before = values(&params);
    let error = own(load_weights(&path, &params, &head(), &EXACT));
    let message = error.to_string();
    let Error::Mismatch { missing, unexpected, mismatched, .. } = error else { panic!("{message}") };
    assert_eq!(missing, ["bn.running_mean"]);
    assert_eq!(unexpected.len(), 12);
    assert_eq!(mismatched.len(), 2);
    for part in [
        "1 missing (bn.running_mean)",
        "12 unexpected (",
        ", ...)",
        "expected [4, 3, 2, 2], found F32 [4, 3, 3, 3]",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(values(&params), before);
}

#[test]
fn replaces_or_rejects_a_head_with_other_classes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write(&by_name(&tiny(1, 1000, DType::F32)), &path);
    let params = tiny(2, 21, DType::F32);
    let (before, source) = (by_name(&params), tiny(1, 1000, DType::F32));
    match own(load_weights(&path, &params, &head(), &EXACT)) {
        Error::Classes { expected: 21, found: 1000, name, .. } => assert_eq!(name, "fc.weight"),
        other => panic!("{other}"),
    }
    let skipped = load_weights(&path, &params, &head(), &NEW_HEAD).unwrap();
    assert_eq!(skipped, ["head `fc` keeps its initial values: expected [21, 4], found F32 [1000, 4]"]);
    let after = by_name(&params);
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(flat(&after["fc.weight"]), flat(&before["fc.weight"]));
    assert_eq!(flat(&after["conv.weight"]), flat(&by_name(&source)["conv.weight"]));
    // More than the number of classes differs.
    let mut other = by_name(&source);
    other.remove("conv.weight");
    write(&other, &path);
    assert!(matches!(own(load_weights(&path, &params, &head(), &EXACT)), Error::Mismatch { .. }));
    // A file without a head.
    let mut headless = by_name(&source);
    headless.retain(|name, _| !name.starts_with("fc."));
    write(&headless, &path);
    let notes = load_weights(&path, &params, &head(), &NEW_HEAD).unwrap();
    assert_eq!(notes, ["head `fc` keeps its initial values: not in the file"]);
    assert!(matches!(own(load_weights(&path, &params, &head(), &EXACT)), Error::Mismatch { .. }));
}

#[test]
fn rejects_corrupted_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    save(&tiny(1, 5, DType::F32), &path, &BTreeMap::new()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for broken in corruption::corruptions(&whole, 200) {
        std::fs::write(&path, &broken.bytes).unwrap();
        let params = tiny(2, 5, DType::F32);
        let before = values(&params);
        match load_weights(&path, &params, &head(), &EXACT) {
            Ok(_) => assert!(broken.what.contains("flipped"), "{}", broken.what), // a flipped value
            Err(e) => {
                assert!(e.to_string().contains("x.safetensors"), "{}: {e}", broken.what);
                assert_eq!(values(&params), before, "{}", broken.what);
            }
        }
    }
    let missing =
        load_weights(&folder.path().join("none.safetensors"), &tiny(2, 5, DType::F32), &head(), &EXACT);
    assert!(missing.unwrap_err().to_string().contains("none.safetensors"));
}

#[test]
fn rejects_malicious_headers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let with_header = |size: u64, header: &str, data: usize| {
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    };
    let own_size = |header: &str, data| with_header(header.len() as u64, header, data);
    let entry = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let huge = u64::MAX;
    for (what, bytes) in [
        ("empty", vec![]),
        ("no header", vec![1, 2, 3]),
        ("huge header", with_header(huge, "{}", 0)),
        ("header longer than the file", with_header(100, "{}", 0)),
        ("not JSON", own_size("{\"a\":", 0)),
        ("not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("not a table", own_size("[]", 0)),
        ("shape overflows", own_size(&format!(r#"{{"a":{}}}"#, entry("[4294967296,4294967296,4]", 0, 4)), 4)),
        (
            "huge shape",
            own_size(&format!(r#"{{"a":{}}}"#, entry("[1000000000000]", 0, 4_000_000_000_000)), 4),
        ),
        ("descending offsets", own_size(&format!(r#"{{"a":{}}}"#, entry("[1]", 4, 0)), 4)),
        ("overlapping offsets", {
            let (a, b) = (entry("[1]", 0, 4), entry("[1]", 0, 4));
            own_size(&format!(r#"{{"a":{a},"b":{b}}}"#), 4)
        }),
        ("a gap", {
            let (a, b) = (entry("[1]", 0, 4), entry("[1]", 8, 12));
            own_size(&format!(r#"{{"a":{a},"b":{b}}}"#), 12)
        }),
        ("trailing bytes", own_size(&format!(r#"{{"a":{}}}"#, entry("[1]", 0, 4)), 9)),
        ("missing bytes", own_size(&format!(r#"{{"a":{}}}"#, entry("[2]", 0, 8)), 4)),
        ("deep nesting", own_size(&"[".repeat(100_000), 0)),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = own(load_weights(&path, &tiny(2, 5, DType::F32), &head(), &EXACT));
        assert!(matches!(error, Error::Malformed { .. }), "{what}: {error}");
    }
}

#[test]
fn manifests_are_valid_and_embedded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../weights");
    let all = manifests().unwrap();
    let mut embedded: Vec<String> = all.iter().map(|m| format!("{}.toml", m.title())).collect();
    let mut there: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    embedded.sort();
    there.sort();
    // Models of candle-transformers require the feature.
    let built = |name: &String| registry().get(name.split('.').next().unwrap()).is_ok();
    there.retain(|name| cfg!(feature = "transformers") || built(name));
    assert_eq!(embedded, there, "manifests of weights/ and MANIFESTS differ");
    for m in all {
        // Complete, a published prefix, or unknown.
        let hex = m.sha256.bytes().all(|b| b"0123456789abcdef".contains(&b));
        assert!(hex && [0, 8, 64].contains(&m.sha256.len()), "{}", m.title());
        assert!(m.is_pinned() == m.bytes.is_some(), "{}", m.title());
        assert!(m.url.iter().all(|url| url.ends_with(&m.file)), "{}", m.title());
        assert!(m.get.ends_with('.') && !m.source.is_empty() && !m.license.is_empty(), "{}", m.title());
        let entry = *registry().get(&m.arch).unwrap();
        let params = ParamStore::meta();
        let request = ModelSpec { name: m.arch.clone(), classes: m.classes, variant: m.variant };
        (entry.build)(&request, &params.builder(Rng::new(0))).unwrap();
        let values: usize = params.all().iter().map(|p| p.count()).sum();
        assert!(m.bytes.is_none_or(|b| b > 4 * values as u64), "{}: smaller than the model", m.arch);
    }
}

#[test]
fn finds_and_verifies_weights() {
    let folder = tempfile::tempdir().unwrap();
    let roots: Vec<PathBuf> = ["a", "b"].iter().map(|f| folder.path().join(f)).collect();
    let find = |arch: &str, name: &str, roots: &[PathBuf]| {
        find_weights(arch, &toml::Table::new(), &name.into(), roots)
    };
    let message = |result| own::<stillhouse_core::registry::WeightsInfo>(result).to_string();
    let text = message(find("resnet18", "imagenett", &roots));
    assert!(text.contains("did you mean `imagenet`") && text.contains("resnet50.imagenet"), "{text}");
    let text = message(find("resnet18", "imagenet", &roots));
    for part in
        ["resnet18.imagenet", "resnet18.safetensors", &roots[1].display().to_string(), "STILLHOUSE_WEIGHTS"]
    {
        assert!(text.contains(part), "{text}");
    }
    let text = message(find("resnet18", "imagenet", &[]));
    assert!(text.contains("no folder"), "{text}");

    let manifests = manifests().unwrap();
    let manifest = manifests.iter().find(|m| m.arch == "mobilenetv2_100").unwrap();
    let path = roots[1].join(&manifest.file);
    stillhouse_core::fs::write_atomic(&path, b"short").unwrap();
    let text = message(find("mobilenetv2_100", "imagenet", &roots));
    assert!(text.contains("5 bytes") && text.contains(&manifest.bytes.unwrap().to_string()), "{text}");
    std::fs::write(&path, vec![0; manifest.bytes.unwrap() as usize]).unwrap();
    let text = message(find("mobilenetv2_100", "imagenet", &roots));
    assert!(text.contains(&manifest.sha256), "{text}");

    // A path is used as is, whatever its extension is; a file without weights is rejected at once.
    assert!(message(find("resnet18", path.to_str().unwrap(), &[])).contains("begin with zeros"));
    let path = roots[1].join("x.pth.tar");
    save(&tiny(1, 5, DType::F32), &path, &BTreeMap::new()).unwrap();
    let info = find("resnet18", path.to_str().unwrap(), &[]).unwrap();
    assert_eq!(info.sha256, stillhouse_core::fs::sha256_file(&path).unwrap());
    assert!(info.variant.is_empty());
    let missing = folder.path().join("none.safetensors");
    assert!(find("resnet18", missing.to_str().unwrap(), &[]).unwrap_err().to_string().contains("none"));
}

fn network(name: &str, variant: &str, classes: usize, seed: u64) -> (Vec<String>, ParamStore) {
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let request = ModelSpec { name: name.into(), classes, variant: toml::from_str(variant).unwrap() };
    let net = (registry().get(name).unwrap().build)(&request, &params.builder(Rng::new(seed))).unwrap();
    (net.head(), params)
}

/// Mappings of more than names: parts and shapes. `needs_python` compares complete files.
#[test]
fn maps_names_of_other_collections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let (head, source) = network("swin_tiny_patch4_window7_224", "img_size = 32", 3, 1);
    let authors = |name: &str| {
        let mut name = name.replace("head.fc", "head");
        for i in 1..4 {
            name = name.replace(&format!("layers.{i}.downsample"), &format!("layers.{}.downsample", i - 1));
        }
        name
    };
    let mut all: HashMap<String, Tensor> =
        by_name(&source).into_iter().map(|(name, t)| (authors(&name), t)).collect();
    let index = Tensor::zeros((4, 4), DType::I64, &Device::Cpu).unwrap();
    all.insert("layers.0.blocks.0.attn.relative_position_index".into(), index);
    write(&all, &path);
    let (_, params) = network("swin_tiny_patch4_window7_224", "img_size = 32", 3, 2);
    assert!(load_weights(&path, &params, &head, &EXACT).unwrap().is_empty());
    assert_eq!(values(&params), values(&source));

    // Queries, keys and values are separate tensors on the Hub; all three are required.
    all.clear();
    for (name, tensor) in by_name(&source) {
        let at = |name: &str| {
            name.replace("layers.", "swin.encoder.layers.")
                .replace(".attn.relative", ".attention.self.relative")
                .replace("attn.proj", "attention.output.dense")
                .replace("norm1", "layernorm_before")
                .replace("norm2", "layernorm_after")
                .replace("mlp.fc1", "intermediate.dense")
                .replace("mlp.fc2", "output.dense")
                .replace("head.fc", "classifier")
                .replace("patch_embed.proj", "swin.embeddings.patch_embeddings.projection")
                .replace("patch_embed.norm", "swin.embeddings.norm")
        };
        let mut to = at(&name);
        if name.starts_with("norm.") {
            to = format!("swin.layer{name}");
        }
        for i in 1..4 {
            to = to.replace(&format!("layers.{i}.downsample"), &format!("layers.{}.downsample", i - 1));
        }
        if to.contains("attn.qkv") {
            let parts = tensor.chunk(3, 0).unwrap();
            for (part, tensor) in ["query", "key", "value"].into_iter().zip(parts) {
                all.insert(
                    to.replace("attn.qkv", &format!("attention.self.{part}")),
                    tensor.contiguous().unwrap(),
                );
            }
        } else {
            all.insert(to, tensor);
        }
    }
    write(&all, &path);
    let (_, params) = network("swin_tiny_patch4_window7_224", "img_size = 32", 3, 2);
    assert!(load_weights(&path, &params, &head, &EXACT).unwrap().is_empty());
    assert_eq!(values(&params), values(&source));
    all.remove("swin.encoder.layers.0.blocks.0.attention.self.key.bias");
    write(&all, &path);
    match own(load_weights(&path, &params, &head, &EXACT)) {
        Error::Mismatch { mismatched, .. } => {
            assert!(mismatched[0].contains("layers.0.blocks.0.attn.qkv.bias"), "{mismatched:?}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn loads_a_backbone_into_models_with_other_heads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resnet18.safetensors");
    let (_, source) = network("resnet18", "", 7, 1);
    save(&source, &path, &BTreeMap::new()).unwrap();
    for (name, other) in [("deeplabv3plus", "aspp.branch0.0.weight"), ("exits", "out1.weight")] {
        let (head, params) = network(name, "backbone = 'resnet18'", 3, 2);
        let before = by_name(&params);
        let skipped = load_weights(&path, &params, &head, &NEW_HEAD).unwrap();
        assert!(skipped.iter().any(|s| s.contains("outside of `backbone.*` keep")), "{skipped:?}");
        assert!(skipped.iter().any(|s| s.contains("left out: 2 (fc.bias, fc.weight)")), "{skipped:?}");
        let (after, source) = (by_name(&params), by_name(&source));
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, value) in &after {
            match name.strip_prefix("backbone.") {
                Some(inner) => assert_eq!(flat(value), flat(&source[inner]), "{name}"),
                None => assert_eq!(flat(value), flat(&before[name]), "{name}"),
            }
        }
        assert!(after.contains_key(other));
        // Without `replace_head` all parameters are required.
        assert!(matches!(own(load_weights(&path, &params, &head, &EXACT)), Error::Mismatch { .. }));
    }
    // A different depth.
    let (head, params) = network("deeplabv3plus", "backbone = 'resnet34'", 3, 2);
    match own(load_weights(&path, &params, &head, &NEW_HEAD)) {
        Error::Mismatch { missing, .. } => {
            assert!(missing.contains(&"backbone.layer1.2.conv1.weight".to_string()))
        }
        other => panic!("{other}"),
    }
    // The name of the weights refers to the backbone.
    let variant: toml::Table = toml::from_str("backbone = 'resnet50'").unwrap();
    let text = own(find_weights("deeplabv3plus", &variant, &"imagenet".into(), &[])).to_string();
    assert!(text.contains("resnet50.imagenet"), "{text}");
    let text = own(find_weights("mksmt", &toml::Table::new(), &"imagenet".into(), &[])).to_string();
    assert!(text.contains("swin_large_patch4_window12_384.imagenet"), "{text}");
}

#[test]
fn finds_weights_in_a_hub_cache() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("models--timm--swin_tiny_patch4_window7_224.ms_in1k");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let file = repo.join("snapshots").join(commit).join("model.safetensors");
    stillhouse_core::fs::write_atomic(&file, b"weights").unwrap();
    let find = || {
        find_weights(
            "swin_tiny_patch4_window7_224",
            &toml::Table::new(),
            &"imagenet".into(),
            &[folder.path().into()],
        )
    };
    assert!(matches!(own(find()), Error::NotFound { .. }), "without refs/main");
    for (main, found) in [(commit, true), ("../../..", false)] {
        stillhouse_core::fs::write_atomic(&repo.join("refs/main"), main.as_bytes()).unwrap();
        match find() {
            Ok(info) if found => {
                assert_eq!((info.path, info.sha256), (file.clone(), stillhouse_core::fs::sha256(b"weights")))
            }
            Err(_) if !found => {}
            other => panic!("{main}: {other:?}"),
        }
    }
    // Only a prefix of the hash is known.
    let find = || find_weights("vgg16", &toml::Table::new(), &"imagenet".into(), &[folder.path().into()]);
    stillhouse_core::fs::write_atomic(&folder.path().join("vgg16-397923af.pth"), b"other").unwrap();
    assert!(matches!(own(find()), Error::WrongFile { .. }));
}

#[test]
fn exports_a_model_card_and_weights() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (head, params) = network("mobilenetv2_035", "padding = 'same'", 3, 1);
    let card = ModelCard {
        arch: "mobilenetv2_035".into(),
        variant: toml::from_str("padding = 'same'").unwrap(),
        class_count: 3,
        classes: vec!["a".into(), "b".into(), "c".into()],
        size: (64, 64),
        preprocessing: Some(Preprocessing {
            resize: Some(Resize::ShorterSide(73)),
            crop: Some(64),
            interpolation: "bilinear".into(),
        }),
        mean: [0.5, 0.25, 0.125],
        std: [0.229, 0.224, 0.225],
        license: Some("mit".into()),
        facts: vec![("trained on".into(), "images".into())],
    };
    let (written, missing) = export(&params, &card, &out, Precision::F16).unwrap();
    assert_eq!((written.len(), missing), (3, None));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architecture"], "mobilenetv2_035");
    assert_eq!(config["model_args"]["pad_type"], "same");
    assert_eq!(config["pretrained_cfg"]["mean"], serde_json::json!([0.5, 0.25, 0.125]));
    let own = &config["pretrained_cfg"];
    assert_eq!((&own["crop_pct"], &own["interpolation"]), (&0.8767.into(), &"bilinear".into()));
    assert_eq!(own["input_size"], serde_json::json!([3, 64, 64]));
    let text = std::fs::read_to_string(out.join("README.md")).unwrap();
    for part in [
        "resize to shorter side 73 px, bilinear; center crop of 64 px",
        "license: \"mit\"",
        "library_name: timm",
        "| trained on | images |",
        "a, b, c",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    // f16 is rounded, and overflow is an error.
    let (_, back) = network("mobilenetv2_035", "", 3, 2);
    load_weights(&out.join("model.safetensors"), &back, &head, &EXACT).unwrap();
    for (a, b) in values(&params).concat().into_iter().zip(values(&back).concat()) {
        assert!((a - b).abs() <= a.abs() / 1024.0 + 1e-7, "{a} {b}");
    }
    let file = WeightsFile::open(&out.join("model.safetensors")).unwrap();
    assert_eq!(file.metadata()["variant"], "padding = \"same\"");
    assert_eq!(file.metadata()["resize"], "shorter side 73 px");
    assert_eq!(file.metadata()["crop"], "center 64 px");
    let id = params.id("classifier.bias").unwrap();
    params.import(id, &Tensor::new(&[1e6f32, 0.0, 0.0], &Device::Cpu).unwrap()).unwrap();
    let e = save_as(&params, &out.join("y.safetensors"), &BTreeMap::new(), Precision::F16).unwrap_err();
    assert!(e.to_string().contains("classifier.bias") && !out.join("y.safetensors").exists(), "{e}");
}
