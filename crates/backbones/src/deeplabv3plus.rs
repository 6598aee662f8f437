//! DeepLabV3+: semantic segmentation on any backbone with a feature map at stride 4.
//!
//! *Paper*: Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution
//! for Semantic Image Segmentation", ECCV 2018, DOI 10.1007/978-3-030-01234-2_49. All convolutions
//! are standard; separable convolutions are an option of the paper's larger model.
//!
//! Atrous spatial pyramid pooling (ASPP) on the last map: a 1x1 convolution, three dilated 3x3
//! convolutions and global average pooling, 256 channels each, projected to 256. The decoder upsamples
//! them to stride 4, concatenates the first map (projected to 48 channels), and applies two 3x3
//! convolutions and the classifier. All convolutions but the classifier have batch norm and ReLU and
//! no bias; upsampling is bilinear with `align_corners = false`.
//!
//! *Features*: the backbone's (`F1`..`F4`); `aspp`, the decoder's input at stride 4 (48 channels of `F1`,
//! then 256 of the ASPP); `decoder`, the classifier's input; `logits_low`, the logits before
//! upsampling; `logits`, `[B, classes, H, W]` in the size of the image, computed only if selected.
//!
//! *Variants*: `backbone`; `output_stride` 16, 8 or 32 (rates 6 12 18, doubled or halved); `dropout`
//! after the ASPP; and those of the backbone. Entries whose name includes a backbone are the same
//! model with a fixed backbone.
//!
//! *Names*: timm's below `backbone.`, then `aspp.branch0`..`branch3`, `aspp.pool`, `aspp.project`,
//! `low_project`, `fuse1`, `fuse2` (`.0` the convolution, `.1` its batch norm), `classifier`.

use candle_core::Tensor;
use serde::Deserialize;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Node, Padding};

use crate::backbone::{ALL_STAGES, Backbone, build_backbone, split_variant};
use crate::{check_classes, conv};

/// Name of the entry with any backbone.
const ANY: &str = "deeplabv3plus";

/// An entry with any backbone, and one per backbone of the published tables, so that an experiment's
/// axis can name them.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry(ANY, || defaults("resnet18")),
    entry("deeplabv3plus_resnet18", || defaults("resnet18")),
    entry("deeplabv3plus_resnet50", || defaults("resnet50")),
    entry("deeplabv3plus_resnet101", || defaults("resnet101")),
    entry("deeplabv3plus_mobilenetv2_100", || defaults("mobilenetv2_100")),
];

const fn entry(name: &'static str, defaults: fn() -> String) -> Entry<ModelBuild> {
    Entry {
        name,
        summary: "semantic segmentation: atrous spatial pyramid pooling and decoder on a backbone",
        source: "Chen et al. 2018, Encoder-Decoder with Atrous Separable Convolution, section 3",
        defaults,
        build,
    }
}

fn defaults(backbone: &str) -> String {
    format!(
        "backbone = \"{backbone}\"  # any model with a feature map at stride 4\n\
         output_stride = 16  # Chen et al. 2018, section 3.1; 8 or 32\n\
         dropout = 0.1  # after the ASPP, as in the authors' code\n"
    )
}

