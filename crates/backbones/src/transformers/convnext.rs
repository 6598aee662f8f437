//! ConvNeXt and ConvNeXt V2.
//!
//! *Papers*: Liu et al., "A ConvNet for the 2020s", CVPR 2022, arXiv 2201.03545; Woo et al., "ConvNeXt
//! V2", CVPR 2023, arXiv 2301.00808 (global response normalization in place of the layer scale). Sizes
//! smaller than tiny are timm's.
//!
//! *Features*: `pooled`, the mean of the last map; `embedding`, its layer norm; `logits`. candle provides
//! no feature maps.

use std::sync::Arc;

use candle_core::{Module, Result};
use candle_nn::VarBuilder;
use candle_transformers::models::convnext::{Config, convnext_no_final_layer};
use stillhouse_core::model::{FeatureInfo, ModelBuild};
use stillhouse_core::registry::Entry;

use super::{Family, Forward, Value, entry, multiple_of};

const V1: &str = "Liu et al. 2022, A ConvNet for the 2020s";
const V2: &str = "Woo et al. 2023, ConvNeXt V2";

pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("convnext_atto", "frozen teacher of candle-transformers, 3.7 M parameters", V1),
    entry("convnext_femto", "frozen teacher of candle-transformers, 5.2 M parameters", V1),
    entry("convnext_pico", "frozen teacher of candle-transformers, 9.0 M parameters", V1),
    entry("convnext_nano", "frozen teacher of candle-transformers, 15.6 M parameters", V1),
    entry("convnext_tiny", "frozen teacher of candle-transformers, 28.6 M parameters", V1),
    entry("convnext_small", "frozen teacher of candle-transformers, 50.2 M parameters", V1),
    entry("convnext_base", "frozen teacher of candle-transformers, 88.6 M parameters", V1),
    entry("convnext_large", "frozen teacher of candle-transformers, 197.8 M parameters", V1),
    entry("convnext_xlarge", "frozen teacher of candle-transformers, 350.2 M parameters", V1),
    entry("convnextv2_atto", "frozen teacher of candle-transformers, 3.7 M parameters", V2),
    entry("convnextv2_femto", "frozen teacher of candle-transformers, 5.2 M parameters", V2),
    entry("convnextv2_pico", "frozen teacher of candle-transformers, 9.1 M parameters", V2),
    entry("convnextv2_nano", "frozen teacher of candle-transformers, 15.6 M parameters", V2),
    entry("convnextv2_tiny", "frozen teacher of candle-transformers, 28.6 M parameters", V2),
    entry("convnextv2_base", "frozen teacher of candle-transformers, 88.7 M parameters", V2),
    entry("convnextv2_large", "frozen teacher of candle-transformers, 198.0 M parameters", V2),
    entry("convnextv2_huge", "frozen teacher of candle-transformers, 660.3 M parameters", V2),
];

#[derive(Debug)]
struct ConvNext {
    config: fn() -> Config,
    /// Channels of the last map.
    channels: usize,
    v2: bool,
}

pub(super) fn family(name: &str) -> Option<Arc<dyn Family>> {
    let (version, size) = name.split_once('_')?;
    let v2 = match version {
        "convnext" => false,
        "convnextv2" => true,
        _ => return None,
    };
    let (config, channels): (fn() -> Config, usize) = match size {
        "atto" => (Config::atto, 320),
        "femto" => (Config::femto, 384),
        "pico" => (Config::pico, 512),
        "nano" => (Config::nano, 640),
        "tiny" => (Config::tiny, 768),
        "small" => (Config::small, 768),
        "base" => (Config::base, 1024),
        "large" => (Config::large, 1536),
        "xlarge" => (Config::xlarge, 2048),
        "huge" => (Config::huge, 2816),
        _ => return None,
    };
    Some(Arc::new(ConvNext { config, channels, v2 }))
}

impl Family for ConvNext {
    fn features(&self) -> Vec<FeatureInfo> {
        vec![FeatureInfo::vector("pooled", self.channels), FeatureInfo::vector("embedding", self.channels)]
    }

    fn head(&self) -> &'static str {
        "head.fc"
    }

    fn check(&self, size: (usize, usize)) -> std::result::Result<(), String> {
        multiple_of(32, size)
    }

    fn value(&self, name: &str, _: (usize, usize)) -> Result<Value> {
        // candle probes for both.
        let is_absent = if self.v2 { name.ends_with(".gamma") } else { name.contains(".grn.") };
        Ok(if is_absent { Value::Absent } else { Value::Named(name.into()) })
    }

    fn build(&self, vb: VarBuilder<'static>) -> Result<Forward> {
        let norm = candle_nn::layer_norm(self.channels, 1e-6, vb.pp("head.norm"))?;
        let backbone = convnext_no_final_layer(&(self.config)(), vb)?;
        Ok(Box::new(move |images, _| {
            let pooled = backbone.forward(images)?;
            let embedding = norm.forward(&pooled)?;
            Ok(vec![("pooled".into(), pooled), ("embedding".into(), embedding)])
        }))
    }

    fn positions(&self, name: &str, (height, width): (usize, usize)) -> u64 {
        let stage: Option<usize> =
            name.strip_prefix("stages.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let shift = match stage {
            Some(stage) => 2 + stage,
            None if name.starts_with("stem.") => 2,
            None => return 1,
        };
        ((height >> shift) * (width >> shift)) as u64
    }
}
