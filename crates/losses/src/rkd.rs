//! Relational knowledge distillation (`rkd`): distances and angles between the images of a batch.
//!
//! # Paper
//! W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068,
//! equations (5) to (9).
//!
//! # Equation
//! With the pooled features `f_i`, `d_ij = |f_i - f_j|` over the mean of all pairs, `u_ij = (f_j -
//! f_i) / |f_j - f_i|` and `h` the smooth L1 distance (threshold 1):
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
//! The paper sums over pairs and triplets; public code takes the mean over all `B^2` and `B^3`
//! entries, the zero diagonal included, and so does this. mmrazor makes the features unit vectors
//! first. Distances by the Gram matrix lose all digits for near duplicates; differences do not.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("rkd")?;
//! let rkd = (row.build)(&toml::toml! { angle_weight = 10.0 })?;
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

use crate::mmd::with_gradient;
use crate::sum::{mean_rows, sum};
use crate::{fit, settings};

/// The row of `rkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "rkd",
    summary: "distances and angles between the images of the batch",
    source: "Park et al. 2019, equations (5)-(9)",
    defaults: || {
        settings::describe::<RkdConfig>(&[
            ("distance_weight", "mdistiller, RepDistiller"),
            ("angle_weight", "mdistiller, RepDistiller"),
            ("eps", "mdistiller, RepDistiller"),
        ])
    },
    build: |table| Ok(Box::new(Rkd::new(settings::read(table, "rkd")?)?)),
};

/// Settings of `rkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RkdConfig {
    /// Weight of the distances' term.
    pub distance_weight: f64,
    /// Weight of the angles' term.
    pub angle_weight: f64,
    /// Squared distances up to this count as zero.
    pub eps: f64,
}

impl Default for RkdConfig {
    fn default() -> Self {
        Self { distance_weight: 25.0, angle_weight: 50.0, eps: 1e-12 }
    }
}

/// Relational knowledge distillation.
#[derive(Debug)]
pub struct Rkd {
    config: RkdConfig,
}

/// A value and its gradient with respect to the features.
struct Slope {
    value: Tensor,
    gradient: Tensor, // [B, D]
}

/// Values of the largest tensor of a block of anchors.
const BLOCK: usize = 1 << 20;

impl Rkd {
    /// Checks the settings.
    pub fn new(config: RkdConfig) -> Result<Self> {
        settings::not_negative(ENTRY.name, "distance_weight", config.distance_weight)?;
        settings::not_negative(ENTRY.name, "angle_weight", config.angle_weight)?;
        settings::above_zero(ENTRY.name, "eps", config.eps)?;
        Ok(Self { config })
    }
}

/// The features of a batch, seen from one block of anchors after the other: neither the differences
/// of all pairs nor the angles of all triplets are ever there at once.
struct Relations {
    features: Tensor, // [B, D]
    eps: f64,
}

/// The pairs of a block of n anchors.
struct Pairs {
    /// `f_j - f_i`, `[n, B, D]`.
    difference: Tensor,
    /// One over the distance where that is live, else 0, `[n, B, 1]`.
    inverse: Tensor,
    /// Distances, without those of images to themselves, `[n, B]`.
    distance: Tensor,
}

impl Relations {
    fn images(&self) -> Result<usize> {
        Ok(self.features.dim(0)?)
    }

