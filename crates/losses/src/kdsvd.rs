//! Knowledge distillation by singular value decomposition (`kdsvd`): how the main directions of one
//! stage relate to those of the stage before.
//!
//! # Paper
//! S. H. Lee, D. H. Kim, B. C. Song, "Self-supervised Knowledge Distillation Using Singular Value
//! Decomposition", ECCV 2018, arXiv 1807.06819, equations (1) to (8).
//!
//! # Equation
//! Each map is a matrix with the right singular vectors `v` and singular values `s`; the k first of
//! the teacher, the `k + 3` first of the student, of which each teacher's vector takes the one that
//! is nearest up to the sign, with that sign. All are scaled by the teacher's `s / |s|`. Then, with
//! the stage before marked by ':
//!
//! ```text
//! kdsvd = sum over neighboring stages of sum over all entries and vectors of (R_S - R_T)^2 / B,
//!         R = exp(-(v_i - v'_j)^2 / 8)
//! ```
//!
//! A singular vector's sign is arbitrary but the value depends on it: each teacher's vector is
//! turned so that its first entry of largest magnitude is positive.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `stages` of both, two or more. `layout = "ch_w"`: matrices `[C * H,
//! W]`, both need one width. `layout = "hw_c"`: matrices `[H * W, C]`, both need one number of
//! channels.
//!
//! # Defaults and their source
//! Weight 1, k = 1, all stages: the public collections mdistiller and RepDistiller. Layout `ch_w` as
//! mdistiller; it alone fits networks of different width, such as ResNet50 and ResNet18.
//!
//! # Where code and paper differ
//! Paper and RepDistiller take `hw_c`. No public code fixes the teacher's signs, so there the value
//! depends on the routine that decomposes (by up to 43 % on the stored cases), and mdistiller puts
//! zeros where its gradient is not finite. Here equal singular values have no part in the gradient.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("kdsvd")?;
//! let method = (row.build)(&toml::toml! { stages = ["F3", "F4"] })?;
//! assert_eq!(method.required_features().teacher, ["F3", "F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};
use stillhouse_ops::graph::svd;

use crate::sum::{self, sum};
use crate::unit::{EPS, unit};
use crate::{fit, settings};

/// The row of `kdsvd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "kdsvd",
    summary: "how the main directions of neighboring stages relate",
    source: "Lee et al. 2018, equations (1)-(8)",
    defaults: || {
        settings::describe::<KdsvdConfig>(&[
            ("stages", "mdistiller, RepDistiller"),
            ("k", "mdistiller, RepDistiller"),
            ("layout", "mdistiller; the paper's `hw_c` needs equal channels"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Kdsvd::new(settings::read(table, "kdsvd")?)?)),
};

/// How a map is a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[C * H, W]`
    #[default]
    ChW,
    /// `[H * W, C]`
    HwC,
}

/// Settings of `kdsvd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KdsvdConfig {
    /// Taps that enter, neighbors beside each other.
    pub stages: Vec<String>,
    /// Singular vectors of the teacher.
    pub k: usize,
    /// How a map is a matrix.
    pub layout: Layout,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for KdsvdConfig {
    fn default() -> Self {
        Self { stages: settings::four_stages(), k: 1, layout: Layout::default(), weight: 1.0 }
    }
}

/// Singular vectors of the student that a teacher's vector can be matched with, beyond k.
const MORE: usize = 3;

/// Knowledge distillation by singular value decomposition.
#[derive(Debug)]
pub struct Kdsvd {
    config: KdsvdConfig,
}

impl Kdsvd {
    /// Checks the settings.
    pub fn new(config: KdsvdConfig) -> Result<Self> {
        settings::stages(ENTRY.name, "stages", &config.stages)?;
        if config.stages.len() < 2 {
            let found = format!("{:?}", config.stages);
            return Err(settings::wrong(
                ENTRY.name,
                "stages",
                found,
                "two or more, which are compared in pairs",
            ));
        }
        if config.k == 0 {
            return Err(settings::wrong(ENTRY.name, "k", 0, "1 or more vectors"));
        }
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }

