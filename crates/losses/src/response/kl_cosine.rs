//! Kullback-Leibler divergence and cosine similarity (`kl_cosine`).
//!
//! # Paper
//! A. Chatterjee et al., "Improved Knowledge Distillation for Land-Use Image Classification", arXiv
//! 2606.14886, 2026. Reconstructed from the abstract, the only text at hand: the vectors that the
//! cosine compares and the weights of the terms are open.
//!
//! # Equation
//! `kl` is the loss of [`kd`](super::kd); `cosine = mean over b of (1 - cos(a_b, b_b))`. The cosine of
//! a zero vector is 0.
//!
//! # Inputs
//! `logits [B, N]` of both. `cosine_on` selects the vectors of the cosine: `logits`, `softmax` (of
//! logits / T), or `pooled`, the feature `[B, D]`. If the lengths differ, a trained linear layer
//! projects the student's: `projector.weight`, `projector.bias`.
//!
//! # Defaults and their source
//! All reconstructed: temperature 4 and a quarter for each of the two terms, with 0.5 for cross entropy.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("kl_cosine")?;
//! let method = (entry.build)(&toml::toml! { cosine_on = "pooled" })?;
//! assert_eq!(method.required_features().student, ["logits", "pooled"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};
use stillhouse_ops::Init;

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::reduce::mean;
use crate::common::softmax::{log_softmax, rows, scale_by_t_squared, soft_kl};
use crate::common::{checks, config, constant_like};

/// Feature of `cosine_on = "pooled"`.
const POOLED: &str = "pooled";

/// Registry entry of `kl_cosine`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "kl_cosine",
    summary: "softened class probabilities and the angle between logits or features",
    source: "Chatterjee et al. 2026, reconstructed from the abstract",
    defaults: || {
        config::document::<KlCosineConfig>(&[
            ("temperature", "kd's; not in the text at hand"),
            ("t_squared", "Hinton et al. 2014, section 2"),
            ("cosine_on", "equal lengths without a connector; not in the text at hand"),
            ("kl_weight", "not in the text at hand; intended with 0.5 for ce"),
            ("cosine_weight", "not in the text at hand"),
        ])
    },
    build: |table| Ok(Box::new(KlCosine::new(config::parse(table, ENTRY.name)?)?)),
};

/// Vectors of the cosine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CosineOn {
    /// Logits.
    #[default]
    Logits,
    /// Softened class probabilities.
    Softmax,
    /// Spatial means of the last maps.
    Pooled,
}

/// Settings of `kl_cosine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlCosineConfig {
    /// Temperature of the softmax of both.
    pub temperature: f64,
    /// Whether `kl` is multiplied by the squared temperature.
    pub t_squared: bool,
    /// Vectors of the cosine.
    pub cosine_on: CosineOn,
    /// Weight of `kl`.
    pub kl_weight: f64,
    /// Weight of `cosine`.
    pub cosine_weight: f64,
}

impl Default for KlCosineConfig {
    fn default() -> Self {
        Self {
            temperature: 4.0,
            t_squared: true,
            cosine_on: CosineOn::Logits,
            kl_weight: 0.25,
            cosine_weight: 0.25,
        }
    }
}

/// `mean over rows of (1 - cos(s, t))` of vectors `[B, D]`, a scalar. Together with
/// [`kd_loss`](super::kd::kd_loss) it is the loss of Chatterjee et al. 2026.
///
/// # Errors
/// If the shapes differ.
pub fn cosine_loss(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let teacher = constant_like(teacher, student)?;
    if student.dims() != teacher.dims() {
        let (s, t) = (student.dims(), teacher.dims());
        return Err(Error::incompatible(
            ENTRY.name,
            format!(
                "expected vectors of equal shape for the cosine, found {s:?} (student) and {t:?} (teacher)"
            ),
        ));
    }
    let cosine = (l2_normalize(student, EPS)? * l2_normalize(&teacher, EPS)?)?.sum(D::Minus1)?;
    mean(&cosine.affine(-1.0, 1.0)?)
}

/// Kullback-Leibler divergence and cosine similarity.
#[derive(Debug)]
pub struct KlCosine {
    config: KlCosineConfig,
    /// Weight `[D_T, D_S]` and bias `[D_T]`, if the lengths differ. Set by `connect`.
    projector: Option<(Tensor, Tensor)>,
}

impl KlCosine {
    /// Validates the settings.
    pub fn new(config: KlCosineConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_non_negative(ENTRY.name, "kl_weight", config.kl_weight)?;
        config::require_non_negative(ENTRY.name, "cosine_weight", config.cosine_weight)?;
        Ok(Self { config, projector: None })
    }

    /// The student's and the teacher's vectors of the cosine, rows of equal length.
    fn vectors(&self, context: &LossContext) -> Result<(Tensor, Tensor)> {
        if self.config.cosine_on == CosineOn::Pooled {
            let (student, teacher) = checks::vector_pair(context, POOLED, ENTRY.name)?;
            return Ok(match &self.projector {
                Some((weight, bias)) => (student.matmul(&weight.t()?)?.broadcast_add(bias)?, teacher),
                None => (student, teacher),
            });
        }
        let student = rows(context.student.logits()?)?;
        let teacher = constant_like(&rows(context.teacher.logits()?)?, &student)?;
        if self.config.cosine_on == CosineOn::Logits {
            return Ok((student, teacher));
        }
        let t = self.config.temperature;
        Ok((log_softmax(&(student / t)?)?.exp()?, log_softmax(&(teacher / t)?)?.exp()?))
    }
}

impl Distiller for KlCosine {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        match self.config.cosine_on {
            CosineOn::Pooled => RequiredFeatures::both(&["logits", POOLED]),
            CosineOn::Logits | CosineOn::Softmax => RequiredFeatures::both(&["logits"]),
        }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        checks::require_equal_logits(shapes, ENTRY.name)?;
        if self.config.cosine_on == CosineOn::Pooled {
            let (student, teacher) = checks::require_vectors(shapes, POOLED, ENTRY.name)?;
            if student != teacher {
                let (layer, init) = (params.pp("projector"), Init::fan_in_uniform(student));
                let weight = layer.var("weight", &[teacher, student], init)?;
                self.projector = Some((weight, layer.var("bias", &[teacher], init)?));
            }
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let KlCosineConfig { temperature, t_squared, kl_weight, cosine_weight, .. } = self.config;
        let kl = soft_kl(context.student.logits()?, context.teacher.logits()?, temperature)?;
        let (student, teacher) = self.vectors(context)?;
        Ok(vec![
            Term::new("kl", scale_by_t_squared(kl, temperature, t_squared)?, kl_weight),
            Term::new("cosine", cosine_loss(&student, &teacher)?, cosine_weight),
        ])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("kl".into(), self.config.kl_weight), ("cosine".into(), self.config.cosine_weight)]
    }
}
