//! Variational information distillation (`vid`): how well the teacher's maps can be predicted from
//! the student's, as a Gaussian with a learned variance per channel.
//!
//! # Paper
//! S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational Information Distillation for
//! Knowledge Transfer", CVPR 2019, arXiv 1904.05835, equations (5) and (6).
//!
//! # Equation
//! `vid = sum over stages of mean over all values of ((m - t)^2 / v + ln v) / 2`, where `t` is the
//! teacher's map, `m` the student's after three 1x1 convolutions (without bias, ReLU between them),
//! and `v = softplus(log_scale) + eps` one variance for each of the teacher's channels.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `stages` of both; channels may differ. The larger map is pooled
//! to the smaller. Weights `<stage>.regressor0.weight [C_T, C_S, 1, 1]`, `<stage>.regressor1.weight`
//! and `<stage>.regressor2.weight [C_T, C_T, 1, 1]`, `<stage>.log_scale [C_T]`, all trained.
//!
//! # Defaults and their source
//! Weight 1, all stages with equal weight, variance 5 at the start, eps 1e-5: the public collections
//! mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! In mdistiller the variances are in no list of parameters and stay at 5; here and in RepDistiller
//! they are trained, as the paper has it. Both choose the pooling size by height only (square maps).
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("vid")?;
//! let vid = (row.build)(&toml::toml! { stages = ["F3", "F4"] })?;
//! assert_eq!(vid.required_features().student, ["F3", "F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};
use stillhouse_ops::Init;

use crate::connector::{self, pixels};
use crate::softmax::log_sum_exp;
use crate::sum::{self, mean_rows};
use crate::{fit, settings};

/// The row of `vid`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "vid",
    summary: "the teacher's maps predicted from the student's, with learned variances",
    source: "Ahn et al. 2019, equations (5)-(6)",
    defaults: || {
        settings::describe::<VidConfig>(&[
            ("stages", "mdistiller, RepDistiller"),
            ("init_variance", "mdistiller, RepDistiller"),
            ("eps", "mdistiller, RepDistiller"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Vid::new(settings::read(table, "vid")?)?)),
};

/// Settings of `vid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VidConfig {
    /// Taps that enter.
    pub stages: Vec<String>,
    /// Variance of every channel at the start.
    pub init_variance: f64,
    /// Least variance.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for VidConfig {
    fn default() -> Self {
        Self { stages: settings::four_stages(), init_variance: 5.0, eps: 1e-5, weight: 1.0 }
    }
}

/// Variational information distillation.
#[derive(Debug)]
pub struct Vid {
    config: VidConfig,
    /// Made by `connect`.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    tap: String,
    /// `[C_T, C_S or C_T, 1, 1]`
    regressors: [Tensor; 3],
    log_scale: Tensor, // [C_T]
}

impl Vid {
    /// Checks the settings.
    pub fn new(config: VidConfig) -> Result<Self> {
        settings::stages(ENTRY.name, "stages", &config.stages)?;
        settings::above_zero(ENTRY.name, "eps", config.eps)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        let start = config.init_variance;
        if !(start.is_finite() && start > config.eps) {
            return Err(settings::wrong(ENTRY.name, "init_variance", start, "a number above eps"));
        }
        Ok(Self { config, stages: Vec::new() })
    }
}

impl Stage {
    fn new(
        tap: &str,
        (student, teacher): (usize, usize),
        config: &VidConfig,
        params: &ParamBuilder,
    ) -> Result<Self> {
        let at = params.pp(tap);
        let regressor = |i: usize, inputs: usize| {
            let init = Init::fan_in_uniform(inputs);
            at.pp(format!("regressor{i}")).var("weight", &[teacher, inputs, 1, 1], init)
        };
        // The inverse of softplus: ln(e^x - 1), written for large x too.
        let start = config.init_variance - config.eps;
        let log_scale = start + (-(-start).exp()).ln_1p();
        Ok(Self {
            tap: tap.to_string(),
            regressors: [regressor(0, student)?, regressor(1, teacher)?, regressor(2, teacher)?],
            log_scale: at.var("log_scale", &[teacher], Init::Constant(log_scale))?,
        })
    }

    /// The loss of the stage, a scalar.
    fn value(&self, context: &LossContext, eps: f64) -> Result<Tensor> {
        let (student, teacher) = fit::map_pair(context, &self.tap, ENTRY.name)?;
        let mut mean = pixels(&student)?; // [B * H * W, C]
        for (i, weight) in self.regressors.iter().enumerate() {
            if i > 0 {
                mean = connector::relu(&mean)?;
            }
            mean = connector::conv1x1(&mean, weight)?;
        }
        let squares = mean_rows(&(mean - pixels(&teacher)?)?.sqr()?)?.to_dtype(DType::F64)?; // [C_T]
        // ln(1 + e^x) in f64: beside a small eps, single precision has few digits left.
        let log_scale = self.log_scale.to_dtype(DType::F64)?.unsqueeze(1)?;
        let zero = log_scale.zeros_like()?.detach();
        let variance = (log_sum_exp(&Tensor::cat(&[&log_scale, &zero], 1)?)? + eps)?;
        let value = ((squares / &variance)? + variance.log()?)?.mean_all()?;
        Ok((value * 0.5)?.to_dtype(student.dtype())?)
    }
}

impl Distiller for Vid {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let make =
            |tap: &String| Stage::new(tap, fit::map_channels(shapes, tap, ENTRY.name)?, &self.config, params);
        self.stages = self.config.stages.iter().map(make).collect::<Result<_>>()?;
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.stages.iter().map(|stage| stage.value(context, self.config.eps));
        let value = sum::stages(ENTRY.name, values)?;
        Ok(vec![Term::new("vid", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("vid".into(), self.config.weight)]
    }
}
