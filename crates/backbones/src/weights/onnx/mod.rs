//! ONNX export.
//!
//! Operator set 17. Batch norms are separate nodes, which runtimes fold. Initializers keep the names of
//! the parameters; the batch size is dynamic, height and width are fixed. Models with window attention
//! and those of candle-transformers are not supported.

mod protobuf;

use std::collections::HashMap;
use std::path::Path;

use stillhouse_core::fs::write_atomic;
use stillhouse_core::model::{Model, trace};
use stillhouse_core::{Error as CoreError, ParamStore, Result};
use stillhouse_ops::op::{Conv, Entry, Op, Value};
use stillhouse_ops::{Activation, Padding, ParamId};

use super::save::floats;
use protobuf::Message;

/// Version of the operator set.
pub const OPSET: i64 = 17;
/// Version of the file format for that operator set.
const IR_VERSION: i64 = 8;
/// `TensorProto.DataType`
const FLOAT: i64 = 1;
const INT64: i64 = 7;

/// Metadata of the file.
#[derive(Debug, Clone, Default)]
pub struct OnnxInfo {
    /// Name of the graph.
    pub name: String,
    /// Entries of `metadata_props`.
    pub metadata: Vec<(String, String)>,
}

/// Writes a model for images `[batch, 3, height, width]` as an ONNX file, atomically. The input is
/// `images`; the outputs are the given features.
///
/// # Errors
/// An unsupported operation, an unknown feature, an invalid image size, or an I/O error.
pub fn write(
    network: &dyn Model,
    params: &ParamStore,
    (height, width): (usize, usize),
    features: &[&str],
    info: &OnnxInfo,
    path: &Path,
) -> Result<()> {
    let bytes = encode(network, params, (height, width), features, info)?;
    write_atomic(path, &bytes)
}

/// Encodes a model as [`write()`] does.
///
/// # Errors
/// An unsupported operation, an unknown feature, or an invalid image size.
pub fn encode(
    network: &dyn Model,
    params: &ParamStore,
    (height, width): (usize, usize),
    features: &[&str],
    info: &OnnxInfo,
) -> Result<Vec<u8>> {
    let trace = trace(network, params, (height, width), Some(features))?;
    let mut graph = Graph {
        model: network.name(),
        params,
        nodes: Vec::new(),
        initializers: Vec::new(),
        values: HashMap::new(),
        count: 0,
    };
    for entry in &trace.entries {
        if unsupported(&entry.op).is_some() {
            return Err(rejected(network.name(), &entry.op));
        }
    }
    for entry in &trace.entries {
        graph.add(entry)?;
    }
    let mut message = Message::new();
    let mut outputs = Vec::new();
    for (feature, index) in &trace.features {
        let from = graph.value(*index)?;
        graph.node("Identity", &[&from], feature, &[]);
        let entry = trace.entries.iter().find(|entry| entry.output.index == *index);
        outputs.push(value_info(
            feature,
            &entry.map(|entry| entry.output.dims()[1..].to_vec()).unwrap_or_default(),
        ));
    }
    for node in &graph.nodes {
        message = message.message(1, node);
    }
    message = message.bytes(2, &info.name);
    for initializer in &graph.initializers {
        message = message.message(5, initializer);
    }
    message = message.message(11, &value_info(IMAGES, &[3, height, width]));
    for output in &outputs {
        message = message.message(12, output);
    }
    let opset = Message::new().bytes(1, "").int(2, OPSET);
    let mut file = Message::new()
        .int(1, IR_VERSION)
        .bytes(2, "stillhouse")
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .message(7, &message)
        .message(8, &opset);
    for (key, value) in &info.metadata {
        file = file.message(14, &Message::new().bytes(1, key).bytes(2, value));
    }
    Ok(file.into_bytes())
}

const IMAGES: &str = "images";

/// Returns why an operation has no ONNX form.
pub fn unsupported(op: &Op) -> Option<&'static str> {
    match op {
        Op::WindowAttention(_) | Op::MergePatches => Some("window attention"),
        Op::Opaque(_) => Some("models of candle-transformers"),
        Op::Expression => Some("candle expressions"),
        Op::Dropout { .. } | Op::DropPath { .. } => Some("layers that run in training only"),
        Op::Input
        | Op::Conv(_)
        | Op::MaxPool { .. }
        | Op::GlobalAveragePool
        | Op::Relu
        | Op::Add
        | Op::Concat
        | Op::Resize { .. }
        | Op::AdaptiveAveragePool { .. }
        | Op::Expand { .. }
        | Op::LayerNorm { .. }
        | Op::GroupNorm { .. }
        | Op::Gelu
        | Op::Elu => None,
    }
}

