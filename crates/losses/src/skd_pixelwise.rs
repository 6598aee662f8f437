//! Pixel-wise distillation (`skd_pixelwise`): the class probabilities of the teacher at each pixel.
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
//! The authors' code takes the cross entropy with the soft targets, sums it over the batch and
//! divides by `H * W` (`reduction = "sum_over_hw"`): same gradient, but it grows with the batch. Later
//! code takes the mean over classes too (`"element_mean"`), N times smaller. Neither multiplies by
//! `T^2`.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("skd_pixelwise")?;
//! let method = (row.build)(&toml::toml! { reduction = "element_mean" })?;
//! assert_eq!(method.term_weights(), [("pixelwise".to_string(), 10.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::softmax::{kl, log_softmax, rows};
use crate::sum::{mean, sum};
use crate::{fit, settings};

/// The row of `skd_pixelwise`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_pixelwise",
    summary: "class probabilities of the teacher at each pixel",
    source: "Liu et al. 2019, equation (1)",
    defaults: || {
        settings::describe::<SkdPixelwiseConfig>(&[
            ("reduction", "Liu et al. 2019, equation (1)"),
            ("temperature", "Liu et al. 2019, equation (1)"),
            ("t_squared", "keeps the size of the gradient; no matter at temperature 1"),
            ("weight", "the authors' code"),
        ])
    },
    build: |table| Ok(Box::new(SkdPixelwise::new(settings::read(table, ENTRY.name)?)?)),
};

/// What the divergence is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The mean over the pixels of all images.
    #[default]
    PixelMean,
    /// Cross entropy with the soft targets, summed over the pixels of all images, divided by the
    /// pixels of one.
    SumOverHw,
    /// The mean over the pixels and the classes.
    ElementMean,
}

/// Settings of `skd_pixelwise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdPixelwiseConfig {
    /// What the divergence is divided by.
    pub reduction: Reduction,
    /// Divides the logits of both.
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

/// Pixel-wise distillation.
#[derive(Debug)]
pub struct SkdPixelwise {
    config: SkdPixelwiseConfig,
}

impl SkdPixelwise {
    /// Checks the settings.
    pub fn new(config: SkdPixelwiseConfig) -> Result<Self> {
        settings::above_zero(ENTRY.name, "temperature", config.temperature)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for SkdPixelwise {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: vec!["logits".into()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::same_logit_maps(shapes, ENTRY.name).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let t = self.config.temperature;
        let (student, teacher) = fit::maps(context, "logits", ENTRY.name)?;
        let (_, classes, h, w) = student.dims4()?;
        let student = (rows(&student, ENTRY.name)? / t)?; // [B * H * W, N]
        let teacher = (rows(&teacher, ENTRY.name)? / t)?;
        let value = match self.config.reduction {
            Reduction::PixelMean => mean(&kl(&teacher, &student)?)?,
            Reduction::ElementMean => (mean(&kl(&teacher, &student)?)? / classes as f64)?,
            Reduction::SumOverHw => {
                let each = (log_softmax(&teacher)?.exp()? * log_softmax(&student)?)?;
                (sum(&each)? * (-1.0 / (h * w) as f64))?
            }
        };
        let value = if self.config.t_squared { (value * (t * t))? } else { value };
        Ok(vec![Term::new("pixelwise", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("pixelwise".into(), self.config.weight)]
    }
}
