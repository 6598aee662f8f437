//! Be your own teacher (`byot`): the deepest classifier of a network teaches those at its exits.
//!
//! # Paper
//! L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma, "Be Your Own Teacher: Improve the Performance
//! of Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv 1905.08094, equations
//! (2)-(5).
//!
//! # Equation
//! With the logits `z_i` and the feature `f_i` of exit i, those of the deepest classifier `z`, `f`
//! without gradient where they teach, labels `y`:
//!
//! ```text
//! ce_deep  = CE(z, y)                                                    weight deep_ce_weight
//! ce_exits = sum over exits of CE(z_i, y)                                weight 1 - alpha
//! kl       = T^2 sum over exits of mean over b of KL(softmax(z / T) || softmax(z_i / T))    alpha
//! hint     = sum over exits of mean over all values of (f_i - f)^2       weight hint_weight
//! ```
//!
//! `soft_target = "cross_entropy"` has the cross entropy in place of the KL: same gradient.
//! `hint = "sum"` sums over all values; `"sum_gated"` only where either of the two is above zero.
//!
//! # Inputs
//! Of the student: `logits [B, N]`, the tap named by `deep_feature`, and `exit<i>.logits [B, N]`,
//! `exit<i>.feat` of the deep feature's shape for every i of `exits`. Classes `[B]`. No teacher.
//!
//! # Defaults and their source
//! Temperature 3, alpha 0.1, hint weight 0.03 (of a mean): public code of the authors and others.
//! Exits after the stages 1 to 3, as in the paper's figure 2.
//!
//! # Where code and paper differ
//! In the paper the deepest classifier has plain cross entropy; the public code weights it with
//! 1 - alpha too, takes `cross_entropy` and `sum_gated` with the weight 1e-6.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("byot")?;
//! let byot = (row.build)(&toml::toml! { exits = [3] })?;
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

use crate::ce::Ce;
use crate::softmax::{kl, log_softmax};
use crate::sum::{mean, sum};
use crate::{fit, settings};

/// The row of `byot`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "byot",
    summary: "self-distillation: the deepest classifier teaches those at the exits",
    source: "Zhang et al. 2019, equations (2)-(5)",
    defaults: || {
        settings::describe::<ByotConfig>(&[
            ("exits", "Zhang et al. 2019, figure 2"),
            ("deep_feature", "public code: what the classifiers read"),
            ("temperature", "public code"),
            ("alpha", "public code"),
            ("deep_ce_weight", "Zhang et al. 2019; public code has 1 - alpha"),
            ("soft_target", "Zhang et al. 2019; public code has cross_entropy"),
            ("hint", "does not grow with batch and map; public code has sum_gated"),
            ("hint_weight", "for the mean; public code has 1e-6 for sum_gated"),
        ])
    },
    build: |table| Ok(Box::new(Byot::new(settings::read(table, "byot")?)?)),
};

/// How an exit follows the deepest classifier's probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SoftTarget {
    /// Kullback-Leibler divergence.
    #[default]
    Kl,
    /// Cross entropy: the divergence plus the entropy of the deepest.
    CrossEntropy,
}

/// How an exit's feature follows the deepest one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Mean of the squared differences.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their sum where either of the two is above zero.
    SumGated,
}

/// Settings of `byot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByotConfig {
    /// Exits that learn, by number.
    pub exits: Vec<u32>,
    /// The deepest feature, which the exits' `feat` are to be like.
    pub deep_feature: String,
    /// Divides the logits.
    pub temperature: f64,
    /// Weight of `kl`, in [0, 1]; the exits' cross entropies have 1 - alpha.
    pub alpha: f64,
    /// Weight of the deepest classifier's cross entropy.
    pub deep_ce_weight: f64,
    /// How an exit follows the deepest classifier's probabilities.
    pub soft_target: SoftTarget,
    /// How an exit's feature follows the deepest one's.
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

/// Be your own teacher.
#[derive(Debug)]
pub struct Byot {
    config: ByotConfig,
    ce: Ce,
}

/// Taps of an exit: logits and feature.
fn taps(exit: u32) -> [String; 2] {
    [format!("exit{exit}.logits"), format!("exit{exit}.feat")]
}

