//! Structure of ONNX files. `needs_python` compares their outputs with onnxruntime.

use std::collections::{BTreeMap, HashSet};

use candle_core::{DType, Device};
use stillhouse_backbones::registry;
use stillhouse_backbones::weights::onnx::{OPSET, OnnxInfo, encode};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::{ParamStore, Rng};

/// A field of a message: number and value.
enum Field<'a> {
    Int(u64, u64),
    Bytes(u64, &'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<Field<'_>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = key >> 3;
        match key & 7 {
            0 => all.push(Field::Int(field, varint(&mut bytes))),
            kind => {
                let length = if kind == 5 { 4 } else { varint(&mut bytes) as usize };
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                all.push(Field::Bytes(field, value));
            }
        }
    }
    all
}

fn messages<'a>(all: &[Field<'a>], number: u64) -> Vec<&'a [u8]> {
    all.iter()
        .filter_map(|f| if let Field::Bytes(n, b) = f { (*n == number).then_some(*b) } else { None })
        .collect()
}

fn texts(all: &[Field], number: u64) -> Vec<String> {
    messages(all, number).into_iter().map(|b| String::from_utf8(b.to_vec()).unwrap()).collect()
}

fn ints(all: &[Field], number: u64) -> Vec<u64> {
    all.iter()
        .filter_map(|f| if let Field::Int(n, v) = f { (*n == number).then_some(*v) } else { None })
        .collect()
}

/// Exported models, as small as possible.
pub(crate) const NETWORKS: &[(&str, &str, usize)] = &[
    ("resnet18", "", 64),
    ("resnet50", "stride_in_1x1 = true\noutput_stride = 16", 64),
    ("mobilenetv2_035", "padding = 'same'", 65),
    ("mobilenetv2_050", "", 64),
    ("deeplabv3plus", "backbone = 'resnet18'", 65),
    ("deeplabv3plus", "backbone = 'mobilenetv2_035'\noutput_stride = 8", 64),
    ("exits", "backbone = 'resnet18'\nkind = 'opm'\nk = 16", 64),
    ("cifar_resnet20", "", 32),
];

pub(crate) fn request(name: &str, variant: &str) -> ModelSpec {
    ModelSpec { name: name.into(), classes: 5, variant: toml::from_str(variant).unwrap() }
}

#[test]
fn nodes_and_initializers_are_complete() {
    for (name, variant, size) in NETWORKS {
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let request = request(name, variant);
        let net = (registry().get(name).unwrap().build)(&request, &params.builder(Rng::new(1))).unwrap();
        let info = OnnxInfo { name: "net".into(), metadata: vec![("a".into(), "b".into())] };
        let bytes = encode(net.as_ref(), &params, (*size, *size), &["logits"], &info).unwrap();
        let file = fields(&bytes);
        let opset = fields(messages(&file, 8)[0]);
        assert_eq!(ints(&opset, 2), [OPSET as u64]);
        let graph = fields(messages(&file, 7)[0]);
        let mut known: HashSet<String> = HashSet::from([String::new()]);
        for input in messages(&graph, 11) {
            known.extend(texts(&fields(input), 1));
        }
        let mut weights: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for tensor in messages(&graph, 5) {
            let tensor = fields(tensor);
            let (dims, kind, name) = (ints(&tensor, 1), ints(&tensor, 2)[0], texts(&tensor, 8).remove(0));
            let each = if kind == 7 { 8 } else { 4 };
            let values = messages(&tensor, 9)[0].len() as u64;
            assert_eq!(values, each * dims.iter().product::<u64>(), "{name}");
            assert!(known.insert(name.clone()), "duplicate initializer {name}");
            weights.insert(name, dims);
        }
        let mut operations: BTreeMap<String, usize> = BTreeMap::new();
        for node in messages(&graph, 1) {
            let node = fields(node);
            let operation = texts(&node, 4).remove(0);
            for input in texts(&node, 1) {
                assert!(known.contains(&input), "{name}: {operation} reads the unknown value {input}");
            }
            for output in texts(&node, 2) {
                assert!(known.insert(output.clone()), "{name}: duplicate value {output}");
            }
            *operations.entry(operation).or_default() += 1;
        }
        for output in messages(&graph, 12) {
            let output = texts(&fields(output), 1);
            assert_eq!(output, ["logits"]);
            assert!(known.contains("logits"));
        }
        // All parameters are exported except those that the logits do not depend on.
        for param in params.all() {
            let early = ["out1.", "out2.", "out3.", "opm1.", "opm2.", "opm3."];
            let unused = early.iter().any(|start| param.name.starts_with(start));
            assert!(unused != weights.contains_key(&param.name), "{name}: {}", param.name);
        }
        let norms = params.all().iter().filter(|p| p.name.ends_with("running_mean")).count();
        assert_eq!(operations.get("BatchNormalization").copied().unwrap_or(0), norms, "{name}");
    }
}

#[test]
fn rejects_unsupported_operations() {
    let params = ParamStore::meta();
    let request = request("swin_tiny_patch4_window7_224", "");
    let net = (registry().get(&request.name).unwrap().build)(&request, &params.builder(Rng::new(1))).unwrap();
    let e =
        encode(net.as_ref(), &params, (224, 224), &["logits"], &OnnxInfo::default()).unwrap_err().to_string();
    assert!(e.contains("swin_tiny") && e.contains("window attention"), "{e}");
    let params = ParamStore::meta();
    let request = self::request("resnet18", "");
    let net = (registry().get(&request.name).unwrap().build)(&request, &params.builder(Rng::new(1))).unwrap();
    let e = encode(net.as_ref(), &params, (64, 64), &["F9"], &OnnxInfo::default()).unwrap_err().to_string();
    assert!(e.contains("F9"), "{e}");
}
