//! Channel-wise distillation (`cwd`, and `cd` as it stands in FRKDNet's tables): where in the image
//! each channel is strong.
//!
//! # Paper
//! C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, "Channel-wise Knowledge Distillation for Dense
//! Prediction", ICCV 2021, arXiv 2011.13256, equations (4)-(6).
//!
//! # Equation
//! `cwd = T^2 / (B C) * sum over b, c of KL(softmax_x(t[b, c, x] / T) || softmax_x(s[b, c, x] / T))`,
//! x over the positions. With `norm = "spatial"` the softmax runs over the channels of each position
//! and the mean over positions instead (the pixel-wise loss, for comparison).
//!
//! # Inputs
//! The tap named by `tap`, `[B, C, H, W]` of one size: `logits` of the same classes, or a map. Where
//! the channels of a map differ, a 1x1 convolution with bias brings the student's to the teacher's:
//! weights `connector.weight`, `connector.bias`.
//!
//! # Defaults and their source
//! Logits, T = 4, weight 3: the paper's setting for logits, and FRKDNet's "CD". For features the
//! paper's weight is 50. Other collections: CIRKD T = 4 in its run scripts, mmrazor weight 5 and
//! T = 1.
//!
//! # Where code and paper differ
//! CIRKD with its 1x1 convolution divides by the student's channel count, `C_T / C_S` too large.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("cwd")?;
//! let settings = toml::toml! {
//!     tap = "F4"
//!     weight = 50.0
//! };
//! assert_eq!((row.build)(&settings)?.required_features().teacher, ["F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::conv1x1::Conv1x1;
use crate::softmax::{kl, rows};
use crate::sum::mean;
use crate::{fit, settings};

/// The row of `cwd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "cwd",
    summary: "where in the image each channel is strong",
    source: "Shu et al. 2021, equations (4)-(6)",
    defaults,
    build: |table| Ok(Box::new(Cwd::new("cwd", settings::read(table, "cwd")?)?)),
};

/// The row of `cd`: the same under the name that FRKDNet's tables give it, on the logits.
pub const CD: Entry<DistillerBuild> = Entry {
    name: "cd",
    summary: "cwd on the logits, as FRKDNet's tables name it",
    source: "Shu et al. 2021, equations (4)-(6); Jiang et al. 2023, Tables 2 and 3",
    defaults,
    build: |table| Ok(Box::new(Cwd::new("cd", settings::read(table, "cd")?)?)),
};

fn defaults() -> String {
    settings::describe::<CwdConfig>(&[
        ("tap", "Shu et al. 2021, logits"),
        ("norm", "Shu et al. 2021, equation (5)"),
        ("temperature", "Shu et al. 2021"),
        ("weight", "Shu et al. 2021 for logits; 50 for features"),
    ])
}

/// What the softmax runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// The positions of each channel.
    #[default]
    Channel,
    /// The channels of each position.
    Spatial,
}

/// Settings of `cwd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CwdConfig {
    /// The tap that enters.
    pub tap: String,
    /// What the softmax runs over.
    pub norm: Norm,
    /// Divides the values of both.
    pub temperature: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CwdConfig {
    fn default() -> Self {
        Self { tap: "logits".into(), norm: Norm::default(), temperature: 4.0, weight: 3.0 }
    }
}

/// Channel-wise distillation.
#[derive(Debug)]
pub struct Cwd {
    name: &'static str,
    config: CwdConfig,
    /// Made by `connect` where the channels differ.
    connector: Option<Conv1x1>,
}

impl Cwd {
    /// Checks the settings; `name` is the row's.
    pub(crate) fn new(name: &'static str, config: CwdConfig) -> Result<Self> {
        settings::above_zero(name, "temperature", config.temperature)?;
        settings::not_negative(name, "weight", config.weight)?;
        Ok(Self { name, config, connector: None })
    }
}

impl Distiller for Cwd {
    fn name(&self) -> &str {
        self.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.config.tap.clone()], teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        if self.config.tap == "logits" {
            return fit::same_logit_maps(shapes, self.name).map(|_| ());
        }
        let (student, teacher) = fit::same_size_maps(shapes, &self.config.tap, self.name)?;
        if student != teacher {
            self.connector = Some(Conv1x1::new(student, teacher, &params.pp("connector"))?);
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let t = self.config.temperature;
        let (mut student, teacher) = fit::maps(context, &self.config.tap, self.name)?;
        if let Some(connector) = &self.connector {
            student = connector.forward(&student)?;
        }
        let soft = |map: &Tensor| {
            let along = match self.config.norm {
                Norm::Channel => map.flatten_from(2)?,
                Norm::Spatial => rows(map, self.name)?,
            };
            Ok::<_, stillhouse_core::Error>((along / t)?)
        };
        let value = (mean(&kl(&soft(&teacher)?, &soft(&student)?)?)? * (t * t))?;
        Ok(vec![Term::new("cwd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("cwd".into(), self.config.weight)]
    }
}
