//! DINOv2's vision transformers.
//!
//! *Paper*: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024,
//! arXiv 2304.07193.
//!
//! *Taps*: `F1` to `F4`, the patches after each quarter of the blocks and the last norm; `embedding`,
//! the class token after it; `pooled`, the mean of `F4`; `logits`. candle hands maps and class token
//! out of runs of their own: whoever wants both waits twice.
//!
//! *Where candle and timm differ*: candle's GELU is the approximation by tanh; candle draws positions
//! for other sizes than 518 from the nearest one. The latter is set right here: the positions that
//! candle picks are put in such that they are timm's (bicubic, antialiased).

use std::sync::Arc;

use candle_core::{Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::dinov2::DinoVisionTransformer;
use stillhouse_core::model::{FeatureInfo, ModelBuild};
use stillhouse_core::registry::Entry;

use super::vit::{places, sizes};
use super::{Family, Run, Value, row};

const SOURCE: &str = "Oquab et al. 2024, DINOv2";

pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    row("vit_small_patch14_dinov2", "frozen teacher of candle's; 22.4 M parameters", SOURCE),
    row("vit_base_patch14_dinov2", "frozen teacher of candle's; 87.3 M parameters", SOURCE),
    row("vit_large_patch14_dinov2", "frozen teacher of candle's; 305.4 M parameters", SOURCE),
];

const PATCH: usize = 14;
/// Positions along a side.
const GRID: usize = 37;
/// Outputs of candle's head, whatever the classes.
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

/// Weights of a bicubic filter (a = -0.5) that brings [`GRID`] positions to `count`, widened where it
/// makes them fewer; each row at the place that candle picks for it, the others zero.
fn to_positions(count: usize) -> Vec<f32> {
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

/// The table of positions `[1, 1 + 37 * 37, D]` with both sides of its grid filtered.
fn resampled(table: &Tensor, filter: &Tensor) -> Result<Tensor> {
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
    fn taps(&self) -> Vec<FeatureInfo> {
        let mut taps: Vec<_> =
            (1..=4).map(|i| FeatureInfo::map(format!("F{i}"), self.width, PATCH)).collect();
        taps.extend(["pooled", "embedding"].map(|name| FeatureInfo::vector(name, self.width)));
        taps
    }

    fn head(&self) -> &'static str {
        "head"
    }

    fn check(&self, (height, width): (usize, usize)) -> std::result::Result<(), String> {
        if height == width && height > 0 && height.is_multiple_of(PATCH) && height <= GRID * PATCH {
            return Ok(());
        }
        Err(format!(
            "cannot run on images of {height} x {width}: needs squares whose side is a multiple of {PATCH}, at \
             most {} (224 is one)",
            GRID * PATCH
        ))
    }

    fn value(&self, name: &str, (side, _): (usize, usize)) -> Result<Value> {
        // candle's head reads class token and mean, side by side; the head on the token is ours.
        if let Some(part) = name.strip_prefix("outputs.") {
            let (from, part) = part.split_once('.').unwrap_or_default();
            let from = from.parse().unwrap_or_default();
            return Ok(if part == "head.weight" {
                Value::Selection(from)
            } else {
                self.value_of(part, side)?
            });
        }
        self.value_of(name, side)
    }

    fn open(&self, vb: VarBuilder<'static>) -> Result<Run> {
        let (depth, width, heads) = (self.depth, self.width, self.heads);
        // As many models as it takes to hand out the whole token by heads of 1000; they share all else.
        let starts = (0..width).step_by(OUTPUTS);
        let models = starts
            .map(|from| DinoVisionTransformer::new(vb.pp(format!("outputs.{from}")), depth, width, heads));
        let models: Vec<_> = models.collect::<Result<_>>()?;
        Ok(Box::new(move |images, asked| {
            let mut found: Vec<(String, Vec<Tensor>)> = Vec::new();
            let mut add = |name: &str, value: Tensor| match found.iter_mut().find(|(n, _)| n == name) {
                Some((_, values)) => values.push(value),
                None => found.push((name.into(), vec![value])),
            };
            let maps: Vec<usize> = (1..=4).filter(|i| asked(&format!("F{i}"))).collect();
            let pooled = asked("pooled");
            // candle takes one image at a time.
            for image in images.chunk(images.dim(0)?, 0)? {
                if !maps.is_empty() || pooled {
                    let mut taken = maps.clone();
                    if pooled && !maps.contains(&4) {
                        taken.push(4);
                    }
                    let blocks: Vec<usize> = taken.iter().map(|i| i * depth / 4 - 1).collect();
                    let features = models[0].get_intermediate_layers(&image, &blocks, true, false, true)?;
                    for (place, i) in taken.iter().enumerate() {
                        let map = features.get(place)?;
                        if pooled && *i == 4 {
                            add("pooled", map.mean((2, 3))?);
                        }
                        if maps.contains(i) {
                            add(&format!("F{i}"), map);
                        }
                    }
                }
                if asked("embedding") {
                    let parts =
                        models.iter().map(|model| model.forward(&image)).collect::<Result<Vec<_>>>()?;
                    add("embedding", Tensor::cat(&parts, 1)?.narrow(1, 0, width)?.contiguous()?);
                }
            }
            found.into_iter().map(|(name, values)| Ok((name, Tensor::cat(&values, 0)?))).collect()
        }))
    }

    fn places(&self, name: &str, (height, width): (usize, usize)) -> u64 {
        places(name, ((height / PATCH) * (width / PATCH)) as u64)
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
                let filter = Tensor::from_vec(to_positions(count), (GRID, GRID), &Device::Cpu)?;
                Value::Made(name.into(), filter, resampled)
            }
            _ => Value::Named(name.into()),
        })
    }
}
