//! MobileNetV2.
//!
//! *Paper*: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
//! Bottlenecks", CVPR 2018, DOI 10.1109/CVPR.2018.00474, Table 2.
//!
//! *Features*: `F1`..`F4` at strides 4, 8, 16 and 32, after the groups of 24, 32, 96 and 320 channels
//! (`blocks.1`, `.2`, `.4`, `.6`, without an activation); `pooled`, the mean after
//! the last 1x1 convolution, which is also the `embedding`; `logits`.
//!
//! *Variants*: `padding`: `symmetric` as in PyTorch, or `same` as in TensorFlow, where a strided
//! 3x3 convolution on an even map pads 0 before and 1 after. The parameters are the same but the
//! function is not, so weights require the padding they were trained with. `output_stride` 32, 16 or 8:
//! later groups are dilated instead of strided.
//!
//! *Names and initialization*: timm's names and widths; convolutions He-normal over the outputs,
//! classifier weights normal with 0.01, its bias zero, batch norm one and zero, as in torchvision.

use candle_core::Tensor;
use serde::Deserialize;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear, Node, Padding};

use crate::backbone::{Backbone, OnStage};
use crate::conv;
use crate::heads::{Classifier, Neck};
use crate::output_stride::OutputStride;

/// One entry per width multiplier.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("mobilenetv2_035", "inverted residuals, width 0.35, 1.7 M parameters"),
    entry("mobilenetv2_050", "inverted residuals, width 0.5, 2.0 M parameters"),
    entry("mobilenetv2_075", "inverted residuals, width 0.75, 2.6 M parameters"),
    entry("mobilenetv2_100", "inverted residuals, width 1.0, 3.5 M parameters"),
    entry("mobilenetv2_140", "inverted residuals, width 1.4, 6.1 M parameters"),
];

const fn entry(name: &'static str, summary: &'static str) -> Entry<ModelBuild> {
    let source = "Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, Table 2";
    Entry { name, summary, source, defaults, build }
}

fn defaults() -> String {
    "output_stride = 32  # Sandler et al. 2018; 16 or 8 for dense prediction\n\
     padding = \"symmetric\"  # PyTorch and timm; \"same\" in TensorFlow\n"
        .into()
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(network(request, p)?))
}

pub(crate) fn backbone(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    Ok(Box::new(Groups::new(request, p)?))
}

/// Returns the width multiplier in percent.
fn width(name: &str) -> Result<usize> {
    match name {
        "mobilenetv2_035" => Ok(35),
        "mobilenetv2_050" => Ok(50),
        "mobilenetv2_075" => Ok(75),
        "mobilenetv2_100" => Ok(100),
        "mobilenetv2_140" => Ok(140),
        other => Err(Error::incompatible(other, "not a MobileNetV2 of this crate")),
    }
}

