//! Checkpoints as people have them: keys, prefixes, heads of other names, shards, and files that are not
//! weights.

use super::torch_files::saved;
use super::*;
use crate::torch_writer::{self, Saved, dict, dict_from, table};

/// Tensors of the model of [`tiny`] with 5 classes, with other names.
fn renamed(rename: impl Fn(&str) -> String) -> Vec<Saved> {
    let mut all = saved(&tiny(1, 5, DType::F32));
    for tensor in &mut all {
        tensor.name = rename(&tensor.name);
    }
    all
}

fn prefixed(prefix: &str) -> Vec<Saved> {
    renamed(|name| format!("{prefix}{name}"))
}

/// Loads a file into other parameters; returns the notes and the values.
fn load(bytes: &[u8], options: &LoadOptions<'_>) -> (stillhouse_core::Result<Vec<String>>, Vec<Vec<f32>>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth.tar");
    std::fs::write(&path, bytes).unwrap();
    let params = tiny(2, 5, DType::F32);
    (load_weights(&path, &params, &head(), options), values(&params))
}

fn expected() -> Vec<Vec<f32>> {
    values(&tiny(1, 5, DType::F32))
}

#[test]
fn finds_the_prefix() {
    for prefix in [
        "model.",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "module.encoder_q.",
        "encoder.",
        "0.",
        "net.trunk.visual.",
    ] {
        let all = prefixed(prefix);
        let (notes, values) = load(&torch_writer::archive(&dict(&all), &all), &EXACT);
        let notes = notes.unwrap();
        assert!(
            notes.len() == 1 && notes[0].contains(&format!("prefix `{prefix}` removed, 4 of 4")),
            "{notes:?}"
        );
        assert_eq!(values, expected(), "{prefix}");
    }
    // Wrappers of inner layers.
    let inner = renamed(|name| name.replace("conv.", "conv._fsdp_wrapped_module._orig_mod."));
    let (notes, values) = load(&torch_writer::archive(&dict(&inner), &inner), &EXACT);
    assert_eq!((notes.unwrap().len(), values), (0, expected()));
    // Tensors outside of the prefix.
    let mut more = prefixed("model.");
    more.push(Saved::floats("criterion.weight", &[5], &[1.0; 5]));
    let (notes, values) = load(&torch_writer::archive(&dict(&more), &more), &EXACT);
    assert!(notes.unwrap()[1].contains("left out: 1 (criterion.weight)"));
    assert_eq!(values, expected());
}

#[test]
fn finds_the_state_dict() {
    let all = prefixed("");
    let module = prefixed("module.");
    let plain = dict(&all);
    let names = torch_writer::object("argparse.Namespace", &table(&[("lr", b"G\0\0\0\0\0\0\0\0")]));
    // An optimizer's state has numbers as keys.
    let optimizer = [&b"}K\x00"[..], &plain, b"s"].concat();
    let parameters = |tensors: &[Saved], first: usize| {
        table(&[("_parameters", &dict_from(first, tensors)), ("_buffers", b"}"), ("_modules", b"}")])
    };
    let layer = |range: std::ops::Range<usize>| {
        let mut tensors = all[range.clone()].to_vec();
        for tensor in &mut tensors {
            tensor.name = tensor.name.split_once('.').unwrap().1.into();
        }
        torch_writer::object("torch.nn.Module", &parameters(&tensors, range.start))
    };
    let modules = table(&[("conv", &layer(0..1)), ("bn", &layer(1..2)), ("fc", &layer(2..4))]);
    let whole = torch_writer::object("my_code.Net", &table(&[("training", b"\x88"), ("_modules", &modules)]));
    for (what, expression, tensors, key) in [
        ("a checkpoint", table(&[("state_dict", &plain), ("optimizer", &optimizer)]), &all, "state_dict"),
        ("another key", table(&[("net", &plain), ("acc", b"K\x07")]), &all, "net"),
        ("nested", table(&[("model", &table(&[("state_dict", &plain)]))]), &all, "model.state_dict"),
        (
            "Lightning",
            table(&[("hyper_parameters", &names), ("callbacks", b"}"), ("state_dict", &plain)]),
            &all,
            "state_dict",
        ),
        ("a prefix too", table(&[("model", &dict(&module))]), &module, "model"),
        ("a list", table(&[("nets", &[&b"]"[..], &plain, b"a"].concat())]), &all, "nets.0"),
        ("a model in a dictionary", table(&[("model", &whole)]), &all, "model"),
    ] {
        for bytes in [torch_writer::archive(&expression, tensors), torch_writer::legacy(&expression, tensors)]
        {
            let (notes, values) = load(&bytes, &EXACT);
            let notes = notes.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(notes[0].contains(&format!("state dict `{key}`")), "{what}: {notes:?}");
            assert_eq!(values, expected(), "{what}");
        }
    }
    // A whole model has no key.
    let (notes, values) = load(&torch_writer::archive(&whole, &all), &EXACT);
    assert_eq!((notes.unwrap().len(), values), (0, expected()));
    let (notes, _) = load(&torch_writer::archive(&table(&[("optimizer", &optimizer)]), &all), &EXACT);
    assert!(notes.unwrap_err().to_string().contains("keys: optimizer"));
}

