//! Correlation congruence (`cc`): how alike the images of the batch are, by a Gaussian kernel.
//!
//! # Paper
//! B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang, "Correlation Congruence for
//! Knowledge Distillation", ICCV 2019, arXiv 1904.01802, equations (6) and (9).
//!
//! # Equation
//! With `x_i` the unit feature of image i, `C_ij = sum over p = 0..order of exp(-2 gamma) (2 gamma)^p
//! / p! (x_i . x_j)^p`, the Taylor series of `exp(-gamma |x_i - x_j|^2)`:
//! `cc = |C_S - C_T|_F^2 / B^2`.
//!
//! With `form = "delta"`: `cc = mean over i of sum over features of |d_i| |d_(i+1)|` with `d = f_S -
//! f_T`, over the neighbors of the batch; plain features of one length, two images or more.
//!
//! # Inputs
//! The vectors `[B, D]` named by `tap` of both; lengths may differ with `form = "taylor"`.
//!
//! # Defaults and their source
//! gamma 0.4, order 2: paper. Weight 100: the public collection Knowledge-Distillation-Zoo, whose
//! form this is; RepDistiller has 0.02 for `delta`.
//!
//! # Where code and paper differ
//! RepDistiller has `delta`, unlike the paper; torchdistill does not normalize the features and
//! takes the root of the sum, over B^2.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("cc")?;
//! let cc = (row.build)(&toml::toml! { order = 3 })?;
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

use crate::sum::mean;
use crate::unit::{EPS, unit};
use crate::{fit, settings};

/// The row of `cc`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "cc",
    summary: "how alike the images of the batch are, by a Gaussian kernel",
    source: "Peng et al. 2019, equations (6) and (9)",
    defaults: || {
        settings::describe::<CcConfig>(&[
            ("tap", "the public collections' last feature"),
            ("form", "Peng et al. 2019"),
            ("gamma", "Peng et al. 2019"),
            ("order", "Peng et al. 2019"),
            ("weight", "Knowledge-Distillation-Zoo"),
        ])
    },
    build: |table| Ok(Box::new(Cc::new(settings::read(table, "cc")?)?)),
};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The paper's correlations of all pairs.
    #[default]
    Taylor,
    /// RepDistiller's products of neighboring differences.
    Delta,
}

/// Settings of `cc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CcConfig {
    /// Tap that enters.
    pub tap: String,
    /// What is compared.
    pub form: Form,
    /// Width of the kernel, in `exp(-gamma |x - y|^2)`; not read by `delta`.
    pub gamma: f64,
    /// Highest power of the series; not read by `delta`.
    pub order: u32,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CcConfig {
    fn default() -> Self {
        Self { tap: "pooled".into(), form: Form::Taylor, gamma: 0.4, order: 2, weight: 100.0 }
    }
}

/// Correlation congruence.
#[derive(Debug)]
pub struct Cc {
    config: CcConfig,
}

impl Cc {
    /// Checks the settings.
    pub fn new(config: CcConfig) -> Result<Self> {
        settings::above_zero("cc", "gamma", config.gamma)?;
        settings::not_negative("cc", "weight", config.weight)?;
        Ok(Self { config })
    }

    /// The correlations of all pairs, `[B, D] -> [B, B]`.
    fn correlation(&self, x: &Tensor) -> Result<Tensor> {
        let x = unit(x, EPS)?;
        let similar = x.matmul(&x.t()?)?;
        // Horner's rule on sum_p (2 gamma)^p / p! s^p.
        let mut series = similar.ones_like()?;
        for p in (1..=self.config.order).rev() {
            series = ((series * &similar)? * (2.0 * self.config.gamma / f64::from(p)))?.affine(1.0, 1.0)?;
        }
        Ok((series * (-2.0 * self.config.gamma).exp())?)
    }
}

/// `mean over i of |d_i| . |d_(i+1)|` for `d [B, D]`.
fn delta(d: &Tensor) -> Result<Tensor> {
    let last = d.dim(0)?.checked_sub(1).filter(|last| *last > 0);
    let last =
        last.ok_or_else(|| Error::incompatible(ENTRY.name, "form = \"delta\" takes two images, found one"))?;
    let d = (d * d.sign()?.detach())?; // |d| with the derivative 0 at 0
    mean(&(d.narrow(0, 0, last)? * d.narrow(0, 1, last)?)?.sum(D::Minus1)?)
}

impl Distiller for Cc {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.config.tap.clone()], teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let tap = &self.config.tap;
        let (student, teacher) = fit::vector_lengths(shapes, tap, ENTRY.name)?;
        if self.config.form == Form::Taylor {
            return Ok(());
        }
        fit::images(shapes, 2, "form = \"delta\" compares neighbors: it", ENTRY.name)?;
        if student == teacher {
            return Ok(());
        }
        Err(Error::incompatible(
            ENTRY.name,
            format!(
                "form = \"delta\" subtracts features, but at `{tap}` the student has {student} of them and the \
                 teacher {teacher}; take form = \"taylor\""
            ),
        ))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = fit::vector_pair(context, &self.config.tap, ENTRY.name)?;
        let value = match self.config.form {
            Form::Taylor => mean(&(self.correlation(&student)? - self.correlation(&teacher)?)?.sqr()?)?,
            Form::Delta => delta(&(student - teacher)?)?,
        };
        Ok(vec![Term::new("cc", value, self.config.weight)])
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
    fn the_series_is_the_gaussian_kernel() {
        let cc = Cc::new(CcConfig { gamma: 0.7, order: 20, ..Default::default() }).unwrap();
        let x = Tensor::new(&[[3f64, 0.], [0., 2.], [-1., 0.]], &Device::Cpu).unwrap();
        let got = cc.correlation(&x).unwrap().to_vec2::<f64>().unwrap();
        for (i, row) in got.iter().enumerate() {
            for (j, got) in row.iter().enumerate() {
                let square: f64 = if i == j { 0.0 } else { [0., 2., 4., 2.][i + j] };
                assert!((got - (-0.7 * square).exp()).abs() < 1e-12, "{i} {j}: {got}");
            }
        }
    }

    #[test]
    fn delta_says_what_does_not_fit() {
        let connect = |student: usize, teacher: usize, batch: usize| {
            let taps = |d: usize| [("pooled".to_string(), vec![d])].into();
            let shapes =
                FeatureShapes { student: taps(student), teacher: taps(teacher), batch, ..Default::default() };
            let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap().builder(Rng::new(0));
            let mut delta = (ENTRY.build)(&toml::toml! { form = "delta" }).unwrap();
            delta.connect(&shapes, &params).map_err(|e| e.to_string())
        };
        connect(3, 3, 2).unwrap();
        let e = connect(3, 5, 2).unwrap_err();
        assert!(e.contains("has 3") && e.contains("teacher 5") && e.contains("taylor"), "{e}");
        let e = connect(3, 3, 1).unwrap_err();
        assert!(e.contains("takes 2 images"), "{e}");
        let one = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(delta(&one).unwrap_err().to_string().contains("two images"));
    }
}
