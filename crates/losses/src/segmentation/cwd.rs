//! Channel-wise distillation (`cwd`, and `cd` in FRKDNet's tables): spatial distribution of each channel.
//!
//! # Paper
//! C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, "Channel-wise Knowledge Distillation for Dense
//! Prediction", ICCV 2021, arXiv 2011.13256, equations (4)-(6).
//!
//! # Equation
//! `cwd = T^2 / (B C) * sum over b, c of KL(softmax_x(t[b, c, x] / T) || softmax_x(s[b, c, x] / T))`,
//! x over the positions. With `norm = "spatial"` the softmax is over the channels of each position and
//! the mean over positions (the pixel-wise loss, for comparison).
//!
//! # Inputs
//! `feature [B, C, H, W]` of equal size: `logits` of the same classes, or a map. If the channels of a
//! map differ, a 1x1 convolution with bias connects the student's to the teacher's: weights
//! `connector.weight`, `connector.bias`.
//!
//! # Defaults and their source
//! Logits, T = 4, weight 3: the paper's setting for logits, and FRKDNet's "CD". For features the
//! paper's weight is 50. Other collections: CIRKD T = 4 in its run scripts, mmrazor weight 5 and
//! T = 1.
//!
//! # Where code and paper differ
//! CIRKD with its 1x1 convolution divides by the student's number of channels, `C_T / C_S` too large.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("cwd")?;
//! let settings = toml::toml! {
//!     feature = "F4"
//!     weight = 50.0
//! };
//! assert_eq!((entry.build)(&settings)?.required_features().teacher, ["F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::connector::Conv1x1;
use crate::common::reduce::mean;
use crate::common::softmax::{kl, rows};
use crate::common::{checks, config, constant_like};

/// Registry entry of `cwd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "cwd",
    summary: "spatial distribution of each channel",
    source: "Shu et al. 2021, equations (4)-(6)",
    defaults,
    build: |table| Ok(Box::new(Cwd::new("cwd", config::parse(table, "cwd")?)?)),
};

/// Registry entry of `cd`: `cwd` on logits under its name in FRKDNet's tables.
pub const CD: Entry<DistillerBuild> = Entry {
    name: "cd",
    summary: "cwd on the logits, as FRKDNet's tables name it",
    source: "Shu et al. 2021, equations (4)-(6); Jiang et al. 2023, Tables 2 and 3",
    defaults,
    build: |table| Ok(Box::new(Cwd::new("cd", config::parse(table, "cd")?)?)),
};

fn defaults() -> String {
    config::document::<CwdConfig>(&[
        ("feature", "Shu et al. 2021, logits"),
        ("norm", "Shu et al. 2021, equation (5)"),
        ("temperature", "Shu et al. 2021"),
        ("weight", "Shu et al. 2021 for logits; 50 for features"),
    ])
}

/// Axis of the softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Positions of each channel.
    #[default]
    Channel,
    /// Channels of each position.
    Spatial,
}

/// Settings of `cwd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CwdConfig {
    /// Feature to compare.
    pub feature: String,
    /// Axis of the softmax.
    pub norm: Norm,
    /// Temperature of the softmax of both.
    pub temperature: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CwdConfig {
    fn default() -> Self {
        Self { feature: "logits".into(), norm: Norm::default(), temperature: 4.0, weight: 3.0 }
    }
}

/// `T^2` times the mean divergence of the channels' spatial distributions, a scalar.
///
/// Maps are `[B, C, H, W]` of equal shape. Shu et al. 2021, equations (4) to (6).
///
/// # Errors
/// If the shapes differ.
pub fn cwd_loss(student: &Tensor, teacher: &Tensor, norm: Norm, temperature: f64) -> Result<Tensor> {
    let soft = |map: &Tensor| {
        let along = match norm {
            Norm::Channel => map.flatten_from(2)?,
            Norm::Spatial => rows(map)?,
        };
        Ok::<_, stillhouse_core::Error>((along / temperature)?)
    };
    let teacher = constant_like(teacher, student)?;
    Ok((mean(&kl(&soft(&teacher)?, &soft(student)?)?)? * (temperature * temperature))?)
}

/// Channel-wise distillation.
#[derive(Debug)]
pub struct Cwd {
    name: &'static str,
    config: CwdConfig,
    /// Set by `connect` if the channels differ.
    connector: Option<Conv1x1>,
}

impl Cwd {
    /// Validates the settings of the entry `name`.
    pub(crate) fn new(name: &'static str, config: CwdConfig) -> Result<Self> {
        config::require_positive(name, "temperature", config.temperature)?;
        config::require_non_negative(name, "weight", config.weight)?;
        Ok(Self { name, config, connector: None })
    }
}

impl Distiller for Cwd {
    fn name(&self) -> &str {
        self.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&[&self.config.feature])
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        if self.config.feature == "logits" {
            return checks::require_logit_maps(shapes, self.name).map(|_| ());
        }
        let (student, teacher) = checks::require_same_size_maps(shapes, &self.config.feature, self.name)?;
        if student != teacher {
            self.connector = Some(Conv1x1::new(student, teacher, &params.pp("connector"))?);
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (mut student, teacher) = checks::map_pair(context, &self.config.feature, self.name)?;
        if let Some(connector) = &self.connector {
            student = connector.forward(&student)?;
        }
        let value = cwd_loss(&student, &teacher, self.config.norm, self.config.temperature)?;
        Ok(vec![Term::new("cwd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("cwd".into(), self.config.weight)]
    }
}
