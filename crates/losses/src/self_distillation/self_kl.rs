//! Self-distillation between two exits (`self_kl`): the deep exit S4 teaches the preceding exit S3.
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
//! With `on = "features"`, `mse` replaces `kl`:
//! ```text
//! mse   = mean over all values of (f3 - f4)^2                           weight lambda2
//! ```
//!
//! `kl` is multiplied by `T^2` if `t_squared`, and summed over s3 and the exits of `also`. `target`
//! selects the first distribution of the divergence, `detach` the exit without gradient from `kl` or
//! `mse`.
//!
//! # Inputs
//! The student's logits `[B, N]` at the features `s3` and `s4` (and those of `also`), with
//! `on = "features"` its vectors `[B, K]` at `f3` and `f4`, and classes `[B]`. No teacher.
//!
//! # Defaults and their source
//! Temperature and both lambdas 1: paper, on CUB. `kl` does not train S4, the teacher; the text does not
//! mention it. `ce_s3` is for training in a single step, in which it replaces the paper's first step.
//! The paper does not state the loss between features and the sum over the exits of `also` in
//! three-step training; squared differences and the sum are choices of this implementation.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("self_kl")?;
//! let method = (entry.build)(&toml::toml! { ce_s3_weight = 1.0 })?;
//! assert_eq!(method.required_features().student, ["exit3.logits", "exit4.logits"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::reduce::{mean, sum_stages};
use crate::common::softmax::{kl, scale_by_t_squared};
use crate::common::{checks, config};
use crate::response::ce::Ce;

/// Registry entry of `self_kl`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "self_kl",
    summary: "self-distillation between two exits",
    source: "Yu et al. 2023, equations (1)-(7), reconstructed",
    defaults: || {
        config::document::<SelfKlConfig>(&[
            ("s3", "Yu et al. 2023: the exit after stage 3"),
            ("s4", "Yu et al. 2023: the exit after stage 4"),
            ("also", "Yu et al. 2023, table 9: with an exit at stage 2 its logits"),
            ("on", "Yu et al. 2023, table 11: \"logits\" or \"features\""),
            ("f3", "the vector before the output layer at stage 3"),
            ("f4", "the vector before the output layer at stage 4"),
            ("temperature", "Yu et al. 2023, figure 3"),
            ("t_squared", "no effect at the paper's temperature of 1"),
            ("lambda1", "Yu et al. 2023, equation (7)"),
            ("lambda2", "Yu et al. 2023, equation (7)"),
            ("ce_s3_weight", "Yu et al. 2023: not in the second step; 1 for training in one step"),
            ("target", "Yu et al. 2023, equation (6), reconstructed"),
            ("detach", "the deep exit teaches; not in the text"),
        ])
    },
    build: |table| Ok(Box::new(SelfKl::new(config::parse(table, ENTRY.name)?)?)),
};

/// One of the two exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Shallow exit.
    S3,
    /// Deep exit.
    S4,
}

/// Exit without gradient from `kl` or `mse`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detach {
    /// Shallow exit.
    S3,
    /// Deep exit.
    S4,
    /// Neither.
    None,
}

impl Detach {
    fn apply(self, shallow: &Tensor, deep: &Tensor) -> (Tensor, Tensor) {
        match self {
            Self::S3 => (shallow.detach(), deep.clone()),
            Self::S4 => (shallow.clone(), deep.detach()),
            Self::None => (shallow.clone(), deep.clone()),
        }
    }
}

/// Knowledge that is distilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// Probabilities: decision distillation.
    Logits,
    /// Vectors before the output layers: feature distillation.
    Features,
}

/// Settings of `self_kl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfKlConfig {
    /// Logits of the shallow exit.
    pub s3: String,
    /// Logits of the deep exit.
    pub s4: String,
    /// Logits of further shallow exits that the deep exit teaches.
    pub also: Vec<String>,
    /// Knowledge that is distilled.
    pub on: On,
    /// Vector of the shallow exit.
    pub f3: String,
    /// Vector of the deep exit.
    pub f4: String,
    /// Temperature of the softmax in `kl`.
    pub temperature: f64,
    /// Whether `kl` is multiplied by the squared temperature.
    pub t_squared: bool,
    /// Weight of `ce_s4`.
    pub lambda1: f64,
    /// Weight of `kl` or `mse`.
    pub lambda2: f64,
    /// Weight of `ce_s3`.
    pub ce_s3_weight: f64,
    /// Exit of the first distribution in the divergence.
    pub target: Exit,
    /// Exit without gradient from `kl` or `mse`.
    pub detach: Detach,
}

