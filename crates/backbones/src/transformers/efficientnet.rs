//! EfficientNet with TensorFlow's padding and batch norm epsilon of 1e-3 (timm's `tf_` models).
//!
//! *Paper*: Tan, Le, "EfficientNet", ICML 2019, arXiv 1905.11946.
//!
//! *Features*: `pooled`, the mean of the last map, which is also the `embedding`; `logits`. candle hands
//! out no map.

use std::sync::Arc;

use candle_core::{Module, Result};
use candle_nn::VarBuilder;
use candle_transformers::models::efficientnet::{EfficientNet, MBConvConfig};
use stillhouse_core::model::{FeatureInfo, ModelBuild};
use stillhouse_core::registry::Entry;

use super::{Family, Forward, Value, entry};

const SOURCE: &str = "Tan and Le 2019, EfficientNet, with TensorFlow's padding";

pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    entry("tf_efficientnet_b0", "frozen teacher of candle-transformers, 5.3 M parameters", SOURCE),
    entry("tf_efficientnet_b1", "frozen teacher of candle-transformers, 7.8 M parameters", SOURCE),
    entry("tf_efficientnet_b2", "frozen teacher of candle-transformers, 9.1 M parameters", SOURCE),
    entry("tf_efficientnet_b3", "frozen teacher of candle-transformers, 12.2 M parameters", SOURCE),
    entry("tf_efficientnet_b4", "frozen teacher of candle-transformers, 19.3 M parameters", SOURCE),
    entry("tf_efficientnet_b5", "frozen teacher of candle-transformers, 30.4 M parameters", SOURCE),
    entry("tf_efficientnet_b6", "frozen teacher of candle-transformers, 43.0 M parameters", SOURCE),
    entry("tf_efficientnet_b7", "frozen teacher of candle-transformers, 66.3 M parameters", SOURCE),
];

#[derive(Debug)]
struct Efficient {
    config: fn() -> Vec<MBConvConfig>,
    channels: usize,
}

pub(super) fn family(name: &str) -> Option<Arc<dyn Family>> {
    let (config, channels): (fn() -> Vec<MBConvConfig>, usize) =
        match name.strip_prefix("tf_efficientnet_")? {
            "b0" => (MBConvConfig::b0, 1280),
            "b1" => (MBConvConfig::b1, 1280),
            "b2" => (MBConvConfig::b2, 1408),
            "b3" => (MBConvConfig::b3, 1536),
            "b4" => (MBConvConfig::b4, 1792),
            "b5" => (MBConvConfig::b5, 2048),
            "b6" => (MBConvConfig::b6, 2304),
            "b7" => (MBConvConfig::b7, 2560),
            _ => return None,
        };
    Some(Arc::new(Efficient { config, channels }))
}

/// timm's name for one of candle's, which are torchvision's.
fn timm(name: &str) -> Option<String> {
    let (stage, rest) = name.strip_prefix("features.")?.split_once('.')?;
    let stage: usize = stage.parse().ok()?;
    let (conv, norm, rest) = match stage {
        0 => ("conv_stem".to_string(), "bn1".to_string(), rest),
        8 => ("conv_head".to_string(), "bn2".to_string(), rest),
        _ => {
            let (block, rest) = rest.split_once(".block.")?;
            let (layer, rest) = rest.split_once('.')?;
            let at = format!("blocks.{}.{block}", stage - 1);
            // The first stage has no expansion.
            let layer = layer.parse::<usize>().ok()? + usize::from(stage == 1);
            let (conv, norm) = match (layer, stage) {
                (0, _) => ("conv_pw", "bn1"),
                (1, 1) => ("conv_dw", "bn1"),
                (1, _) => ("conv_dw", "bn2"),
                (2, _) => {
                    let (fc, part) = rest.split_once('.')?;
                    let conv = if fc == "fc1" { "conv_reduce" } else { "conv_expand" };
                    return Some(format!("{at}.se.{conv}.{part}"));
                }
                (_, 1) => ("conv_pw", "bn2"),
                _ => ("conv_pwl", "bn3"),
            };
            (format!("{at}.{conv}"), format!("{at}.{norm}"), rest)
        }
    };
    let (index, part) = rest.split_once('.')?;
    Some(if index == "0" { format!("{conv}.{part}") } else { format!("{norm}.{part}") })
}

impl Family for Efficient {
    fn features(&self) -> Vec<FeatureInfo> {
        vec![FeatureInfo::vector("pooled", self.channels), FeatureInfo::vector("embedding", self.channels)]
    }

    fn head(&self) -> &'static str {
        "classifier"
    }

    fn check(&self, (height, width): (usize, usize)) -> std::result::Result<(), String> {
        if height.min(width) == 0 { Err(format!("empty image: {height} x {width}")) } else { Ok(()) }
    }

    fn value(&self, name: &str, _: (usize, usize)) -> Result<Value> {
        // candle's classifier is replaced by the identity.
        Ok(match name {
            "classifier.1.weight" => Value::Identity(0),
            "classifier.1.bias" => Value::Zeros,
            _ => timm(name).map_or(Value::Absent, Value::Named),
        })
    }

    fn build(&self, vb: VarBuilder<'static>) -> Result<Forward> {
        let network = EfficientNet::new(vb, (self.config)(), self.channels)?;
        Ok(Box::new(move |images, _| {
            let pooled = network.forward(images)?;
            Ok(vec![("pooled".into(), pooled.clone()), ("embedding".into(), pooled)])
        }))
    }

    fn positions(&self, name: &str, (height, width): (usize, usize)) -> u64 {
        // Halvings of the map before each stage, and in its first depthwise convolution.
        const BEFORE: [u32; 7] = [1, 1, 2, 3, 4, 4, 5];
        const WITHIN: [u32; 7] = [0, 1, 1, 1, 0, 1, 0];
        if name.contains(".se.") || name.starts_with("classifier") {
            return 1;
        }
        let halvings = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            None if name.starts_with("conv_head") || name.starts_with("bn2") => 5,
            None => 1,
            Some((stage, rest)) => {
                let stage: usize = stage.parse().unwrap_or_default();
                let expands = rest.starts_with("0.conv_pw.") || rest.starts_with("0.bn1");
                let within = if expands && stage > 0 { 0 } else { WITHIN[stage] };
                BEFORE[stage] + within
            }
        };
        let side = |mut side: usize| {
            (0..halvings).for_each(|_| side = side.div_ceil(2));
            side as u64
        };
        side(height) * side(width)
    }
}
