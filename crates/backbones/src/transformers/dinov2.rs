//! DINOv2's vision transformers.
//!
//! *Paper*: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024,
//! arXiv 2304.07193.
//!
//! *Features*: `F1` to `F4`, the patches after each quarter of the blocks and the last norm; `embedding`,
//! the class token after it; `pooled`, the mean of `F4`; `logits`. candle computes maps and class
//! token in separate passes, so selecting both takes twice the time.
//!
//! *Differences between candle and timm*: candle's GELU is the tanh approximation; candle resamples the
//! position embeddings for sizes other than 518 by nearest neighbor. Here the embeddings at the
//! positions that candle picks are replaced by timm's (bicubic, antialiased).

use std::sync::Arc;

use candle_core::{Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::dinov2::DinoVisionTransformer;
use stillhouse_core::model::{FeatureInfo, ModelBuild};
use stillhouse_core::registry::Entry;

use super::vit::{positions, sizes};
use super::{Family, Forward, Value, entry};

const SOURCE: &str = "Oquab et al. 2024, DINOv2";

pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("vit_small_patch14_dinov2", "frozen teacher of candle-transformers, 22.4 M parameters", SOURCE),
    entry("vit_base_patch14_dinov2", "frozen teacher of candle-transformers, 87.3 M parameters", SOURCE),
    entry("vit_large_patch14_dinov2", "frozen teacher of candle-transformers, 305.4 M parameters", SOURCE),
];

const PATCH: usize = 14;
/// Positions per side of the position embeddings.
const GRID: usize = 37;
/// Number of outputs of candle's head.
const OUTPUTS: usize = 1000;

#[derive(Debug)]
struct Dino {
    depth: usize,
    width: usize,
    heads: usize,
}

pub(super) fn family(name: &str) -> Option<Arc<dyn Family>> {
    let size = name.strip_prefix("vit_")?.strip_suffix("_patch14_dinov2")?;
    let (depth, width, heads) = sizes(size).filter(|_| size != "tiny")?;
    Some(Arc::new(Dino { depth, width, heads }))
}

/// Computes the weights of an antialiased bicubic filter (a = -0.5) from [`GRID`] positions to `count`.
/// Each row is at the index that candle's nearest-neighbor resampling picks; the others are zero.
fn resampling_filter(count: usize) -> Vec<f32> {
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => 1.5 * x * x * x - 2.5 * x * x + 1.0,
        x if x < 2.0 => -0.5 * x * x * x + 2.5 * x * x - 4.0 * x + 2.0,
        _ => 0.0,
    };
    let scale = GRID as f64 / count as f64;
    let mut filter = vec![0.0; GRID * GRID];
    for i in 0..count {
        let center = (i as f64 + 0.5) * scale;
        let weight = |j: usize| cubic((j as f64 + 0.5 - center) / scale.max(1.0));
        let sum: f64 = (0..GRID).map(weight).sum();
        let picked = ((i as f64 * scale) as usize).min(GRID - 1);
        for j in 0..GRID {
            filter[picked * GRID + j] = (weight(j) / sum) as f32;
        }
    }
    filter
}

/// Filters both sides of the grid of position embeddings `[1, 1 + 37 * 37, D]`.
fn resample(table: &Tensor, filter: &Tensor) -> Result<Tensor> {
    let width = table.dim(2)?;
    let filter = filter.to_dtype(table.dtype())?;
    let grid = table.narrow(1, 1, GRID * GRID)?.reshape((GRID, GRID * width))?;
    let rows = filter.matmul(&grid)?.reshape((GRID, GRID, width))?; // [row, column, D]
    let turned = rows.transpose(0, 1)?.contiguous()?.reshape((GRID, GRID * width))?;
    let both = filter.matmul(&turned)?.reshape((GRID, GRID, width))?.transpose(0, 1)?;
    let patches = both.contiguous()?.reshape((1, GRID * GRID, width))?;
    Tensor::cat(&[&table.narrow(1, 0, 1)?, &patches], 1)
}

impl Family for Dino {
    fn features(&self) -> Vec<FeatureInfo> {
        let mut features: Vec<_> =
            (1..=4).map(|i| FeatureInfo::map(format!("F{i}"), self.width, PATCH)).collect();
        features.extend(["pooled", "embedding"].map(|name| FeatureInfo::vector(name, self.width)));
        features
    }

