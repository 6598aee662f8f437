//! Vision transformers, as in timm.
//!
//! *Papers*: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929; tiny
//! and small: Touvron et al., "Training data-efficient image transformers", ICML 2021, arXiv
//! 2012.12877, whose weights without the distillation token are compatible.
//!
//! *Features*: `F4`, the patches after the last block and norm, and `pooled`, their mean; `embedding`, the
//! class token; `logits`.

use std::sync::Arc;

use candle_core::{IndexOp, Module, Result};
use candle_nn::VarBuilder;
use candle_transformers::models::vit::{Config, Embeddings, Encoder};
use stillhouse_core::model::{FeatureInfo, ModelBuild};
use stillhouse_core::registry::Entry;

use super::{Family, Forward, Value, entry};

const SOURCE: &str = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words";
const SMALL: &str = "Touvron et al. 2021, Training data-efficient image transformers";

pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("vit_tiny_patch16_224", "frozen teacher of candle-transformers, 5.7 M parameters", SMALL),
    entry("vit_small_patch16_224", "frozen teacher of candle-transformers, 22.1 M parameters", SMALL),
    entry("vit_base_patch16_224", "frozen teacher of candle-transformers, 86.6 M parameters", SOURCE),
    entry("vit_large_patch16_224", "frozen teacher of candle-transformers, 304.3 M parameters", SOURCE),
    entry("vit_tiny_patch16_384", "frozen teacher of candle-transformers, 5.8 M parameters", SMALL),
    entry("vit_small_patch16_384", "frozen teacher of candle-transformers, 22.2 M parameters", SMALL),
    entry("vit_base_patch16_384", "frozen teacher of candle-transformers, 86.9 M parameters", SOURCE),
    entry("vit_large_patch16_384", "frozen teacher of candle-transformers, 304.7 M parameters", SOURCE),
];

#[derive(Debug)]
struct Vit {
    depth: usize,
    width: usize,
    heads: usize,
    /// Side of the images in pixels.
    side: usize,
}

pub(super) fn family(name: &str) -> Option<Arc<dyn Family>> {
    let (size, side) = name.strip_prefix("vit_")?.split_once("_patch16_")?;
    let (depth, width, heads) = sizes(size)?;
    Some(Arc::new(Vit { depth, width, heads, side: side.parse().ok()? }))
}

/// Returns blocks, width and heads.
pub(super) fn sizes(size: &str) -> Option<(usize, usize, usize)> {
    Some(match size {
        "tiny" => (12, 192, 3),
        "small" => (12, 384, 6),
        "base" => (12, 768, 12),
        "large" => (24, 1024, 16),
        _ => return None,
    })
}

/// Returns the number of positions at which a weight is used, for a number of patches.
pub(super) fn positions(name: &str, patches: u64) -> u64 {
    if name.starts_with("blocks.") {
        1 + patches
    } else if name.starts_with("patch_embed.") {
        patches
    } else {
        1
    }
}

const PATCH: usize = 16;

impl Vit {
    fn patches(&self) -> usize {
        (self.side / PATCH).pow(2)
    }
}

/// Maps candle's names, which are Hugging Face's, to timm's.
fn timm(name: &str) -> Option<Value> {
    let named = |name: &str| Some(Value::Named(name.into()));
    match name {
        "embeddings.cls_token" => return named("cls_token"),
        "embeddings.position_embeddings" => return named("pos_embed"),
        _ => {}
    }
    for (from, to) in
        [("embeddings.patch_embeddings.projection.", "patch_embed.proj."), ("layernorm.", "norm.")]
    {
        if let Some(part) = name.strip_prefix(from) {
            return named(&format!("{to}{part}"));
        }
    }
    let (block, rest) = name.strip_prefix("encoder.layer.")?.split_once('.')?;
    for (from, to) in [
        ("attention.attention.query.", 0),
        ("attention.attention.key.", 1),
        ("attention.attention.value.", 2),
    ] {
        if let Some(part) = rest.strip_prefix(from) {
            return Some(Value::Rows(format!("blocks.{block}.attn.qkv.{part}"), to, 3));
        }
    }
    for (from, to) in [
        ("attention.output.dense.", "attn.proj."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
    ] {
        if let Some(part) = rest.strip_prefix(from) {
            return named(&format!("blocks.{block}.{to}{part}"));
        }
    }
    None
}

impl Family for Vit {
    fn features(&self) -> Vec<FeatureInfo> {
        vec![
            FeatureInfo::map("F4", self.width, PATCH),
            FeatureInfo::vector("pooled", self.width),
            FeatureInfo::vector("embedding", self.width),
        ]
    }

    fn head(&self) -> &'static str {
        "head"
    }

    fn check(&self, (height, width): (usize, usize)) -> std::result::Result<(), String> {
        let side = self.side;
        if (height, width) == (side, side) {
            return Ok(());
        }
        Err(format!("invalid image size: expected {side} x {side}, found {height} x {width}"))
    }

    fn value(&self, name: &str, _: (usize, usize)) -> Result<Value> {
        Ok(timm(name).unwrap_or(Value::Absent))
    }

    fn build(&self, vb: VarBuilder<'static>) -> Result<Forward> {
        let config = Config {
            hidden_size: self.width,
            num_hidden_layers: self.depth,
            num_attention_heads: self.heads,
            intermediate_size: 4 * self.width,
            hidden_act: candle_nn::Activation::Gelu,
            layer_norm_eps: 1e-6,
            image_size: self.side,
            patch_size: PATCH,
            num_channels: 3,
            qkv_bias: true,
        };
        let embeddings = Embeddings::new(&config, false, vb.pp("embeddings"))?;
        let encoder = Encoder::new(&config, vb.pp("encoder"))?;
        let norm = candle_nn::layer_norm(self.width, config.layer_norm_eps, vb.pp("layernorm"))?;
        let side = self.side / PATCH;
        Ok(Box::new(move |images, _| {
            let tokens = norm.forward(&encoder.forward(&embeddings.forward(images, None, false)?)?)?;
            let patches = tokens.i((.., 1..))?; // [B, N, D]
            let (batch, _, width) = patches.dims3()?;
            let pooled = patches.mean(1)?;
            let map = patches.transpose(1, 2)?.reshape((batch, width, side, side))?;
            let embedding = tokens.i((.., 0))?;
            Ok(vec![("F4".into(), map), ("pooled".into(), pooled), ("embedding".into(), embedding)])
        }))
    }

    fn positions(&self, name: &str, _: (usize, usize)) -> u64 {
        positions(name, self.patches() as u64)
    }

    fn attention_macs(&self, _: (usize, usize)) -> u64 {
        let tokens = 1 + self.patches() as u64;
        2 * tokens * tokens * (self.width * self.depth) as u64
    }
}
