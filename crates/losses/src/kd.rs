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
//! `logits [B, N]` of student and teacher; `[B, N, H, W]` counts each pixel as one of the batch.
//!
//! # Defaults and their source
//! Temperature 4, weight 0.9 (beside 0.1 for the labels): the public collections mdistiller and
//! RepDistiller, CIFAR-100. mdistiller's ImageNet setting is temperature 1, 0.5 and 0.5.
//!
//! # Where code and paper differ
//! The paper minimizes the cross entropy with the soft targets: same gradient, other value.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("kd")?;
//! let kd = (row.build)(&toml::toml! { weight = 0.5 })?;
//! assert_eq!(kd.term_weights(), [("kd".to_string(), 0.5)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::softmax::{kl, rows};
use crate::sum::mean;
use crate::{fit, settings};

/// The row of `kd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "kd",
    summary: "softened class probabilities of the teacher",
    source: "Hinton et al. 2014, section 2",
    defaults: || {
        settings::describe::<KdConfig>(&[
            ("temperature", "mdistiller, RepDistiller"),
            ("t_squared", "Hinton et al. 2014, section 2"),
            ("weight", "mdistiller, RepDistiller; ce has 0.1 there"),
        ])
    },
    build: |table| Ok(Box::new(Kd::new(settings::read(table, "kd")?)?)),
};

/// Settings of `kd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KdConfig {
    /// Divides the logits of both.
    pub temperature: f64,
    /// Whether the loss is multiplied by the squared temperature, which keeps the size of its
    /// gradient.
    pub t_squared: bool,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for KdConfig {
    fn default() -> Self {
        Self { temperature: 4.0, t_squared: true, weight: 0.9 }
    }
}

/// Knowledge distillation by softened class probabilities.
#[derive(Debug)]
pub struct Kd {
    config: KdConfig,
}

impl Kd {
    /// Checks the settings.
    pub fn new(config: KdConfig) -> Result<Self> {
        settings::above_zero("kd", "temperature", config.temperature)?;
        settings::not_negative("kd", "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for Kd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: vec!["logits".into()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::same_logits(shapes, ENTRY.name)
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let t = self.config.temperature;
        let student = context.student.logits()?;
        let teacher = context.teacher.logits()?.detach().to_dtype(student.dtype())?;
        let soft = |logits| Ok::<_, stillhouse_core::Error>((rows(logits, ENTRY.name)? / t)?);
        let kl = mean(&kl(&soft(&teacher)?, &soft(student)?)?)?;
        let value = if self.config.t_squared { (kl * (t * t))? } else { kl };
        Ok(vec![Term::new("kd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("kd".into(), self.config.weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor, Var};
    use stillhouse_core::data::{Labels, Target};
    use stillhouse_core::model::Features;
    use stillhouse_core::{ParamStore, Rng};

    fn value(student: &Tensor, teacher: &Tensor) -> Tensor {
        let taps = |t: &Tensor| Features::from_iter([("logits".to_string(), t.clone())]);
        let (student, teacher) = (taps(student), taps(teacher));
        let labels = Labels::Classes(Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap());
        let target = Target::on_cpu(labels);
        let context = LossContext::new(&student, &teacher, &target);
        let kd = Kd::new(KdConfig { temperature: 2.0, ..Default::default() }).unwrap();
        kd.terms(&context).unwrap().remove(0).value
    }

    #[test]
    fn pixels_count_as_images() {
        // Softened by T = 2: teacher (3/4, 1/4) and (1/2, 1/2), student (1/2, 1/2) in both.
        let teacher = Tensor::new(&[[9f64.ln(), 0.], [5., 5.]], &Device::Cpu).unwrap();
        let student = Tensor::zeros((2, 2), DType::F64, &Device::Cpu).unwrap();
        let want = 4.0 * (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln()) / 2.0;
        let as_maps = |t: &Tensor| t.t().unwrap().reshape((1, 2, 2, 1)).unwrap();
        for got in [value(&student, &teacher), value(&as_maps(&student), &as_maps(&teacher))] {
            assert!((got.to_scalar::<f64>().unwrap() - want).abs() < 1e-15);
        }
    }

    #[test]
    fn the_teacher_is_a_constant_of_any_dtype() {
        let teacher = Var::new(&[[1f64, 0.], [5., 4.]], &Device::Cpu).unwrap();
        let student = Var::new(&[[0f32, 0.], [1., 2.]], &Device::Cpu).unwrap();
        let value = value(&student, &teacher);
        assert_eq!(value.dtype(), DType::F32);
        let grads = value.backward().unwrap();
        assert!(grads.get(&student).is_some() && grads.get(&teacher).is_none());
    }

    #[test]
    fn other_classes_are_refused_before_the_first_step() {
        let taps = |n: usize| [("logits".to_string(), vec![n])].into();
        let shapes = FeatureShapes { student: taps(7), teacher: taps(21), classes: 7, ..Default::default() };
        let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
        let e =
            (ENTRY.build)(&toml::Table::new()).unwrap().connect(&shapes, &params).unwrap_err().to_string();
        assert!(e.contains("[7]") && e.contains("[21]"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { temperature = 0 }).err().unwrap().to_string();
        assert!(e.contains("`temperature` is 0"), "{e}");
    }
}
