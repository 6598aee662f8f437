//! Pair-wise distillation (`skd_pairwise`): which parts of the image are alike.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equation (2).
//!
//! # Equation
//! The maps are pooled to n nodes with windows of `pool_scale` of the teacher's map, rounded down;
//! `a_ij` is the cosine of the nodes i and j; `pairwise = mean over b, i, j of (a_S - a_T)^2`.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `tap`, of one size; channels may differ.
//!
//! # Defaults and their source
//! Maximum, half of the map, the norm without gradient, weight 1: the authors' code (0.5 in its
//! published run script).
//!
//! # Where code and paper differ
//! The paper pools by the average (`pool = "avg"`), the code by the maximum; the code lets no
//! gradient through the norm (`detach_norm`) and adds `eps` to it.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("skd_pairwise")?;
//! let settings = toml::toml! {
//!     pool = "avg"
//!     detach_norm = false
//! };
//! assert_eq!((row.build)(&settings)?.term_weights(), [("pairwise".to_string(), 1.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};

use crate::pairs::gram_distance;
use crate::pool::{tile_avg_pool, tile_max_pool};
use crate::sum::mean;
use crate::{fit, settings};

/// The row of `skd_pairwise`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_pairwise",
    summary: "which parts of the image are alike",
    source: "Liu et al. 2019, equation (2)",
    defaults: || {
        settings::describe::<SkdPairwiseConfig>(&[
            ("tap", "the last map before the classifier"),
            ("pool", "the authors' code; the paper has avg"),
            ("pool_scale", "the authors' code"),
            ("detach_norm", "the authors' code"),
            ("eps", "the authors' code"),
            ("weight", "the authors' code; 0.5 in its run script"),
        ])
    },
    build: |table| Ok(Box::new(SkdPairwise::new(settings::read(table, ENTRY.name)?)?)),
};

/// What a node is of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Its maximum.
    #[default]
    Max,
    /// Its mean.
    Avg,
}

/// Settings of `skd_pairwise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdPairwiseConfig {
    /// The map that enters.
    pub tap: String,
    /// What a node is of its window.
    pub pool: Pool,
    /// Height and width of a window as parts of the teacher's map, in (0, 1].
    pub pool_scale: f64,
    /// Whether the norm of a node is a constant for the gradient.
    pub detach_norm: bool,
    /// Added to the norm of a node.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SkdPairwiseConfig {
    fn default() -> Self {
        Self {
            tap: "F4".into(),
            pool: Pool::default(),
            pool_scale: 0.5,
            detach_norm: true,
            eps: 1e-8,
            weight: 1.0,
        }
    }
}

/// Pair-wise distillation.
#[derive(Debug)]
pub struct SkdPairwise {
    config: SkdPairwiseConfig,
}

impl SkdPairwise {
    /// Checks the settings.
    pub fn new(config: SkdPairwiseConfig) -> Result<Self> {
        if !(config.pool_scale > 0.0 && config.pool_scale <= 1.0) {
            let allowed = "a part of the map, above 0 and at most 1";
            return Err(settings::wrong(ENTRY.name, "pool_scale", config.pool_scale, allowed));
        }
        settings::not_negative(ENTRY.name, "eps", config.eps)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }

    /// Height and width of a window for a map of that size.
    fn window(&self, h: usize, w: usize) -> Result<(usize, usize)> {
        let part = |size: usize| (size as f64 * self.config.pool_scale) as usize;
        match (part(h), part(w)) {
            (0, _) | (_, 0) => Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "a window of pool_scale = {} of the map {h} x {w} at `{}` is less than a pixel; take a \
                     larger scale or another tap",
                    self.config.pool_scale, self.config.tap
                ),
            )),
            window => Ok(window),
        }
    }

    /// The nodes of a map as unit vectors, `[B, nodes, C]`; a zero node stays zero.
    fn nodes(&self, map: &Tensor, window: (usize, usize)) -> Result<Tensor> {
        let pooled = match self.config.pool {
            Pool::Max => tile_max_pool(map, window)?,
            Pool::Avg => tile_avg_pool(map, window)?,
        };
        let nodes = pooled.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let square = nodes.sqr()?.sum_keepdim(D::Minus1)?;
        let live = square.gt(0.0)?;
        let norm = (live.where_cond(&square, &square.ones_like()?)?.sqrt()? + self.config.eps)?;
        let norm = if self.config.detach_norm { norm.detach() } else { norm };
        Ok(nodes.broadcast_mul(&live.to_dtype(nodes.dtype())?.div(&norm)?)?)
    }
}

impl Distiller for SkdPairwise {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.config.tap.clone()], teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::same_size_maps(shapes, &self.config.tap, ENTRY.name)?;
        let map = &shapes.teacher[&self.config.tap];
        self.window(map[1], map[2]).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = fit::maps(context, &self.config.tap, ENTRY.name)?;
        let (_, _, h, w) = teacher.dims4()?;
        let window = self.window(h, w)?;
        let (student, teacher) = (self.nodes(&student, window)?, self.nodes(&teacher, window)?);
        let nodes = student.dim(1)? as f64;
        let value = (mean(&gram_distance(&teacher, &student)?)? / (nodes * nodes))?;
        Ok(vec![Term::new("pairwise", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("pairwise".into(), self.config.weight)]
    }
}
