//! Residual networks.
//!
//! *Paper*: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
//! DOI 10.1109/CVPR.2016.90, Table 1.
//!
//! *Taps*: `F1`..`F4` after the last ReLU of each stage, `F1_pre`..`F4_pre` the sums before it;
//! `pooled`, the mean of `F4`, which is also the `embedding`; `logits`.
//!
//! *Variants*: `output_stride` 32, 16 or 8: the last stages keep their resolution, their later
//! convolutions are dilated (Chen et al., "Rethinking Atrous Convolution", 2017). `stride_in_1x1`
//! (networks of bottlenecks): the stride sits in the first 1x1 convolution, as in the paper and in
//! Keras, and not in the 3x3 as in PyTorch and timm. The parameters are the same, the function is
//! not: weights must run in the arrangement they were trained in.
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

use crate::backbone::{Backbone, See};
use crate::classifier::{Classifier, Neck};
use crate::conv;
use crate::count::Work;
use crate::dilate::Dilate;

const SOURCE: &str = "He et al. 2016, Deep Residual Learning for Image Recognition, Table 1";

/// One row for each depth.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    row("resnet18", "residual network, 2 2 2 2 basic blocks, 11.7 M parameters", basic_defaults),
    row("resnet34", "residual network, 3 4 6 3 basic blocks, 21.8 M parameters", basic_defaults),
    row("resnet50", "residual network, 3 4 6 3 bottlenecks, 25.6 M parameters", bottleneck_defaults),
    row("resnet101", "residual network, 3 4 23 3 bottlenecks, 44.5 M parameters", bottleneck_defaults),
    row("resnet152", "residual network, 3 8 36 3 bottlenecks, 60.2 M parameters", bottleneck_defaults),
];

const fn row(name: &'static str, summary: &'static str, defaults: fn() -> String) -> Entry<ModelBuild> {
    Entry { name, summary, source: SOURCE, defaults, build }
}

fn basic_defaults() -> String {
    "output_stride = 32  # He et al. 2016; 16 or 8 for dense prediction\n".into()
}

fn bottleneck_defaults() -> String {
    basic_defaults() + "stride_in_1x1 = false  # PyTorch and timm; true in He et al. 2016 and Keras\n"
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(network(request, p)?))
}

pub(crate) fn work(request: &ModelSpec, p: &ParamBuilder, size: (usize, usize)) -> Result<Work> {
    network(request, p)?.work(size)
}