/// Returns the multiple of 8 nearest to `channels` times the width, at most a tenth below it.
fn scaled(channels: usize, percent: usize) -> usize {
    let hundredths = channels * percent;
    let nearest = ((hundredths + 400) / 800 * 8).max(8);
    if nearest * 1000 < hundredths * 9 { nearest + 8 } else { nearest }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PaddingKind {
    Symmetric,
    Same,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Variant {
    output_stride: usize,
    padding: PaddingKind,
}

impl Default for Variant {
    fn default() -> Self {
        Self { output_stride: 32, padding: PaddingKind::Symmetric }
    }
}

/// Table 2 of the paper: expansion, channels, repeats, stride of the first block.
const GROUPS: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// Features and the index of the group that they follow.
const FEATURES: [(usize, &str); 4] = [(1, "F1"), (2, "F2"), (4, "F3"), (6, "F4")];

/// Inverted residual: expansion, depthwise convolution and linear projection, with a shortcut if the
/// shape is preserved.
#[derive(Debug)]
struct Block {
    expand: Option<ConvBnAct>,
    depthwise: ConvBnAct,
    project: ConvBnAct,
    skip: bool,
}

/// Configuration of a block.
#[derive(Debug, Clone, Copy)]
struct BlockSpec {
    inputs: usize,
    outputs: usize,
    expansion: usize,
    stride: usize,
    dilation: usize,
    same: bool,
}

impl Block {
    fn new(s: BlockSpec, p: &ParamBuilder) -> Result<Self> {
        let hidden = s.inputs * s.expansion;
        let padding = if s.same { Padding::Same } else { Padding::Symmetric(s.dilation) };
        let filter = ConvSpec::new(hidden, hidden, 3)
            .stride(s.stride)
            .dilation(s.dilation)
            .padding(padding)
            .groups(hidden);
        let point = ConvSpec::new(hidden, s.outputs, 1);
        let skip = s.stride == 1 && s.inputs == s.outputs;
        if s.expansion == 1 {
            let depthwise = conv(filter, "conv_dw", "bn1", Activation::Relu6, p)?;
            let project = conv(point, "conv_pw", "bn2", Activation::None, p)?;
            return Ok(Self { expand: None, depthwise, project, skip });
        }
        let expand = conv(ConvSpec::new(s.inputs, hidden, 1), "conv_pw", "bn1", Activation::Relu6, p)?;
        let depthwise = conv(filter, "conv_dw", "bn2", Activation::Relu6, p)?;
        let project = conv(point, "conv_pwl", "bn3", Activation::None, p)?;
        Ok(Self { expand: Some(expand), depthwise, project, skip })
    }

    fn forward(&self, x: Node, tape: &mut Tape) -> Result<Node> {
        let shortcut = self.skip.then(|| x.clone());
        let mut y = x;
        if let Some(expand) = &self.expand {
            y = expand.forward(&y, tape)?;
        }
        y = self.depthwise.forward(&y, tape)?;
        Ok(match shortcut {
            Some(shortcut) => self.project.forward_add(&y, &shortcut, tape)?,
            None => self.project.forward(&y, tape)?,
        })
    }
}

/// The backbone: all layers before the last 1x1 convolution.
#[derive(Debug)]
struct Groups {
    features: Vec<FeatureInfo>,
    stem: ConvBnAct,
    groups: Vec<Vec<Block>>,
}

impl Groups {
    fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let name = &request.name;
        let percent = width(name)?;
        let variant: Variant = from_table(&request.variant, &format!("variant of {name}"))?;
        let same = matches!(variant.padding, PaddingKind::Same);
        let mut inputs = scaled(32, percent);
        let stem = ConvSpec::new(3, inputs, 3).stride(2);
        let stem = if same { stem.padding(Padding::Same) } else { stem };
        let stem = conv(stem, "conv_stem", "bn1", Activation::Relu6, p)?;
        let mut output_stride = OutputStride::new(name, variant.output_stride, 2)?;
        let (mut groups, mut features) = (Vec::new(), Vec::new());
        for (g, (expansion, channels, repeats, stride)) in GROUPS.into_iter().enumerate() {
            let p = p.pp("blocks").pp(g);
            let outputs = scaled(channels, percent);
            let stage_stride = output_stride.stage(stride);
            let mut group = Vec::new();
            for b in 0..repeats {
                let (stride, dilation) = if b == 0 {
                    (stage_stride.stride, stage_stride.first_dilation)
                } else {
                    (1, stage_stride.dilation)
                };
                let spec = BlockSpec { inputs, outputs, expansion, stride, dilation, same };
                group.push(Block::new(spec, &p.pp(b))?);
                inputs = outputs;
            }
            groups.push(group);
            if let Some((_, feature)) = FEATURES.iter().find(|(after, _)| *after == g) {
                features.push(FeatureInfo::map(feature, outputs, output_stride.reached()));
            }
        }
        Ok(Self { features, stem, groups })
    }

    /// Iterates over the groups of the first `depth` stages.
    fn groups(&self, depth: usize) -> impl Iterator<Item = (usize, &Vec<Block>)> {
        let count = match depth {
            0 => 0,
            _ => FEATURES[depth.min(FEATURES.len()) - 1].0 + 1,
        };
        self.groups.iter().enumerate().take(count)
    }
}

impl Backbone for Groups {
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, on_stage: OnStage) -> Result<Node> {
        let mut x = tape.input(images)?; // [B, 3, H, W]
        x = self.stem.forward(&x, tape)?; // [B, 32, H/2, W/2]
        for (g, group) in self.groups(depth) {
            for block in group {
                x = block.forward(x, tape)?;
            }
            if let Some(stage) = FEATURES.iter().position(|(after, _)| *after == g) {
                tape.mark_feature(FEATURES[stage].1, &x)?;
                on_stage(stage, &x);
            }
        }
        Ok(x)
    }
}

/// Builds the model with its parameters under the prefix of `p`.
fn network(request: &ModelSpec, p: &ParamBuilder) -> Result<Classifier> {
    Classifier::new(request, p, backbone, "classifier", |inputs| {
        let hidden = scaled(1280, width(&request.name)?).max(1280);
        let last = conv(ConvSpec::new(inputs, hidden, 1), "conv_head", "bn2", Activation::Relu6, p)?;
        let zero = Some(Init::Constant(0.0));
        let fc = Linear::new(hidden, request.classes, "classifier", Init::Normal(0.01), zero, p)?;
        Ok((Neck::Conv(last), hidden, fc))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_widths_to_multiples_of_eight() {
        let widths = |percent| [32, 16, 24, 32, 64, 96, 160, 320, 1280].map(|c| scaled(c, percent));
        assert_eq!(widths(140), [48, 24, 32, 48, 88, 136, 224, 448, 1792]);
        assert_eq!(widths(100), [32, 16, 24, 32, 64, 96, 160, 320, 1280]);
        assert_eq!(scaled(32, 35), 16); // 8 would be more than a tenth below 11.2
    }
}
