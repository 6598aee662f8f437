//! Correlation congruence (`cc`): Gaussian kernel between the images of a batch.
//!
//! # Paper
//! B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang, "Correlation Congruence for
//! Knowledge Distillation", ICCV 2019, arXiv 1904.01802, equations (6) and (9).
//!
//! # Equation
//! With the unit feature `x_i` of image i, `C_ij = sum over p = 0..order of exp(-2 gamma) (2 gamma)^p
//! / p! (x_i . x_j)^p`, the Taylor series of `exp(-gamma |x_i - x_j|^2)`:
//! `cc = |C_S - C_T|_F^2 / B^2`.
//!
//! With `form = "delta"`: `cc = mean over i of sum over features of |d_i| |d_(i+1)|` with `d = f_S -
//! f_T`, over consecutive images of the batch. It reads features without normalization, of equal
//! length, and batches of two or more images.
//!
//! # Inputs
//! Vectors `[B, D]` at `feature` of both; lengths may differ with `form = "taylor"`.
//!
//! # Defaults and their source
//! gamma 0.4, order 2: paper. Weight 100: the public collection Knowledge-Distillation-Zoo, which has
//! this form; RepDistiller has 0.02 for `delta`.
//!
//! # Where code and paper differ
//! RepDistiller has `delta`, unlike the paper; torchdistill does not normalize the features and
//! takes the root of the sum, over B^2.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("cc")?;
//! let cc = (entry.build)(&toml::toml! { order = 3 })?;
//! assert_eq!(cc.required_features().student, ["pooled"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::reduce::mean;
use crate::common::{checks, config, constant_like};

/// Registry entry of `cc`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "cc",
    summary: "Gaussian kernel between the images of the batch",
    source: "Peng et al. 2019, equations (6) and (9)",
    defaults: || {
        config::document::<CcConfig>(&[
            ("feature", "the public collections' last feature"),
            ("form", "Peng et al. 2019"),
            ("gamma", "Peng et al. 2019"),
            ("order", "Peng et al. 2019"),
            ("weight", "Knowledge-Distillation-Zoo"),
        ])
    },
    build: |table| Ok(Box::new(Cc::new(config::parse(table, ENTRY.name)?)?)),
};

/// Form of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The paper's correlations of all pairs.
    #[default]
    Taylor,
    /// RepDistiller's products of consecutive differences.
    Delta,
}

/// Settings of `cc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CcConfig {
    /// Feature to compare.
    pub feature: String,
    /// Form of the loss.
    pub form: Form,
    /// Inverse width of the kernel, `exp(-gamma |x - y|^2)`; unused by `delta`.
    pub gamma: f64,
    /// Highest power of the series; unused by `delta`.
    pub order: u32,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CcConfig {
    fn default() -> Self {
        Self { feature: "pooled".into(), form: Form::Taylor, gamma: 0.4, order: 2, weight: 100.0 }
    }
}

/// Mean squared difference of the correlations of all pairs of images, a scalar.
///
/// Features are `[B, D]`; lengths may differ. Peng et al. 2019, equations (6) and (9).
///
/// # Errors
/// If the batch sizes differ.
pub fn cc_loss(student: &Tensor, teacher: &Tensor, gamma: f64, order: u32) -> Result<Tensor> {
    let teacher = constant_like(teacher, student)?;
    mean(&(correlation(student, gamma, order)? - correlation(&teacher, gamma, order)?)?.sqr()?)
}

/// Correlations of all pairs, `[B, D] -> [B, B]`.
fn correlation(x: &Tensor, gamma: f64, order: u32) -> Result<Tensor> {
    let x = l2_normalize(x, EPS)?;
    let similar = x.matmul(&x.t()?)?;
    // Horner's rule on sum_p (2 gamma)^p / p! s^p
    let mut series = similar.ones_like()?;
    for p in (1..=order).rev() {
        series = ((series * &similar)? * (2.0 * gamma / f64::from(p)))?.affine(1.0, 1.0)?;
    }
    Ok((series * (-2.0 * gamma).exp())?)
}

