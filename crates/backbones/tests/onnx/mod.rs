//! Structure of ONNX files. `needs_python` compares their outputs with onnxruntime.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::registry;
use stillhouse_backbones::weights::onnx::{OPSET, OnnxInfo, encode};
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelSpec};
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, GroupNorm, Init, LayerNorm, Node, Op, WindowAttention,
};

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

type Layer = Box<dyn Fn(&Node, &mut Tape) -> stillhouse_ops::Result<Node> + Send + Sync>;

/// A layer on the images.
struct OneLayer {
    features: [FeatureInfo; 1],
    layer: Layer,
}

impl Model for OneLayer {
    fn name(&self) -> &str {
        "one layer"
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn classes(&self) -> usize {
        1
    }

    fn forward(&self, images: &Tensor, tape: &mut Tape) -> stillhouse_core::Result<Features> {
        let x = tape.input(images)?;
        let y = (self.layer)(&x, tape)?;
        tape.mark_feature("logits", &y)?;
        Ok(tape.outputs()?.into_iter().collect())
    }

    fn head(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Every operation has an ONNX form, or the error states why not.
#[test]
fn encodes_every_operation_or_states_why_not() {
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let p = params.builder(Rng::new(1));
    let conv = ConvSpec::new(3, 3, 3);
    let conv = ConvBnAct::new(conv, "conv", "bn", Activation::Relu6, Init::Normal(0.1), &p).unwrap();
    let norm = LayerNorm::new(3, "norm", &p).unwrap();
    let group_norm = GroupNorm::new(3, 3, "group_norm", &p).unwrap();
    let attention = WindowAttention::new(3, 1, [2, 2], [1, 1], Init::Normal(0.1), &p).unwrap();
    let layers: Vec<(&str, Option<&str>, Layer)> = vec![
        ("input", None, Box::new(|x, _| Ok(x.clone()))),
        ("conv", None, Box::new(move |x, tape| conv.forward_add(x, x, tape))),
        ("max_pool", None, Box::new(|x, tape| tape.max_pool(x, 3, 2, 1))),
        ("global_avg_pool", None, Box::new(|x, tape| tape.global_avg_pool(x))),
        ("relu", None, Box::new(|x, tape| tape.relu(x))),
        ("add", None, Box::new(|x, tape| tape.add(x, x))),
        ("concat", None, Box::new(|x, tape| tape.concat(&[x, x]))),
        ("resize_bilinear", None, Box::new(|x, tape| tape.resize_bilinear(x, (5, 3), true))),
        ("adaptive_avg_pool", None, Box::new(|x, tape| tape.adaptive_avg_pool(x, (3, 2)))),
        (
            "expand",
            None,
            Box::new(|x, tape| {
                let x = tape.global_avg_pool(x)?;
                tape.expand(&x, (2, 3))
            }),
        ),
        ("layer_norm", None, Box::new(move |x, tape| norm.forward(x, tape))),
        ("group_norm", None, Box::new(move |x, tape| group_norm.forward(x, tape))),
        ("gelu", None, Box::new(|x, tape| tape.gelu(x))),
        ("elu", None, Box::new(|x, tape| tape.elu(x))),
        (
            "opaque",
            Some("candle-transformers"),
            Box::new(|_, tape| tape.opaque_op(&[1, 3], Default::default, || unreachable!("a trace"))),
        ),
        (
            "expression",
            Some("a candle expression cannot be traced"),
            Box::new(|x, tape| tape.graph(&[x], |x| x[0].tanh())),
        ),
        ("window_attention", Some("window attention"), Box::new(move |x, tape| attention.forward(x, tape))),
        ("merge_patches", Some("window attention"), Box::new(|x, tape| tape.merge_patches(x))),
        // Not in a trace, which is in evaluation mode.
        ("dropout", None, Box::new(|x, tape| tape.dropout(x, 0.5))),
        ("drop_path", None, Box::new(|x, tape| tape.drop_path(x, 0.5))),
    ];
    let tested: BTreeSet<&str> = layers.iter().map(|(name, ..)| *name).collect();
    assert_eq!(tested, Op::NAMES.iter().copied().collect());
    for (name, reason, layer) in layers {
        let model = OneLayer { features: [FeatureInfo::vector("logits", 1)], layer };
        match (encode(&model, &params, (6, 4), &["logits"], &OnnxInfo::default()), reason) {
            (Ok(bytes), None) => assert!(!bytes.is_empty(), "{name}"),
            (Err(error), Some(reason)) => assert!(error.to_string().contains(reason), "{name}: {error}"),
            (found, _) => panic!("{name}: {:?}", found.map(|bytes| bytes.len())),
        }
    }
}