impl Byot {
    /// Checks the settings.
    pub fn new(config: ByotConfig) -> Result<Self> {
        let exits = &config.exits;
        if exits.is_empty() || exits.iter().enumerate().any(|(i, e)| exits[..i].contains(e)) {
            let expected = "numbers of exits, each once, for example [1, 2, 3]";
            return Err(settings::wrong(ENTRY.name, "exits", format!("{exits:?}"), expected));
        }
        settings::above_zero(ENTRY.name, "temperature", config.temperature)?;
        if !(0.0..=1.0).contains(&config.alpha) {
            return Err(settings::wrong(ENTRY.name, "alpha", config.alpha, "a number in [0, 1]"));
        }
        settings::not_negative(ENTRY.name, "deep_ce_weight", config.deep_ce_weight)?;
        settings::not_negative(ENTRY.name, "hint_weight", config.hint_weight)?;
        Ok(Self { config, ce: Ce::new(Default::default())? })
    }

    /// What an exit's logits lose against the deepest ones, which are constants here.
    fn soft(&self, exit: &Tensor, deep: &Tensor) -> Result<Tensor> {
        let t = self.config.temperature;
        let (exit, deep) = ((exit / t)?, (deep / t)?);
        let each = match self.config.soft_target {
            SoftTarget::Kl => kl(&deep, &exit)?,
            SoftTarget::CrossEntropy => {
                (log_softmax(&deep)?.exp()? * log_softmax(&exit)?)?.sum(D::Minus1)?.neg()?
            }
        };
        Ok((mean(&each)? * (t * t))?)
    }

    fn hint(&self, exit: &Tensor, deep: &Tensor) -> Result<Tensor> {
        let squared = (exit - deep)?.sqr()?;
        match self.config.hint {
            Hint::Mean => mean(&squared),
            Hint::Sum => sum(&squared),
            Hint::SumGated => {
                let open = exit.detach().maximum(deep)?.gt(0.0)?.to_dtype(exit.dtype())?;
                sum(&(squared * open)?)
            }
        }
    }
}

impl Distiller for Byot {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        let mut student = vec!["logits".to_string(), self.config.deep_feature.clone()];
        student.extend(self.config.exits.iter().flat_map(|exit| taps(*exit)));
        RequiredFeatures { student, teacher: vec![] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::class_logits(shapes, "logits", ENTRY.name)?;
        let deep_feature = &self.config.deep_feature;
        let deep = fit::student_shape(shapes, deep_feature, ENTRY.name)?;
        for exit in &self.config.exits {
            let [logits, feature] = taps(*exit);
            fit::class_logits(shapes, &logits, ENTRY.name)?;
            let found = fit::student_shape(shapes, &feature, ENTRY.name)?;
            if found != deep {
                let why = format!(
                    "`{feature}` has the shape {found:?} and `{deep_feature}` {deep:?}; take a network whose \
                     exits bring their features to the deepest one's shape"
                );
                return Err(Error::incompatible(ENTRY.name, why));
            }
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let deep = context.student.logits()?;
        let (teacher, feature) = (deep.detach(), context.student.get(&self.config.deep_feature)?.detach());
        let ce_deep = self.ce.value(deep, context)?;
        let zero = Tensor::zeros((), deep.dtype(), deep.device())?;
        let (mut ce, mut soft, mut hint) = (zero.clone(), zero.clone(), zero);
        for exit in &self.config.exits {
            let [logits, own] = taps(*exit).map(|tap| context.student.get(&tap));
            let (logits, own) = (logits?, own?);
            ce = (ce + self.ce.value(logits, context)?)?;
            soft = (soft + self.soft(logits, &teacher)?)?;
            hint = (hint + self.hint(own, &feature)?)?;
        }
        let values = [ce_deep, ce, soft, hint];
        let weighted = self.term_weights().into_iter().zip(values);
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
    fn misfits_are_told_before_the_first_step() {
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
        assert!(e.contains("`exits` is [1, 1]"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { alpha = 1.5 }).err().unwrap().to_string();
        assert!(e.contains("`alpha` is 1.5"), "{e}");
    }
}