    /// The vectors of a stage, aligned and scaled: the student's and the teacher's, `[B, k, N]`.
    fn stage(&self, tap: &str, context: &LossContext) -> Result<(Tensor, Tensor)> {
        let (student, teacher) = fit::maps(context, tap, ENTRY.name)?;
        let (values, wanted) = svd(&self.config.layout.matrices(&teacher)?, self.config.k)?;
        let largest = wanted.abs()?.argmax_keepdim(2)?;
        let wanted = wanted.broadcast_mul(&wanted.contiguous()?.gather(&largest, 2)?.sign()?)?;
        let (_, own) = svd(&self.config.layout.matrices(&student)?, self.config.k + MORE)?;
        let own = own.contiguous()?;
        // Of the student's vectors the nearest one, with the sign that makes it so; both constant.
        let cosines = own.detach().matmul(&wanted.transpose(1, 2)?)?; // [B, k + 3, k]
        let sizes = cosines.abs()?;
        let nearest = sizes.broadcast_eq(&sizes.max_keepdim(1)?)?.to_dtype(own.dtype())?;
        let own = (nearest * cosines.sign()?)?.transpose(1, 2)?.contiguous()?.matmul(&own)?;
        let scale = unit(&values, EPS)?.unsqueeze(2)?;
        Ok((own.broadcast_mul(&scale)?, wanted.broadcast_mul(&scale)?))
    }
}

impl Layout {
    /// `[B, C, H, W] -> [B, R, N]`
    fn matrices(self, maps: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = maps.dims4()?;
        Ok(match self {
            Self::ChW => maps.reshape((b, c * h, w))?,
            Self::HwC => maps.permute((0, 2, 3, 1))?.reshape((b, h * w, c))?,
        })
    }

    /// Rows and columns of the matrix of a map `[C, H, W]`.
    fn sides(self, map: &[usize]) -> (usize, usize) {
        match self {
            Self::ChW => (map[0] * map[1], map[2]),
            Self::HwC => (map[1] * map[2], map[0]),
        }
    }
}

/// The relation of two stages, `[B, k, N] x [B, k, M] -> [B, k, N, M]`.
fn relation(here: &Tensor, before: &Tensor) -> Result<Tensor> {
    let difference = here.unsqueeze(3)?.broadcast_sub(&before.unsqueeze(2)?)?;
    Ok((difference.sqr()? / -8.0)?.exp()?)
}

impl Distiller for Kdsvd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        for tap in &self.config.stages {
            fit::map_channels(shapes, tap, ENTRY.name)?;
            let (student, teacher) = (&shapes.student[tap], &shapes.teacher[tap]);
            let (sides, wanted) = (self.config.layout.sides(student), self.config.layout.sides(teacher));
            let (what, layout, other) = match self.config.layout {
                Layout::ChW => ("one width", "ch_w", "hw_c"),
                Layout::HwC => ("one number of channels", "hw_c", "ch_w"),
            };
            if sides.1 != wanted.1 {
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!(
                        "layout = \"{layout}\" needs {what}, but at `{tap}` the student's map is {student:?} and \
                         the teacher's {teacher:?}; try layout = \"{other}\", or other stages"
                    ),
                ));
            }
            let most = wanted.0.min(wanted.1);
            if self.config.k > most {
                let (k, found) = (self.config.k, if most == 1 { "vector" } else { "vectors" });
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!(
                        "k is {k}, but the teacher's map at `{tap}` {teacher:?} has {most} singular {found}"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let stages = self.config.stages.iter().map(|tap| self.stage(tap, context));
        let stages = stages.collect::<Result<Vec<_>>>()?; // (student, teacher)
        let values = stages.windows(2).map(|pair| {
            let [shallow, deep] = pair else {
                return Err(Error::incompatible(ENTRY.name, "needs two stages"));
            };
            let difference = (relation(&deep.0, &shallow.0)? - relation(&deep.1, &shallow.1)?)?;
            Ok((sum(&difference.sqr()?)? / deep.0.dim(0)? as f64)?)
        });
        let value = sum::stages(ENTRY.name, values)?;
        Ok(vec![Term::new("kdsvd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("kdsvd".into(), self.config.weight)]
    }
}
