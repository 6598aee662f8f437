//! Neuron selectivity transfer (`nst`): in each image, the distribution of the channels' maps.
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
//! The maps `[B, C, H, W]` named by `stages` of both; channels may differ. The larger map is pooled
//! to the smaller.
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
//! let row = *stillhouse_losses::registry().get("nst")?;
//! let nst = (row.build)(&toml::toml! { stages = ["F4"] })?;
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

use crate::mmd::{GroupWeight, Groups, Kernel, grouped_mmd2};
use crate::unit::{EPS, unit};
use crate::{fit, settings, sum};

/// The row of `nst`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "nst",
    summary: "distribution of the channels' maps, image by image",
    source: "Huang and Wang 2017, arXiv 1707.01219, polynomial kernel",
    defaults,
    build: |table| Ok(Box::new(Nst::new(settings::read(table, "nst")?, "nst", Groups::each)?)),
};

/// The defaults of `nst` and of [`nst_all`](crate::nst_all).
pub(crate) fn defaults() -> String {
    settings::describe::<NstConfig>(&[
        ("stages", "mdistiller, RepDistiller"),
        ("kernel", "Huang and Wang 2017; mdistiller, RepDistiller"),
        ("weight", "mdistiller, RepDistiller"),
    ])
}

/// Settings of `nst` and of [`nst_all`](crate::nst_all).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NstConfig {
    /// Taps that enter.
    pub stages: Vec<String>,
    /// Similarity of two channel maps.
    pub kernel: Kernel,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for NstConfig {
    fn default() -> Self {
        Self { stages: settings::four_stages(), kernel: Kernel::Poly2, weight: 50.0 }
    }
}

/// Neuron selectivity transfer, with any grouping of the batch.
#[derive(Debug)]
pub(crate) struct Nst {
    config: NstConfig,
    name: &'static str,
    grouping: fn(usize) -> Result<Groups>,
}

impl Nst {
    /// Checks the settings; `grouping` puts that many images into groups.
    pub(crate) fn new(
        config: NstConfig,
        name: &'static str,
        grouping: fn(usize) -> Result<Groups>,
    ) -> Result<Self> {
        settings::stages(name, "stages", &config.stages)?;
        settings::not_negative(name, "weight", config.weight)?;
        Ok(Self { config, name, grouping })
    }
}

impl Distiller for Nst {
    fn name(&self) -> &str {
        self.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        self.config.stages.iter().try_for_each(|tap| fit::map_channels(shapes, tap, self.name).map(|_| ()))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.config.stages.iter().map(|tap| {
            let (student, teacher) = fit::map_pair(context, tap, self.name)?;
            let groups = (self.grouping)(student.dim(0)?)?;
            let points = |map: &Tensor| unit(&map.flatten_from(2)?, EPS); // [B, C, H * W]
            let values = grouped_mmd2(&points(&teacher)?, &points(&student)?, &groups, self.config.kernel)?;
            groups.average(&values, GroupWeight::NOverB)
        });
        let value = sum::stages(self.name, values)?;
        Ok(vec![Term::new(self.name, value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![(self.name.into(), self.config.weight)]
    }
}
