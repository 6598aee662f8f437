//! Attention transfer (`at`): spatial attention maps, the strength of the features at each position.
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
//! Maps `[B, C, H, W]` at `stages` of both; channels may differ. The larger map is pooled to the size of
//! the smaller.
//!
//! # Defaults and their source
//! p = 2, weight 1000: paper (section 4.1.1) and the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! The paper has the norm of the difference with `beta / 2` in front; the authors' code and all
//! ports have the mean square, as here. The ports choose the pooling size by height only (square
//! maps).
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("at")?;
//! let at = (entry.build)(&toml::toml! { stages = ["F3", "F4"] })?;
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

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::pool::pool_pair;
use crate::common::reduce::{mean, sum_stages};
use crate::common::{checks, config, constant_like};

/// Registry entry of `at`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "at",
    summary: "spatial attention maps",
    source: "Zagoruyko and Komodakis 2017, equation (2)",
    defaults: || {
        config::document::<AtConfig>(&[
            ("stages", "mdistiller"),
            ("p", "Zagoruyko and Komodakis 2017; mdistiller, RepDistiller"),
            ("weight", "Zagoruyko and Komodakis 2017; mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(At::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `at`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AtConfig {
    /// Features to compare.
    pub stages: Vec<String>,
    /// Power of the absolute values, at least 1; larger powers emphasize the strongest channels.
    pub p: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for AtConfig {
    fn default() -> Self {
        Self { stages: config::four_stages(), p: 2.0, weight: 1000.0 }
    }
}

/// Mean squared difference of the unit attention maps of one stage, a scalar.
///
/// Maps are `[B, C, H, W]`; channels may differ, and the larger map is pooled to the size of the
/// smaller. `p >= 1` is the power of the absolute values. Zagoruyko and Komodakis 2017, equation (2).
///
/// # Errors
/// If the batch sizes differ.
pub fn at_loss(student: &Tensor, teacher: &Tensor, p: f64) -> Result<Tensor> {
    let (student, teacher) = pool_pair(student, &constant_like(teacher, student)?)?;
    mean(&(attention(&student, p)? - attention(&teacher, p)?)?.sqr()?)
}

/// Unit attention map, `[B, C, H, W] -> [B, H * W]`.
fn attention(map: &Tensor, p: f64) -> Result<Tensor> {
    let x = map.flatten_from(2)?.contiguous()?; // [B, C, H * W]
    let strength = if p == 2.0 {
        x.sqr()?
    } else {
        // |x| with the derivative 0 at 0
        (&x * x.sign()?.detach())?.powf(p)?
    };
    // The mean over channels as a product: reductions of a middle axis are slow in candle.
    let channels = strength.dim(1)?;
    let share = Tensor::full(1.0 / channels as f64, (1, 1, channels), x.device())?.to_dtype(x.dtype())?;
    l2_normalize(&share.broadcast_matmul(&strength)?.squeeze(1)?, EPS)
}

/// Attention transfer.
#[derive(Debug)]
pub struct At {
    config: AtConfig,
}

impl At {
    /// Validates the settings.
    pub fn new(config: AtConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        if !(config.p >= 1.0 && config.p.is_finite()) {
            // Below 1 the gradient at 0 is infinite.
            return Err(config::invalid(ENTRY.name, "p", config.p, "a number of at least 1"));
        }
        Ok(Self { config })
    }
}

impl Distiller for At {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        self.config.stages.iter().try_for_each(|f| checks::require_maps(shapes, f, ENTRY.name).map(|_| ()))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let values = self.config.stages.iter().map(|feature| {
            let (student, teacher) = checks::map_pair(context, feature, ENTRY.name)?;
            at_loss(&student, &teacher, self.config.p)
        });
        Ok(vec![Term::new("at", sum_stages(ENTRY.name, values)?, self.config.weight)])
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
    fn has_zero_gradient_at_zero() {
        // Channels (3, 0), (-1, 0): attention (2, 0) for p = 1, normalized (1, 0).
        let x = Var::new(&[[[[3f64, 0.]], [[-1., 0.]]]], &Device::Cpu).unwrap();
        for p in [1.0, 2.0, 4.0] {
            let q = attention(&x, p).unwrap();
            assert_eq!(q.to_vec2::<f64>().unwrap(), [[1.0, 0.0]]);
            let grads = q.sum_all().unwrap().backward().unwrap();
            let g = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(g.iter().all(|g| g.abs() < 1e-15), "p = {p}: {g:?}");
        }
        let e = (ENTRY.build)(&toml::toml! { p = 0.5 }).err().unwrap().to_string();
        assert!(e.contains("invalid `p`") && e.contains("found 0.5"), "{e}");
    }
}
