//! Be your own teacher (`byot`): the deepest classifier of a network teaches the classifiers at its exits.
//!
//! # Paper
//! L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma, "Be Your Own Teacher: Improve the Performance
//! of Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv 1905.08094, equations
//! (2)-(5).
//!
//! # Equation
//! With the logits `z_i` and the feature `f_i` of exit i, those of the deepest classifier `z`, `f`
//! (without gradient in `kl` and `hint`) and labels `y`:
//!
//! ```text
//! ce_deep  = CE(z, y)                                                    weight deep_ce_weight
//! ce_exits = sum over exits of CE(z_i, y)                                weight 1 - alpha
//! kl       = T^2 sum over exits of mean over b of KL(softmax(z / T) || softmax(z_i / T))    alpha
//! hint     = sum over exits of mean over all values of (f_i - f)^2       weight hint_weight
//! ```
//!
//! `soft_target = "cross_entropy"` replaces the KL by the cross entropy: same gradient.
//! `hint = "sum"` sums over all values, `"sum_gated"` over those where `f_i` or `f` is positive.
//!
//! # Inputs
//! Of the student: `logits [B, N]`, the feature `deep_feature`, and for every i of `exits`
//! `exit<i>.logits [B, N]` and `exit<i>.feat` of the deep feature's shape. Classes `[B]`. No teacher.
//!
//! # Defaults and their source
//! Temperature 3, alpha 0.1, hint weight 0.03 (of a mean): public code of the authors and others.
//! Exits after the stages 1 to 3, as in the paper's figure 2.
//!
//! # Where code and paper differ
//! In the paper the weight of the deepest classifier's cross entropy is 1; in the public code it is
//! 1 - alpha, with `cross_entropy` and `sum_gated` with the weight 1e-6.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("byot")?;
//! let byot = (entry.build)(&toml::toml! { exits = [3] })?;
//! assert_eq!(byot.required_features().student, ["logits", "embedding", "exit3.logits", "exit3.feat"]);
//! assert!(byot.required_features().teacher.is_empty());
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};

use crate::common::reduce::{mean, sum};
use crate::common::softmax::{kl, log_softmax};
use crate::common::{checks, config};
use crate::response::ce::Ce;

/// Registry entry of `byot`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "byot",
    summary: "self-distillation from the deepest classifier to those at the exits",
    source: "Zhang et al. 2019, equations (2)-(5)",
    defaults: || {
        config::document::<ByotConfig>(&[
            ("exits", "Zhang et al. 2019, figure 2"),
            ("deep_feature", "public code: the input of the classifiers"),
            ("temperature", "public code"),
            ("alpha", "public code"),
            ("deep_ce_weight", "Zhang et al. 2019; public code has 1 - alpha"),
            ("soft_target", "Zhang et al. 2019; public code has cross_entropy"),
            ("hint", "independent of batch and map size; public code has sum_gated"),
            ("hint_weight", "for the mean; public code has 1e-6 for sum_gated"),
        ])
    },
    build: |table| Ok(Box::new(Byot::new(config::parse(table, ENTRY.name)?)?)),
};

/// Loss between the probabilities of an exit and of the deepest classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SoftTarget {
    /// Kullback-Leibler divergence.
    #[default]
    Kl,
    /// Cross entropy: the divergence plus the entropy of the deepest classifier.
    CrossEntropy,
}

/// Reduction of the squared differences between the features of an exit and the deepest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Mean.
    #[default]
    Mean,
    /// Sum.
    Sum,
    /// Sum over values where either feature is positive.
    SumGated,
}

/// Settings of `byot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByotConfig {
    /// Numbers of the exits to train.
    pub exits: Vec<u32>,
    /// The deepest feature, the target of the exits' `feat`.
    pub deep_feature: String,
    /// Temperature of the softmax.
    pub temperature: f64,
    /// Weight of `kl`, in [0, 1]; the exits' cross entropies have 1 - alpha.
    pub alpha: f64,
    /// Weight of the deepest classifier's cross entropy.
    pub deep_ce_weight: f64,
    /// Loss between probabilities.
    pub soft_target: SoftTarget,
    /// Reduction of the differences between features.
    pub hint: Hint,
    /// Weight of `hint`.
    pub hint_weight: f64,
}

impl Default for ByotConfig {
    fn default() -> Self {
        Self {
            exits: vec![1, 2, 3],
            deep_feature: "embedding".into(),
            temperature: 3.0,
            alpha: 0.1,
            deep_ce_weight: 1.0,
            soft_target: SoftTarget::Kl,
            hint: Hint::Mean,
            hint_weight: 0.03,
        }
    }
}

/// `T^2` times the mean divergence, or cross entropy, of an exit's probabilities from the deepest
/// classifier's, a scalar.
///
/// Logits are `[B, N]`; the deepest get no gradient. Zhang et al. 2019, equation (3).
///
/// # Errors
/// If the shapes differ.
pub fn byot_soft_loss(
    exit_logits: &Tensor,
    deep_logits: &Tensor,
    temperature: f64,
    soft_target: SoftTarget,
) -> Result<Tensor> {
    let (exit, deep) = ((exit_logits / temperature)?, (deep_logits.detach() / temperature)?);
    let each = match soft_target {
        SoftTarget::Kl => kl(&deep, &exit)?,
        SoftTarget::CrossEntropy => {
            (log_softmax(&deep)?.exp()? * log_softmax(&exit)?)?.sum(D::Minus1)?.neg()?
        }
    };
    Ok((mean(&each)? * (temperature * temperature))?)
}