fn rejected(model: &str, op: &Op) -> CoreError {
    let what = unsupported(op).unwrap_or(op.name());
    CoreError::incompatible(model, format!("ONNX export does not support {what}; export the weights alone"))
}

/// Builds a `ValueInfoProto` of floats `[batch, shape...]`.
fn value_info(name: &str, shape: &[usize]) -> Message {
    let batch = Message::new().bytes(2, "batch");
    let shape = shape.iter().fold(Message::new().message(1, &batch), |m, side| {
        m.message(1, &Message::new().int(1, *side as i64))
    });
    let tensor = Message::new().int(1, FLOAT).message(2, &shape);
    Message::new().bytes(1, name).message(2, &Message::new().message(1, &tensor))
}

/// An attribute of a node.
enum Attribute<'a> {
    Int(&'a str, i64),
    Ints(&'a str, &'a [i64]),
    Float(&'a str, f32),
    Text(&'a str, &'a str),
}

impl Attribute<'_> {
    fn message(&self) -> Message {
        match self {
            Self::Float(name, value) => Message::new().bytes(1, name).float(2, *value).int(20, 1),
            Self::Int(name, value) => Message::new().bytes(1, name).int(3, *value).int(20, 2),
            Self::Text(name, value) => Message::new().bytes(1, name).bytes(4, value).int(20, 3),
            Self::Ints(name, values) => Message::new().bytes(1, name).ints(8, values).int(20, 7),
        }
    }
}

struct Graph<'a> {
    model: &'a str,
    params: &'a ParamStore,
    nodes: Vec<Message>,
    initializers: Vec<Message>,
    /// Names of the values, by index of the trace.
    values: HashMap<usize, String>,
    /// Number of generated names.
    count: usize,
}