impl Default for SelfKlConfig {
    fn default() -> Self {
        Self {
            s3: "exit3.logits".into(),
            s4: "exit4.logits".into(),
            also: Vec::new(),
            on: On::Logits,
            f3: "exit3.feat".into(),
            f4: "exit4.feat".into(),
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

/// Mean divergence between the softened probabilities of two exits, a scalar, without a factor `T^2`.
///
/// Logits are `[B, N]`. `target` is the exit of the first distribution, `detach` the one without
/// gradient. Yu et al. 2023, equation (6), reconstructed.
///
/// # Errors
/// If the shapes differ.
pub fn self_kl_loss(
    shallow_logits: &Tensor,
    deep_logits: &Tensor,
    temperature: f64,
    target: Exit,
    detach: Detach,
) -> Result<Tensor> {
    let (shallow, deep) = detach.apply(shallow_logits, deep_logits);
    let (shallow, deep) = ((shallow / temperature)?, (deep / temperature)?);
    mean(&match target {
        Exit::S4 => kl(&deep, &shallow)?,
        Exit::S3 => kl(&shallow, &deep)?,
    })
}

/// Mean squared difference between the features of two exits, a scalar. Shapes are equal and
/// arbitrary.
///
/// # Errors
/// If the shapes differ.
pub fn self_mse_loss(shallow: &Tensor, deep: &Tensor, detach: Detach) -> Result<Tensor> {
    let (shallow, deep) = detach.apply(shallow, deep);
    mean(&(shallow - deep)?.sqr()?)
}

/// Self-distillation between two exits.
#[derive(Debug)]
pub struct SelfKl {
    config: SelfKlConfig,
    ce: Ce,
}

impl SelfKl {
    /// Validates the settings.
    pub fn new(config: SelfKlConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_non_negative(ENTRY.name, "lambda1", config.lambda1)?;
        config::require_non_negative(ENTRY.name, "lambda2", config.lambda2)?;
        config::require_non_negative(ENTRY.name, "ce_s3_weight", config.ce_s3_weight)?;
        if config.s3 == config.s4 {
            return Err(config::invalid(ENTRY.name, "s4", &config.s4, "a feature other than `s3`"));
        }
        let taken = |i: usize, feature: &String| {
            [&config.s3, &config.s4].contains(&feature) || config.also[..i].contains(feature)
        };
        if let Some((_, feature)) = config.also.iter().enumerate().find(|(i, f)| taken(*i, f)) {
            let expected = "each feature once, and neither `s3` nor `s4`";
            return Err(config::invalid(ENTRY.name, "also", feature, expected));
        }
        if config.on == On::Features && !config.also.is_empty() {
            let found = format!("{:?}", config.also);
            return Err(config::invalid(ENTRY.name, "also", found, "no exits with `on = \"features\"`"));
        }
        Ok(Self { config, ce: Ce::new(Default::default())? })
    }

    /// `kl`, summed over the shallow exits.
    fn divergence(&self, context: &LossContext) -> Result<Tensor> {
        let SelfKlConfig { temperature, t_squared, target, detach, .. } = self.config;
        let deep = context.student.get(&self.config.s4)?;
        let shallow = std::iter::once(&self.config.s3).chain(&self.config.also);
        let values =
            shallow.map(|f| self_kl_loss(context.student.get(f)?, deep, temperature, target, detach));
        scale_by_t_squared(sum_stages(ENTRY.name, values)?, temperature, t_squared)
    }
}

impl Distiller for SelfKl {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        let c = &self.config;
        let mut student = vec![c.s3.clone(), c.s4.clone()];
        student.extend(c.also.iter().cloned());
        if c.on == On::Features {
            student.extend([c.f3.clone(), c.f4.clone()]);
        }
        RequiredFeatures { student, teacher: vec![] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let c = &self.config;
        for feature in [&c.s3, &c.s4].into_iter().chain(&c.also) {
            checks::require_classifier_logits(shapes, feature, ENTRY.name)?;
        }
        if c.on == On::Features {
            checks::require_equal_vectors(shapes, (&c.f3, &c.f4), ENTRY.name)?;
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let feature = |name: &str| context.student.get(name);
        let (s3, s4) = (feature(&self.config.s3)?, feature(&self.config.s4)?);
        let (ce_s3, ce_s4) = (self.ce.value(s3, context.target)?, self.ce.value(s4, context.target)?);
        let distilled = match self.config.on {
            On::Logits => self.divergence(context)?,
            On::Features => {
                let (f3, f4) = (feature(&self.config.f3)?, feature(&self.config.f4)?);
                self_mse_loss(f3, f4, self.config.detach)?
            }
        };
        let weighted = self.term_weights().into_iter().zip([ce_s4, distilled, ce_s3]);
        Ok(weighted.map(|((name, weight), value)| Term::new(name, value, weight)).collect())
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        let c = &self.config;
        let distilled = if c.on == On::Features { "mse" } else { "kl" };
        vec![("ce_s4".into(), c.lambda1), (distilled.into(), c.lambda2), ("ce_s3".into(), c.ce_s3_weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use stillhouse_core::data::{Labels, Target};
    use stillhouse_core::model::Features;
    use stillhouse_core::{ParamStore, Rng};

    #[test]
    fn rejects_mismatched_exits_and_settings() {
        let features =
            |n: usize| [("exit3.logits".to_string(), vec![n]), ("exit4.logits".to_string(), vec![7])];
        let connect = |features: &[(String, Vec<usize>)]| {
            let student = features.iter().cloned().collect();
            let shapes = FeatureShapes { student, classes: 7, ..Default::default() };
            let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
            (ENTRY.build)(&toml::Table::new()).unwrap().connect(&shapes, &params).map_err(|e| e.to_string())
        };
        connect(&features(7)).unwrap();
        let e = connect(&features(6)).unwrap_err();
        assert!(e.contains("`exit3.logits`") && e.contains("[6]"), "{e}");
        let e = connect(&features(7)[..1]).unwrap_err();
        assert!(e.contains("`exit4.logits`") && e.contains("exit3.logits"), "{e}");
        let error = |table| (ENTRY.build)(&table).err().unwrap().to_string();
        let e = error(toml::toml! { s4 = "exit3.logits" });
        assert!(e.contains("`s4`"), "{e}");
        let e = error(toml::toml! { also = ["exit2.logits", "exit2.logits"] });
        assert!(e.contains("found exit2.logits") && e.contains("each feature once"), "{e}");
        let e = error(toml::toml! {
            also = ["exit2.logits"]
            on = "features"
        });
        assert!(e.contains("features"), "{e}");
    }

    /// Value of the distillation term, and which features get a gradient from it.
    fn distilled(table: toml::Table, features: &[(&str, [[f64; 2]; 2])]) -> (f64, Vec<bool>) {
        let leaves: Vec<Var> = features
            .iter()
            .map(|(_, v)| Var::from_tensor(&Tensor::new(v, &Device::Cpu).unwrap()).unwrap())
            .collect();
        let named = features.iter().zip(&leaves);
        let student: Features =
            named.map(|((n, _), leaf)| (n.to_string(), leaf.as_tensor().clone())).collect();
        let teacher = Features::default();
        let target = Target::on_cpu(Labels::Classes(Tensor::new(&[0u32, 1], &Device::Cpu).unwrap()));
        let context = LossContext::new(&student, &teacher, &target);
        let terms = (ENTRY.build)(&table).unwrap().terms(&context).unwrap();
        let gradients = terms[1].value.backward().unwrap();
        let reached = |leaf: &Var| {
            gradients
                .get(leaf)
                .is_some_and(|g| g.abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() > 0.0)
        };
        (terms[1].value.to_scalar().unwrap(), leaves.iter().map(reached).collect())
    }

    #[test]
    fn distills_features_and_further_exits() {
        let (z, f3, f4) = ([[0.0, 1.0], [2.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]], [[0.0, 2.0], [3.0, 1.0]]);
        let features = [("exit3.logits", z), ("exit4.logits", z), ("exit3.feat", f3), ("exit4.feat", f4)];
        let (value, reached) = distilled(toml::toml! { on = "features" }, &features);
        assert_eq!((value, reached), (10.0 / 4.0, vec![false, false, true, false]), "f4 teaches");

        let (shallow, other) = ([[0.5, 0.0], [0.0, 0.5]], [[3.0, 0.0], [0.0, 1.0]]);
        let features = [("exit3.logits", shallow), ("exit4.logits", z), ("exit2.logits", other)];
        let (third, _) = distilled(toml::Table::new(), &features[..2]);
        let (second, _) = distilled(toml::toml! { s3 = "exit2.logits" }, &features);
        let (both, reached) = distilled(toml::toml! { also = ["exit2.logits"] }, &features);
        assert!((both - third - second).abs() < 1e-15 && third > 0.0 && second > 0.0);
        assert_eq!(reached, [true, false, true]);
    }
}
