//! Hints (`fitnet`): regression of the teacher's maps from the student's.
//!
//! # Paper
//! A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep
//! Nets", ICLR 2015, arXiv 1412.6550, equation (3).
//!
//! # Equation
//! `fitnet = sum over stages of mean over all values of (r(F_S) - F_T)^2`, with a regressor `r`: a 1x1
//! convolution (`conv1x1`), followed by batch norm and ReLU (`conv1x1_bn_relu`), or the identity
//! (`none`, which requires equal channels).
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `stages` of both. The larger map is pooled to the size of the smaller before
//! the regressor. Weights `<stage>.regressor.weight`, `<stage>.regressor.bias`; with batch norm
//! `<stage>.bn.weight`, `<stage>.bn.bias`.
//!
//! # Defaults and their source
//! Second stage, weight 100: the public collections mdistiller and RepDistiller. 1x1 convolution:
//! paper.
//!
//! # Where code and paper differ
//! The paper has half the squared sum, all ports the mean. The paper trains up to the hint layer
//! first and the whole network afterwards; the ports and this implementation train everything at
//! once. mdistiller adds batch norm and ReLU to the regressor and chooses its kernel by the map sizes.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("fitnet")?;
//! let fitnet = (entry.build)(&toml::toml! { stages = ["F2", "F3"] })?;
//! assert_eq!(fitnet.required_features().student, ["F2", "F3"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, ParamStore, Result};
use stillhouse_ops::Init;

use crate::common::connector::{BatchNorm, add_bias, conv1x1, pixels, relu};
use crate::common::pool::pool_pair;
use crate::common::reduce::{mean, sum_stages};
use crate::common::{checks, config, constant_like};

/// Registry entry of `fitnet`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "fitnet",
    summary: "regression of the teacher's maps",
    source: "Romero et al. 2015, equation (3)",
    defaults: || {
        config::document::<FitnetConfig>(&[
            ("stages", "mdistiller, RepDistiller: hint layer 2"),
            ("regressor", "Romero et al. 2015; mdistiller, RepDistiller: conv1x1_bn_relu"),
            ("bias", "PyTorch"),
            ("bn_eps", "PyTorch"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Fitnet::new(config::parse(table, ENTRY.name)?)?)),
};

/// Regressor from the student's to the teacher's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Regressor {
    /// Identity; requires equal channels.
    None,
    /// 1x1 convolution.
    #[default]
    #[serde(rename = "conv1x1")]
    Conv1x1,
    /// 1x1 convolution, batch norm, ReLU.
    #[serde(rename = "conv1x1_bn_relu")]
    Conv1x1BnRelu,
}

/// Settings of `fitnet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FitnetConfig {
    /// Features to compare.
    pub stages: Vec<String>,
    /// Regressor from the student's to the teacher's map.
    pub regressor: Regressor,
    /// Whether the convolution has a bias.
    pub bias: bool,
    /// Added to the variance by the batch norm.
    pub bn_eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for FitnetConfig {
    fn default() -> Self {
        Self {
            stages: vec!["F2".into()],
            regressor: Regressor::default(),
            bias: true,
            bn_eps: 1e-5,
            weight: 100.0,
        }
    }
}

/// Mean squared difference of the student's regressed map and the teacher's map, a scalar. Shapes are
/// equal and arbitrary. Romero et al. 2015, equation (3), with a mean instead of half the sum.
///
/// # Errors
/// If the shapes differ.
pub fn fitnet_loss(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    mean(&(student - constant_like(teacher, student)?)?.sqr()?)
}

/// Hints.
#[derive(Debug)]
pub struct Fitnet {
    config: FitnetConfig,
    /// Set by `connect`.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    feature: String,
    /// Weight `[C_T, C_S, 1, 1]` and bias `[C_T]`.
    conv: Option<(Tensor, Option<Tensor>)>,
    norm: Option<BatchNorm>,
}

