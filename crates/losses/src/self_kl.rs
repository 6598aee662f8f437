//! Self-distillation between two exits (`self_kl`): the deep exit S4 teaches the exit S3 before it.
//!
//! # Paper
//! Y. Yu, W. Wei, H. Tang, J. Qian, "Multi-Stage Training with Multi-Level Knowledge
//! Self-Distillation for Fine-Grained Image Recognition", Journal of Computer Research and
//! Development 60(8), 2023, pp. 1834-1845, DOI 10.7544/issn1000-1239.202330262; equations (1), (2),
//! (5)-(7), reconstructed.
//!
//! # Equation
//! ```text
//! ce_s4 = CE(z4, y)                                                     weight lambda1
//! kl    = mean over b of KL(softmax(z4 / T) || softmax(z3 / T))         weight lambda2
//! ce_s3 = CE(z3, y)                                                     weight ce_s3_weight
//! ```
//!
//! `kl` is multiplied by `T^2` if `t_squared`. `target` names the exit whose probabilities stand
//! first, `detach` the one that gets no gradient from `kl`.
//!
//! # Inputs
//! The student's logits `[B, N]` at the taps `s3` and `s4`, and classes `[B]`. No teacher.
//!
//! # Defaults and their source
//! Temperature and both lambdas 1: paper, on CUB. S4 is not moved by `kl`, as a teacher is not; the
//! text does not mention it. `ce_s3` is for training in a single step, where it takes the place of
//! the paper's first step.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("self_kl")?;
//! let method = (row.build)(&toml::toml! { ce_s3_weight = 1.0 })?;
//! assert_eq!(method.needs().student, ["exit3.logits", "exit4.logits"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{Distiller, DistillerBuild, Needs, Shapes, Step, Term};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Builder, Result};

use crate::ce::Ce;
use crate::softmax::kl;
use crate::sum::mean;
use crate::{fit, settings};

/// The row of `self_kl`.
pub const ROW: Entry<DistillerBuild> = Entry {
    name: "self_kl",
    summary: "self-distillation between two exits",
    source: "Yu et al. 2023, equations (1)-(7), reconstructed",
    defaults: || {
        settings::describe::<SelfKlConfig>(&[
            ("s3", "Yu et al. 2023: the exit after stage 3"),
            ("s4", "Yu et al. 2023: the exit after stage 4"),
            ("temperature", "Yu et al. 2023, figure 3"),
            ("t_squared", "no effect at the paper's temperature of 1"),
            ("lambda1", "Yu et al. 2023, equation (7)"),
            ("lambda2", "Yu et al. 2023, equation (7)"),
            ("ce_s3_weight", "Yu et al. 2023: not in the second step; 1 for training in one step"),
            ("target", "Yu et al. 2023, equation (6), reconstructed"),
            ("detach", "the deep exit teaches; not in the text"),
        ])
    },
    build: |table| Ok(Box::new(SelfKl::new(settings::read(table, "self_kl")?)?)),
};

/// One of the two exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The shallow one.
    S3,
    /// The deep one.
    S4,
}

/// Which exit gets no gradient from `kl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detach {
    /// The shallow one.
    S3,
    /// The deep one.
    S4,
    /// Both move.
    None,
}

/// Settings of `self_kl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfKlConfig {
    /// Tap of the shallow exit's logits.
    pub s3: String,
    /// Tap of the deep exit's logits.
    pub s4: String,
    /// Divides the logits of both in `kl`.
    pub temperature: f64,
    /// Whether `kl` is multiplied by the squared temperature.
    pub t_squared: bool,
    /// Weight of `ce_s4`.
    pub lambda1: f64,
    /// Weight of `kl`.
    pub lambda2: f64,
    /// Weight of `ce_s3`.
    pub ce_s3_weight: f64,
    /// Whose probabilities stand first in the divergence.
    pub target: Exit,
    /// Which exit gets no gradient from `kl`.
    pub detach: Detach,
}