pub(crate) fn body(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    Ok(Box::new(Stages::new(request, p)?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Basic,
    Bottleneck,
}

impl Kind {
    /// Channels that leave a block, as a multiple of its width.
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
        other => Err(Error::incompatible(other, "is no residual network of this crate")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Variant {
    output_stride: usize,
    stride_in_1x1: bool,
}

impl Default for Variant {
    fn default() -> Self {
        Self { output_stride: 32, stride_in_1x1: false }
    }
}

/// A 3x3 convolution that keeps the map's size at stride 1.
fn three(inputs: usize, outputs: usize, dilation: usize) -> ConvSpec {
    ConvSpec::new(inputs, outputs, 3).dilation(dilation).padding(Padding::Symmetric(dilation))
}

/// `relu(F(x) + x)`, equation (1) of the paper, or (2) with a projection of the shortcut.
#[derive(Debug)]
pub(crate) struct Block {
    inner: Vec<ConvBnAct>,
    last: ConvBnAct,
    projection: Option<ConvBnAct>,
}

/// Where a block stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) inputs: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// Dilation of the 3x3 convolution that may have the stride.
    pub(crate) first: usize,
    /// Dilation of a basic block's second convolution.
    pub(crate) second: usize,
    pub(crate) stride_in_1x1: bool,
}

impl Block {
    /// Two 3x3 convolutions (Fig. 5, left).
    pub(crate) fn basic(at: Place, p: &ParamBuilder) -> Result<Self> {
        let inner = vec![conv(
            three(at.inputs, at.width, at.first).stride(at.stride),
            "conv1",
            "bn1",
            Activation::Relu,
            p,
        )?];
        let last = conv(three(at.width, at.width, at.second), "conv2", "bn2", Activation::Relu, p)?;
        Ok(Self { inner, last, projection: projection(at, at.width, p)? })
    }

    /// 1x1, 3x3, 1x1 (Fig. 5, right).
    fn bottleneck(at: Place, p: &ParamBuilder) -> Result<Self> {
        let outputs = at.width * Kind::Bottleneck.expansion();
        let (in_1x1, in_3x3) = if at.stride_in_1x1 { (at.stride, 1) } else { (1, at.stride) };
        let inner = vec![
            conv(ConvSpec::new(at.inputs, at.width, 1).stride(in_1x1), "conv1", "bn1", Activation::Relu, p)?,
            conv(three(at.width, at.width, at.first).stride(in_3x3), "conv2", "bn2", Activation::Relu, p)?,
        ];
        let last = conv(ConvSpec::new(at.width, outputs, 1), "conv3", "bn3", Activation::Relu, p)?;
        Ok(Self { inner, last, projection: projection(at, outputs, p)? })
    }

    fn forward(&self, x: Node, tape: &mut Tape) -> Result<Node> {
        self.ending(&self.last, x, tape)
    }

    /// The sum before the ReLU.
    fn sum(&self, x: Node, tape: &mut Tape) -> Result<Node> {
        self.ending(&self.last.with_activation(Activation::None), x, tape)
    }

    fn ending(&self, last: &ConvBnAct, x: Node, tape: &mut Tape) -> Result<Node> {
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

    pub(crate) fn work(&self, size: (usize, usize), work: &mut Work) -> Result<(usize, usize)> {
        if let Some(projection) = &self.projection {
            work.conv_bn(projection, size)?;
        }
        let size = self.inner.iter().try_fold(size, |size, conv| work.conv_bn(conv, size))?;
        work.conv_bn(&self.last, size)
    }
}

/// Runs a stage. Its last sum is made apart from the ReLU only if it is wanted as a tap.
pub(crate) fn run(stage: &[Block], sum: &str, mut x: Node, tape: &mut Tape) -> Result<Node> {
    for (i, block) in stage.iter().enumerate() {
        x = if i + 1 == stage.len() && tape.selects(sum) {
            let before = block.sum(x, tape)?;
            tape.mark_feature(sum, &before)?;
            tape.relu(&before)?
        } else {
            block.forward(x, tape)?
        };
    }
    Ok(x)
}

/// The shortcut's 1x1 convolution where the shape changes (option B of the paper).
fn projection(at: Place, outputs: usize, p: &ParamBuilder) -> Result<Option<ConvBnAct>> {
    if at.stride == 1 && at.inputs == outputs {
        return Ok(None);
    }
    let spec = ConvSpec::new(at.inputs, outputs, 1).stride(at.stride);
    conv(spec, "downsample.0", "downsample.1", Activation::None, p).map(Some)
}

/// Everything before the average.
#[derive(Debug)]
struct Stages {
    name: String,
    taps: Vec<FeatureInfo>,
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
                "stride_in_1x1 is for networks of bottlenecks: basic blocks have no 1x1",
            ));
        }
        let stem = conv(ConvSpec::new(3, 64, 7).stride(2), "conv1", "bn1", Activation::Relu, p)?;
        let mut dilate = Dilate::new(name, variant.output_stride, 4)?;
        let (mut stages, mut taps, mut inputs) = (Vec::new(), Vec::new(), 64);
        for (i, blocks) in depths.into_iter().enumerate() {
            let p = p.pp(format!("layer{}", i + 1));
            let width = 64 << i;
            let steps = dilate.stage(if i == 0 { 1 } else { 2 });
            let mut stage = Vec::new();
            for b in 0..blocks {
                let (stride, first) = if b == 0 { (steps.stride, steps.first) } else { (1, steps.rest) };
                let stride_in_1x1 = variant.stride_in_1x1;
                let at = Place { inputs, width, stride, first, second: steps.rest, stride_in_1x1 };
                stage.push(match kind {
                    Kind::Basic => Block::basic(at, &p.pp(b))?,
                    Kind::Bottleneck => Block::bottleneck(at, &p.pp(b))?,
                });
                inputs = width * kind.expansion();
            }
            stages.push(stage);
            taps.push(FeatureInfo::map(F[i], inputs, dilate.reached()));
            taps.push(FeatureInfo::map(F_PRE[i], inputs, dilate.reached()));
        }
        Ok(Self { name: name.clone(), taps, stem, stages })
    }
}

impl Backbone for Stages {
    fn features(&self) -> &[FeatureInfo] {
        &self.taps
    }

    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, see: See) -> Result<Node> {
        let mut x = tape.input(images)?; // [B, 3, H, W]
        x = self.stem.forward(&x, tape)?; // [B, 64, H/2, W/2]
        x = tape.max_pool(&x, 3, 2, 1)?; // [B, 64, H/4, W/4]
        for (i, stage) in self.stages.iter().enumerate().take(depth) {
            x = run(stage, F_PRE[i], x, tape)?;
            tape.mark_feature(F[i], &x)?;
            see(i, &x);
        }
        Ok(x)
    }

    fn work(&self, size: (usize, usize), depth: usize, work: &mut Work) -> Result<Vec<(usize, usize)>> {
        work.check(&self.name, size)?;
        let (height, width) = work.conv_bn(&self.stem, size)?;
        let mut size = (height.div_ceil(2), width.div_ceil(2)); // the max pool
        let mut sizes = Vec::new();
        for stage in self.stages.iter().take(depth) {
            size = stage.iter().try_fold(size, |size, block| block.work(size, work))?;
            sizes.push(size);
        }
        Ok(sizes)
    }
}

const F: [&str; 4] = ["F1", "F2", "F3", "F4"];
const F_PRE: [&str; 4] = ["F1_pre", "F2_pre", "F3_pre", "F4_pre"];

/// The network that the request names, its parameters below `p`.
fn network(request: &ModelSpec, p: &ParamBuilder) -> Result<Classifier> {
    Classifier::new(request, p, body, "fc", |inputs| {
        let init = Init::fan_in_uniform(inputs);
        let fc = Linear::new(inputs, request.classes, "fc", init, Some(init), p)?;
        Ok((Neck::None, inputs, fc))
    })
}
