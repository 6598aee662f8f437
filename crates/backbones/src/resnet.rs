//! Residual networks.
//!
//! *Paper*: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
//! DOI 10.1109/CVPR.2016.90, Table 1.
//!
//! *Features*: `F1`..`F4` after the last ReLU of each stage, `F1_pre`..`F4_pre` before it; `pooled`, the
//! mean of `F4`, which is also the `embedding`; `logits`.
//!
//! *Variants*: `output_stride` 32, 16 or 8: the last stages are dilated instead of strided (Chen et
//! al., "Rethinking Atrous Convolution", 2017). `stride_in_1x1` (bottlenecks only): the first 1x1
//! convolution is strided, as in the paper and in Keras, instead of the 3x3 convolution, as in PyTorch
//! and timm. The parameters are the same but the function is not, so weights require the variant they
//! were trained with. `zero_init_last`: the last batch norm of each block starts at zero, so that blocks
//! start as the identity (Goyal et al., "Accurate, Large Minibatch SGD", 2017), as in timm.
//!
//! *Names and initialization*: timm's names; convolutions He-normal over the outputs, the
//! classifier uniform within `1 / sqrt(inputs)`, batch norm one and zero, as in torchvision.

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

const SOURCE: &str = "He et al. 2016, Deep Residual Learning for Image Recognition, Table 1";

/// One entry per depth.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("resnet18", "residual network, 2 2 2 2 basic blocks, 11.7 M parameters", basic_defaults),
    entry("resnet34", "residual network, 3 4 6 3 basic blocks, 21.8 M parameters", basic_defaults),
    entry("resnet50", "residual network, 3 4 6 3 bottlenecks, 25.6 M parameters", bottleneck_defaults),
    entry("resnet101", "residual network, 3 4 23 3 bottlenecks, 44.5 M parameters", bottleneck_defaults),
    entry("resnet152", "residual network, 3 8 36 3 bottlenecks, 60.2 M parameters", bottleneck_defaults),
];

const fn entry(name: &'static str, summary: &'static str, defaults: fn() -> String) -> Entry<ModelBuild> {
    Entry { name, summary, source: SOURCE, defaults, build }
}

fn basic_defaults() -> String {
    "output_stride = 32  # He et al. 2016; 16 or 8 for dense prediction\n\
     zero_init_last = false  # torchvision; true in timm\n"
        .into()
}

fn bottleneck_defaults() -> String {
    basic_defaults() + "stride_in_1x1 = false  # PyTorch and timm; true in He et al. 2016 and Keras\n"
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(network(request, p)?))
}

