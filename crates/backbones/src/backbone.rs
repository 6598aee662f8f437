//! Networks without their heads: what other heads stand on.

use std::fmt::Debug;

use candle_core::Tensor;
use stillhouse_core::model::{FeatureInfo, ModelSpec};
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::Node;

use crate::FAMILIES;
use crate::count::Work;

/// Every stage of a body.
pub(crate) const ALL: usize = usize::MAX;

/// What looks at the maps of a body: the number of the stage, from 0, and its map.
pub(crate) type See<'a> = &'a mut dyn FnMut(usize, &Node);

/// The stages of a network.
pub(crate) trait Backbone: Debug + Send + Sync {
    /// All taps inside.
    fn features(&self) -> &[FeatureInfo];

    /// The tap at the end of every stage, in the order of depth.
    fn stages(&self) -> Vec<FeatureInfo> {
        let is_stage =
            |name: &str| name.strip_prefix('F').is_some_and(|n| n != "0" && n.parse::<u32>().is_ok());
        self.features().iter().filter(|t| is_stage(&t.name)).cloned().collect()
    }

    /// Runs the first `depth` stages on `[B, 3, H, W]` and marks their taps; gives the last map. `see`
    /// is shown the map after each stage, whose memory is used again unless it keeps it.
    fn forward(&self, images: &Tensor, depth: usize, tape: &mut Tape, see: See) -> Result<Node>;

    /// Counts the first `depth` stages; the size of the map after each.
    fn work(&self, size: (usize, usize), depth: usize, work: &mut Work) -> Result<Vec<(usize, usize)>>;
}

/// Makes the body of the network that the request names, its parameters below `p`.
///
/// # Errors
/// A name without a body of its own, or what the network's constructor refuses.
pub(crate) fn body(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Backbone>> {
    let family = FAMILIES.iter().find(|f| f.rows.iter().any(|row| row.name == request.name));
    match family.and_then(|family| family.body) {
        Some(build) => build(request, p),
        None => {
            crate::registry().get(&request.name)?;
            let names = FAMILIES.iter().filter(|f| f.body.is_some()).flat_map(|f| f.rows).map(|row| row.name);
            let known = names.collect::<Vec<_>>().join(", ");
            Err(Error::incompatible(
                &request.name,
                format!("cannot be the backbone of another network; there are {known}"),
            ))
        }
    }
}

/// A variant's own keys, and those that are its backbone's.
pub(crate) fn split(variant: &toml::Table, own: &[&str]) -> (toml::Table, toml::Table) {
    variant.clone().into_iter().partition(|(key, _)| own.contains(&key.as_str()))
}