/// Squared difference of an exit's feature and the deepest one, reduced to a scalar.
///
/// Features have equal and arbitrary shapes; the deepest gets no gradient. Zhang et al. 2019, equation
/// (4).
///
/// # Errors
/// If the shapes differ.
pub fn byot_hint_loss(exit_feature: &Tensor, deep_feature: &Tensor, hint: Hint) -> Result<Tensor> {
    let deep = deep_feature.detach();
    let squared = (exit_feature - &deep)?.sqr()?;
    match hint {
        Hint::Mean => mean(&squared),
        Hint::Sum => sum(&squared),
        Hint::SumGated => {
            let gate = exit_feature.detach().maximum(&deep)?.gt(0.0)?.to_dtype(exit_feature.dtype())?;
            sum(&(squared * gate)?)
        }
    }
}

/// Be your own teacher.
#[derive(Debug)]
pub struct Byot {
    config: ByotConfig,
    ce: Ce,
}

/// Names of an exit's logits and feature.
fn exit_features(exit: u32) -> [String; 2] {
    [format!("exit{exit}.logits"), format!("exit{exit}.feat")]
}

impl Byot {
    /// Validates the settings.
    pub fn new(config: ByotConfig) -> Result<Self> {
        let exits = &config.exits;
        if exits.is_empty() || exits.iter().enumerate().any(|(i, e)| exits[..i].contains(e)) {
            let expected = "numbers of exits, each once, for example [1, 2, 3]";
            return Err(config::invalid(ENTRY.name, "exits", format!("{exits:?}"), expected));
        }
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_fraction(ENTRY.name, "alpha", config.alpha)?;
        config::require_non_negative(ENTRY.name, "deep_ce_weight", config.deep_ce_weight)?;
        config::require_non_negative(ENTRY.name, "hint_weight", config.hint_weight)?;
        Ok(Self { config, ce: Ce::new(Default::default())? })
    }
}

impl Distiller for Byot {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        let mut student = vec!["logits".to_string(), self.config.deep_feature.clone()];
        student.extend(self.config.exits.iter().flat_map(|exit| exit_features(*exit)));
        RequiredFeatures { student, teacher: vec![] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_classifier_logits(shapes, "logits", ENTRY.name)?;
        let deep_feature = &self.config.deep_feature;
        let deep = checks::student_shape(shapes, deep_feature, ENTRY.name)?;
        for exit in &self.config.exits {
            let [logits, feature] = exit_features(*exit);
            checks::require_classifier_logits(shapes, &logits, ENTRY.name)?;
            let found = checks::student_shape(shapes, &feature, ENTRY.name)?;
            if found != deep {
                let reason = format!(
                    "expected `{feature}` of the shape {deep:?} of `{deep_feature}`, found {found:?}; use a network \
                     with exits of the deepest feature's shape"
                );
                return Err(Error::incompatible(ENTRY.name, reason));
            }
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let ByotConfig { deep_feature, temperature, soft_target, hint: reduction, .. } = &self.config;
        let (deep, feature) = (context.student.logits()?, context.student.get(deep_feature)?);
        let ce_deep = self.ce.value(deep, context.target)?;
        let zero = Tensor::zeros((), deep.dtype(), deep.device())?;
        let (mut ce, mut soft, mut hint) = (zero.clone(), zero.clone(), zero);
        for exit in &self.config.exits {
            let [logits, own] = exit_features(*exit).map(|name| context.student.get(&name));
            let (logits, own) = (logits?, own?);
            ce = (ce + self.ce.value(logits, context.target)?)?;
            soft = (soft + byot_soft_loss(logits, deep, *temperature, *soft_target)?)?;
            hint = (hint + byot_hint_loss(own, feature, *reduction)?)?;
        }
        let weighted = self.term_weights().into_iter().zip([ce_deep, ce, soft, hint]);
        Ok(weighted.map(|((name, weight), value)| Term::new(name, value, weight)).collect())
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        let c = &self.config;
        vec![
            ("ce_deep".into(), c.deep_ce_weight),
            ("ce_exits".into(), 1.0 - c.alpha),
            ("kl".into(), c.alpha),
            ("hint".into(), c.hint_weight),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use stillhouse_core::data::Task;
    use stillhouse_core::{ParamStore, Rng};

    #[test]
    fn rejects_mismatched_exits_and_settings() {
        let connect = |task, exit: usize, feature: &[usize]| {
            let student = [
                ("logits".to_string(), vec![7]),
                ("embedding".to_string(), vec![12]),
                ("exit2.logits".to_string(), vec![exit]),
                ("exit2.feat".to_string(), feature.to_vec()),
            ];
            let shapes = FeatureShapes { student: student.into(), task, classes: 7, ..Default::default() };
            let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
            let mut byot = (ENTRY.build)(&toml::toml! { exits = [2] }).unwrap();
            byot.connect(&shapes, &params).map_err(|e| e.to_string())
        };
        connect(Task::Classification, 7, &[12]).unwrap();
        let e = connect(Task::Segmentation, 7, &[12]).unwrap_err();
        assert!(e.contains("masks"), "{e}");
        let e = connect(Task::Classification, 6, &[12]).unwrap_err();
        assert!(e.contains("`exit2.logits`") && e.contains("[6]"), "{e}");
        let e = connect(Task::Classification, 7, &[12, 2, 2]).unwrap_err();
        assert!(e.contains("`exit2.feat`") && e.contains("[12, 2, 2]") && e.contains("`embedding`"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { exits = [1, 1] }).err().unwrap().to_string();
        assert!(e.contains("found [1, 1]"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { alpha = 1.5 }).err().unwrap().to_string();
        assert!(e.contains("invalid `alpha`"), "{e}");
    }
}
