//! Decoupled knowledge distillation (`dkd`): the target's probability and the distribution over
//! the other classes by themselves.
//!
//! # Paper
//! B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv
//! 2203.08679, equations (4) to (7).
//!
//! # Equation
//! With `p = softmax(z / T)`, the label y, `b = (p_y, 1 - p_y)` and `q` the softmax over the classes
//! other than y:
//!
//! ```text
//! tckd = T^2 * mean over b of KL(b_T || b_S)
//! nckd = T^2 * mean over b of KL(q_T || q_S)         total: alpha * tckd + beta * nckd
//! ```
//!
//! # Inputs
//! `logits [B, N]` of student and teacher with `N >= 2`, classes `[B]`. With two classes `nckd` is 0.
//!
//! # Defaults and their source
//! Alpha 1, beta 8, temperature 4, warm-up over 20 epochs: the authors' collection mdistiller,
//! CIFAR-100. Its ImageNet settings are temperature 1, beta 0.5 (ResNet34 to ResNet18) or 2 (ResNet50
//! to MobileNetV1), warm-up 1.
//!
//! # Where code and paper differ
//! Public code masks class y by subtracting 1000 from its logit and takes the logarithm of a
//! probability: wrong or infinite for large logits. Here class y is left out and everything stays
//! logarithmic.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("dkd")?;
//! let dkd = (row.build)(&toml::toml! { beta = 2.0 })?;
//! assert_eq!(dkd.term_weights(), [("tckd".to_string(), 1.0), ("nckd".to_string(), 2.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};

use crate::softmax::{kl, log_softmax, log_sum_exp};
use crate::sum::mean;
use crate::{fit, settings};

/// The row of `dkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "dkd",
    summary: "the target's probability and those of the other classes, decoupled",
    source: "Zhao et al. 2022, equations (4)-(7)",
    defaults: || {
        let own = settings::describe::<DkdConfig>(&[
            ("temperature", "mdistiller, CIFAR-100"),
            ("alpha", "mdistiller, CIFAR-100"),
            ("beta", "mdistiller, CIFAR-100; 0.5 or 2 on ImageNet"),
        ]);
        settings::with_warmup(&own, 20.0, "mdistiller, CIFAR-100; 1 on ImageNet")
    },
    build: |table| Ok(Box::new(Dkd::new(settings::read(table, "dkd")?)?)),
};

/// Settings of `dkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DkdConfig {
    /// Divides the logits of both.
    pub temperature: f64,
    /// Weight of the target's term.
    pub alpha: f64,
    /// Weight of the other classes' term.
    pub beta: f64,
}

impl Default for DkdConfig {
    fn default() -> Self {
        Self { temperature: 4.0, alpha: 1.0, beta: 8.0 }
    }
}

/// Decoupled knowledge distillation.
#[derive(Debug)]
pub struct Dkd {
    config: DkdConfig,
}

/// One network's logarithms, taken apart by the label.
struct Parts {
    /// Of the label's probability, `[B]`.
    own: Tensor,
    /// Of the probability of all other classes together, `[B]`.
    rest: Tensor,
    /// Of the other classes' probabilities, `[B, N - 1]`.
    others: Tensor,
}

impl Dkd {
    /// Checks the settings.
    pub fn new(config: DkdConfig) -> Result<Self> {
        settings::above_zero(ENTRY.name, "temperature", config.temperature)?;
        settings::not_negative(ENTRY.name, "alpha", config.alpha)?;
        settings::not_negative(ENTRY.name, "beta", config.beta)?;
        Ok(Self { config })
    }

    fn parts(&self, logits: &Tensor, own: &Tensor, others: &Tensor) -> Result<Parts> {
        let log_p = log_softmax(&(logits / self.config.temperature)?)?;
        let others = log_p.gather(others, 1)?;
        Ok(Parts { own: log_p.gather(own, 1)?.squeeze(1)?, rest: log_sum_exp(&others)?, others })
    }
}

impl Distiller for Dkd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: vec!["logits".into()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::class_labels(shapes, ENTRY.name)?;
        fit::same_logits(shapes, ENTRY.name)?;
        match fit::student_logits(shapes, ENTRY.name)? {
            [classes] if *classes >= 2 => Ok(()),
            [classes] => Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "compares the label's class with the others and needs 2 or more classes, found {classes}"
                ),
            )),
            other => Err(Error::incompatible(
                ENTRY.name,
                format!("needs one label per image and logits [N], found logits {other:?}"),
            )),
        }
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let student = context.student.logits()?;
        let teacher = context.teacher.logits()?.detach().to_dtype(student.dtype())?;
        let (b, n) = student.dims2()?;
        let labels = fit::labels(context.target, (b, n), ENTRY.name)?;
        let others: Vec<u32> =
            labels.iter().flat_map(|y| (0..n as u32).filter(move |class| class != y)).collect();
        let own = Tensor::from_vec(labels, (b, 1), student.device())?;
        let others = Tensor::from_vec(others, (b, n - 1), student.device())?;
        let (s, t) = (self.parts(student, &own, &others)?, self.parts(&teacher, &own, &others)?);
        // KL of (p_y, 1 - p_y).
        let binary = ((t.own.exp()? * (&t.own - &s.own)?)? + (t.rest.exp()? * (&t.rest - &s.rest)?)?)?;
        let t_squared = self.config.temperature * self.config.temperature;
        let tckd = (mean(&binary)? * t_squared)?;
        let nckd = (mean(&kl(&t.others, &s.others)?)? * t_squared)?;
        Ok(vec![Term::new("tckd", tckd, self.config.alpha), Term::new("nckd", nckd, self.config.beta)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("tckd".into(), self.config.alpha), ("nckd".into(), self.config.beta)]
    }
}
