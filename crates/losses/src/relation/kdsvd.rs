//! Knowledge distillation by singular value decomposition (`kdsvd`): relations between the principal
//! directions of adjacent stages.
//!
//! # Paper
//! S. H. Lee, D. H. Kim, B. C. Song, "Self-supervised Knowledge Distillation Using Singular Value
//! Decomposition", ECCV 2018, arXiv 1807.06819, equations (1) to (8).
//!
//! # Equation
//! Each map is a matrix with right singular vectors `v` and singular values `s`. Of the student's first
//! `k + 3` vectors, each of the teacher's first k is matched with the nearest one up to sign, with the
//! sign of the match. All are scaled by the teacher's `s / |s|`. With `'` for the preceding stage:
//!
//! ```text
//! kdsvd = sum over adjacent stages of sum over all entries and vectors of (R_S - R_T)^2 / B,
//!         R = exp(-(v_i - v'_j)^2 / 8)
//! ```
//!
//! The value depends on the arbitrary signs of singular vectors: each teacher's vector is flipped so
//! that its first entry of largest magnitude is positive.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at two or more `stages` of both. `layout = "ch_w"`: matrices `[C * H, W]`, which
//! require equal widths. `layout = "hw_c"`: matrices `[H * W, C]`, which require equal channels.
//!
//! # Defaults and their source
//! Weight 1, k = 1, all stages: the public collections mdistiller and RepDistiller. Layout `ch_w` as in
//! mdistiller, because it supports networks of different channels, such as ResNet50 and ResNet18.
//!
//! # Where code and paper differ
//! Paper and RepDistiller have `hw_c`. No public code fixes the teacher's signs, so its value depends
//! on the SVD routine (by up to 43 % on the stored cases), and mdistiller replaces non-finite gradients
//! by zeros. Here equal singular values do not contribute to the gradient.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("kdsvd")?;
//! let method = (entry.build)(&toml::toml! { stages = ["F3", "F4"] })?;
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

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::reduce::{sum, sum_stages};
use crate::common::{checks, config, constant_like};