/// Which of several networks is meant is the user's choice.
#[test]
fn requires_a_key_if_several_state_dicts_fit() {
    let mut moved = prefixed("");
    for tensor in &mut moved {
        tensor.bytes = vec![0; tensor.bytes.len()];
    }
    let both: Vec<Saved> = prefixed("").into_iter().chain(moved.clone()).collect();
    let (first, second) = (dict(&both[..4]), dict_from(4, &both[4..]));
    let key = |key| LoadOptions { key: Some(key), replace_head: true };
    for names in [["state_dict", "state_dict_ema"], ["student", "teacher"], ["model", "model_ema"]] {
        let bytes = torch_writer::archive(&table(&[(names[0], &first), (names[1], &second)]), &both);
        let Error::Ambiguous { keys, .. } = own(load(&bytes, &NEW_HEAD).0) else { panic!("{names:?}") };
        assert_eq!(keys, names);
        assert_eq!(load(&bytes, &key(names[0])).1, expected());
        assert!(load(&bytes, &key(names[1])).1.concat().iter().all(|v| *v == 0.0), "{names:?}");
        let error = own(load(&bytes, &key("teachers")).0).to_string();
        assert!(error.contains("teachers") && error.contains(names[1]), "{error}");
        // The same tensors under two keys are no choice.
        let same = torch_writer::archive(&table(&[(names[0], &first), (names[1], &first)]), &both);
        assert_eq!(load(&same, &EXACT).1, expected());
    }
    // Two networks in one state dict.
    let mut flat: Vec<Saved> = prefixed("student.").into_iter().chain(moved.clone()).collect();
    for tensor in &mut flat[4..] {
        tensor.name.insert_str(0, "teacher.");
    }
    let bytes = torch_writer::archive(&table(&[("state_dict", &dict(&flat))]), &flat);
    let Error::Ambiguous { keys, .. } = own(load(&bytes, &EXACT).0) else { panic!() };
    assert_eq!(keys, ["state_dict.student", "state_dict.teacher"]);
    for student in ["student", "state_dict.student"] {
        assert_eq!(load(&bytes, &key(student)).1, expected());
    }
    // MoCo's momentum encoder follows the one that is trained.
    for (i, tensor) in flat.iter_mut().enumerate() {
        let to = if i < 4 { "module.encoder_q." } else { "module.encoder_k." };
        tensor.name = tensor.name.replace("student.", to).replace("teacher.", to);
    }
    let (notes, values) = load(&torch_writer::archive(&dict(&flat), &flat), &EXACT);
    assert!(notes.unwrap()[0].contains("`module.encoder_q.` removed"));
    assert_eq!(values, expected());
}

#[test]
fn takes_heads_of_other_names() {
    for (to, prefix) in [
        ("classifier", ""),
        ("last_linear", ""),
        ("head.fc", "backbone."),
        ("classifier", "backbone."),
        ("1", "0."),
        ("my_layer", "encoder."),
    ] {
        let rename = |name: &str| match name.strip_prefix("fc.") {
            Some(rest) => format!("{to}.{rest}"),
            None => format!("{prefix}{name}"),
        };
        let all = renamed(rename);
        let (notes, values) = load(&torch_writer::archive(&dict(&all), &all), &EXACT);
        let notes = notes.unwrap();
        assert!(notes.iter().any(|n| *n == format!("head `fc` loaded from `{to}`")), "{notes:?}");
        assert_eq!(values, expected(), "{prefix}{to}");
        // Another number of classes.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, torch_writer::archive(&dict(&all), &all)).unwrap();
        let params = tiny(2, 7, DType::F32);
        let notes = load_weights(&path, &params, &head(), &NEW_HEAD).unwrap();
        assert!(notes.iter().any(|n| n.starts_with("head `fc` keeps its initial values")), "{notes:?}");
    }
    // A projection head is left out, but a layer more in the body is another model.
    let mut all = prefixed("");
    all.truncate(2);
    all.push(Saved::floats("projector.0.weight", &[4, 4], &[0.0; 16]));
    all.push(Saved::floats("projector.0.bias", &[4], &[0.0; 4]));
    let (notes, _) = load(&torch_writer::archive(&dict(&all), &all), &NEW_HEAD);
    let notes = notes.unwrap();
    assert!(notes[0].contains("keeps its initial values"), "{notes:?}");
    all[2].name = "conv.second.weight".into();
    let Error::Mismatch { unexpected, .. } =
        own(load(&torch_writer::archive(&dict(&all), &all), &NEW_HEAD).0)
    else {
        panic!()
    };
    assert_eq!(unexpected, ["conv.second.weight"]);
}

