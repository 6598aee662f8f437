//! Relational knowledge distillation (`rkd`): distances and angles between the images of a batch.
//!
//! # Paper
//! W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068,
//! equations (5) to (9).
//!
//! # Equation
//! With the pooled features `f_i`, `d_ij = |f_i - f_j|` over the mean of all pairs, `u_ij = (f_j -
//! f_i) / |f_j - f_i|` and the smooth L1 distance `h` (threshold 1):
//!
//! ```text
//! distance = mean over i, j of h(d_ij of the student, of the teacher)
//! angle    = mean over i, j, k of h(u_ij . u_ik of the student, of the teacher)
//! ```
//!
//! Pairs with `|f_i - f_j|^2 <= eps` have the distance `sqrt(eps)` and the direction 0, both without
//! gradient; an image's distance to itself is 0.
//!
//! # Inputs
//! `pooled [B, D]` of both; lengths may differ. Two images or more.
//!
//! # Defaults and their source
//! Distance 25, angle 50, eps 1e-12: the public collections mdistiller and RepDistiller.
//!
//! # Where code and paper differ
//! The paper sums over pairs and triplets; public code and this implementation take the mean over all
//! `B^2` and `B^3` entries, including the zero diagonal. mmrazor normalizes the features first.
//! Distances from the Gram matrix are inaccurate for near duplicates, so differences are used.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("rkd")?;
//! let rkd = (entry.build)(&toml::toml! { angle_weight = 10.0 })?;
//! assert_eq!(rkd.term_weights(), [("distance".to_string(), 25.0), ("angle".to_string(), 10.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};

use crate::common::mmd::with_gradient;
use crate::common::reduce::{mean_rows, sum};
use crate::common::{checks, config, constant_like};