/// Registry entry of `kdsvd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "kdsvd",
    summary: "relations between the principal directions of adjacent stages",
    source: "Lee et al. 2018, equations (1)-(8)",
    defaults: || {
        config::document::<KdsvdConfig>(&[
            ("stages", "mdistiller, RepDistiller"),
            ("k", "mdistiller, RepDistiller"),
            ("layout", "mdistiller; the paper's `hw_c` needs equal channels"),
            ("weight", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Kdsvd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Matrix layout of a map.
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
    /// Features to compare, adjacent stages next to each other.
    pub stages: Vec<String>,
    /// Number of the teacher's singular vectors.
    pub k: usize,
    /// Matrix layout of a map.
    pub layout: Layout,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for KdsvdConfig {
    fn default() -> Self {
        Self { stages: config::four_stages(), k: 1, layout: Layout::default(), weight: 1.0 }
    }
}

/// Number of the student's singular vectors beyond k that can be matched.
const EXTRA_VECTORS: usize = 3;

/// Squared difference of the relations between adjacent stages, summed over pairs of stages, a scalar.
///
/// `student` and `teacher` are the maps `[B, C, H, W]` of two or more stages in order. With
/// [`Layout::ChW`] the widths of a stage's maps are equal, with [`Layout::HwC`] the channels. `k` is
/// the number of the teacher's singular vectors. Lee et al. 2018, equations (1) to (8).
///
/// # Errors
/// If there are fewer than two stages, or the shapes do not match.
pub fn kdsvd_loss(student: &[Tensor], teacher: &[Tensor], k: usize, layout: Layout) -> Result<Tensor> {
    let stages = student.iter().zip(teacher).map(|(s, t)| aligned_vectors(s, t, k, layout));
    let stages = stages.collect::<Result<Vec<_>>>()?; // (student, teacher)
    let values = stages.windows(2).map(|pair| {
        let [shallow, deep] = pair else {
            return Err(Error::incompatible(ENTRY.name, "expected pairs of stages"));
        };
        let difference = (relation(&deep.0, &shallow.0)? - relation(&deep.1, &shallow.1)?)?;
        Ok((sum(&difference.sqr()?)? / deep.0.dim(0)? as f64)?)
    });
    sum_stages(ENTRY.name, values)
}

/// Aligned and scaled singular vectors of one stage: the student's and the teacher's, `[B, k, N]`.
fn aligned_vectors(student: &Tensor, teacher: &Tensor, k: usize, layout: Layout) -> Result<(Tensor, Tensor)> {
    let (values, of_teacher) = svd(&layout.matrices(&constant_like(teacher, student)?)?, k)?;
    let largest = of_teacher.abs()?.argmax_keepdim(2)?;
    let of_teacher = of_teacher.broadcast_mul(&of_teacher.contiguous()?.gather(&largest, 2)?.sign()?)?;
    let (_, of_student) = svd(&layout.matrices(student)?, k + EXTRA_VECTORS)?;
    let of_student = of_student.contiguous()?;
    // The match and its sign are constants.
    let cosines = of_student.detach().matmul(&of_teacher.transpose(1, 2)?)?; // [B, k + 3, k]
    let sizes = cosines.abs()?;
    let nearest = sizes.broadcast_eq(&sizes.max_keepdim(1)?)?.to_dtype(of_student.dtype())?;
    let of_student = (nearest * cosines.sign()?)?.transpose(1, 2)?.contiguous()?.matmul(&of_student)?;
    let scale = l2_normalize(&values, EPS)?.unsqueeze(2)?;
    Ok((of_student.broadcast_mul(&scale)?, of_teacher.broadcast_mul(&scale)?))
}

/// Relation of two stages, `[B, k, N] x [B, k, M] -> [B, k, N, M]`.
fn relation(deep: &Tensor, shallow: &Tensor) -> Result<Tensor> {
    let difference = deep.unsqueeze(3)?.broadcast_sub(&shallow.unsqueeze(2)?)?;
    Ok((difference.sqr()? / -8.0)?.exp()?)
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
    fn dims(self, map: &[usize]) -> (usize, usize) {
        match self {
            Self::ChW => (map[0] * map[1], map[2]),
            Self::HwC => (map[1] * map[2], map[0]),
        }
    }
}

/// Knowledge distillation by singular value decomposition.
#[derive(Debug)]
pub struct Kdsvd {
    config: KdsvdConfig,
}

impl Kdsvd {
    /// Validates the settings.
    pub fn new(config: KdsvdConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        if config.stages.len() < 2 {
            let found = format!("{:?}", config.stages);
            return Err(config::invalid(ENTRY.name, "stages", found, "two or more stages"));
        }
        if config.k == 0 {
            return Err(config::invalid(ENTRY.name, "k", 0, "1 or more vectors"));
        }
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config })
    }
}

impl Distiller for Kdsvd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let KdsvdConfig { stages, k, layout, .. } = &self.config;
        for feature in stages {
            checks::require_maps(shapes, feature, ENTRY.name)?;
            let (student, teacher) = (&shapes.student[feature], &shapes.teacher[feature]);
            let (columns, (rows, teacher_columns)) = (layout.dims(student).1, layout.dims(teacher));
            if columns != teacher_columns {
                let (expected, name, other) = match layout {
                    Layout::ChW => ("equal widths", "ch_w", "hw_c"),
                    Layout::HwC => ("equal channels", "hw_c", "ch_w"),
                };
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!(
                        "layout = \"{name}\": expected maps of {expected} at `{feature}`, found {student:?} \
                         (student) and {teacher:?} (teacher); try layout = \"{other}\" or other stages"
                    ),
                ));
            }
            let max = rows.min(teacher_columns);
            if *k > max {
                return Err(Error::incompatible(
                    ENTRY.name,
                    format!(
                        "expected k of at most {max}, the number of singular vectors of the teacher's map {teacher:?} \
                         at `{feature}`, found {k}"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let pairs = self.config.stages.iter().map(|f| checks::map_pair(context, f, ENTRY.name));
        let (student, teacher): (Vec<_>, Vec<_>) = pairs.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let value = kdsvd_loss(&student, &teacher, self.config.k, self.config.layout)?;
        Ok(vec![Term::new("kdsvd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("kdsvd".into(), self.config.weight)]
    }
}
