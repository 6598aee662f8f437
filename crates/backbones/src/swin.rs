//! Swin Transformers.
//!
//! *Paper*: Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, "Swin Transformer: Hierarchical Vision
//! Transformer using Shifted Windows", ICCV 2021, DOI 10.1109/ICCV48922.2021.00986, section 3.
//!
//! Patch merging is at the start of a stage, as in timm, so the feature of a stage precedes the merging
//! to the next. If the map of a stage is not larger than the window, the window shrinks to the map and
//! is not shifted. A map whose sides are not multiples of the window is rolled first and then padded
//! with zeros.
//!
//! Each block is a segment of `train.gradient_checkpointing`.
//!
//! *Features*: `F1`..`F4` after each stage (strides 4, 8, 16, 32), before the last norm; `pooled`, the
//! mean of the normalized last map, which is also the `embedding`; `logits`.
//!
//! *Variants*: `img_size`, height and width of the images (one number, or two), by default as in the
//! name; `drop_path`, the rate of the last block, which rises linearly from 0 at the first.
//!
//! *Names and initialization*: timm's names; linear layers and tables normal with 0.02 and zero
//! biases, the patch embedding uniform within `1 / sqrt(fan in)`, as in timm.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::{
    Activation, ConvBnAct, ConvSpec, Init, LayerNorm, Linear, Node, Padding, WindowAttention,
};

use crate::backbone::{Backbone, OnStage};
use crate::heads::{Classifier, Neck};

/// One entry per size, window and image size.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry(
        "swin_tiny_patch4_window7_224",
        "shifted windows of 7, 2 2 6 2 blocks, 28.3 M parameters",
        small_images,
    ),
    entry(
        "swin_small_patch4_window7_224",
        "shifted windows of 7, 2 2 18 2 blocks, 49.6 M parameters",
        small_images,
    ),
    entry(
        "swin_base_patch4_window7_224",
        "shifted windows of 7, 2 2 18 2 blocks, 87.8 M parameters",
        small_images,
    ),
    entry(
        "swin_base_patch4_window12_384",
        "shifted windows of 12, 2 2 18 2 blocks, 87.9 M parameters",
        large_images,
    ),
    entry(
        "swin_large_patch4_window7_224",
        "shifted windows of 7, 2 2 18 2 blocks, 196.5 M parameters",
        small_images,
    ),
    entry(
        "swin_large_patch4_window12_384",
        "shifted windows of 12, 2 2 18 2 blocks, 196.7 M parameters",
        large_images,
    ),
];

const fn entry(name: &'static str, summary: &'static str, defaults: fn() -> String) -> Entry<ModelBuild> {
    let source =
        "Liu et al. 2021, Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, Table 7";
    Entry { name, summary, source, defaults, build }
}

fn small_images() -> String {
    "img_size = 224  # as in the name\n".to_string() + DROP_PATH
}

fn large_images() -> String {
    "img_size = 384  # as in the name\n".to_string() + DROP_PATH
}

const DROP_PATH: &str = "drop_path = 0.1  # timm; Liu et al. 2021 train with 0.2 to 0.5 by size\n";

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(network(request, p)?))
}

pub(crate) fn backbone(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    Ok(Box::new(Stages::new(request, p)?))
}

/// Size of a model.
struct Size {
    width: usize,
    depths: [usize; 4],
    heads: [usize; 4],
    window: usize,
    image: usize,
}

/// Table 7 of the paper.
fn size(name: &str) -> Result<Size> {
    let other = || Error::incompatible(name, "not a Swin Transformer of this crate");
    let (family, rest) = name.strip_prefix("swin_").and_then(|n| n.split_once('_')).ok_or_else(other)?;
    let (window, image) = match rest {
        "patch4_window7_224" => (7, 224),
        "patch4_window12_384" => (12, 384),
        _ => return Err(other()),
    };
    let (width, deep, first) = match family {
        "tiny" => (96, 6, 3),
        "small" => (96, 18, 3),
        "base" => (128, 18, 4),
        "large" => (192, 18, 6),
        _ => return Err(other()),
    };
    Ok(Size { width, depths: [2, 2, deep, 2], heads: [1, 2, 4, 8].map(|m| first * m), window, image })
}