/// Registry entry of `rkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "rkd",
    summary: "distances and angles between the images of the batch",
    source: "Park et al. 2019, equations (5)-(9)",
    defaults: || {
        config::document::<RkdConfig>(&[
            ("distance_weight", "mdistiller, RepDistiller"),
            ("angle_weight", "mdistiller, RepDistiller"),
            ("eps", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Rkd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `rkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RkdConfig {
    /// Weight of `distance`.
    pub distance_weight: f64,
    /// Weight of `angle`.
    pub angle_weight: f64,
    /// Threshold of squared distances that are treated as zero.
    pub eps: f64,
}

impl Default for RkdConfig {
    fn default() -> Self {
        Self { distance_weight: 25.0, angle_weight: 50.0, eps: 1e-12 }
    }
}

/// Mean over pairs of images of the smooth L1 distance of their scaled distances, a scalar.
///
/// Features are `[B, D]` of two or more images; lengths may differ. Squared distances up to `eps` are
/// treated as zero. Park et al. 2019, equations (5) and (6).
///
/// # Errors
/// If the batch sizes differ or are below two.
pub fn rkd_distance_loss(student: &Tensor, teacher: &Tensor, eps: f64) -> Result<Tensor> {
    with_relations(student, teacher, eps, distance)
}

/// Mean over triplets of images of the smooth L1 distance of the cosines of their angles, a scalar.
///
/// Features are `[B, D]` of two or more images; lengths may differ. Directions of squared distances up
/// to `eps` are zero. Park et al. 2019, equations (7) and (8).
///
/// # Errors
/// If the batch sizes differ or are below two.
pub fn rkd_angle_loss(student: &Tensor, teacher: &Tensor, eps: f64) -> Result<Tensor> {
    with_relations(student, teacher, eps, angle)
}

/// A value and its gradient with respect to the features.
struct Slope {
    value: Tensor,
    gradient: Tensor, // [B, D]
}

/// Maximum number of values in the largest tensor of a block of anchors.
const MAX_BLOCK: usize = 1 << 20;

/// The value of a term with its gradient attached. Both are computed together, so that no block has to
/// be stored for a backward pass.
fn with_relations(
    student: &Tensor,
    teacher: &Tensor,
    eps: f64,
    term: fn(&Relations, &Relations) -> Result<Slope>,
) -> Result<Tensor> {
    let teacher = constant_like(teacher, student)?;
    if student.dim(0)? < 2 || student.dim(0)? != teacher.dim(0)? {
        let (s, t) = (student.dims(), teacher.dims());
        let reason =
            format!("expected batches of at least 2 images, found {s:?} (student) and {t:?} (teacher)");
        return Err(Error::incompatible(ENTRY.name, reason));
    }
    let relations = |features: Tensor| Relations { features, eps };
    let slope = term(&relations(student.detach().contiguous()?), &relations(teacher.contiguous()?))?;
    let gradient = slope.gradient.unsqueeze(0)?;
    Ok(with_gradient(&slope.value.reshape(1)?, &gradient, &student.unsqueeze(0)?)?.squeeze(0)?)
}

/// Features of a batch, processed in blocks of anchors, so that neither the differences of all pairs
/// nor the angles of all triplets are in memory at once.
struct Relations {
    features: Tensor, // [B, D]
    eps: f64,
}

/// Pairs of a block of n anchors.
struct Pairs {
    /// `f_j - f_i`, `[n, B, D]`.
    difference: Tensor,
    /// Inverse distance where it is above the threshold, else 0, `[n, B, 1]`.
    inverse: Tensor,
    /// Distances, 0 of images to themselves, `[n, B]`.
    distance: Tensor,
}

impl Relations {
    fn images(&self) -> Result<usize> {
        Ok(self.features.dim(0)?)
    }

    fn pairs(&self, first: usize, n: usize) -> Result<Pairs> {
        let (b, dtype, device) = (self.images()?, self.features.dtype(), self.features.device());
        // Per anchor: candle broadcasts a single row fast, but not several rows at once.
        let from = |anchor| self.features.broadcast_sub(&self.features.narrow(0, anchor, 1)?);
        let difference =
            Tensor::stack(&(first..first + n).map(from).collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let square = difference.sqr()?.sum_keepdim(2)?; // [n, B, 1]
        let live = square.gt(self.eps)?;
        let root = live.where_cond(&square, &square.ones_like()?)?.sqrt()?;
        let inverse = (live.to_dtype(dtype)? / &root)?;
        let least = (root.ones_like()? * self.eps.sqrt())?;
        let others: Vec<f64> = (0..n * b).map(|i| f64::from(u8::from(i % b != first + i / b))).collect();
        let others = Tensor::from_vec(others, (n, b), device)?.to_dtype(dtype)?;
        let distance = (live.where_cond(&root, &least)?.squeeze(2)? * others)?;
        Ok(Pairs { difference, inverse, distance })
    }

    /// Calls `f` for blocks of anchors, with the first anchor and their number.
    fn for_each_block(&self, mut f: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        let (b, d) = self.features.dims2()?;
        let size = (MAX_BLOCK / (b * b.max(d))).clamp(1, b);
        (0..b).step_by(size).try_for_each(|first| f(first, size.min(b - first)))
    }

    /// Distances of all pairs `[B, B]` and their mean without the diagonal.
    fn distances(&self) -> Result<(Tensor, Tensor)> {
        let mut rows = Vec::new();
        self.for_each_block(|first, n| {
            rows.push(self.pairs(first, n)?.distance);
            Ok(())
        })?;
        let (distances, b) = (Tensor::cat(&rows, 0)?, self.images()? as f64);
        let mean = (sum(&distances)? / (b * (b - 1.0)))?;
        Ok((distances, mean))
    }
}

/// Smooth L1 distance with threshold 1, and its derivative.
fn huber(difference: &Tensor) -> Result<(Tensor, Tensor)> {
    // h(x) = c (x - c / 2) with c = x clamped to [-1, 1].
    let slope = difference.clamp(-1.0, 1.0)?;
    Ok(((&slope * (difference - (&slope / 2.0)?)?)?, slope))
}

/// Distance term and its gradient.
fn distance(student: &Relations, teacher: &Relations) -> Result<Slope> {
    let ((own, mean), (of_teacher, teacher_mean)) = (student.distances()?, teacher.distances()?);
    let scaled = own.broadcast_div(&mean)?;
    let (values, slopes) = huber(&(&scaled - of_teacher.broadcast_div(&teacher_mean)?)?)?;
    let b = student.images()? as f64;
    // Gradients through the distance and through the mean of all distances.
    let through_mean = (sum(&(&slopes * &scaled)?)? / (b * (b - 1.0)))?;
    let slopes = slopes.broadcast_sub(&through_mean)?.broadcast_div(&mean)?; // [B, B], times B^2
    let mut rows = Vec::new();
    student.for_each_block(|first, n| {
        let pairs = student.pairs(first, n)?;
        let share = (slopes.narrow(0, first, n)? * pairs.inverse.squeeze(2)?)?; // [n, B]
        rows.push(share.unsqueeze(1)?.contiguous()?.matmul(&pairs.difference)?.squeeze(1)?);
        Ok(())
    })?;
    // Each pair counts twice, and the anchor's direction is f_i - f_j.
    let gradient = (Tensor::cat(&rows, 0)? * (-2.0 / (b * b)))?;
    Ok(Slope { value: (sum(&values)? / (b * b))?, gradient })
}

/// Angle term and its gradient.
fn angle(student: &Relations, teacher: &Relations) -> Result<Slope> {
    let cosines = |pairs: &Pairs| -> Result<(Tensor, Tensor)> {
        let units = pairs.difference.broadcast_mul(&pairs.inverse)?;
        Ok((units.matmul(&units.t()?)?, units))
    };
    let (b, d) = student.features.dims2()?;
    let mut total = Tensor::zeros((), student.features.dtype(), student.features.device())?;
    let mut gradient = student.features.zeros_like()?;
    let mut to_anchors = Vec::new();
    // The longer features determine the block size.
    let wider = if teacher.features.dim(1)? > d { teacher } else { student };
    wider.for_each_block(|first, n| {
        let (of_teacher, _) = cosines(&teacher.pairs(first, n)?)?;
        let pairs = student.pairs(first, n)?;
        let (own, units) = cosines(&pairs)?;
        let (values, slopes) = huber(&(own - of_teacher)?)?;
        total = (&total + sum(&values)?)?;
        // The matrix of cosines is symmetric, so each unit vector occurs twice.
        let to_units = (slopes.matmul(&units)? * 2.0)?; // [n, B, D]
        let along = (&to_units * &units)?.sum_keepdim(2)?;
        let to_differences =
            (to_units - units.broadcast_mul(&along)?)?.broadcast_mul(&pairs.inverse)?.contiguous()?;
        let each = (mean_rows(&to_differences.reshape((n, b * d))?)? * n as f64)?.reshape((b, d))?;
        gradient = (&gradient + each)?;
        let ones = Tensor::ones((n, 1, b), to_differences.dtype(), to_differences.device())?;
        to_anchors.push(ones.matmul(&to_differences)?.squeeze(1)?);
        Ok(())
    })?;
    let triplets = (b * b * b) as f64;
    let gradient = ((gradient - Tensor::cat(&to_anchors, 0)?)? / triplets)?;
    Ok(Slope { value: (total / triplets)?, gradient })
}

/// Relational knowledge distillation.
#[derive(Debug)]
pub struct Rkd {
    config: RkdConfig,
}

impl Rkd {
    /// Validates the settings.
    pub fn new(config: RkdConfig) -> Result<Self> {
        config::require_non_negative(ENTRY.name, "distance_weight", config.distance_weight)?;
        config::require_non_negative(ENTRY.name, "angle_weight", config.angle_weight)?;
        config::require_positive(ENTRY.name, "eps", config.eps)?;
        Ok(Self { config })
    }
}

impl Distiller for Rkd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["pooled"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_batch(shapes, 2, "distances between images", ENTRY.name)?;
        checks::require_vectors(shapes, "pooled", ENTRY.name).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let RkdConfig { distance_weight, angle_weight, eps } = self.config;
        let (student, teacher) = checks::vector_pair(context, "pooled", ENTRY.name)?;
        Ok(vec![
            Term::new("distance", rkd_distance_loss(&student, &teacher, eps)?, distance_weight),
            Term::new("angle", rkd_angle_loss(&student, &teacher, eps)?, angle_weight),
        ])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("distance".into(), self.config.distance_weight), ("angle".into(), self.config.angle_weight)]
    }
}
