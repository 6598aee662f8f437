//! Probabilistic knowledge transfer (`pkt`): similarities between the images of a batch as conditional
//! probabilities.
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
//! Vectors `[B, D]` at `feature` of both; lengths may differ.
//!
//! # Defaults and their source
//! Weight 30000, eps 1e-7: the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! The paper sums over i and j and excludes the diagonal from the normalization; all ports take the
//! mean over B^2 (hence the large weight) and include the diagonal, as here. If the student equals the
//! teacher, `eps` leaves a gradient of the order weight * eps.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("pkt")?;
//! let pkt = (entry.build)(&toml::toml! { weight = 1000.0 })?;
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

use crate::common::normalize::safe_sqrt;
use crate::common::reduce::mean;
use crate::common::{checks, config, constant_like};

/// Registry entry of `pkt`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "pkt",
    summary: "similarities between the images of the batch as probabilities",
    source: "Passalis and Tefas 2018, equations (3)-(7)",
    defaults: || {
        config::document::<PktConfig>(&[
            ("feature", "mdistiller, RepDistiller: the last feature"),
            ("eps", "mdistiller, RepDistiller"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Pkt::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `pkt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PktConfig {
    /// Feature to compare.
    pub feature: String,
    /// Added to norms and to probabilities.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for PktConfig {
    fn default() -> Self {
        Self { feature: "pooled".into(), eps: 1e-7, weight: 30000.0 }
    }
}

/// Mean over pairs of images of `p^T ln(p^T / p^S)` with the conditional probabilities `p`, a scalar.
///
/// Features are `[B, D]`; lengths may differ. `eps` is added to norms and probabilities. Passalis and
/// Tefas 2018, equations (3) to (7).
///
/// # Errors
/// If the batch sizes differ.
pub fn pkt_loss(student: &Tensor, teacher: &Tensor, eps: f64) -> Result<Tensor> {
    let teacher = constant_like(teacher, student)?;
    let (q, p) = (probabilities(student, eps)?, probabilities(&teacher, eps)?);
    let ratio = (&p + eps)?.div(&(q + eps)?)?;
    mean(&(p * ratio.log()?)?)
}

/// Conditional probabilities of all pairs, `[B, D] -> [B, B]`; zero features are equally far from all.
fn probabilities(x: &Tensor, eps: f64) -> Result<Tensor> {
    let square = x.sqr()?.sum_keepdim(D::Minus1)?;
    let nonzero = square.gt(0.0)?.to_dtype(x.dtype())?;
    let x = x.broadcast_mul(&nonzero.div(&(safe_sqrt(&square)? + eps)?)?)?;
    let kernel = x.matmul(&x.t()?)?.affine(0.5, 0.5)?;
    Ok(kernel.broadcast_div(&kernel.sum_keepdim(D::Minus1)?)?)
}

/// Probabilistic knowledge transfer.
#[derive(Debug)]
pub struct Pkt {
    config: PktConfig,
}

impl Pkt {
    /// Validates the settings.
    pub fn new(config: PktConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "eps", config.eps)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for Pkt {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&[&self.config.feature])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_vectors(shapes, &self.config.feature, ENTRY.name).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = checks::vector_pair(context, &self.config.feature, ENTRY.name)?;
        let value = pkt_loss(&student, &teacher, self.config.eps)?;
        Ok(vec![Term::new("pkt", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("pkt".into(), self.config.weight)]
    }
}
