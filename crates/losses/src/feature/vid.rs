//! Variational information distillation (`vid`): prediction of the teacher's maps from the student's by
//! a Gaussian with a learned variance per channel.
//!
//! # Paper
//! S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational Information Distillation for
//! Knowledge Transfer", CVPR 2019, arXiv 1904.05835, equations (5) and (6).
//!
//! # Equation
//! `vid = sum over stages of mean over all values of ((m - t)^2 / v + ln v) / 2`, with the teacher's map
//! `t`, the student's map `m` after three 1x1 convolutions (without bias, ReLU between them), and one
//! variance `v = softplus(log_scale) + eps` per teacher channel.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `stages` of both; channels may differ. The larger map is pooled to the size of
//! the smaller. Trained weights `<stage>.regressor0.weight [C_T, C_S, 1, 1]`,
//! `<stage>.regressor1.weight` and `<stage>.regressor2.weight [C_T, C_T, 1, 1]`,
//! `<stage>.log_scale [C_T]`.
//!
//! # Defaults and their source
//! Weight 1, all stages with equal weight, initial variance 5, eps 1e-5: the public collections
//! mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! mdistiller does not pass the variances to the optimizer, so they stay at 5; here and in
//! RepDistiller they are trained, as in the paper. Both choose the pooling size by height only (square
//! maps).
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("vid")?;
//! let vid = (entry.build)(&toml::toml! { stages = ["F3", "F4"] })?;
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

use crate::common::connector::{conv1x1, pixels, relu};
use crate::common::pool::pool_pair;
use crate::common::reduce::{mean_rows, sum_stages};
use crate::common::softmax::log_sum_exp;
use crate::common::{checks, config, constant_like};

/// Registry entry of `vid`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "vid",
    summary: "prediction of the teacher's maps with learned variances",
    source: "Ahn et al. 2019, equations (5)-(6)",
    defaults: || {
        config::document::<VidConfig>(&[
            ("stages", "mdistiller, RepDistiller"),
            ("init_variance", "mdistiller, RepDistiller"),
            ("eps", "mdistiller, RepDistiller"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Vid::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `vid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VidConfig {
    /// Features to compare.
    pub stages: Vec<String>,
    /// Initial variance of every channel.
    pub init_variance: f64,
    /// Minimum variance.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for VidConfig {
    fn default() -> Self {
        Self { stages: config::four_stages(), init_variance: 5.0, eps: 1e-5, weight: 1.0 }
    }
}

/// Mean Gaussian negative log-likelihood of the teacher's map, a scalar, without its constant.
///
/// `mean` is the student's prediction and `teacher` the teacher's map as rows of channels
/// `[B * H * W, C]`; `log_scale [C]` with the variance `softplus(log_scale) + eps`. Ahn et al. 2019,
/// equations (5) and (6).
///
/// # Errors
/// If the shapes differ.
pub fn vid_loss(mean: &Tensor, teacher: &Tensor, log_scale: &Tensor, eps: f64) -> Result<Tensor> {
    let squares = mean_rows(&(mean - constant_like(teacher, mean)?)?.sqr()?)?.to_dtype(DType::F64)?; // [C]
    // ln(1 + e^x) in f64: with a small eps, f32 has few digits left.
    let log_scale = log_scale.to_dtype(DType::F64)?.unsqueeze(1)?;
    let zero = log_scale.zeros_like()?.detach();
    let variance = (log_sum_exp(&Tensor::cat(&[&log_scale, &zero], 1)?)? + eps)?;
    let value = ((squares / &variance)? + variance.log()?)?.mean_all()?;
    Ok((value * 0.5)?.to_dtype(mean.dtype())?)
}

/// Variational information distillation.
#[derive(Debug)]
pub struct Vid {
    config: VidConfig,
    /// Set by `connect`.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    feature: String,
    /// `[C_T, C_S or C_T, 1, 1]`
    regressors: [Tensor; 3],
    log_scale: Tensor, // [C_T]
}

impl Vid {
    /// Validates the settings.
    pub fn new(config: VidConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        config::require_positive(ENTRY.name, "eps", config.eps)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        let variance = config.init_variance;
        if !(variance.is_finite() && variance > config.eps) {
            return Err(config::invalid(ENTRY.name, "init_variance", variance, "a number above eps"));
        }
        Ok(Self { config, stages: Vec::new() })
    }
}

impl Stage {
    fn new(
        feature: &str,
        (student, teacher): (usize, usize),
        config: &VidConfig,
        params: &ParamBuilder,
    ) -> Result<Self> {
        let params = params.pp(feature);
        let regressor = |i: usize, inputs: usize| {
            let init = Init::fan_in_uniform(inputs);
            params.pp(format!("regressor{i}")).var("weight", &[teacher, inputs, 1, 1], init)
        };
        // Inverse of softplus, ln(e^x - 1), in a form for large x.
        let start = config.init_variance - config.eps;
        let log_scale = start + (-(-start).exp()).ln_1p();
        Ok(Self {
            feature: feature.to_string(),
            regressors: [regressor(0, student)?, regressor(1, teacher)?, regressor(2, teacher)?],
            log_scale: params.var("log_scale", &[teacher], Init::Constant(log_scale))?,
        })
    }

    fn value(&self, context: &LossContext, eps: f64) -> Result<Tensor> {
        let (student, teacher) = checks::map_pair(context, &self.feature, ENTRY.name)?;
        let (student, teacher) = pool_pair(&student, &teacher)?;
        let mut mean = pixels(&student)?; // [B * H * W, C]
        for (i, weight) in self.regressors.iter().enumerate() {
            if i > 0 {
                mean = relu(&mean)?;
            }
            mean = conv1x1(&mean, weight)?;
        }
        vid_loss(&mean, &pixels(&teacher)?, &self.log_scale, eps)
    }
}

impl Distiller for Vid {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let stage =
            |f: &String| Stage::new(f, checks::require_maps(shapes, f, ENTRY.name)?, &self.config, params);
        self.stages = self.config.stages.iter().map(stage).collect::<Result<_>>()?;
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.stages.iter().map(|stage| stage.value(context, self.config.eps));
        Ok(vec![Term::new("vid", sum_stages(ENTRY.name, values)?, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("vid".into(), self.config.weight)]
    }
}