pub(crate) fn backbone(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    Ok(Box::new(Stages::new(request, p)?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Basic,
    Bottleneck,
}

impl Kind {
    /// Output channels of a block as a multiple of its width.
    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// Table 1 of the paper.
fn depth(name: &str) -> Result<(Kind, [usize; 4])> {
    match name {
        "resnet18" => Ok((Kind::Basic, [2, 2, 2, 2])),
        "resnet34" => Ok((Kind::Basic, [3, 4, 6, 3])),
        "resnet50" => Ok((Kind::Bottleneck, [3, 4, 6, 3])),
        "resnet101" => Ok((Kind::Bottleneck, [3, 4, 23, 3])),
        "resnet152" => Ok((Kind::Bottleneck, [3, 8, 36, 3])),
        other => Err(Error::incompatible(other, "not a ResNet of this crate")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Variant {
    output_stride: usize,
    stride_in_1x1: bool,
    zero_init_last: bool,
}

impl Default for Variant {
    fn default() -> Self {
        Self { output_stride: 32, stride_in_1x1: false, zero_init_last: false }
    }
}

/// Specifies a 3x3 convolution that preserves the size of the map at stride 1.
fn conv3x3(inputs: usize, outputs: usize, dilation: usize) -> ConvSpec {
    ConvSpec::new(inputs, outputs, 3).dilation(dilation).padding(Padding::Symmetric(dilation))
}

/// `relu(F(x) + x)`, equation (1) of the paper, or (2) with a projection of the shortcut.
#[derive(Debug)]
pub(crate) struct Block {
    inner: Vec<ConvBnAct>,
    last: ConvBnAct,
    projection: Option<ConvBnAct>,
}

/// Configuration of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSpec {
    pub(crate) inputs: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// Dilation of the 3x3 convolution that may be strided.
    pub(crate) first_dilation: usize,
    /// Dilation of a basic block's second convolution.
    pub(crate) dilation: usize,
    pub(crate) stride_in_1x1: bool,
}

impl Block {
    /// Builds a basic block: two 3x3 convolutions (Fig. 5, left).
    pub(crate) fn basic(spec: BlockSpec, p: &ParamBuilder) -> Result<Self> {
        let inner = vec![conv(
            conv3x3(spec.inputs, spec.width, spec.first_dilation).stride(spec.stride),
            "conv1",
            "bn1",
            Activation::Relu,
            p,
        )?];
        let last = conv(conv3x3(spec.width, spec.width, spec.dilation), "conv2", "bn2", Activation::Relu, p)?;
        Ok(Self { inner, last, projection: projection(spec, spec.width, p)? })
    }

    /// Builds a bottleneck: 1x1, 3x3 and 1x1 convolutions (Fig. 5, right).
    fn bottleneck(spec: BlockSpec, p: &ParamBuilder) -> Result<Self> {
        let outputs = spec.width * Kind::Bottleneck.expansion();
        let (in_1x1, in_3x3) = if spec.stride_in_1x1 { (spec.stride, 1) } else { (1, spec.stride) };
        let inner = vec![
            conv(
                ConvSpec::new(spec.inputs, spec.width, 1).stride(in_1x1),
                "conv1",
                "bn1",
                Activation::Relu,
                p,
            )?,
            conv(
                conv3x3(spec.width, spec.width, spec.first_dilation).stride(in_3x3),
                "conv2",
                "bn2",
                Activation::Relu,
                p,
            )?,
        ];
        let last = conv(ConvSpec::new(spec.width, outputs, 1), "conv3", "bn3", Activation::Relu, p)?;
        Ok(Self { inner, last, projection: projection(spec, outputs, p)? })
    }

    fn forward(&self, x: Node, tape: &mut Tape) -> Result<Node> {
        self.forward_to(&self.last, x, tape)
    }

    /// Returns the sum before the last ReLU.
    fn forward_pre_activation(&self, x: Node, tape: &mut Tape) -> Result<Node> {
        self.forward_to(&self.last.with_activation(Activation::None), x, tape)
    }

    fn forward_to(&self, last: &ConvBnAct, x: Node, tape: &mut Tape) -> Result<Node> {
        let shortcut = match &self.projection {
            Some(projection) => projection.forward(&x, tape)?,
            None => x.clone(),
        };
        let mut y = x;
        for conv in &self.inner {
            y = conv.forward(&y, tape)?;
        }
        Ok(last.forward_add(&y, &shortcut, tape)?)
    }
}

/// Runs a stage. Its last ReLU is a separate layer only if the feature `pre_activation` is selected.
pub(crate) fn run_stage(stage: &[Block], pre_activation: &str, mut x: Node, tape: &mut Tape) -> Result<Node> {
    for (i, block) in stage.iter().enumerate() {
        x = if i + 1 == stage.len() && tape.selects(pre_activation) {
            let before = block.forward_pre_activation(x, tape)?;
            tape.mark_feature(pre_activation, &before)?;
            tape.relu(&before)?
        } else {
            block.forward(x, tape)?
        };
    }
    Ok(x)
}

/// Builds the 1x1 convolution of a shortcut whose shape changes (option B of the paper).
fn projection(spec: BlockSpec, outputs: usize, p: &ParamBuilder) -> Result<Option<ConvBnAct>> {
    if spec.stride == 1 && spec.inputs == outputs {
        return Ok(None);
    }
    let conv1x1 = ConvSpec::new(spec.inputs, outputs, 1).stride(spec.stride);
    conv(conv1x1, "downsample.0", "downsample.1", Activation::None, p).map(Some)
}

/// The backbone: stem and stages.
#[derive(Debug)]
struct Stages {
    features: Vec<FeatureInfo>,
    stem: ConvBnAct,
    stages: Vec<Vec<Block>>,
}

impl Stages {
    fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let name = &request.name;
        let (kind, depths) = depth(name)?;
        let variant: Variant = from_table(&request.variant, &format!("variant of {name}"))?;
        if variant.stride_in_1x1 && kind == Kind::Basic {
            return Err(Error::incompatible(
                name,
                "invalid stride_in_1x1: basic blocks have no 1x1 convolution; it requires resnet50, 101 or 152",
            ));
        }
        let stem = conv(ConvSpec::new(3, 64, 7).stride(2), "conv1", "bn1", Activation::Relu, p)?;
        let mut output_stride = OutputStride::new(name, variant.output_stride, 4)?;
        let (mut stages, mut features, mut inputs) = (Vec::new(), Vec::new(), 64);
        for (i, blocks) in depths.into_iter().enumerate() {
            let p = p.pp(format!("layer{}", i + 1));
            let width = 64 << i;
            let stage_stride = output_stride.stage(if i == 0 { 1 } else { 2 });
            let mut stage = Vec::new();
            for b in 0..blocks {
                let (stride, first_dilation) = if b == 0 {
                    (stage_stride.stride, stage_stride.first_dilation)
                } else {
                    (1, stage_stride.dilation)
                };
                let stride_in_1x1 = variant.stride_in_1x1;
                let spec = BlockSpec {
                    inputs,
                    width,
                    stride,
                    first_dilation,
                    dilation: stage_stride.dilation,
                    stride_in_1x1,
                };
                let p = p.pp(b);
                let mut block = match kind {
                    Kind::Basic => Block::basic(spec, &p)?,
                    Kind::Bottleneck => Block::bottleneck(spec, &p)?,
                };
                if variant.zero_init_last {
                    block.last = block.last.with_zero_scale(&p)?;
                }
                stage.push(block);
                inputs = width * kind.expansion();
            }
            stages.push(stage);
            features.push(FeatureInfo::map(F[i], inputs, output_stride.reached()));
            features.push(FeatureInfo::map(F_PRE[i], inputs, output_stride.reached()));
        }
        Ok(Self { features, stem, stages })
    }
}

impl Backbone for Stages {
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, on_stage: OnStage) -> Result<Node> {
        let mut x = tape.input(images)?; // [B, 3, H, W]
        x = self.stem.forward(&x, tape)?; // [B, 64, H/2, W/2]
        x = tape.max_pool(&x, 3, 2, 1)?; // [B, 64, H/4, W/4]
        for (i, stage) in self.stages.iter().enumerate().take(depth) {
            x = run_stage(stage, F_PRE[i], x, tape)?;
            tape.mark_feature(F[i], &x)?;
            on_stage(i, &x);
        }
        Ok(x)
    }
}

const F: [&str; 4] = ["F1", "F2", "F3", "F4"];
const F_PRE: [&str; 4] = ["F1_pre", "F2_pre", "F3_pre", "F4_pre"];

/// Builds the model with its parameters under the prefix of `p`.
fn network(request: &ModelSpec, p: &ParamBuilder) -> Result<Classifier> {
    Classifier::new(request, p, backbone, "fc", |inputs| {
        let init = Init::fan_in_uniform(inputs);
        let fc = Linear::new(inputs, request.classes, "fc", init, Some(init), p)?;
        Ok((Neck::None, inputs, fc))
    })
}