impl Fitnet {
    /// Validates the settings.
    pub fn new(config: FitnetConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        config::require_positive(ENTRY.name, "bn_eps", config.bn_eps)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config, stages: Vec::new() })
    }

    fn stage(
        &self,
        feature: &str,
        (student, teacher): (usize, usize),
        params: &ParamBuilder,
    ) -> Result<Stage> {
        let params = params.pp(feature);
        let (mut conv, mut norm) = (None, None);
        if self.config.regressor == Regressor::None {
            if student != teacher {
                let reason = format!(
                    "regressor = \"none\": expected equal channels at `{feature}`, found {student} channels \
                     (student) and {teacher} (teacher); set regressor = \"conv1x1\""
                );
                return Err(Error::incompatible(ENTRY.name, reason));
            }
        } else {
            let (layer, init) = (params.pp("regressor"), Init::fan_in_uniform(student));
            let weight = layer.var("weight", &[teacher, student, 1, 1], init)?;
            let bias = if self.config.bias { Some(layer.var("bias", &[teacher], init)?) } else { None };
            conv = Some((weight, bias));
        }
        if self.config.regressor == Regressor::Conv1x1BnRelu {
            norm = Some(BatchNorm::new(teacher, self.config.bn_eps, &params.pp("bn"))?);
        }
        Ok(Stage { feature: feature.to_string(), conv, norm })
    }
}

impl Stage {
    fn value(&self, context: &LossContext) -> Result<Tensor> {
        let (student, teacher) = checks::map_pair(context, &self.feature, ENTRY.name)?;
        let (student, teacher) = pool_pair(&student, &teacher)?;
        let mut regressed = pixels(&student)?; // [B * H * W, C]
        if let Some((weight, bias)) = &self.conv {
            regressed = conv1x1(&regressed, weight)?;
            if let Some(bias) = bias {
                regressed = add_bias(&regressed, bias)?;
            }
        }
        if let Some(norm) = &self.norm {
            regressed = relu(&norm.forward(&regressed, context.train)?)?;
        }
        fitnet_loss(&regressed, &pixels(&teacher)?)
    }
}

impl Distiller for Fitnet {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let stage = |f: &String| self.stage(f, checks::require_maps(shapes, f, ENTRY.name)?, params);
        self.stages = self.config.stages.iter().map(stage).collect::<Result<_>>()?;
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let value = sum_stages(ENTRY.name, self.stages.iter().map(|stage| stage.value(context)))?;
        Ok(vec![Term::new("fitnet", value, self.config.weight)])
    }

    fn after_step(&mut self, _context: &LossContext, _params: &ParamStore) -> Result<()> {
        self.stages.iter().filter_map(|stage| stage.norm.as_ref()).try_for_each(BatchNorm::after_step)
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("fitnet".into(), self.config.weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use stillhouse_core::Rng;

    #[test]
    fn creates_the_parameters_of_each_regressor() {
        let names = |regressor: &str, bias: bool, student: usize| -> Result<Vec<String>> {
            let params = ParamStore::new(DType::F32, &Device::Cpu)?;
            let features = |c: usize| [("F2".to_string(), vec![c, 4, 4])].into();
            let shapes =
                FeatureShapes { student: features(student), teacher: features(5), ..Default::default() };
            let table = toml::Table::from_iter([
                ("regressor".to_string(), regressor.into()),
                ("bias".to_string(), bias.into()),
            ]);
            (ENTRY.build)(&table)?.connect(&shapes, &params.builder(Rng::new(0)))?;
            Ok(params.all().into_iter().map(|p| p.name).collect())
        };
        assert!(names("none", true, 5).unwrap().is_empty());
        let e = names("none", true, 3).unwrap_err().to_string();
        assert!(e.contains("`F2`") && e.contains("3 channels") && e.contains("conv1x1"), "{e}");
        assert_eq!(names("conv1x1", false, 3).unwrap(), ["F2.regressor.weight"]);
        let all = names("conv1x1_bn_relu", true, 3).unwrap();
        assert_eq!(all[..2], ["F2.regressor.weight", "F2.regressor.bias"]);
        assert_eq!(all[2..], ["F2.bn.weight", "F2.bn.bias", "F2.bn.running_mean", "F2.bn.running_var"]);
    }
}
