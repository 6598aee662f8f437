//! Similarity-preserving distillation (`sp`): similarities between the images of a batch.
//!
//! # Paper
//! F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682,
//! section 3.1.
//!
//! # Equation
//! `G = Q Q^T` with the flattened maps `Q [B, C * H * W]`, its rows divided by their L2 norm;
//! `sp = sum over stages of |G_T - G_S|_F^2 / B^2`.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `stages` of both; channels and sizes may differ.
//!
//! # Defaults and their source
//! Weight 3000, last stage only: the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! torchdistill divides the rows by their L1 norm; the paper and the others by their L2 norm.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("sp")?;
//! let sp = (entry.build)(&toml::toml! { weight = 1000.0 })?;
//! assert_eq!(sp.required_features().teacher, ["F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::reduce::{sum, sum_stages};
use crate::common::{checks, config, constant_like};

/// Registry entry of `sp`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "sp",
    summary: "similarities between the images of the batch",
    source: "Tung and Mori 2019, section 3.1",
    defaults: || {
        config::document::<SpConfig>(&[
            ("stages", "mdistiller, RepDistiller"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Sp::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `sp`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpConfig {
    /// Features to compare.
    pub stages: Vec<String>,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SpConfig {
    fn default() -> Self {
        Self { stages: vec!["F4".into()], weight: 3000.0 }
    }
}

/// Squared distance of the normalized Gram matrices of one stage over `B^2`, a scalar.
///
/// Features are `[B, ...]`; all other axes may differ. Tung and Mori 2019, section 3.1.
///
/// # Errors
/// If the batch sizes differ.
pub fn sp_loss(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let teacher = constant_like(teacher, student)?;
    let batch = student.dim(0)? as f64;
    Ok((sum(&(similarity(&teacher)? - similarity(student)?)?.sqr()?)? / (batch * batch))?)
}

/// Gram matrix of the batch with unit rows, `[B, B]`.
fn similarity(features: &Tensor) -> Result<Tensor> {
    let q = features.flatten_from(1)?.contiguous()?; // [B, C * H * W]
    l2_normalize(&q.matmul(&q.t()?)?, EPS)
}

/// Similarity-preserving distillation.
#[derive(Debug)]
pub struct Sp {
    config: SpConfig,
}

impl Sp {
    /// Validates the settings.
    pub fn new(config: SpConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for Sp {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        self.config.stages.iter().try_for_each(|f| checks::require_maps(shapes, f, ENTRY.name).map(|_| ()))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let stages = self.config.stages.iter();
        let values = stages.map(|f| sp_loss(context.student.get(f)?, context.teacher.get(f)?));
        Ok(vec![Term::new("sp", sum_stages(ENTRY.name, values)?, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("sp".into(), self.config.weight)]
    }
}
