//! Hints (`fitnet`): the student's maps, through a regressor, are to be the teacher's.
//!
//! # Paper
//! A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep
//! Nets", ICLR 2015, arXiv 1412.6550, equation (3).
//!
//! # Equation
//! `fitnet = sum over stages of mean over all values of (r(F_S) - F_T)^2`, with the regressor `r` a
//! 1x1 convolution (`conv1x1`), with batch norm and ReLU behind it (`conv1x1_bn_relu`), or nothing
//! (`none`, which takes equal channels).
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `stages` of both. The larger map is pooled to the smaller, before
//! the regressor. Weights `<stage>.regressor.weight`, `<stage>.regressor.bias`; with batch norm
//! `<stage>.bn.weight`, `<stage>.bn.bias`.
//!
//! # Defaults and their source
//! The second stage, weight 100: the public collections mdistiller and RepDistiller. A plain
//! convolution: paper.
//!
//! # Where code and paper differ
//! The paper has half the squared sum, all ports the mean. The paper trains up to the hint first and
//! the whole network afterwards; the ports, and this, all at once. mdistiller adds batch norm and
//! ReLU to the regressor, and chooses its kernel by the sizes.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("fitnet")?;
//! let fitnet = (row.build)(&toml::toml! { stages = ["F2", "F3"] })?;
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

use crate::connector::{BatchNorm, conv1x1, pixels, relu, with_bias};
use crate::sum::{self, mean};
use crate::{fit, settings};

/// The row of `fitnet`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "fitnet",
    summary: "the teacher's maps, through a regressor",
    source: "Romero et al. 2015, equation (3)",
    defaults: || {
        settings::describe::<FitnetConfig>(&[
            ("stages", "mdistiller, RepDistiller: hint layer 2"),
            ("regressor", "Romero et al. 2015; mdistiller, RepDistiller: conv1x1_bn_relu"),
            ("bias", "PyTorch"),
            ("bn_eps", "PyTorch"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Fitnet::new(settings::read(table, "fitnet")?)?)),
};

/// What brings the student's map to the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Regressor {
    /// Nothing: the channels have to be equal.
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
    /// Taps that enter.
    pub stages: Vec<String>,
    /// What brings the student's map to the teacher's.
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

/// Hints.
#[derive(Debug)]
pub struct Fitnet {
    config: FitnetConfig,
    /// Made by `connect`.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    tap: String,
    /// Weight `[C_T, C_S, 1, 1]` and bias `[C_T]`.
    conv: Option<(Tensor, Option<Tensor>)>,
    norm: Option<BatchNorm>,
}

impl Fitnet {
    /// Checks the settings.
    pub fn new(config: FitnetConfig) -> Result<Self> {
        settings::stages(ENTRY.name, "stages", &config.stages)?;
        settings::above_zero(ENTRY.name, "bn_eps", config.bn_eps)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config, stages: Vec::new() })
    }

    fn stage(&self, tap: &str, (student, teacher): (usize, usize), params: &ParamBuilder) -> Result<Stage> {
        let at = params.pp(tap);
        let (mut conv, mut norm) = (None, None);
        if self.config.regressor == Regressor::None {
            if student != teacher {
                let why = format!(
                    "regressor = \"none\" compares maps as they are, but at `{tap}` the student has {student} \
                     channels and the teacher {teacher}; set regressor = \"conv1x1\""
                );
                return Err(Error::incompatible(ENTRY.name, why));
            }
        } else {
            let (at, init) = (at.pp("regressor"), Init::fan_in_uniform(student));
            let weight = at.var("weight", &[teacher, student, 1, 1], init)?;
            let bias = if self.config.bias { Some(at.var("bias", &[teacher], init)?) } else { None };
            conv = Some((weight, bias));
        }
        if self.config.regressor == Regressor::Conv1x1BnRelu {
            norm = Some(BatchNorm::new(teacher, self.config.bn_eps, &at.pp("bn"))?);
        }
        Ok(Stage { tap: tap.to_string(), conv, norm })
    }
}

impl Stage {
    fn value(&self, context: &LossContext) -> Result<Tensor> {
        let (student, teacher) = fit::map_pair(context, &self.tap, ENTRY.name)?;
        let mut guess = pixels(&student)?; // [B * H * W, C]
        if let Some((weight, bias)) = &self.conv {
            guess = conv1x1(&guess, weight)?;
            if let Some(bias) = bias {
                guess = with_bias(&guess, bias)?;
            }
        }
        if let Some(norm) = &self.norm {
            guess = relu(&norm.forward(&guess, context.train)?)?;
        }
        mean(&(guess - pixels(&teacher)?)?.sqr()?)
    }
}

impl Distiller for Fitnet {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let make = |tap: &String| self.stage(tap, fit::map_channels(shapes, tap, ENTRY.name)?, params);
        self.stages = self.config.stages.iter().map(make).collect::<Result<_>>()?;
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let value = sum::stages(ENTRY.name, self.stages.iter().map(|stage| stage.value(context)))?;
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
    fn each_regressor_has_its_parameters() {
        let names = |regressor: &str, bias: bool, student: usize| -> Result<Vec<String>> {
            let params = ParamStore::new(DType::F32, &Device::Cpu)?;
            let taps = |c: usize| [("F2".to_string(), vec![c, 4, 4])].into();
            let shapes = FeatureShapes { student: taps(student), teacher: taps(5), ..Default::default() };
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