    fn head(&self) -> &'static str {
        "head"
    }

    fn check(&self, (height, width): (usize, usize)) -> std::result::Result<(), String> {
        if height == width && height > 0 && height.is_multiple_of(PATCH) && height <= GRID * PATCH {
            return Ok(());
        }
        Err(format!(
            "invalid image size: expected a square with a side that is a multiple of {PATCH} and at most {}, such \
             as 224, found {height} x {width}",
            GRID * PATCH
        ))
    }

    fn value(&self, name: &str, (side, _): (usize, usize)) -> Result<Value> {
        // candle's head is applied to class token and mean, concatenated; it is replaced by the identity
        // on the token.
        if let Some(part) = name.strip_prefix("outputs.") {
            let (from, part) = part.split_once('.').unwrap_or_default();
            let from = from.parse().unwrap_or_default();
            return Ok(if part == "head.weight" {
                Value::Identity(from)
            } else {
                self.value_of(part, side)?
            });
        }
        self.value_of(name, side)
    }

    fn build(&self, vb: VarBuilder<'static>) -> Result<Forward> {
        let (depth, width, heads) = (self.depth, self.width, self.heads);
        // As many models as needed for the whole token with heads of 1000 outputs; they share all other
        // parameters.
        let starts = (0..width).step_by(OUTPUTS);
        let models = starts
            .map(|from| DinoVisionTransformer::new(vb.pp(format!("outputs.{from}")), depth, width, heads));
        let models: Vec<_> = models.collect::<Result<_>>()?;
        Ok(Box::new(move |images, selects| {
            let mut found: Vec<(String, Vec<Tensor>)> = Vec::new();
            let mut add = |name: &str, value: Tensor| match found.iter_mut().find(|(n, _)| n == name) {
                Some((_, values)) => values.push(value),
                None => found.push((name.into(), vec![value])),
            };
            let maps: Vec<usize> = (1..=4).filter(|i| selects(&format!("F{i}"))).collect();
            let pooled = selects("pooled");
            // candle processes one image at a time.
            for image in images.chunk(images.dim(0)?, 0)? {
                if !maps.is_empty() || pooled {
                    let mut stages = maps.clone();
                    if pooled && !maps.contains(&4) {
                        stages.push(4);
                    }
                    let blocks: Vec<usize> = stages.iter().map(|i| i * depth / 4 - 1).collect();
                    let features = models[0].get_intermediate_layers(&image, &blocks, true, false, true)?;
                    for (index, i) in stages.iter().enumerate() {
                        let map = features.get(index)?;
                        if pooled && *i == 4 {
                            add("pooled", map.mean((2, 3))?);
                        }
                        if maps.contains(i) {
                            add(&format!("F{i}"), map);
                        }
                    }
                }
                if selects("embedding") {
                    let tokens =
                        models.iter().map(|model| model.forward(&image)).collect::<Result<Vec<_>>>()?;
                    add("embedding", Tensor::cat(&tokens, 1)?.narrow(1, 0, width)?.contiguous()?);
                }
            }
            found.into_iter().map(|(name, values)| Ok((name, Tensor::cat(&values, 0)?))).collect()
        }))
    }

    fn positions(&self, name: &str, (height, width): (usize, usize)) -> u64 {
        positions(name, ((height / PATCH) * (width / PATCH)) as u64)
    }

    fn attention_macs(&self, (height, width): (usize, usize)) -> u64 {
        let tokens = 1 + ((height / PATCH) * (width / PATCH)) as u64;
        2 * tokens * tokens * (self.width * self.depth) as u64
    }
}

impl Dino {
    fn value_of(&self, name: &str, side: usize) -> Result<Value> {
        let count = side / PATCH;
        Ok(match name {
            "head.bias" => Value::Zeros,
            "pos_embed" if count < GRID && count > 0 => {
                let filter = Tensor::from_vec(resampling_filter(count), (GRID, GRID), &Device::Cpu)?;
                Value::Computed(name.into(), filter, resample)
            }
            _ => Value::Named(name.into()),
        })
    }
}
