//! MobileNetV2.
//!
//! *Paper*: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
//! Bottlenecks", CVPR 2018, DOI 10.1109/CVPR.2018.00474, Table 2.
//!
//! *Taps*: `F1`..`F4` at strides 4, 8, 16 and 32, after the groups of 24, 32, 96 and 320 channels
//! (`blocks.1`, `.2`, `.4`, `.6`; these are linear, no activation follows); `pooled`, the mean after
//! the last 1x1 convolution, which is also the `embedding`; `logits`.
//!
//! *Variants*: `padding`: `symmetric` as in PyTorch, or `same` as in TensorFlow, where a strided
//! 3x3 convolution on an even map pads 0 before and 1 after. The parameters are the same, the
//! function is not: weights must run with the padding they were trained with. `output_stride` 32,
//! 16 or 8: later groups keep their resolution and are dilated.
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

use crate::backbone::{Backbone, See};
use crate::classifier::{Classifier, Neck};
use crate::conv;
use crate::count::Work;
use crate::dilate::Dilate;

/// One row for each width multiplier.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    row("mobilenetv2_035", "inverted residuals, width 0.35, 1.7 M parameters"),
    row("mobilenetv2_050", "inverted residuals, width 0.5, 2.0 M parameters"),
    row("mobilenetv2_075", "inverted residuals, width 0.75, 2.6 M parameters"),
    row("mobilenetv2_100", "inverted residuals, width 1.0, 3.5 M parameters"),
    row("mobilenetv2_140", "inverted residuals, width 1.4, 6.1 M parameters"),
];

const fn row(name: &'static str, summary: &'static str) -> Entry<ModelBuild> {
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

pub(crate) fn work(request: &ModelSpec, p: &ParamBuilder, size: (usize, usize)) -> Result<Work> {
    network(request, p)?.work(size)
}

pub(crate) fn body(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    Ok(Box::new(Groups::new(request, p)?))
}

/// Width multiplier in percent.
fn width(name: &str) -> Result<usize> {
    match name {
        "mobilenetv2_035" => Ok(35),
        "mobilenetv2_050" => Ok(50),
        "mobilenetv2_075" => Ok(75),
        "mobilenetv2_100" => Ok(100),
        "mobilenetv2_140" => Ok(140),
        other => Err(Error::incompatible(other, "is no MobileNetV2 of this crate")),
    }
}

/// The multiple of 8 suggest to `channels` times the width, not more than a tenth below it.
fn scaled(channels: usize, percent: usize) -> usize {
    let hundredths = channels * percent;
    let suggest = ((hundredths + 400) / 800 * 8).max(8);
    if suggest * 1000 < hundredths * 9 { suggest + 8 } else { suggest }
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

/// Table 2 of the paper: expansion, channels, repeats, stride of the first.
const GROUPS: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// Where the taps sit: after which group.
const TAPS: [(usize, &str); 4] = [(1, "F1"), (2, "F2"), (4, "F3"), (6, "F4")];

/// Expand, filter each channel, project without activation; add the input where shapes agree.
#[derive(Debug)]
struct Block {
    expand: Option<ConvBnAct>,
    depthwise: ConvBnAct,
    project: ConvBnAct,
    skip: bool,
}

/// What a block does to the map.
#[derive(Debug, Clone, Copy)]
struct Shape {
    inputs: usize,
    outputs: usize,
    expansion: usize,
    stride: usize,
    dilation: usize,
    same: bool,
}

impl Block {
    fn new(s: Shape, p: &ParamBuilder) -> Result<Self> {
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

    fn work(&self, size: (usize, usize), work: &mut Work) -> Result<(usize, usize)> {
        let size = self.expand.iter().try_fold(size, |size, expand| work.conv_bn(expand, size))?;
        let size = work.conv_bn(&self.depthwise, size)?;
        work.conv_bn(&self.project, size)
    }
}

/// Everything before the last 1x1 convolution.
#[derive(Debug)]
struct Groups {
    name: String,
    taps: Vec<FeatureInfo>,
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
        let mut dilate = Dilate::new(name, variant.output_stride, 2)?;
        let (mut groups, mut taps) = (Vec::new(), Vec::new());
        for (g, (expansion, channels, repeats, stride)) in GROUPS.into_iter().enumerate() {
            let p = p.pp("blocks").pp(g);
            let outputs = scaled(channels, percent);
            let steps = dilate.stage(stride);
            let mut group = Vec::new();
            for b in 0..repeats {
                let (stride, dilation) = if b == 0 { (steps.stride, steps.first) } else { (1, steps.rest) };
                let shape = Shape { inputs, outputs, expansion, stride, dilation, same };
                group.push(Block::new(shape, &p.pp(b))?);
                inputs = outputs;
            }
            groups.push(group);
            if let Some((_, tap)) = TAPS.iter().find(|(after, _)| *after == g) {
                taps.push(FeatureInfo::map(tap, outputs, dilate.reached()));
            }
        }
        Ok(Self { name: name.clone(), taps, stem, groups })
    }

    /// The groups of the first `depth` stages.
    fn groups(&self, depth: usize) -> impl Iterator<Item = (usize, &Vec<Block>)> {
        let count = match depth {
            0 => 0,
            _ => TAPS[depth.min(TAPS.len()) - 1].0 + 1,
        };
        self.groups.iter().enumerate().take(count)
    }
}

impl Backbone for Groups {
    fn features(&self) -> &[FeatureInfo] {
        &self.taps
    }

    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, see: See) -> Result<Node> {
        let mut x = tape.input(images)?; // [B, 3, H, W]
        x = self.stem.forward(&x, tape)?; // [B, 32, H/2, W/2]
        for (g, group) in self.groups(depth) {
            for block in group {
                x = block.forward(x, tape)?;
            }
            if let Some(stage) = TAPS.iter().position(|(after, _)| *after == g) {
                tape.mark_feature(TAPS[stage].1, &x)?;
                see(stage, &x);
            }
        }
        Ok(x)
    }

    fn work(&self, size: (usize, usize), depth: usize, work: &mut Work) -> Result<Vec<(usize, usize)>> {
        work.check(&self.name, size)?;
        let mut size = work.conv_bn(&self.stem, size)?;
        let mut sizes = Vec::new();
        for (g, group) in self.groups(depth) {
            size = group.iter().try_fold(size, |size, block| block.work(size, work))?;
            if TAPS.iter().any(|(after, _)| *after == g) {
                sizes.push(size);
            }
        }
        Ok(sizes)
    }
}

/// The network that the request names, its parameters below `p`.
fn network(request: &ModelSpec, p: &ParamBuilder) -> Result<Classifier> {
    Classifier::new(request, p, body, "classifier", |inputs| {
        let features = scaled(1280, width(&request.name)?).max(1280);
        let last = conv(ConvSpec::new(inputs, features, 1), "conv_head", "bn2", Activation::Relu6, p)?;
        let zero = Some(Init::Constant(0.0));
        let fc = Linear::new(features, request.classes, "classifier", Init::Normal(0.01), zero, p)?;
        Ok((Neck::Conv(last), features, fc))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_multiples_of_eight() {
        let widths = |percent| [32, 16, 24, 32, 64, 96, 160, 320, 1280].map(|c| scaled(c, percent));
        assert_eq!(widths(140), [48, 24, 32, 48, 88, 136, 224, 448, 1792]);
        assert_eq!(widths(100), [32, 16, 24, 32, 64, 96, 160, 320, 1280]);
        assert_eq!(scaled(32, 35), 16); // 8 would be more than a tenth below 11.2
    }
}
