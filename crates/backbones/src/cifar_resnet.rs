//! Residual networks for images of 32 x 32.
//!
//! *Paper*: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
//! DOI 10.1109/CVPR.2016.90, section 4.2. Shortcuts are 1x1 convolutions if the shape changes, as in
//! the distillation literature (Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR
//! 2020, which also defines the wide variants `8x4` and `32x4`).
//!
//! *Features*: `F0` after the stem, `F1`..`F3` after the last ReLU of each stage, `F1_pre`..`F3_pre`
//! before it; `pooled`, the mean of `F3`, which is also the `embedding`; `logits`.
//!
//! *Names and initialization*: those of [`resnet`](crate::resnet).

use candle_core::Tensor;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear, Node};

use crate::backbone::{Backbone, OnStage};
use crate::heads::{Classifier, Neck};
use crate::resnet::{Block, BlockSpec, run_stage};
use crate::{NoVariant, conv};

/// One entry per depth and width.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("cifar_resnet20", "residual network for 32 x 32, 3 3 3 basic blocks, 0.28 M parameters"),
    entry("cifar_resnet32", "residual network for 32 x 32, 5 5 5 basic blocks, 0.47 M parameters"),
    entry("cifar_resnet44", "residual network for 32 x 32, 7 7 7 basic blocks, 0.67 M parameters"),
    entry("cifar_resnet56", "residual network for 32 x 32, 9 9 9 basic blocks, 0.86 M parameters"),
    entry("cifar_resnet110", "residual network for 32 x 32, 18 18 18 basic blocks, 1.7 M parameters"),
    entry("cifar_resnet8x4", "wide residual network for 32 x 32, 1 1 1 basic blocks, 1.2 M parameters"),
    entry("cifar_resnet32x4", "wide residual network for 32 x 32, 5 5 5 basic blocks, 7.4 M parameters"),
];

const fn entry(name: &'static str, summary: &'static str) -> Entry<ModelBuild> {
    let source = "He et al. 2016, Deep Residual Learning for Image Recognition, section 4.2";
    Entry { name, summary, source, defaults: String::new, build }
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(network(request, p)?))
}

pub(crate) fn backbone(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    Ok(Box::new(Stages::new(request, p)?))
}

/// Returns the blocks per stage, and the channels of the stem and the stages.
fn size(name: &str) -> Result<(usize, [usize; 4])> {
    const NARROW: [usize; 4] = [16, 16, 32, 64];
    const WIDE: [usize; 4] = [32, 64, 128, 256];
    match name {
        "cifar_resnet20" => Ok((3, NARROW)),
        "cifar_resnet32" => Ok((5, NARROW)),
        "cifar_resnet44" => Ok((7, NARROW)),
        "cifar_resnet56" => Ok((9, NARROW)),
        "cifar_resnet110" => Ok((18, NARROW)),
        "cifar_resnet8x4" => Ok((1, WIDE)),
        "cifar_resnet32x4" => Ok((5, WIDE)),
        other => Err(Error::incompatible(other, "not a CIFAR ResNet of this crate")),
    }
}

/// The backbone: stem and stages.
#[derive(Debug)]
struct Stages {
    features: Vec<FeatureInfo>,
    stem: ConvBnAct,
    stages: Vec<Vec<Block>>,
}

const F: [&str; 3] = ["F1", "F2", "F3"];
const F_PRE: [&str; 3] = ["F1_pre", "F2_pre", "F3_pre"];

impl Stages {
    fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let (blocks, [mut inputs, widths @ ..]) = size(&request.name)?;
        let NoVariant {} = from_table(&request.variant, &format!("variant of {}", request.name))?;
        let stem = conv(ConvSpec::new(3, inputs, 3), "conv1", "bn1", Activation::Relu, p)?;
        let (mut stages, mut features) = (Vec::new(), vec![FeatureInfo::map("F0", inputs, 1)]);
        for (i, width) in widths.into_iter().enumerate() {
            let p = p.pp(format!("layer{}", i + 1));
            let mut stage = Vec::new();
            for b in 0..blocks {
                let stride = if b == 0 && i > 0 { 2 } else { 1 };
                let spec =
                    BlockSpec { inputs, width, stride, first_dilation: 1, dilation: 1, stride_in_1x1: false };
                stage.push(Block::basic(spec, &p.pp(b))?);
                inputs = width;
            }
            stages.push(stage);
            features.push(FeatureInfo::map(F[i], inputs, 1 << i));
            features.push(FeatureInfo::map(F_PRE[i], inputs, 1 << i));
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
        x = self.stem.forward(&x, tape)?; // [B, 16, H, W]
        tape.mark_feature("F0", &x)?;
        for (i, stage) in self.stages.iter().enumerate().take(depth) {
            x = run_stage(stage, F_PRE[i], x, tape)?;
            tape.mark_feature(F[i], &x)?;
            on_stage(i, &x);
        }
        Ok(x)
    }
}

/// Builds the model with its parameters under the prefix of `p`.
fn network(request: &ModelSpec, p: &ParamBuilder) -> Result<Classifier> {
    Classifier::new(request, p, backbone, "fc", |inputs| {
        let init = Init::fan_in_uniform(inputs);
        let fc = Linear::new(inputs, request.classes, "fc", init, Some(init), p)?;
        Ok((Neck::None, inputs, fc))
    })
}
