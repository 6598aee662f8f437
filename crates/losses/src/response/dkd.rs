//! Decoupled knowledge distillation (`dkd`): the probability of the label's class and the distribution
//! over the other classes as separate terms.
//!
//! # Paper
//! B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv
//! 2203.08679, equations (4) to (7).
//!
//! # Equation
//! With `p = softmax(z / T)`, label y, `b = (p_y, 1 - p_y)` and `q` the softmax over the classes other
//! than y:
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
//! Public code masks class y by subtracting 1000 from its logit and takes the logarithm of
//! probabilities, which is wrong or infinite for large logits. Here class y is removed and all
//! values stay logarithms.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("dkd")?;
//! let dkd = (entry.build)(&toml::toml! { beta = 2.0 })?;
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

use crate::common::reduce::mean;
use crate::common::softmax::{kl, log_softmax, log_sum_exp};
use crate::common::{checks, config, constant_like};

/// Registry entry of `dkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "dkd",
    summary: "probability of the label's class and of the other classes, decoupled",
    source: "Zhao et al. 2022, equations (4)-(7)",
    defaults: || {
        let own = config::document::<DkdConfig>(&[
            ("temperature", "mdistiller, CIFAR-100"),
            ("alpha", "mdistiller, CIFAR-100"),
            ("beta", "mdistiller, CIFAR-100; 0.5 or 2 on ImageNet"),
        ]);
        config::with_warmup(&own, 20.0, "mdistiller, CIFAR-100; 1 on ImageNet")
    },
    build: |table| Ok(Box::new(Dkd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `dkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DkdConfig {
    /// Temperature of the softmax of both.
    pub temperature: f64,
    /// Weight of `tckd`.
    pub alpha: f64,
    /// Weight of `nckd`.
    pub beta: f64,
}

impl Default for DkdConfig {
    fn default() -> Self {
        Self { temperature: 4.0, alpha: 1.0, beta: 8.0 }
    }
}

/// Target-class and non-target-class terms `(tckd, nckd)`, scalars.
///
/// Logits are `[B, N]` with `N >= 2`, `labels` one class below N per image. Zhao et al. 2022,
/// equations (4) to (7).
///
/// # Errors
/// If the shapes differ or a label is out of range.
pub fn dkd_loss(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &[u32],
    temperature: f64,
) -> Result<(Tensor, Tensor)> {
    let teacher = constant_like(teacher_logits, student_logits)?;
    let (b, n) = student_logits.dims2()?;
    if labels.len() != b || n < 2 || labels.iter().any(|y| *y as usize >= n) {
        return Err(Error::incompatible(
            ENTRY.name,
            format!("expected labels of {b} images below {n} of 2 or more classes, found {labels:?}"),
        ));
    }
    let others: Vec<u32> =
        labels.iter().flat_map(|y| (0..n as u32).filter(move |class| class != y)).collect();
    let own = Tensor::from_slice(labels, (b, 1), student_logits.device())?;
    let others = Tensor::from_vec(others, (b, n - 1), student_logits.device())?;
    let s = LogProbabilities::new(student_logits, &own, &others, temperature)?;
    let t = LogProbabilities::new(&teacher, &own, &others, temperature)?;
    // KL of (p_y, 1 - p_y)
    let binary = ((t.own.exp()? * (&t.own - &s.own)?)? + (t.rest.exp()? * (&t.rest - &s.rest)?)?)?;
    let t_squared = temperature * temperature;
    let tckd = (mean(&binary)? * t_squared)?;
    let nckd = (mean(&kl(&t.others, &s.others)?)? * t_squared)?;
    Ok((tckd, nckd))
}

/// Logarithms of one network's probabilities, split by label.
struct LogProbabilities {
    /// Label's class, `[B]`.
    own: Tensor,
    /// All other classes together, `[B]`.
    rest: Tensor,
    /// Each other class, `[B, N - 1]`.
    others: Tensor,
}

impl LogProbabilities {
    fn new(logits: &Tensor, own: &Tensor, others: &Tensor, temperature: f64) -> Result<Self> {
        let log_p = log_softmax(&(logits / temperature)?)?;
        let others = log_p.gather(others, 1)?;
        Ok(Self { own: log_p.gather(own, 1)?.squeeze(1)?, rest: log_sum_exp(&others)?, others })
    }
}

/// Decoupled knowledge distillation.
#[derive(Debug)]
pub struct Dkd {
    config: DkdConfig,
}

impl Dkd {
    /// Validates the settings.
    pub fn new(config: DkdConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_non_negative(ENTRY.name, "alpha", config.alpha)?;
        config::require_non_negative(ENTRY.name, "beta", config.beta)?;
        Ok(Self { config })
    }
}

impl Distiller for Dkd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["logits"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_equal_logits(shapes, ENTRY.name)?;
        checks::require_classifier_logits(shapes, "logits", ENTRY.name)?;
        if shapes.classes >= 2 {
            return Ok(());
        }
        Err(Error::incompatible(ENTRY.name, format!("expected 2 or more classes, found {}", shapes.classes)))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let DkdConfig { temperature, alpha, beta } = self.config;
        let (student, teacher) = (context.student.logits()?, context.teacher.logits()?);
        let labels = checks::class_labels(context.target, student.dims2()?, ENTRY.name)?;
        let (tckd, nckd) = dkd_loss(student, teacher, &labels, temperature)?;
        Ok(vec![Term::new("tckd", tckd, alpha), Term::new("nckd", nckd, beta)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("tckd".into(), self.config.alpha), ("nckd".into(), self.config.beta)]
    }
}
