//! Knowledge distillation by softened class probabilities (`kd`).
//!
//! # Paper
//! G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop
//! 2014, arXiv 1503.02531, section 2.
//!
//! # Equation
//! `kd = T^2 * mean over b of KL(softmax(z_T / T) || softmax(z_S / T))`; without the `T^2` if
//! `t_squared` is false.
//!
//! # Inputs
//! `logits [B, N]` of student and teacher; for `[B, N, H, W]` the mean is over all pixels.
//!
//! # Defaults and their source
//! Temperature 4, weight 0.9 (with 0.1 for cross entropy): the public collections mdistiller and
//! RepDistiller, CIFAR-100. mdistiller's ImageNet settings are temperature 1 and weights of 0.5.
//!
//! # Where code and paper differ
//! The paper minimizes the cross entropy with the soft targets: same gradient, different value.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("kd")?;
//! let kd = (entry.build)(&toml::toml! { weight = 0.5 })?;
//! assert_eq!(kd.term_weights(), [("kd".to_string(), 0.5)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::softmax::{scale_by_t_squared, soft_kl};
use crate::common::{checks, config};

/// Registry entry of `kd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "kd",
    summary: "softened class probabilities of the teacher",
    source: "Hinton et al. 2014, section 2",
    defaults: || {
        config::document::<KdConfig>(&[
            ("temperature", "mdistiller, RepDistiller"),
            ("t_squared", "Hinton et al. 2014, section 2"),
            ("weight", "mdistiller, RepDistiller; ce has 0.1 there"),
        ])
    },
    build: |table| Ok(Box::new(Kd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `kd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KdConfig {
    /// Temperature of the softmax of both.
    pub temperature: f64,
    /// Whether the loss is multiplied by the squared temperature, which keeps the gradient's scale.
    pub t_squared: bool,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for KdConfig {
    fn default() -> Self {
        Self { temperature: 4.0, t_squared: true, weight: 0.9 }
    }
}

/// `T^2 * mean over rows of KL(softmax(z_T / T) || softmax(z_S / T))`, a scalar.
///
/// Logits are `[B, N]`, or `[B, N, H, W]` with a mean over all pixels. Hinton et al. 2014, section 2.
///
/// # Errors
/// If the shapes differ.
pub fn kd_loss(student_logits: &Tensor, teacher_logits: &Tensor, temperature: f64) -> Result<Tensor> {
    scale_by_t_squared(soft_kl(student_logits, teacher_logits, temperature)?, temperature, true)
}

/// Knowledge distillation by softened class probabilities.
#[derive(Debug)]
pub struct Kd {
    config: KdConfig,
}

impl Kd {
    /// Validates the settings.
    pub fn new(config: KdConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "temperature", config.temperature)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for Kd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["logits"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_equal_logits(shapes, ENTRY.name)
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let KdConfig { temperature, t_squared, weight } = self.config;
        let kl = soft_kl(context.student.logits()?, context.teacher.logits()?, temperature)?;
        Ok(vec![Term::new("kd", scale_by_t_squared(kl, temperature, t_squared)?, weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("kd".into(), self.config.weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use stillhouse_core::{ParamStore, Rng};

    #[test]
    fn averages_over_pixels_as_over_images() {
        // Softened by T = 2: teacher (3/4, 1/4) and (1/2, 1/2), student (1/2, 1/2) in both.
        let teacher = Tensor::new(&[[9f64.ln(), 0.], [5., 5.]], &Device::Cpu).unwrap();
        let student = Tensor::zeros((2, 2), DType::F64, &Device::Cpu).unwrap();
        let want = 4.0 * (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln()) / 2.0;
        let maps = |t: &Tensor| t.t().unwrap().reshape((1, 2, 2, 1)).unwrap();
        for (student, teacher) in [(student.clone(), teacher.clone()), (maps(&student), maps(&teacher))] {
            let got = kd_loss(&student, &teacher, 2.0).unwrap().to_scalar::<f64>().unwrap();
            assert!((got - want).abs() < 1e-15);
        }
    }

    #[test]
    fn accepts_teachers_of_any_dtype_without_gradient() {
        let teacher = Var::new(&[[1f64, 0.], [5., 4.]], &Device::Cpu).unwrap();
        let student = Var::new(&[[0f32, 0.], [1., 2.]], &Device::Cpu).unwrap();
        let value = kd_loss(&student, &teacher, 2.0).unwrap();
        assert_eq!(value.dtype(), DType::F32);
        let grads = value.backward().unwrap();
        assert!(grads.get(&student).is_some() && grads.get(&teacher).is_none());
    }

    #[test]
    fn rejects_other_classes_and_temperatures() {
        let features = |n: usize| [("logits".to_string(), vec![n])].into();
        let shapes =
            FeatureShapes { student: features(7), teacher: features(21), classes: 7, ..Default::default() };
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
        let e =
            (ENTRY.build)(&toml::Table::new()).unwrap().connect(&shapes, &params).unwrap_err().to_string();
        assert!(e.contains("[7]") && e.contains("[21]"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { temperature = 0 }).err().unwrap().to_string();
        assert!(e.contains("`temperature`") && e.contains("found 0"), "{e}");
    }
}
