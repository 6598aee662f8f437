//! Similarity-preserving distillation (`sp`): which images of the batch are alike.
//!
//! # Paper
//! F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682,
//! section 3.1.
//!
//! # Equation
//! `G = Q Q^T` with `Q [B, C * H * W]` the flattened maps, its rows divided by their L2 norm;
//! `sp = sum over stages of |G_T - G_S|_F^2 / B^2`.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `stages` of both; channels and sizes may differ.
//!
//! # Defaults and their source
//! Weight 3000, the last stage only: the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! torchdistill divides the rows by their L1 norm; the paper and the others by their L2 norm.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("sp")?;
//! let sp = (row.build)(&toml::toml! { weight = 1000.0 })?;
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

use crate::sum::{self, sum};
use crate::unit::{EPS, unit};
use crate::{fit, settings};

/// The row of `sp`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "sp",
    summary: "which images of the batch are alike",
    source: "Tung and Mori 2019, section 3.1",
    defaults: || {
        settings::describe::<SpConfig>(&[
            ("stages", "mdistiller, RepDistiller"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Sp::new(settings::read(table, "sp")?)?)),
};

/// Settings of `sp`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpConfig {
    /// Taps that enter.
    pub stages: Vec<String>,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SpConfig {
    fn default() -> Self {
        Self { stages: vec!["F4".into()], weight: 3000.0 }
    }
}

/// Similarity-preserving distillation.
#[derive(Debug)]
pub struct Sp {
    config: SpConfig,
}

impl Sp {
    /// Checks the settings.
    pub fn new(config: SpConfig) -> Result<Self> {
        settings::stages("sp", "stages", &config.stages)?;
        settings::not_negative("sp", "weight", config.weight)?;
        Ok(Self { config })
    }
}

/// Unit rows of the Gram matrix of the batch, `[B, B]`.
fn similarity(maps: &Tensor) -> Result<Tensor> {
    let q = maps.flatten_from(1)?.contiguous()?; // [B, C * H * W]
    unit(&q.matmul(&q.t()?)?, EPS)
}

impl Distiller for Sp {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        self.config.stages.iter().try_for_each(|tap| fit::map_channels(shapes, tap, ENTRY.name).map(|_| ()))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.config.stages.iter().map(|tap| {
            let student = context.student.get(tap)?;
            let teacher = context.teacher.get(tap)?.detach().to_dtype(student.dtype())?;
            let batch = student.dim(0)? as f64;
            Ok((sum(&(similarity(&teacher)? - similarity(student)?)?.sqr()?)? / (batch * batch))?)
        });
        let value = sum::stages(ENTRY.name, values)?;
        Ok(vec![Term::new("sp", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("sp".into(), self.config.weight)]
    }
}