impl Default for SelfKlConfig {
    fn default() -> Self {
        Self {
            s3: "exit3.logits".into(),
            s4: "exit4.logits".into(),
            temperature: 1.0,
            t_squared: false,
            lambda1: 1.0,
            lambda2: 1.0,
            ce_s3_weight: 0.0,
            target: Exit::S4,
            detach: Detach::S4,
        }
    }
}

/// Self-distillation between two exits.
#[derive(Debug)]
pub struct SelfKl {
    config: SelfKlConfig,
    ce: Ce,
}

impl SelfKl {
    /// Checks the settings.
    pub fn new(config: SelfKlConfig) -> Result<Self> {
        settings::above_zero(ROW.name, "temperature", config.temperature)?;
        settings::not_negative(ROW.name, "lambda1", config.lambda1)?;
        settings::not_negative(ROW.name, "lambda2", config.lambda2)?;
        settings::not_negative(ROW.name, "ce_s3_weight", config.ce_s3_weight)?;
        if config.s3 == config.s4 {
            return Err(settings::wrong(ROW.name, "s4", &config.s4, "another tap than `s3`"));
        }
        Ok(Self { config, ce: Ce::new(Default::default())? })
    }
}

impl Distiller for SelfKl {
    fn name(&self) -> &str {
        ROW.name
    }

    fn needs(&self) -> Needs {
        Needs { student: vec![self.config.s3.clone(), self.config.s4.clone()], teacher: vec![] }
    }

    fn connect(&mut self, shapes: &Shapes, _params: &Builder) -> Result<()> {
        fit::class_logits(shapes, &self.config.s3, ROW.name)?;
        fit::class_logits(shapes, &self.config.s4, ROW.name)
    }

    fn terms(&self, step: &Step) -> Result<Vec<Term>> {
        let (s3, s4) = (step.student.get(&self.config.s3)?, step.student.get(&self.config.s4)?);
        let (ce_s3, ce_s4) = (self.ce.value(s3, step.target)?, self.ce.value(s4, step.target)?);
        let t = self.config.temperature;
        let (s3, s4) = match self.config.detach {
            Detach::S3 => ((s3.detach() / t)?, (s4 / t)?),
            Detach::S4 => ((s3 / t)?, (s4.detach() / t)?),
            Detach::None => ((s3 / t)?, (s4 / t)?),
        };
        let divergence = match self.config.target {
            Exit::S4 => mean(&kl(&s4, &s3)?)?,
            Exit::S3 => mean(&kl(&s3, &s4)?)?,
        };
        let divergence = if self.config.t_squared { (divergence * (t * t))? } else { divergence };
        let weighted = self.weights().into_iter().zip([ce_s4, divergence, ce_s3]);
        Ok(weighted.map(|((name, weight), value)| Term::new(name, value, weight)).collect())
    }

    fn weights(&self) -> Vec<(String, f64)> {
        let c = &self.config;
        vec![("ce_s4".into(), c.lambda1), ("kl".into(), c.lambda2), ("ce_s3".into(), c.ce_s3_weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use stillhouse_core::{Params, Rng};

    #[test]
    fn misfits_are_told_before_the_first_step() {
        let taps = |n: usize| [("exit3.logits".to_string(), vec![n]), ("exit4.logits".to_string(), vec![7])];
        let connect = |taps: &[(String, Vec<usize>)]| {
            let student = taps.iter().cloned().collect();
            let shapes = Shapes { student, classes: 7, ..Default::default() };
            let params = Params::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
            (ROW.build)(&toml::Table::new()).unwrap().connect(&shapes, &params).map_err(|e| e.to_string())
        };
        connect(&taps(7)).unwrap();
        let e = connect(&taps(6)).unwrap_err();
        assert!(e.contains("`exit3.logits`") && e.contains("[6]"), "{e}");
        let e = connect(&taps(7)[..1]).unwrap_err();
        assert!(e.contains("`exit4.logits`") && e.contains("exit3.logits"), "{e}");
        let e = (ROW.build)(&toml::toml! { s4 = "exit3.logits" }).err().unwrap().to_string();
        assert!(e.contains("`s4`"), "{e}");
    }
}