/// Height and width: one number for both, or two.
#[derive(Deserialize)]
#[serde(untagged)]
enum ImageSize {
    Square(usize),
    Sides([usize; 2]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Variant {
    img_size: Option<ImageSize>,
    drop_path: f64,
}

impl Default for Variant {
    fn default() -> Self {
        Self { img_size: None, drop_path: 0.1 }
    }
}

const INIT: Init = Init::Normal(0.02);

fn linear(inputs: usize, outputs: usize, name: &str, p: &ParamBuilder) -> Result<Linear> {
    Ok(Linear::new(inputs, outputs, name, INIT, Some(Init::Constant(0.0)), p)?)
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`: equation (3) of the paper.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attention: WindowAttention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    drop_path: f64,
}

impl Block {
    fn new(
        channels: usize,
        heads: usize,
        (window, shift): ([usize; 2], [usize; 2]),
        drop_path: f64,
        p: &ParamBuilder,
    ) -> Result<Self> {
        let norm1 = LayerNorm::new(channels, "norm1", p)?;
        let attention = WindowAttention::new(channels, heads, window, shift, INIT, &p.pp("attn"))?;
        let norm2 = LayerNorm::new(channels, "norm2", p)?;
        let fc1 = linear(channels, 4 * channels, "mlp.fc1", p)?;
        let fc2 = linear(4 * channels, channels, "mlp.fc2", p)?;
        Ok(Self { norm1, attention, norm2, fc1, fc2, drop_path })
    }

    fn forward(&self, x: &Node, tape: &mut Tape) -> stillhouse_ops::Result<Node> {
        let drops = self.drop_path > 0.0 && tape.mode().trains();
        let mut y = self.norm1.forward(x, tape)?;
        let x = if drops {
            y = self.attention.forward(&y, tape)?;
            y = tape.drop_path(&y, self.drop_path)?;
            tape.add(x, &y)?
        } else {
            self.attention.forward_add(&y, x, tape)?
        };
        let mut y = self.norm2.forward(&x, tape)?;
        y = self.fc1.forward(&y, tape)?;
        y = tape.gelu(&y)?;
        Ok(if drops {
            y = self.fc2.forward(&y, tape)?;
            y = tape.drop_path(&y, self.drop_path)?;
            tape.add(&x, &y)?
        } else {
            self.fc2.forward_add(&y, &x, tape)?
        })
    }
}

/// Patch merging: four neighboring tokens become one of twice the channels.
#[derive(Debug)]
struct Merging {
    norm: LayerNorm,
    reduction: Linear,
}

impl Merging {
    fn new(channels: usize, p: &ParamBuilder) -> Result<Self> {
        let norm = LayerNorm::new(4 * channels, "norm", p)?;
        let reduction = Linear::new(4 * channels, 2 * channels, "reduction", INIT, None, p)?;
        Ok(Self { norm, reduction })
    }

    fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let x = tape.merge_patches(x)?;
        let x = self.norm.forward(&x, tape)?;
        Ok(self.reduction.forward(&x, tape)?)
    }
}

#[derive(Debug)]
struct Stage {
    merging: Option<Merging>,
    blocks: Vec<Arc<Block>>,
}

/// The backbone: all layers before the last norm.
#[derive(Debug)]
struct Stages {
    name: String,
    features: Vec<FeatureInfo>,
    image: [usize; 2],
    patches: ConvBnAct,
    norm: LayerNorm,
    stages: Vec<Stage>,
}

const F: [&str; 4] = ["F1", "F2", "F3", "F4"];
const PATCH: usize = 4;

impl Stages {
    fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let name = request.name.clone();
        let size = size(&name)?;
        let variant: Variant = from_table(&request.variant, &format!("variant of {name}"))?;
        if !(0.0..1.0).contains(&variant.drop_path) {
            let found =
                format!("invalid drop_path: expected 0 <= drop_path < 1, found {}", variant.drop_path);
            return Err(Error::incompatible(&name, found));
        }
        let image = match variant.img_size {
            None => [size.image; 2],
            Some(ImageSize::Square(side)) => [side; 2],
            Some(ImageSize::Sides(sides)) => sides,
        };
        if image.iter().any(|side| !(32..=1 << 14).contains(side)) {
            return Err(Error::incompatible(
                &name,
                format!("invalid img_size: expected 32 to 16384 pixels, found {image:?}"),
            ));
        }
        let fan_in = Init::fan_in_uniform(3 * PATCH * PATCH);
        let spec = ConvSpec::new(3, size.width, PATCH).stride(PATCH).padding(Padding::Symmetric(0));
        let patches =
            ConvBnAct::with_bias(spec, "patch_embed.proj", None, Activation::None, (fan_in, fan_in), p)?;
        let norm = LayerNorm::new(size.width, "patch_embed.norm", p)?;
        let (mut stages, mut features) = (Vec::new(), Vec::new());
        let (mut done, all) = (0, size.depths.iter().sum::<usize>());
        for (i, feature) in F.into_iter().enumerate() {
            let p = p.pp("layers").pp(i);
            let channels = size.width << i;
            let merging = if i == 0 { None } else { Some(Merging::new(channels / 2, &p.pp("downsample"))?) };
            let map = image.map(|side| (side / PATCH) >> i);
            let mut blocks = Vec::new();
            for b in 0..size.depths[i] {
                let layout = window(map, size.window, b % 2 == 1);
                let drop_path = variant.drop_path * done as f64 / (all - 1) as f64;
                let p = p.pp("blocks").pp(b);
                blocks.push(Arc::new(Block::new(channels, size.heads[i], layout, drop_path, &p)?));
                done += 1;
            }
            stages.push(Stage { merging, blocks });
            features.push(FeatureInfo::map(feature, channels, PATCH << i));
        }
        Ok(Self { name, features, image, patches, norm, stages })
    }

    fn check(&self, size: (usize, usize)) -> Result<()> {
        let [height, width] = self.image;
        if size != (height, width) {
            let found = format!(
                "wrong image size: expected {height} x {width}, found {} x {}; set img_size",
                size.0, size.1
            );
            return Err(Error::incompatible(&self.name, found));
        }
        Ok(())
    }
}

/// Returns window and shift for a map.
fn window(map: [usize; 2], window: usize, shifted: bool) -> ([usize; 2], [usize; 2]) {
    let shift = |side: usize| if shifted && side > window { window / 2 } else { 0 };
    (map.map(|side| side.min(window)), map.map(shift))
}

impl Backbone for Stages {
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, on_stage: OnStage) -> Result<Node> {
        let mut x = tape.input(images)?; // [B, 3, H, W]
        self.check(x.size())?;
        x = self.patches.forward(&x, tape)?; // [B, C, H/4, W/4]
        x = self.norm.forward(&x, tape)?;
        for (i, stage) in self.stages.iter().enumerate().take(depth) {
            if let Some(merging) = &stage.merging {
                x = merging.forward(&x, tape)?; // [B, 2C, H/2, W/2]
            }
            for block in &stage.blocks {
                let block = Arc::clone(block);
                x = tape.gradient_checkpoint(&x, move |x, tape| block.forward(x, tape))?;
            }
            tape.mark_feature(F[i], &x)?;
            on_stage(i, &x);
        }
        Ok(x)
    }
}

/// Builds the model with its parameters under the prefix of `p`.
fn network(request: &ModelSpec, p: &ParamBuilder) -> Result<Classifier> {
    Classifier::new(request, p, backbone, "head.fc", |channels| {
        let norm = LayerNorm::new(channels, "norm", p)?;
        let fc = linear(channels, request.classes, "head.fc", p)?;
        Ok((Neck::Norm(norm), channels, fc))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinks_windows_to_the_map() {
        assert_eq!(window([56, 56], 7, true), ([7, 7], [3, 3]));
        assert_eq!(window([56, 56], 7, false), ([7, 7], [0, 0]));
        assert_eq!(window([7, 7], 7, true), ([7, 7], [0, 0]));
        assert_eq!(window([3, 14], 7, true), ([3, 7], [0, 3]));
        assert_eq!(window([24, 12], 12, true), ([12, 12], [6, 0]));
    }
}