/// `mean over i of |d_i| . |d_(i+1)|` with `d = student - teacher`, a scalar: the form of RepDistiller.
/// Features are `[B, D]` of equal shape.
///
/// # Errors
/// If the shapes differ, or for batches of one image.
pub fn cc_delta_loss(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let d = (student - constant_like(teacher, student)?)?;
    let last = d.dim(0)?.checked_sub(1).filter(|last| *last > 0).ok_or_else(|| {
        Error::incompatible(ENTRY.name, "form = \"delta\": expected batches of at least 2 images, found 1")
    })?;
    let d = (&d * d.sign()?.detach())?; // |d| with the derivative 0 at 0
    mean(&(d.narrow(0, 0, last)? * d.narrow(0, 1, last)?)?.sum(D::Minus1)?)
}

/// Correlation congruence.
#[derive(Debug)]
pub struct Cc {
    config: CcConfig,
}

impl Cc {
    /// Validates the settings.
    pub fn new(config: CcConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "gamma", config.gamma)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for Cc {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&[&self.config.feature])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let feature = &self.config.feature;
        let (student, teacher) = checks::require_vectors(shapes, feature, ENTRY.name)?;
        if self.config.form == Form::Taylor {
            return Ok(());
        }
        checks::require_batch(shapes, 2, "form = \"delta\"", ENTRY.name)?;
        if student == teacher {
            return Ok(());
        }
        Err(Error::incompatible(
            ENTRY.name,
            format!(
                "form = \"delta\": expected vectors of equal length at `{feature}`, found {student} (student) and \
                 {teacher} (teacher); set form = \"taylor\""
            ),
        ))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let CcConfig { feature, form, gamma, order, weight } = &self.config;
        let (student, teacher) = checks::vector_pair(context, feature, ENTRY.name)?;
        let value = match form {
            Form::Taylor => cc_loss(&student, &teacher, *gamma, *order)?,
            Form::Delta => cc_delta_loss(&student, &teacher)?,
        };
        Ok(vec![Term::new("cc", value, *weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("cc".into(), self.config.weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use stillhouse_core::{ParamStore, Rng};

    #[test]
    fn converges_to_the_gaussian_kernel() {
        let x = Tensor::new(&[[3f64, 0.], [0., 2.], [-1., 0.]], &Device::Cpu).unwrap();
        let got = correlation(&x, 0.7, 20).unwrap().to_vec2::<f64>().unwrap();
        for (i, row) in got.iter().enumerate() {
            for (j, got) in row.iter().enumerate() {
                let square: f64 = if i == j { 0.0 } else { [0., 2., 4., 2.][i + j] };
                assert!((got - (-0.7 * square).exp()).abs() < 1e-12, "{i} {j}: {got}");
            }
        }
    }

    #[test]
    fn rejects_unequal_lengths_and_single_images_for_delta() {
        let connect = |student: usize, teacher: usize, batch: usize| {
            let features = |d: usize| [("pooled".to_string(), vec![d])].into();
            let shapes = FeatureShapes {
                student: features(student),
                teacher: features(teacher),
                batch,
                ..Default::default()
            };
            let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
            let mut delta = (ENTRY.build)(&toml::toml! { form = "delta" }).unwrap();
            delta.connect(&shapes, &params).map_err(|e| e.to_string())
        };
        connect(3, 3, 2).unwrap();
        let e = connect(3, 5, 2).unwrap_err();
        assert!(e.contains("found 3 (student) and 5 (teacher)") && e.contains("taylor"), "{e}");
        let e = connect(3, 3, 1).unwrap_err();
        assert!(e.contains("at least 2 images"), "{e}");
        let one = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(cc_delta_loss(&one, &one).unwrap_err().to_string().contains("2 images"));
    }
}