#[test]
fn names_values_that_are_not_finite() {
    let mut all = prefixed("model.");
    let values: Vec<f32> =
        all[0].bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut values = values;
    values[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::INFINITY]);
    all[0] = Saved::floats("model.conv.weight", &[4, 3, 2, 2], &values);
    all[3].bytes[..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    let (result, after) = load(&torch_writer::archive(&dict(&all), &all), &EXACT);
    let Error::NonFinite { tensors, .. } = own(result) else { panic!() };
    assert_eq!(
        tensors,
        ["`model.conv.weight`: 1 NaN, 2 +inf of 48 values", "`model.fc.bias`: 1 -inf of 5 values"]
    );
    assert_eq!(after, self::values(&tiny(2, 5, DType::F32)), "nothing is loaded");
}

#[test]
fn names_files_that_are_not_weights() {
    for (bytes, what) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"[..], "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
        (b"{\"architectures\": [\"ResNet\"]}", "JSON with `architectures`"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"", "empty file"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (&torch_writer::zip(&[("a.npy", b"x")]), "NumPy"),
        (&torch_writer::zip(&[("resnet.pth", b"x")]), "`archive/resnet.pth`"),
        (&torch_writer::zip(&[("constants.pkl", b"x"), ("data.pkl", b"x")]), "TorchScript"),
    ] {
        let error = own(load(bytes, &EXACT).0).to_string();
        assert!(error.contains(what) && error.contains("x.pth.tar"), "{what}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), b"x").unwrap();
    let error = own(load_weights(folder.path(), &tiny(2, 5, DType::F32), &head(), &EXACT)).to_string();
    assert!(error.contains("a folder; give a file in it: model.safetensors"), "{error}");
}

#[test]
fn reads_an_index_of_shards() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let all = prefixed("");
    let index = |second: &str| {
        let map: serde_json::Map<String, serde_json::Value> = all
            .iter()
            .enumerate()
            .map(|(i, t)| (t.name.clone(), if i < 2 { "a-00001-of-00002.bin" } else { second }.into()))
            .collect();
        serde_json::to_vec(&serde_json::json!({"metadata": {}, "weight_map": map})).unwrap()
    };
    for (i, name) in ["a-00001-of-00002.bin", "a-00002-of-00002.bin"].into_iter().enumerate() {
        let half = &all[2 * i..2 * i + 2];
        std::fs::write(at(name), torch_writer::archive(&dict(half), half)).unwrap();
    }
    let path = at("a.bin.index.json");
    std::fs::write(&path, index("a-00002-of-00002.bin")).unwrap();
    let params = tiny(2, 5, DType::F32);
    assert!(load_weights(&path, &params, &head(), &EXACT).unwrap().is_empty());
    assert_eq!(values(&params), expected());
    // The hash covers the shards.
    let hash = || WeightsFile::open(&path).unwrap().sha256().unwrap();
    let before = hash();
    let other = prefixed("");
    let half = &[other[2].clone(), Saved::floats("fc.bias", &[5], &[0.0; 5])];
    std::fs::write(at("a-00002-of-00002.bin"), torch_writer::archive(&dict(half), half)).unwrap();
    assert_ne!(hash(), before);

    let open = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        own(WeightsFile::open(&path)).to_string()
    };
    assert!(open(index("a-00003-of-00003.bin")).contains("such as `a-00003-of-00003.bin`"));
    assert!(open(index("../a-00002-of-00002.bin")).contains("expected file names"));
    assert!(open(index("a-00001-of-00002.bin")).contains("the index has 4 tensors in"));
    // A shard alone.
    let error = own(load_weights(&at("a-00001-of-00002.bin"), &params, &head(), &EXACT)).to_string();
    assert!(error.contains("2 missing (fc.weight, fc.bias)") && error.contains("*.index.json"), "{error}");
}