impl Graph<'_> {
    fn value(&self, number: usize) -> Result<String> {
        let found = self.values.get(&number).cloned();
        found.ok_or_else(|| {
            CoreError::incompatible(
                self.model,
                format!("traced value {number} is used before it is computed"),
            )
        })
    }

    fn new_name(&mut self) -> String {
        self.count += 1;
        format!("v{}", self.count)
    }

    /// Adds a node with one output and returns the name of the output.
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[Attribute]) -> String {
        let mut node = inputs.iter().fold(Message::new(), |m, input| m.bytes(1, input));
        node = node.bytes(2, output).bytes(3, format!("{op}_{output}")).bytes(4, op);
        self.nodes.push(attributes.iter().fold(node, |m, a| m.message(5, &a.message())));
        output.to_string()
    }

    /// Adds a node whose output gets a new name.
    fn apply(&mut self, op: &str, inputs: &[&str], attributes: &[Attribute]) -> String {
        let output = self.new_name();
        self.node(op, inputs, &output, attributes)
    }

    /// Adds a parameter as an initializer, padded to four dimensions if `four_dims`.
    fn param(&mut self, id: ParamId, four_dims: bool) -> Result<String> {
        let param = self.params.get(id);
        let mut dims: Vec<i64> = param.shape.iter().map(|side| *side as i64).collect();
        if four_dims {
            dims.resize(4, 1);
        }
        let values = floats(self.params, &param.name)?;
        self.floats(&param.name, &dims, &values);
        Ok(param.name)
    }

    fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = Message::new().ints(1, dims).int(2, FLOAT).bytes(8, name).bytes(9, bytes);
        self.initializers.push(tensor);
    }

    fn constant(&mut self, dims: &[i64], values: &[f32]) -> String {
        let name = self.new_name();
        self.floats(&name, dims, values);
        name
    }

    fn constant_ints(&mut self, values: &[i64]) -> String {
        let name = self.new_name();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let dims = [values.len() as i64];
        let tensor = Message::new().ints(1, &dims).int(2, INT64).bytes(8, &name).bytes(9, bytes);
        self.initializers.push(tensor);
        name
    }

    fn add(&mut self, entry: &Entry) -> Result<()> {
        let Value { shape: [_, height, width, _], flat, index, .. } = entry.output;
        let mut inputs = Vec::new();
        for input in &entry.inputs {
            inputs.push(self.value(input.index)?);
        }
        // Vectors have two dimensions; map operators require four.
        let vector = entry.inputs.first().is_some_and(|input| input.flat);
        let x = match inputs.first() {
            Some(x) if vector && !flat => {
                let shape = self.constant_ints(&[0, -1, 1, 1]);
                self.apply("Reshape", &[&x.clone(), &shape], &[])
            }
            Some(x) => x.clone(),
            None => String::new(),
        };
        let result = match &entry.op {
            Op::Input => IMAGES.to_string(),
            Op::Conv(conv) => self.conv(&x, inputs.get(1), conv, flat)?,
            Op::MaxPool { kernel, stride, padding } => {
                let [kernel, stride, padding] = [*kernel, *stride, *padding].map(|n| n as i64);
                let attributes = [
                    Attribute::Ints("kernel_shape", &[kernel; 2]),
                    Attribute::Ints("strides", &[stride; 2]),
                    Attribute::Ints("pads", &[padding; 4]),
                ];
                self.apply("MaxPool", &[&x], &attributes)
            }
            Op::GlobalAveragePool => {
                let mean = self.apply("GlobalAveragePool", &[&x], &[]);
                self.apply("Flatten", &[&mean], &[Attribute::Int("axis", 1)])
            }
            Op::Relu => self.apply("Relu", &[&x], &[]),
            Op::Add => self.apply("Add", &[&inputs[0], &inputs[1]], &[]),
            Op::Concat => {
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.apply("Concat", &inputs, &[Attribute::Int("axis", 1)])
            }
            Op::Resize { align_corners, .. } => self.resize(&x, (height, width), *align_corners),
            Op::AdaptiveAveragePool { .. } => {
                let from = entry.inputs[0].size();
                self.adaptive_average(&x, from.into(), (height, width))
            }
            Op::Expand { .. } => {
                let shape = self.constant_ints(&[1, 1, height as i64, width as i64]);
                self.apply("Expand", &[&x, &shape], &[])
            }
            Op::LayerNorm { weight, bias, eps, .. } => {
                let (weight, bias) = (self.param(*weight, false)?, self.param(*bias, false)?);
                let attributes = [Attribute::Int("axis", -1), Attribute::Float("epsilon", *eps as f32)];
                if flat {
                    self.apply("LayerNormalization", &[&x, &weight, &bias], &attributes)
                } else {
                    let last = self.apply("Transpose", &[&x], &[Attribute::Ints("perm", &[0, 2, 3, 1])]);
                    let normal = self.apply("LayerNormalization", &[&last, &weight, &bias], &attributes);
                    self.apply("Transpose", &[&normal], &[Attribute::Ints("perm", &[0, 3, 1, 2])])
                }
            }
            // The operator set has none: instance norm of the groups, then scale and offset per channel.
            Op::GroupNorm { groups, channels, weight, bias, eps } => {
                let rows = self.constant_ints(&[0, *groups as i64, -1]);
                let (ones, zeros) = (vec![1.0; *groups], vec![0.0; *groups]);
                let ones = self.constant(&[*groups as i64], &ones);
                let zeros = self.constant(&[*groups as i64], &zeros);
                let y = self.apply("Reshape", &[&x, &rows], &[]);
                let epsilon = [Attribute::Float("epsilon", *eps as f32)];
                let y = self.apply("InstanceNormalization", &[&y, &ones, &zeros], &epsilon);
                let [c, h, w] = [*channels, height, width].map(|n| n as i64);
                let (map, row) =
                    if flat { (vec![0, c], vec![1, c]) } else { (vec![0, c, h, w], vec![1, c, 1, 1]) };
                let (map, row) = (self.constant_ints(&map), self.constant_ints(&row));
                let y = self.apply("Reshape", &[&y, &map], &[]);
                let (weight, bias) = (self.param(*weight, false)?, self.param(*bias, false)?);
                let weight = self.apply("Reshape", &[&weight, &row], &[]);
                let bias = self.apply("Reshape", &[&bias, &row], &[]);
                let y = self.apply("Mul", &[&y, &weight], &[]);
                self.apply("Add", &[&y, &bias], &[])
            }
            Op::Elu => self.apply("Elu", &[&x], &[]),
            Op::Gelu => {
                let root = self.constant(&[], &[std::f32::consts::SQRT_2]);
                let (one, half) = (self.constant(&[], &[1.0]), self.constant(&[], &[0.5]));
                let scaled = self.apply("Div", &[&x, &root], &[]);
                let erf = self.apply("Erf", &[&scaled], &[]);
                let sum = self.apply("Add", &[&erf, &one], &[]);
                let product = self.apply("Mul", &[&x, &sum], &[]);
                self.apply("Mul", &[&product, &half], &[])
            }
            Op::WindowAttention(_)
            | Op::MergePatches
            | Op::Opaque(_)
            | Op::Expression
            | Op::Dropout { .. }
            | Op::DropPath { .. } => return Err(rejected(self.model, &entry.op)),
        };
        self.values.insert(index, result);
        Ok(())
    }

    fn conv(&mut self, x: &str, shortcut: Option<&String>, layer: &Conv, flat: bool) -> Result<String> {
        let weight = self.param(layer.weight, !flat)?;
        let bias = layer.bias.map(|id| self.param(id, false)).transpose()?;
        let inputs: Vec<&str> =
            [Some(x), Some(weight.as_str()), bias.as_deref()].into_iter().flatten().collect();
        let mut y = if flat {
            self.apply("Gemm", &inputs, &[Attribute::Int("transB", 1)])
        } else {
            let spec = &layer.spec;
            let two = |n: usize| [n as i64; 2];
            let (kernel, stride, dilation) = (two(spec.kernel), two(spec.stride), two(spec.dilation));
            let pads;
            let padding = match spec.padding {
                Padding::Symmetric(n) => {
                    pads = [n as i64; 4];
                    Attribute::Ints("pads", &pads)
                }
                Padding::Same => Attribute::Text("auto_pad", "SAME_UPPER"),
            };
            let attributes = [
                Attribute::Ints("kernel_shape", &kernel),
                Attribute::Ints("strides", &stride),
                Attribute::Ints("dilations", &dilation),
                Attribute::Int("group", spec.groups as i64),
                padding,
            ];
            self.apply("Conv", &inputs, &attributes)
        };
        if let Some(norm) = layer.norm {
            let mut inputs = vec![y];
            for id in [norm.weight, norm.bias, norm.mean, norm.variance] {
                inputs.push(self.param(id, false)?);
            }
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            y = self.apply("BatchNormalization", &inputs, &[Attribute::Float("epsilon", norm.eps as f32)]);
        }
        if let Some(shortcut) = shortcut {
            y = self.apply("Add", &[&y, shortcut], &[]);
        }
        Ok(match layer.act {
            Activation::None => y,
            Activation::Relu => self.apply("Relu", &[&y], &[]),
            Activation::Relu6 => {
                let (low, high) = (self.constant(&[], &[0.0]), self.constant(&[], &[6.0]));
                self.apply("Clip", &[&y, &low, &high], &[])
            }
        })
    }

    /// Resizes maps to a fixed size with a dynamic batch.
    fn resize(&mut self, x: &str, (height, width): (usize, usize), align_corners: bool) -> String {
        let ends = [Attribute::Int("start", 0), Attribute::Int("end", 2)];
        let batch = self.apply("Shape", &[x], &ends);
        let size = self.constant_ints(&[height as i64, width as i64]);
        let sizes = self.apply("Concat", &[&batch, &size], &[Attribute::Int("axis", 0)]);
        let mode = if align_corners { "align_corners" } else { "half_pixel" };
        let attributes =
            [Attribute::Text("mode", "linear"), Attribute::Text("coordinate_transformation_mode", mode)];
        self.apply("Resize", &[x, "", "", &sizes], &attributes)
    }

    /// Averages over bins as two matrix products, `rows * x * columns`, because ONNX has no adaptive
    /// pooling.
    fn adaptive_average(&mut self, x: &str, from: (usize, usize), to: (usize, usize)) -> String {
        let rows = self.constant(&[to.0 as i64, from.0 as i64], &bins(from.0, to.0));
        let columns = transposed(&bins(from.1, to.1), from.1);
        let columns = self.constant(&[from.1 as i64, to.1 as i64], &columns);
        let y = self.apply("MatMul", &[&rows, x], &[]);
        self.apply("MatMul", &[&y, &columns], &[])
    }
}

/// Builds the matrix `[to, from]` of averages over bins; see `Tape::adaptive_avg_pool`.
fn bins(from: usize, to: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
        let bin = &mut row[i * from / to..((i + 1) * from).div_ceil(to)];
        let share = 1.0 / bin.len() as f32;
        bin.fill(share);
    }
    matrix
}

fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| matrix.iter().skip(c).step_by(columns)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_match_adaptive_average_pooling() {
        assert_eq!(bins(2, 3), [1.0, 0.0, 0.5, 0.5, 0.0, 1.0]);
        assert_eq!(bins(4, 2), [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
        assert_eq!(transposed(&bins(2, 3), 2), [1.0, 0.5, 0.0, 0.0, 0.5, 1.0]);
    }
}
