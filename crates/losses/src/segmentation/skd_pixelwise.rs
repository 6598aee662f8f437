//! Pixel-wise distillation (`skd_pixelwise`): class probabilities of the teacher at each pixel.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equation (1); as "… for Dense Prediction", TPAMI
//! 2020, DOI 10.1109/TPAMI.2020.3001940.
//!
//! # Equation
//! `pixelwise = T^2 * mean over b, x of KL(softmax_c(t[b, c, x] / T) || softmax_c(s[b, c, x] / T))`;
//! without the `T^2` if `t_squared` is false.
//!
//! # Inputs
//! `logits [B, N, H, W]` of student and teacher.
//!
//! # Defaults and their source
//! T = 1 and the mean over pixels: the paper; weight 10: the authors' code.
//!
//! # Where code and paper differ
//! The authors' code sums the cross entropy with the soft targets over the batch and divides by
//! `H * W` (`reduction = "sum_over_hw"`): same gradient, but proportional to the batch size. Later code
//! also averages over classes (`"element_mean"`), N times smaller. Neither multiplies by `T^2`.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("skd_pixelwise")?;
//! let method = (entry.build)(&toml::toml! { reduction = "element_mean" })?;
//! assert_eq!(method.term_weights(), [("pixelwise".to_string(), 10.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::reduce::sum;
use crate::common::softmax::{log_softmax, rows, scale_by_t_squared, soft_kl};
use crate::common::{checks, config, constant_like};

/// Registry entry of `skd_pixelwise`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_pixelwise",
    summary: "class probabilities of the teacher at each pixel",
    source: "Liu et al. 2019, equation (1)",
    defaults: || {
        config::document::<SkdPixelwiseConfig>(&[
            ("reduction", "Liu et al. 2019, equation (1)"),
            ("temperature", "Liu et al. 2019, equation (1)"),
            ("t_squared", "keeps the gradient's scale; no effect at temperature 1"),
            ("weight", "the authors' code"),
        ])
    },
    build: |table| Ok(Box::new(SkdPixelwise::new(config::parse(table, ENTRY.name)?)?)),
};

/// Reduction of the divergences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Mean over the pixels of all images.
    #[default]
    PixelMean,
    /// Cross entropy with the soft targets, summed over the pixels of all images and divided by the
    /// number of pixels of one.
    SumOverHw,
    /// Mean over pixels and classes.
    ElementMean,
}

/// Settings of `skd_pixelwise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdPixelwiseConfig {
    /// Reduction of the divergences.
    pub reduction: Reduction,
    /// Temperature of the softmax of both.
    pub temperature: f64,
    /// Whether the loss is multiplied by the squared temperature.
    pub t_squared: bool,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SkdPixelwiseConfig {
    fn default() -> Self {
        Self { reduction: Reduction::default(), temperature: 1.0, t_squared: true, weight: 10.0 }
    }
}

/// Divergence of the softened class probabilities at each pixel, reduced to a scalar, without a factor
/// `T^2`.
///
/// Logits are `[B, N, H, W]`. Liu et al. 2019, equation (1).
///
/// # Errors
/// If the shapes differ.
pub fn skd_pixelwise_loss(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    temperature: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    let (_, classes, h, w) = student_logits.dims4()?;
    let mean_kl = || soft_kl(student_logits, teacher_logits, temperature);
    match reduction {
        Reduction::PixelMean => mean_kl(),
        Reduction::ElementMean => Ok((mean_kl()? / classes as f64)?),
        Reduction::SumOverHw => {
            let student = (rows(student_logits)? / temperature)?; // [B * H * W, N]
            let teacher = (rows(&constant_like(teacher_logits, student_logits)?)? / temperature)?;
            let each = (log_softmax(&teacher)?.exp()? * log_softmax(&student)?)?;
            Ok((sum(&each)? * (-1.0 / (h * w) as f64))?)
        }
    }
}

/// Pixel-wise distillation.
#[derive(Debug)]
pub struct SkdPixelwise {
    config: SkdPixelwiseConfig,
}

impl SkdPixelwise {
    /// Validates the settings.
    pub fn new(config: SkdPixelwiseConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for SkdPixelwise {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["logits"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_logit_maps(shapes, ENTRY.name).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let SkdPixelwiseConfig { reduction, temperature, t_squared, weight } = self.config;
        let (student, teacher) = checks::map_pair(context, "logits", ENTRY.name)?;
        let value = skd_pixelwise_loss(&student, &teacher, temperature, reduction)?;
        Ok(vec![Term::new("pixelwise", scale_by_t_squared(value, temperature, t_squared)?, weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("pixelwise".into(), self.config.weight)]
    }
}
