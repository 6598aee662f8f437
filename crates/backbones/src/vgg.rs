//! VGG networks.
//!
//! *Paper*: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
//! Recognition", ICLR 2015, arXiv 1409.1556, Table 1 (A, B, D, E); the `_bn` networks have a batch
//! norm after every 3x3 convolution (Ioffe, Szegedy, ICML 2015).
//!
//! The two large linear layers are convolutions, as in timm: a 7x7 and a 1x1, followed by global
//! average pooling. A map smaller than 7 x 7 is first resized to 7 x 7 by adaptive average pooling.
//!
//! *Features*: `F1`..`F3`, before the third, fourth and fifth max pooling (strides 4, 8, 16); `F4` after
//! the fifth (stride 32); `pooled`, the mean of `F4`; `embedding`, the classifier's input;
//! `logits`.
//!
//! *Variants*: `dropout` after each of the two large layers (0.5 in the paper, 0 in timm).
//!
//! *Names and initialization*: timm's names; convolutions He-normal over the outputs with zero
//! biases, the classifier normal with 0.01, as in timm.

use candle_core::Tensor;
use serde::Deserialize;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear, Node, Padding};

use crate::backbone::{ALL_STAGES, Backbone, OnStage};
use crate::{NoVariant, check_classes};

/// One entry per depth, with and without batch norm.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("vgg11", "8 convolutions of 3x3 and 3 linear layers, 132.9 M parameters"),
    entry("vgg11_bn", "vgg11 with batch norm, 132.9 M parameters"),
    entry("vgg13", "10 convolutions of 3x3 and 3 linear layers, 133.0 M parameters"),
    entry("vgg13_bn", "vgg13 with batch norm, 133.1 M parameters"),
    entry("vgg16", "13 convolutions of 3x3 and 3 linear layers, 138.4 M parameters"),
    entry("vgg16_bn", "vgg16 with batch norm, 138.4 M parameters"),
    entry("vgg19", "16 convolutions of 3x3 and 3 linear layers, 143.7 M parameters"),
    entry("vgg19_bn", "vgg19 with batch norm, 143.7 M parameters"),
];

const fn entry(name: &'static str, summary: &'static str) -> Entry<ModelBuild> {
    let source = "Simonyan and Zisserman 2015, Very Deep Convolutional Networks, Table 1";
    Entry { name, summary, source, defaults, build }
}

fn defaults() -> String {
    "dropout = 0.0  # timm; Simonyan and Zisserman train with 0.5\n".into()
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(Vgg::new(request, p)?))
}

pub(crate) fn backbone(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    let NoVariant {} = from_table(&request.variant, &format!("variant of {}", request.name))?;
    Ok(Box::new(Convs::new(&request.name, p)?))
}

