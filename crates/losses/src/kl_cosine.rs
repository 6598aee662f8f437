//! Kullback-Leibler divergence with cosine similarity (`kl_cosine`).
//!
//! # Paper
//! A. Chatterjee et al., "Improved Knowledge Distillation for Land-Use Image Classification", arXiv
//! 2606.14886, 2026. Only the abstract is at hand: which vectors the cosine compares and how the
//! terms are weighted is a reconstruction.
//!
//! # Equation
//! `kl = T^2 * mean over b of KL(softmax(z_T / T) || softmax(z_S / T))`, without the `T^2` if
//! `t_squared` is false; `cosine = mean over b of (1 - cos(a_b, b_b))`. A zero vector has the cosine 0.
//!
//! # Inputs
//! `logits [B, N]` of both. What the cosine compares, `cosine_on`: `logits` as they are, `softmax`
//! (of logits / T), or `pooled`, the vectors `[B, D]` of that tap; where their lengths differ the
//! student's go through a linear layer `projector.weight`, `projector.bias`, trained along.
//!
//! # Defaults and their source
//! All reconstructed: temperature 4, a quarter for each of the two terms, beside 0.5 for the labels.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("kl_cosine")?;
//! let method = (row.build)(&toml::toml! { cosine_on = "pooled" })?;
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

use crate::softmax::{kl, log_softmax, rows};
use crate::sum::mean;
use crate::unit::{EPS, unit};
use crate::{fit, settings};

/// The tap of `cosine_on = "pooled"`.
const POOLED: &str = "pooled";

/// The row of `kl_cosine`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "kl_cosine",
    summary: "softened class probabilities, and the angle between logits or features",
    source: "Chatterjee et al. 2026, reconstructed from the abstract",
    defaults: || {
        settings::describe::<KlCosineConfig>(&[
            ("temperature", "kd's; not in the text at hand"),
            ("t_squared", "Hinton et al. 2014, section 2"),
            ("cosine_on", "equal lengths without a connector; not in the text at hand"),
            ("kl_weight", "not in the text at hand; ce is meant to have 0.5"),
            ("cosine_weight", "not in the text at hand"),
        ])
    },
    build: |table| Ok(Box::new(KlCosine::new(settings::read(table, "kl_cosine")?)?)),
};

/// What the cosine compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CosineOn {
    /// The logits as they are.
    #[default]
    Logits,
    /// The softened class probabilities.
    Softmax,
    /// The means of the last maps.
    Pooled,
}

/// Settings of `kl_cosine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlCosineConfig {
    /// Divides the logits of both.
    pub temperature: f64,
    /// Whether `kl` is multiplied by the squared temperature.
    pub t_squared: bool,
    /// What the cosine compares.
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

/// Kullback-Leibler divergence with cosine similarity.
#[derive(Debug)]
pub struct KlCosine {
    config: KlCosineConfig,
    /// Weight `[D_T, D_S]` and bias `[D_T]`, made by `connect` where the lengths differ.
    projector: Option<(Tensor, Tensor)>,
}

impl KlCosine {
    /// Checks the settings.
    pub fn new(config: KlCosineConfig) -> Result<Self> {
        settings::above_zero(ENTRY.name, "temperature", config.temperature)?;
        settings::not_negative(ENTRY.name, "kl_weight", config.kl_weight)?;
        settings::not_negative(ENTRY.name, "cosine_weight", config.cosine_weight)?;
        Ok(Self { config, projector: None })
    }

    /// The vectors whose angle counts: the student's and the teacher's, rows of one length.
    fn vectors(&self, context: &LossContext, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
        let t = self.config.temperature;
        Ok(match self.config.cosine_on {
            CosineOn::Logits => (student.clone(), teacher.clone()),
            CosineOn::Softmax => (log_softmax(&(student / t)?)?.exp()?, log_softmax(&(teacher / t)?)?.exp()?),
            CosineOn::Pooled => {
                let (student, teacher) = fit::vector_pair(context, POOLED, ENTRY.name)?;
                match &self.projector {
                    Some((weight, bias)) => (student.matmul(&weight.t()?)?.broadcast_add(bias)?, teacher),
                    None => (student, teacher),
                }
            }
        })
    }
}

impl Distiller for KlCosine {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        let mut taps = vec!["logits".to_string()];
        if self.config.cosine_on == CosineOn::Pooled {
            taps.push(POOLED.into());
        }
        RequiredFeatures { student: taps.clone(), teacher: taps }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        fit::same_logits(shapes, ENTRY.name)?;
        if self.config.cosine_on == CosineOn::Pooled {
            let (student, teacher) = fit::vector_lengths(shapes, POOLED, ENTRY.name)?;
            if student != teacher {
                let (at, init) = (params.pp("projector"), Init::fan_in_uniform(student));
                self.projector =
                    Some((at.var("weight", &[teacher, student], init)?, at.var("bias", &[teacher], init)?));
            }
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let t = self.config.temperature;
        let student = rows(context.student.logits()?, ENTRY.name)?;
        let teacher = rows(&context.teacher.logits()?.detach(), ENTRY.name)?.to_dtype(student.dtype())?;
        let divergence = mean(&kl(&(&teacher / t)?, &(&student / t)?)?)?;
        let divergence = if self.config.t_squared { (divergence * (t * t))? } else { divergence };

        let (a, b) = self.vectors(context, &student, &teacher)?;
        if a.dims() != b.dims() {
            return Err(Error::incompatible(
                ENTRY.name,
                format!("the cosine compares {:?} (student) with {:?} (teacher)", a.dims(), b.dims()),
            ));
        }
        let cosine = (unit(&a, EPS)? * unit(&b, EPS)?)?.sum(D::Minus1)?;
        let cosine = mean(&cosine.affine(-1.0, 1.0)?)?;
        Ok(vec![
            Term::new("kl", divergence, self.config.kl_weight),
            Term::new("cosine", cosine, self.config.cosine_weight),
        ])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("kl".into(), self.config.kl_weight), ("cosine".into(), self.config.cosine_weight)]
    }
}
