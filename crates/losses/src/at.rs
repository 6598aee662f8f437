//! Attention transfer (`at`): where in the image the maps are strong.
//!
//! # Paper
//! S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
//! Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv 1612.03928, section 3.1,
//! equation (2).
//!
//! # Equation
//! `q = a / |a|` with the attention map `a [H * W] = mean over channels of |F|^p`;
//! `at = sum over stages of mean over images and positions of (q_S - q_T)^2`.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `stages` of both; channels may differ. The larger map is pooled
//! to the smaller.
//!
//! # Defaults and their source
//! p = 2, weight 1000: paper (section 4.1.1) and the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! The paper has the norm of the difference with `beta / 2` in front; the authors' code and all
//! ports the mean square, as here. The ports choose the pooling size by height only (square maps).
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("at")?;
//! let at = (row.build)(&toml::toml! { stages = ["F3", "F4"] })?;
//! assert_eq!(at.required_features().teacher, ["F3", "F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::sum::{self, mean};
use crate::unit::{EPS, unit};
use crate::{fit, settings};

/// The row of `at`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "at",
    summary: "where in the image the maps are strong",
    source: "Zagoruyko and Komodakis 2017, equation (2)",
    defaults: || {
        settings::describe::<AtConfig>(&[
            ("stages", "mdistiller"),
            ("p", "Zagoruyko and Komodakis 2017; mdistiller, RepDistiller"),
            ("weight", "Zagoruyko and Komodakis 2017; mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(At::new(settings::read(table, "at")?)?)),
};

/// Settings of `at`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AtConfig {
    /// Taps that enter.
    pub stages: Vec<String>,
    /// Power of the absolute values, at least 1: the larger, the more the strongest channels count.
    pub p: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for AtConfig {
    fn default() -> Self {
        Self { stages: settings::four_stages(), p: 2.0, weight: 1000.0 }
    }
}

/// Attention transfer.
#[derive(Debug)]
pub struct At {
    config: AtConfig,
}

impl At {
    /// Checks the settings.
    pub fn new(config: AtConfig) -> Result<Self> {
        settings::stages("at", "stages", &config.stages)?;
        settings::not_negative("at", "weight", config.weight)?;
        if !(config.p >= 1.0 && config.p.is_finite()) {
            // Below 1 the gradient at 0 is infinite.
            return Err(settings::wrong("at", "p", config.p, "a number of at least 1"));
        }
        Ok(Self { config })
    }

    /// The unit attention map, `[B, C, H, W] -> [B, H * W]`.
    fn attention(&self, map: &Tensor) -> Result<Tensor> {
        let x = map.flatten_from(2)?.contiguous()?; // [B, C, H * W]
        let strength = if self.config.p == 2.0 {
            x.sqr()?
        } else {
            // |x| with the derivative 0 at 0.
            (&x * x.sign()?.detach())?.powf(self.config.p)?
        };
        // The mean over the channels as one product: reducing a middle axis is slow in candle.
        let channels = strength.dim(1)?;
        let share = Tensor::full(1.0 / channels as f64, (1, 1, channels), x.device())?.to_dtype(x.dtype())?;
        unit(&share.broadcast_matmul(&strength)?.squeeze(1)?, EPS)
    }
}

impl Distiller for At {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        self.config.stages.iter().try_for_each(|tap| fit::map_channels(shapes, tap, ENTRY.name).map(|_| ()))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.config.stages.iter().map(|tap| {
            let (student, teacher) = fit::map_pair(context, tap, ENTRY.name)?;
            mean(&(self.attention(&student)? - self.attention(&teacher)?)?.sqr()?)
        });
        let value = sum::stages(ENTRY.name, values)?;
        Ok(vec![Term::new("at", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("at".into(), self.config.weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn dead_values_have_gradient_zero() {
        let at = |p| At::new(AtConfig { p, ..Default::default() }).unwrap();
        // Channels (3, 0), (-1, 0): attention (2, 0) for p = 1, of unit length (1, 0).
        let x = Var::new(&[[[[3f64, 0.]], [[-1., 0.]]]], &Device::Cpu).unwrap();
        for p in [1.0, 2.0, 4.0] {
            let q = at(p).attention(&x).unwrap();
            assert_eq!(q.to_vec2::<f64>().unwrap(), [[1.0, 0.0]]);
            let grads = q.sum_all().unwrap().backward().unwrap();
            let g = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(g.iter().all(|g| g.abs() < 1e-15), "p = {p}: {g:?}");
        }
        let e = (ENTRY.build)(&toml::toml! { p = 0.5 }).err().unwrap().to_string();
        assert!(e.contains("`p` is 0.5"), "{e}");
    }
}