/// Returns the number of convolutions before each max pooling, Table 1 of the paper.
fn depth(name: &str) -> Result<[usize; 5]> {
    match name.strip_suffix("_bn").unwrap_or(name) {
        "vgg11" => Ok([1, 1, 2, 2, 2]),
        "vgg13" => Ok([2, 2, 2, 2, 2]),
        "vgg16" => Ok([2, 2, 3, 3, 3]),
        "vgg19" => Ok([2, 2, 4, 4, 4]),
        _ => Err(Error::incompatible(name, "not a VGG of this crate")),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Variant {
    dropout: f64,
}

const WIDTHS: [usize; 5] = [64, 128, 256, 512, 512];
/// Side of the map at the first large layer.
const SIDE: usize = 7;
const HIDDEN: usize = 4096;

/// The backbone: convolutions and max poolings.
#[derive(Debug)]
struct Convs {
    name: String,
    features: Vec<FeatureInfo>,
    groups: Vec<Vec<ConvBnAct>>,
}

impl Convs {
    fn new(name: &str, p: &ParamBuilder) -> Result<Self> {
        let bn = name.ends_with("_bn");
        let p = p.pp("features");
        // Indices of PyTorch's `Sequential` of convolutions, batch norms, ReLUs and max poolings.
        let (mut index, mut inputs, mut groups) = (0, 3, Vec::new());
        for (count, width) in depth(name)?.into_iter().zip(WIDTHS) {
            let mut group = Vec::new();
            for _ in 0..count {
                let spec = ConvSpec::new(inputs, width, 3);
                let norm = bn.then(|| (index + 1).to_string());
                group.push(layer(spec, &index.to_string(), norm.as_deref(), &p)?);
                index += if bn { 3 } else { 2 };
                inputs = width;
            }
            index += 1;
            groups.push(group);
        }
        let maps = [("F1", 256, 4), ("F2", 512, 8), ("F3", 512, 16), ("F4", 512, 32)];
        let features =
            maps.map(|(feature, channels, stride)| FeatureInfo::map(feature, channels, stride)).to_vec();
        Ok(Self { name: name.to_string(), features, groups })
    }
}

/// Builds a convolution with bias, batch norm if `bn` is given, and ReLU.
fn layer(spec: ConvSpec, name: &str, bn: Option<&str>, p: &ParamBuilder) -> Result<ConvBnAct> {
    let init = (Init::kaiming_fan_out(&spec.weight_shape()), Init::Constant(0.0));
    Ok(ConvBnAct::with_bias(spec, name, bn, Activation::Relu, init, p)?)
}

/// Error for a map that is too small for a 2x2 max pooling.
fn too_small(component: &str, size: (usize, usize)) -> Error {
    let found = format!(
        "image too small: expected at least 32 x 32, found a map of {} x {} before a max pooling",
        size.0, size.1
    );
    Error::incompatible(component, found)
}

impl Backbone for Convs {
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, on_stage: OnStage) -> Result<Node> {
        let mut x = tape.input(images)?; // [B, 3, H, W]
        for (g, group) in self.groups.iter().enumerate() {
            for conv in group {
                x = conv.forward(&x, tape)?;
            }
            if let Some(stage) = g.checked_sub(2) {
                tape.mark_feature(&self.features[stage].name, &x)?;
                on_stage(stage, &x);
                if stage + 1 >= depth {
                    return Ok(x);
                }
            }
            if x.size().0.min(x.size().1) < 2 {
                return Err(too_small(&self.name, x.size()));
            }
            x = tape.max_pool(&x, 2, 2, 0)?;
        }
        tape.mark_feature("F4", &x)?; // [B, 512, H/32, W/32]
        on_stage(self.features.len() - 1, &x);
        Ok(x)
    }
}

/// A VGG model.
#[derive(Debug)]
pub struct Vgg {
    name: String,
    features: Vec<FeatureInfo>,
    classes: usize,
    dropout: f64,
    backbone: Convs,
    fc1: ConvBnAct,
    fc2: ConvBnAct,
    fc: Linear,
    head: Vec<String>,
}

impl Vgg {
    /// Builds the model with its parameters under the prefix of `p`.
    ///
    /// # Errors
    /// An unknown name, an invalid variant, no classes, or duplicate parameter names.
    pub fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let name = request.name.clone();
        check_classes(request)?;
        let variant: Variant = from_table(&request.variant, &format!("variant of {name}"))?;
        if !(0.0..1.0).contains(&variant.dropout) {
            let found = format!("invalid dropout: expected 0 <= dropout < 1, found {}", variant.dropout);
            return Err(Error::incompatible(&name, found));
        }
        let backbone = Convs::new(&name, p)?;
        let at = p.pp("pre_logits");
        let whole = ConvSpec::new(512, HIDDEN, SIDE).padding(Padding::Symmetric(0));
        let fc1 = layer(whole, "fc1", None, &at)?;
        let fc2 = layer(ConvSpec::new(HIDDEN, HIDDEN, 1), "fc2", None, &at)?;
        let (init, zero) = (Init::Normal(0.01), Some(Init::Constant(0.0)));
        let fc = Linear::new(HIDDEN, request.classes, "head.fc", init, zero, p)?;
        let mut features = backbone.features.clone();
        features.push(FeatureInfo::vector("pooled", 512));
        features.push(FeatureInfo::vector("embedding", HIDDEN));
        features.push(FeatureInfo::vector("logits", request.classes));
        let head = vec![p.full("head.fc.weight"), p.full("head.fc.bias")];
        let (classes, dropout) = (request.classes, variant.dropout);
        Ok(Self { name, features, classes, dropout, backbone, fc1, fc2, fc, head })
    }
}

impl Model for Vgg {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let mut x = self.backbone.forward(images, ALL_STAGES, tape, &mut |_, _| ())?;
        let pooled = tape.global_avg_pool(&x)?; // [B, 512]
        tape.mark_feature("pooled", &pooled)?;
        let (height, width) = x.size();
        x = tape.adaptive_avg_pool(&x, (height.max(SIDE), width.max(SIDE)))?; // [B, 512, 7, 7]
        x = self.fc1.forward(&x, tape)?; // [B, 4096, 1, 1]
        x = tape.dropout(&x, self.dropout)?;
        x = self.fc2.forward(&x, tape)?;
        x = tape.dropout(&x, self.dropout)?;
        x = tape.global_avg_pool(&x)?; // [B, 4096]
        tape.mark_feature("embedding", &x)?;
        let logits = self.fc.forward(&x, tape)?; // [B, classes]
        tape.mark_feature("logits", &logits)?;
        Ok(tape.outputs()?.into_iter().collect())
    }

    fn head(&self) -> Vec<String> {
        self.head.clone()
    }
}
