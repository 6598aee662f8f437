//! Neuron selectivity transfer (`nst`): distribution of the channel maps of each image.
//!
//! # Paper
//! Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
//! arXiv 1707.01219, 2017: squared MMD with the polynomial kernel, `d = 2` and `c = 0`.
//!
//! # Equation
//! `nst = sum over stages of mean over images of MMD^2(teacher's, student's unit channel maps)`,
//! with the kernel `(x . y)^2`.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `stages` of both; channels may differ. The larger map is pooled to the size of
//! the smaller.
//!
//! # Defaults and their source
//! Weight 50, kernel poly2, all stages with equal weight: the public collections mdistiller and
//! RepDistiller.
//!
//! # Where code and paper differ
//! mdistiller and RepDistiller choose the pooling size by height only (square maps).
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("nst")?;
//! let nst = (entry.build)(&toml::toml! { stages = ["F4"] })?;
//! assert_eq!(nst.required_features().teacher, ["F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::mmd::{GroupWeight, Groups, Kernel, grouped_mmd2};
use crate::common::normalize::{EPS, l2_normalize};
use crate::common::pool::pool_pair;
use crate::common::reduce::sum_stages;
use crate::common::{checks, config, constant_like};

/// Registry entry of `nst`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "nst",
    summary: "distribution of the channel maps of each image",
    source: "Huang and Wang 2017, arXiv 1707.01219, polynomial kernel",
    defaults,
    build: |table| Ok(Box::new(Nst::new(config::parse(table, "nst")?, "nst", nst_loss)?)),
};

/// Defaults of `nst` and of [`nst_all`](super::nst_all).
pub(crate) fn defaults() -> String {
    config::document::<NstConfig>(&[
        ("stages", "mdistiller, RepDistiller"),
        ("kernel", "Huang and Wang 2017; mdistiller, RepDistiller"),
        ("weight", "mdistiller, RepDistiller"),
    ])
}

/// Settings of `nst` and of [`nst_all`](super::nst_all).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NstConfig {
    /// Features to compare.
    pub stages: Vec<String>,
    /// Kernel of two channel maps.
    pub kernel: Kernel,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for NstConfig {
    fn default() -> Self {
        Self { stages: config::four_stages(), kernel: Kernel::Poly2, weight: 50.0 }
    }
}

/// Mean over images of the squared MMD of the unit channel maps of one stage, a scalar.
///
/// Maps are `[B, C, H, W]`; channels may differ, and the larger map is pooled to the size of the
/// smaller. Huang and Wang 2017.
///
/// # Errors
/// If the batch sizes differ.
pub fn nst_loss(student: &Tensor, teacher: &Tensor, kernel: Kernel) -> Result<Tensor> {
    channel_mmd(student, teacher, kernel, &Groups::per_image(student.dim(0)?)?)
}

/// Squared MMD of the unit channel maps per group, averaged over the images.
pub(crate) fn channel_mmd(
    student: &Tensor,
    teacher: &Tensor,
    kernel: Kernel,
    groups: &Groups,
) -> Result<Tensor> {
    let (student, teacher) = pool_pair(student, &constant_like(teacher, student)?)?;
    let points = |map: &Tensor| l2_normalize(&map.flatten_from(2)?, EPS); // [B, C, H * W]
    let values = grouped_mmd2(&points(&teacher)?, &points(&student)?, groups, kernel)?;
    groups.average(&values, GroupWeight::NOverB)
}

/// Loss of one stage.
type StageLoss = fn(&Tensor, &Tensor, Kernel) -> Result<Tensor>;

/// Neuron selectivity transfer with any grouping of the batch.
#[derive(Debug)]
pub(crate) struct Nst {
    config: NstConfig,
    name: &'static str,
    loss: StageLoss,
}

impl Nst {
    /// Validates the settings.
    pub(crate) fn new(config: NstConfig, name: &'static str, loss: StageLoss) -> Result<Self> {
        config::require_stages(name, "stages", &config.stages)?;
        config::require_non_negative(name, "weight", config.weight)?;
        Ok(Self { config, name, loss })
    }
}

impl Distiller for Nst {
    fn name(&self) -> &str {
        self.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        self.config.stages.iter().try_for_each(|f| checks::require_maps(shapes, f, self.name).map(|_| ()))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.config.stages.iter().map(|feature| {
            let (student, teacher) = checks::map_pair(context, feature, self.name)?;
            (self.loss)(&student, &teacher, self.config.kernel)
        });
        Ok(vec![Term::new(self.name, sum_stages(self.name, values)?, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![(self.name.into(), self.config.weight)]
    }
}