/// Returns the backbone in the name of an entry.
fn fixed_backbone(name: &str) -> Option<&str> {
    name.strip_prefix(ANY)?.strip_prefix('_')
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(DeepLabV3Plus::new(request, p)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Variant {
    backbone: Option<String>,
    output_stride: usize,
    dropout: f64,
}

impl Default for Variant {
    fn default() -> Self {
        Self { backbone: None, output_stride: 16, dropout: 0.1 }
    }
}

const KEYS: [&str; 3] = ["backbone", "output_stride", "dropout"];
/// Channels of ASPP and decoder, and of the projected first map.
const WIDTH: usize = 256;
const LOW: usize = 48;

/// Builds a convolution without bias (`<name>.0`) with batch norm (`<name>.1`) and ReLU.
fn conv_bn(spec: ConvSpec, name: &str, p: &ParamBuilder) -> Result<ConvBnAct> {
    conv(spec, "0", "1", Activation::Relu, &p.pp(name))
}

/// Atrous spatial pyramid pooling.
#[derive(Debug)]
struct Aspp {
    branches: Vec<ConvBnAct>,
    pool: ConvBnAct,
    project: ConvBnAct,
}

impl Aspp {
    fn new(inputs: usize, output_stride: usize, p: &ParamBuilder) -> Result<Self> {
        let mut branches = vec![conv_bn(ConvSpec::new(inputs, WIDTH, 1), "branch0", p)?];
        for i in 1..=3 {
            let rate = 6 * i * 16 / output_stride;
            let spec = ConvSpec::new(inputs, WIDTH, 3).dilation(rate).padding(Padding::Symmetric(rate));
            branches.push(conv_bn(spec, &format!("branch{i}"), p)?);
        }
        let pool = conv_bn(ConvSpec::new(inputs, WIDTH, 1), "pool", p)?;
        let project = conv_bn(ConvSpec::new(5 * WIDTH, WIDTH, 1), "project", p)?;
        Ok(Self { branches, pool, project })
    }

    /// `[B, C, h, w]` to `[B, 256, h, w]`.
    fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let mut branches = Vec::new();
        for branch in &self.branches {
            branches.push(branch.forward(x, tape)?);
        }
        let mean = tape.global_avg_pool(x)?;
        let mean = self.pool.forward(&mean, tape)?; // [B, 256, 1, 1]
        branches.push(tape.expand(&mean, x.size())?);
        let x = tape.concat(&branches.iter().collect::<Vec<_>>())?;
        Ok(self.project.forward(&x, tape)?)
    }
}

/// DeepLabV3+ on a backbone.
#[derive(Debug)]
pub struct DeepLabV3Plus {
    name: String,
    features: Vec<FeatureInfo>,
    classes: usize,
    dropout: f64,
    backbone: Box<dyn Backbone>,
    aspp: Aspp,
    low: ConvBnAct,
    fuse: [ConvBnAct; 2],
    classifier: ConvBnAct,
    head: Vec<String>,
}

impl DeepLabV3Plus {
    /// Builds the model with its parameters under the prefix of `p`.
    ///
    /// # Errors
    /// An invalid variant (a backbone without a map at stride 4, an output stride that it does not
    /// support), no classes, or duplicate parameter names.
    pub fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let name = request.name.clone();
        check_classes(request)?;
        let (own, mut inner) = split_variant(&request.variant, &KEYS);
        let variant: Variant = from_table(&own, &format!("variant of {name}"))?;
        let backbone_name = match (fixed_backbone(&name), variant.backbone) {
            (Some(own), Some(other)) if own != other => {
                let found = format!(
                    "invalid backbone: expected `{own}`, found `{other}`; use `{ANY}` for other backbones"
                );
                return Err(Error::incompatible(&name, found));
            }
            (Some(own), _) => own.to_string(),
            (None, name) => name.unwrap_or_else(|| "resnet18".into()),
        };
        let stride = variant.output_stride;
        if ![8, 16, 32].contains(&stride) {
            return Err(Error::incompatible(
                &name,
                format!("invalid output_stride: expected 8, 16 or 32, found {stride}"),
            ));
        }
        if !(0.0..1.0).contains(&variant.dropout) {
            let found = format!("invalid dropout: expected 0 <= dropout < 1, found {}", variant.dropout);
            return Err(Error::incompatible(&name, found));
        }
        if stride != 32 {
            inner.insert("output_stride".into(), (stride as i64).into());
        }
        let inner = ModelSpec { name: backbone_name, classes: request.classes, variant: inner };
        let backbone = build_backbone(&inner, &p.pp("backbone"))?;
        let stages = backbone.stages();
        let (first, last) = match (stages.first(), stages.last()) {
            (Some(first), Some(last)) if first.stride == 4 && last.stride == stride => (first, last),
            _ => {
                let found: Vec<usize> = stages.iter().map(|s| s.stride).collect();
                let what = format!(
                    "incompatible backbone `{}`: expected feature maps at strides 4 to {stride}, found {found:?}",
                    inner.name
                );
                return Err(Error::incompatible(&name, what));
            }
        };
        let (low_channels, high_channels) = (first.channels, last.channels);
        let aspp = Aspp::new(high_channels, stride, &p.pp("aspp"))?;
        let low = conv_bn(ConvSpec::new(low_channels, LOW, 1), "low_project", p)?;
        let fuse = [
            conv_bn(ConvSpec::new(LOW + WIDTH, WIDTH, 3), "fuse1", p)?,
            conv_bn(ConvSpec::new(WIDTH, WIDTH, 3), "fuse2", p)?,
        ];
        let init = Init::fan_in_uniform(WIDTH);
        let spec = ConvSpec::new(WIDTH, request.classes, 1);
        let classifier = ConvBnAct::with_bias(spec, "classifier", None, Activation::None, (init, init), p)?;
        let mut features = backbone.features().to_vec();
        features.push(FeatureInfo::map("aspp", LOW + WIDTH, 4));
        features.push(FeatureInfo::map("decoder", WIDTH, 4));
        features.push(FeatureInfo::map("logits_low", request.classes, 4));
        features.push(FeatureInfo::map("logits", request.classes, 1));
        let head = vec![p.full("classifier.weight"), p.full("classifier.bias")];
        let (classes, dropout) = (request.classes, variant.dropout);
        Ok(Self { name, features, classes, dropout, backbone, aspp, low, fuse, classifier, head })
    }
}

impl Model for DeepLabV3Plus {
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
        let (_, _, height, width) = images.dims4()?;
        let mut low = None;
        let high = self.backbone.forward(images, ALL_STAGES, tape, &mut |stage, map| {
            if stage == 0 {
                low = Some(map.clone());
            }
        })?;
        let low = low.ok_or_else(|| Error::incompatible(&self.name, "the backbone has no stages"))?;
        let mut x = self.aspp.forward(&high, tape)?; // [B, 256, H/16, W/16]
        x = tape.dropout(&x, self.dropout)?;
        let low = self.low.forward(&low, tape)?; // [B, 48, H/4, W/4]
        x = tape.resize_bilinear(&x, low.size(), false)?;
        x = tape.concat(&[&low, &x])?; // [B, 304, H/4, W/4]
        tape.mark_feature("aspp", &x)?;
        for conv in &self.fuse {
            x = conv.forward(&x, tape)?; // [B, 256, H/4, W/4]
        }
        tape.mark_feature("decoder", &x)?;
        x = self.classifier.forward(&x, tape)?; // [B, classes, H/4, W/4]
        tape.mark_feature("logits_low", &x)?;
        if tape.selects("logits") {
            x = tape.resize_bilinear(&x, (height, width), false)?;
            tape.mark_feature("logits", &x)?;
        }
        Ok(tape.outputs()?.into_iter().collect())
    }

    fn head(&self) -> Vec<String> {
        self.head.clone()
    }
}
