//! Pair-wise distillation (`skd_pairwise`): similarities between regions of an image.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equation (2).
//!
//! # Equation
//! The maps are pooled to n nodes by windows of `pool_scale` times the teacher's map, rounded down;
//! `a_ij` is the cosine of the nodes i and j; `pairwise = mean over b, i, j of (a_S - a_T)^2`.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `feature` of equal size; channels may differ.
//!
//! # Defaults and their source
//! Max pooling, half of the map, norm without gradient, weight 1: the authors' code (0.5 in its
//! published run script).
//!
//! # Where code and paper differ
//! The paper has average pooling (`pool = "avg"`), the code max pooling. The code detaches the norm
//! (`detach_norm`) and adds `eps` to it.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("skd_pairwise")?;
//! let settings = toml::toml! {
//!     pool = "avg"
//!     detach_norm = false
//! };
//! assert_eq!((entry.build)(&settings)?.term_weights(), [("pairwise".to_string(), 1.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};

use crate::common::gram::gram_distance;
use crate::common::pool::{avg_pool, max_pool};
use crate::common::reduce::mean;
use crate::common::{checks, config, constant_like};

/// Registry entry of `skd_pairwise`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_pairwise",
    summary: "similarities between regions of the image",
    source: "Liu et al. 2019, equation (2)",
    defaults: || {
        config::document::<SkdPairwiseConfig>(&[
            ("feature", "the last map before the classifier"),
            ("pool", "the authors' code; the paper has avg"),
            ("pool_scale", "the authors' code"),
            ("detach_norm", "the authors' code"),
            ("eps", "the authors' code"),
            ("weight", "the authors' code; 0.5 in its run script"),
        ])
    },
    build: |table| Ok(Box::new(SkdPairwise::new(config::parse(table, ENTRY.name)?)?)),
};

/// Pooling of a window to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Maximum.
    #[default]
    Max,
    /// Mean.
    Avg,
}

/// Settings of `skd_pairwise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdPairwiseConfig {
    /// Feature to compare.
    pub feature: String,
    /// Pooling of a window to a node.
    pub pool: Pool,
    /// Height and width of a window as fractions of the teacher's map, in (0, 1].
    pub pool_scale: f64,
    /// Whether the norm of a node has no gradient.
    pub detach_norm: bool,
    /// Added to the norm of a node.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SkdPairwiseConfig {
    fn default() -> Self {
        Self {
            feature: "F4".into(),
            pool: Pool::default(),
            pool_scale: 0.5,
            detach_norm: true,
            eps: 1e-8,
            weight: 1.0,
        }
    }
}

/// Mean squared difference of the cosines between all pairs of pooled nodes, a scalar.
///
/// Maps are `[B, C, H, W]` of equal size; channels may differ. Reads `pool`, `pool_scale`,
/// `detach_norm` and `eps` of the settings. Liu et al. 2019, equation (2).
///
/// # Errors
/// If the sizes differ, or a window is smaller than a pixel.
pub fn skd_pairwise_loss(student: &Tensor, teacher: &Tensor, config: &SkdPairwiseConfig) -> Result<Tensor> {
    let teacher = constant_like(teacher, student)?;
    let (_, _, h, w) = teacher.dims4()?;
    let window = window((h, w), config.pool_scale)?;
    let (student, teacher) = (nodes(student, window, config)?, nodes(&teacher, window, config)?);
    let count = student.dim(1)? as f64;
    Ok((mean(&gram_distance(&teacher, &student)?)? / (count * count))?)
}

/// Height and width of a window.
fn window((h, w): (usize, usize), scale: f64) -> Result<(usize, usize)> {
    let scaled = |size: usize| (size as f64 * scale) as usize;
    match (scaled(h), scaled(w)) {
        (0, _) | (_, 0) => Err(Error::incompatible(
            ENTRY.name,
            format!(
                "expected windows of at least one pixel, found pool_scale = {scale} of a map {h} x {w}; use a \
                 larger scale or another feature"
            ),
        )),
        window => Ok(window),
    }
}

/// Nodes of a map as unit vectors, `[B, nodes, C]`; zero nodes stay zero.
fn nodes(map: &Tensor, window: (usize, usize), config: &SkdPairwiseConfig) -> Result<Tensor> {
    let pooled = match config.pool {
        Pool::Max => max_pool(map, window)?,
        Pool::Avg => avg_pool(map, window)?,
    };
    let nodes = pooled.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
    let square = nodes.sqr()?.sum_keepdim(D::Minus1)?;
    let nonzero = square.gt(0.0)?;
    let norm = (nonzero.where_cond(&square, &square.ones_like()?)?.sqrt()? + config.eps)?;
    let norm = if config.detach_norm { norm.detach() } else { norm };
    Ok(nodes.broadcast_mul(&nonzero.to_dtype(nodes.dtype())?.div(&norm)?)?)
}

/// Pair-wise distillation.
#[derive(Debug)]
pub struct SkdPairwise {
    config: SkdPairwiseConfig,
}

impl SkdPairwise {
    /// Validates the settings.
    pub fn new(config: SkdPairwiseConfig) -> Result<Self> {
        if !(config.pool_scale > 0.0 && config.pool_scale <= 1.0) {
            return Err(config::invalid(ENTRY.name, "pool_scale", config.pool_scale, "a number in (0, 1]"));
        }
        config::require_non_negative(ENTRY.name, "eps", config.eps)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for SkdPairwise {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&[&self.config.feature])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_same_size_maps(shapes, &self.config.feature, ENTRY.name)?;
        let map = &shapes.teacher[&self.config.feature];
        window((map[1], map[2]), self.config.pool_scale).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = checks::map_pair(context, &self.config.feature, ENTRY.name)?;
        let value = skd_pairwise_loss(&student, &teacher, &self.config)?;
        Ok(vec![Term::new("pairwise", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("pairwise".into(), self.config.weight)]
    }
}
