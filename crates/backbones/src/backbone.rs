//! Backbones: models without their heads.

use std::fmt::Debug;

use candle_core::Tensor;
use stillhouse_core::model::{FeatureInfo, ModelSpec};
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::Node;

use crate::FAMILIES;

/// Depth of a backbone with all its stages.
pub(crate) const ALL_STAGES: usize = usize::MAX;

/// Callback with the index of a stage, from 0, and its feature map.
pub(crate) type OnStage<'a> = &'a mut dyn FnMut(usize, &Node);

/// The stages of a model, without its head.
pub(crate) trait Backbone: Debug + Send + Sync {
    /// All features of the backbone.
    fn features(&self) -> &[FeatureInfo];

    /// The feature at the end of each stage, by depth.
    fn stages(&self) -> Vec<FeatureInfo> {
        let is_stage =
            |name: &str| name.strip_prefix('F').is_some_and(|n| n != "0" && n.parse::<u32>().is_ok());
        self.features().iter().filter(|t| is_stage(&t.name)).cloned().collect()
    }

    /// Runs the first `depth` stages on `[B, 3, H, W]`, marks their features and returns the last map.
    /// `on_stage` is called with the map of each stage; the memory of a map that it does not clone is
    /// reused.
    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, on_stage: OnStage) -> Result<Node>;
}

/// Builds the backbone of a registered model with its parameters under the prefix of `p`.
///
/// # Errors
/// A model without a backbone of its own, or the errors of its constructor.
pub(crate) fn build_backbone(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    let family = FAMILIES.iter().find(|f| f.entries.iter().any(|entry| entry.name == request.name));
    match family.and_then(|family| family.backbone) {
        Some(build) => build(request, p),
        None => {
            crate::registry().get(&request.name)?;
            let names = FAMILIES
                .iter()
                .filter(|f| f.backbone.is_some())
                .flat_map(|f| f.entries)
                .map(|entry| entry.name);
            let known = names.collect::<Vec<_>>().join(", ");
            Err(Error::incompatible(
                &request.name,
                format!("not available as the backbone of another model: expected one of {known}"),
            ))
        }
    }
}

/// Splits a variant into the keys in `own` and those of the backbone.
pub(crate) fn split_variant(variant: &toml::Table, own: &[&str]) -> (toml::Table, toml::Table) {
    variant.clone().into_iter().partition(|(key, _)| own.contains(&key.as_str()))
}
