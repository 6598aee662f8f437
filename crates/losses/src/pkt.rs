//! Probabilistic knowledge transfer (`pkt`): for each image, which others of the batch are near, as
//! a probability distribution.
//!
//! # Paper
//! N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
//! ECCV 2018, arXiv 1803.10837, equations (3)-(7).
//!
//! # Equation
//! `k_ij = (x_i . x_j + 1) / 2` for unit features `x`, `p_ij = k_ij / sum_j k_ij`;
//! `pkt = mean over i, j of p^T_ij ln((p^T_ij + eps) / (p^S_ij + eps))`.
//!
//! # Inputs
//! The vectors `[B, D]` named by `tap` of both; lengths may differ.
//!
//! # Defaults and their source
//! Weight 30000, eps 1e-7: the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! The paper sums over i and j, and leaves the diagonal out of the normalization; all ports take the
//! mean over B^2 (hence the large weight) and keep the diagonal, as here. `eps` leaves a gradient of
//! the order weight * eps where the student is the teacher.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("pkt")?;
//! let pkt = (row.build)(&toml::toml! { weight = 1000.0 })?;
//! assert_eq!(pkt.term_weights(), [("pkt".to_string(), 1000.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::sum::mean;
use crate::unit::safe_sqrt;
use crate::{fit, settings};

/// The row of `pkt`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "pkt",
    summary: "which images of the batch are near each other, as probabilities",
    source: "Passalis and Tefas 2018, equations (3)-(7)",
    defaults: || {
        settings::describe::<PktConfig>(&[
            ("tap", "mdistiller, RepDistiller: the last feature"),
            ("eps", "mdistiller, RepDistiller"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Pkt::new(settings::read(table, "pkt")?)?)),
};

/// Settings of `pkt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PktConfig {
    /// Tap that enters.
    pub tap: String,
    /// Added to norms and to probabilities.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for PktConfig {
    fn default() -> Self {
        Self { tap: "pooled".into(), eps: 1e-7, weight: 30000.0 }
    }
}

/// Probabilistic knowledge transfer.
#[derive(Debug)]
pub struct Pkt {
    config: PktConfig,
}

impl Pkt {
    /// Checks the settings.
    pub fn new(config: PktConfig) -> Result<Self> {
        settings::above_zero("pkt", "eps", config.eps)?;
        settings::not_negative("pkt", "weight", config.weight)?;
        Ok(Self { config })
    }

    /// The probabilities of all pairs, `[B, D] -> [B, B]`; a zero feature is as far from all.
    fn probabilities(&self, x: &Tensor) -> Result<Tensor> {
        let square = x.sqr()?.sum_keepdim(D::Minus1)?;
        let live = square.gt(0.0)?.to_dtype(x.dtype())?;
        let x = x.broadcast_mul(&live.div(&(safe_sqrt(&square)? + self.config.eps)?)?)?;
        let near = x.matmul(&x.t()?)?.affine(0.5, 0.5)?;
        Ok(near.broadcast_div(&near.sum_keepdim(D::Minus1)?)?)
    }
}

impl Distiller for Pkt {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.config.tap.clone()], teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::vector_lengths(shapes, &self.config.tap, ENTRY.name).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = fit::vector_pair(context, &self.config.tap, ENTRY.name)?;
        let (q, p) = (self.probabilities(&student)?, self.probabilities(&teacher)?);
        let ratio = (&p + self.config.eps)?.div(&(q + self.config.eps)?)?;
        let value = mean(&(p * ratio.log()?)?)?;
        Ok(vec![Term::new("pkt", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("pkt".into(), self.config.weight)]
    }
}