    fn pairs(&self, first: usize, n: usize) -> Result<Pairs> {
        let (b, dtype, device) = (self.images()?, self.features.dtype(), self.features.device());
        // Anchor by anchor: candle takes one row from many at full speed, but not rows from rows.
        let from = |anchor| self.features.broadcast_sub(&self.features.narrow(0, anchor, 1)?);
        let difference =
            Tensor::stack(&(first..first + n).map(from).collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let square = difference.sqr()?.sum_keepdim(2)?; // [n, B, 1]
        let live = square.gt(self.eps)?;
        let root = live.where_cond(&square, &square.ones_like()?)?.sqrt()?;
        let inverse = (live.to_dtype(dtype)? / &root)?;
        let least = (root.ones_like()? * self.eps.sqrt())?;
        let own: Vec<f64> = (0..n * b).map(|at| f64::from(u8::from(at % b != first + at / b))).collect();
        let others = Tensor::from_vec(own, (n, b), device)?.to_dtype(dtype)?;
        let distance = (live.where_cond(&root, &least)?.squeeze(2)? * others)?;
        Ok(Pairs { difference, inverse, distance })
    }

    /// Runs `f` over blocks of anchors.
    fn blocks(&self, mut f: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        let (b, d) = self.features.dims2()?;
        let size = (BLOCK / (b * b.max(d))).clamp(1, b);
        (0..b).step_by(size).try_for_each(|first| f(first, size.min(b - first)))
    }

    /// All distances `[B, B]` and their mean without the diagonal.
    fn distances(&self) -> Result<(Tensor, Tensor)> {
        let mut rows = Vec::new();
        self.blocks(|first, n| {
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

/// The distances' term.
fn distance(student: &Relations, teacher: &Relations) -> Result<Slope> {
    let ((own, mean), (wanted, wanted_mean)) = (student.distances()?, teacher.distances()?);
    let scaled = own.broadcast_div(&mean)?;
    let (values, slopes) = huber(&(&scaled - wanted.broadcast_div(&wanted_mean)?)?)?;
    let b = student.images()? as f64;
    // Through the distance itself, and through the mean, which all distances share.
    let through_mean = (sum(&(&slopes * &scaled)?)? / (b * (b - 1.0)))?;
    let slopes = slopes.broadcast_sub(&through_mean)?.broadcast_div(&mean)?; // [B, B], times B^2
    let mut rows = Vec::new();
    student.blocks(|first, n| {
        let pairs = student.pairs(first, n)?;
        let share = (slopes.narrow(0, first, n)? * pairs.inverse.squeeze(2)?)?; // [n, B]
        rows.push(share.unsqueeze(1)?.contiguous()?.matmul(&pairs.difference)?.squeeze(1)?);
        Ok(())
    })?;
    // Each pair counts twice, and moving an anchor away from f_j is the direction f_i - f_j.
    let gradient = (Tensor::cat(&rows, 0)? * (-2.0 / (b * b)))?;
    Ok(Slope { value: (sum(&values)? / (b * b))?, gradient })
}

/// The angles' term.
fn angle(student: &Relations, teacher: &Relations) -> Result<Slope> {
    let cosines = |pairs: &Pairs| -> Result<(Tensor, Tensor)> {
        let units = pairs.difference.broadcast_mul(&pairs.inverse)?;
        Ok((units.matmul(&units.t()?)?, units))
    };
    let (b, d) = student.features.dims2()?;
    let mut total = Tensor::zeros((), student.features.dtype(), student.features.device())?;
    let mut gradient = student.features.zeros_like()?;
    let mut to_anchors = Vec::new();
    // The larger of both decides how many anchors are taken at once.
    let wider = if teacher.features.dim(1)? > d { teacher } else { student };
    wider.blocks(|first, n| {
        let (wanted, _) = cosines(&teacher.pairs(first, n)?)?;
        let pairs = student.pairs(first, n)?;
        let (own, units) = cosines(&pairs)?;
        let (values, slopes) = huber(&(own - wanted)?)?;
        total = (&total + sum(&values)?)?;
        // The matrix of cosines is symmetric, so each unit vector is met twice.
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

impl Distiller for Rkd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["pooled".into()], teacher: vec!["pooled".into()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::images(shapes, 2, "a distance", ENTRY.name)?;
        fit::vector_lengths(shapes, "pooled", ENTRY.name).map(|_| ())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (features, teacher) = fit::vector_pair(context, "pooled", ENTRY.name)?;
        if features.dim(0)? < 2 {
            return Err(Error::incompatible(
                ENTRY.name,
                "a distance takes two images, but this batch has one",
            ));
        }
        let relations = |features: Tensor| Relations { features, eps: self.config.eps };
        let (student, teacher) =
            (relations(features.detach().contiguous()?), relations(teacher.contiguous()?));
        // Value and gradient are found together, so that nothing of a block has to be kept.
        let term = |slope: Slope| -> Result<Tensor> {
            let gradient = slope.gradient.unsqueeze(0)?;
            Ok(with_gradient(&slope.value.reshape(1)?, &gradient, &features.unsqueeze(0)?)?.squeeze(0)?)
        };
        Ok(vec![
            Term::new("distance", term(distance(&student, &teacher)?)?, self.config.distance_weight),
            Term::new("angle", term(angle(&student, &teacher)?)?, self.config.angle_weight),
        ])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("distance".into(), self.config.distance_weight), ("angle".into(), self.config.angle_weight)]
    }
}
