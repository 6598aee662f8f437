//! Knowledge adaptation (`skd_affinity`, and `ka` in FRKDNet's comparison): the teacher's compressed
//! feature and the similarities between its pixels.
//!
//! # Paper
//! T. He, C. Shen, Z. Tian, D. Gong, C. Sun, Y. Yan, "Knowledge Adaptation for Efficient Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04688, equations (3) and (4).
//!
//! # Equation
//! With the student's map after one 1x1 convolution per term, and the unit vector `u(x)` over the
//! channels at position x:
//!
//! ```text
//! adapt    = mean over b, x of | u_T(x) - u_S(x) |_1
//! affinity = mean over b, x, x' of (u_T(x) . u_T(x') - u_S(x) . u_S(x'))^2
//! ```
//!
//! `norm_over = "sample"`: one unit vector per map, and the mean over its elements.
//! `squared = false`: the root of the sum over pairs, divided by the positions, mean over images.
//! `form = "channel"`: outer products of each channel's unit map with itself, the root of the squared
//! difference, divided by the positions, summed over channels, mean over images.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `feature`; the larger is pooled to the size of the smaller. If the channels
//! differ, weights `adapter.{weight, bias}` and `affinity_adapter.{weight, bias}`. The teacher's map
//! replaces the latent of the paper's auto-encoder, so nothing is pretrained.
//!
//! # Defaults and their source
//! Weights 50 and 1: the paper.
//!
//! # Where code and paper differ
//! The collection torchdistill has `form = "channel"` with `norm_over = "sample"`.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("skd_affinity")?;
//! let method = (entry.build)(&toml::toml! { adapt_weight = 10.0 })?;
//! assert_eq!(method.term_weights(), [("adapt".to_string(), 10.0), ("affinity".to_string(), 1.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::connector::Conv1x1;
use crate::common::gram::gram_distance;
use crate::common::normalize::{EPS, l2_normalize, safe_sqrt};
use crate::common::pool::pool_pair;
use crate::common::reduce::{mean, sum};
use crate::common::{checks, config, constant_like};

/// Registry entry of `skd_affinity`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_affinity",
    summary: "the teacher's feature and the similarities between its pixels",
    source: "He et al. 2019, equations (3) and (4)",
    defaults,
    build: |table| Ok(Box::new(SkdAffinity::new("skd_affinity", config::parse(table, "skd_affinity")?)?)),
};

/// Registry entry of `ka`: `skd_affinity` under its name in FRKDNet's comparison ("SKD" in the paper).
pub const KA: Entry<DistillerBuild> = Entry {
    name: "ka",
    summary: "skd_affinity in the form of FRKDNet's comparison, named SKD there",
    source: "He et al. 2019, equations (3) and (4); Jiang et al. 2023, Tables 2 and 3",
    defaults,
    build: |table| Ok(Box::new(SkdAffinity::new("ka", config::parse(table, "ka")?)?)),
};

fn defaults() -> String {
    config::document::<SkdAffinityConfig>(&[
        ("feature", "the last map before the classifier"),
        ("form", "He et al. 2019, equation (4)"),
        ("squared", "He et al. 2019, equation (4)"),
        ("norm_over", "He et al. 2019, equation (3)"),
        ("adapt_weight", "He et al. 2019"),
        ("affinity_weight", "He et al. 2019"),
    ])
}

/// Pairs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Cosines of all pairs of pixels.
    #[default]
    Pixel,
    /// Products of all pairs of values of each channel.
    Channel,
}

/// Vectors that are normalized in `adapt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormOver {
    /// The channels of each position.
    #[default]
    Position,
    /// The whole map of an image.
    Sample,
}

/// Settings of `skd_affinity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdAffinityConfig {
    /// Feature to compare.
    pub feature: String,
    /// Pairs that are compared.
    pub form: Form,
    /// Whether the differences of the pixels' cosines are squared, without a root; unused by channels.
    pub squared: bool,
    /// Vectors that are normalized in `adapt`.
    pub norm_over: NormOver,
    /// Weight of `adapt`.
    pub adapt_weight: f64,
    /// Weight of `affinity`.
    pub affinity_weight: f64,
}

impl Default for SkdAffinityConfig {
    fn default() -> Self {
        Self {
            feature: "F4".into(),
            form: Form::default(),
            squared: true,
            norm_over: NormOver::default(),
            adapt_weight: 50.0,
            affinity_weight: 1.0,
        }
    }
}

/// Mean absolute difference of the normalized features, a scalar.
///
/// Maps are `[B, C, H, W]` of equal shape. With [`NormOver::Position`] the L1 distances of the unit
/// vectors are averaged over positions, with [`NormOver::Sample`] over all elements. He et al. 2019,
/// equation (3).
///
/// # Errors
/// If the shapes differ.
pub fn adaptation_loss(student: &Tensor, teacher: &Tensor, norm_over: NormOver) -> Result<Tensor> {
    let (b, c, h, w) = student.dims4()?;
    let teacher = constant_like(teacher, student)?;
    let (difference, count) = match norm_over {
        NormOver::Position => {
            let units = |map: &Tensor| l2_normalize(&map.permute((0, 2, 3, 1))?, EPS);
            ((units(&teacher)? - units(student)?)?, b * h * w)
        }
        NormOver::Sample => {
            let units = |map: &Tensor| l2_normalize(&map.flatten_from(1)?, EPS);
            ((units(&teacher)? - units(student)?)?, b * c * h * w)
        }
    };
    // |x| with the derivative 0 at 0
    let absolute = (&difference * difference.detach().sign()?)?;
    Ok((sum(&absolute)? / count as f64)?)
}

/// Distance of the similarities between pixels, or of the outer products of channels, a scalar.
///
/// Maps are `[B, C, H, W]` of equal size; channels are equal with [`Form::Channel`]. `squared` is unused
/// by [`Form::Channel`]. He et al. 2019, equation (4).
///
/// # Errors
/// If the shapes do not match.
pub fn affinity_loss(student: &Tensor, teacher: &Tensor, form: Form, squared: bool) -> Result<Tensor> {
    let (b, _, h, w) = student.dims4()?;
    let teacher = constant_like(teacher, student)?;
    let positions = (h * w) as f64;
    match form {
        Form::Pixel => {
            let units = |map: &Tensor| l2_normalize(&map.flatten_from(2)?.transpose(1, 2)?, EPS); // [B, P, C]
            let square = gram_distance(&units(&teacher)?, &units(student)?)?; // [B]
            match squared {
                true => Ok((mean(&square)? / (positions * positions))?),
                false => Ok((mean(&safe_sqrt(&square)?)? / positions)?),
            }
        }
        Form::Channel => {
            let units = |map: &Tensor| l2_normalize(&map.flatten_from(2)?, EPS); // [B, C, P]
            let (s, t) = (units(student)?, units(&teacher)?);
            // |s s^T - t t^T|^2 = |s|^4 + |t|^4 - 2 (s . t)^2
            //                   = (|s - t|^2 |s + t|^2 + (|s|^2 - |t|^2)^2) / 2,
            // without cancellation: norms are 1, or 0 for zero maps.
            let norm = |x: &Tensor| x.detach().sqr()?.sum(2)?.round();
            let product = (&s - &t)?.sqr()?.sum(2)?.mul(&(&s + &t)?.sqr()?.sum(2)?)?;
            let square = ((product + (norm(&s)? - norm(&t)?)?.sqr()?)? / 2.0)?; // [B, C]
            Ok((sum(&safe_sqrt(&square)?)? / (b as f64 * positions))?)
        }
    }
}

/// Knowledge adaptation.
#[derive(Debug)]
pub struct SkdAffinity {
    name: &'static str,
    config: SkdAffinityConfig,
    /// Connectors of `adapt` and of `affinity`. Set by `connect` if the channels differ.
    adapters: Option<(Conv1x1, Conv1x1)>,
}

impl SkdAffinity {
    /// Validates the settings of the entry `name`.
    pub(crate) fn new(name: &'static str, config: SkdAffinityConfig) -> Result<Self> {
        config::require_non_negative(name, "adapt_weight", config.adapt_weight)?;
        config::require_non_negative(name, "affinity_weight", config.affinity_weight)?;
        Ok(Self { name, config, adapters: None })
    }
}

impl Distiller for SkdAffinity {
    fn name(&self) -> &str {
        self.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&[&self.config.feature])
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let (student, teacher) = checks::require_maps(shapes, &self.config.feature, self.name)?;
        if student != teacher {
            let adapter = |name| Conv1x1::new(student, teacher, &params.pp(name));
            self.adapters = Some((adapter("adapter")?, adapter("affinity_adapter")?));
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let SkdAffinityConfig { form, squared, norm_over, adapt_weight, affinity_weight, .. } = self.config;
        let (student, teacher) = checks::map_pair(context, &self.config.feature, self.name)?;
        // A 1x1 convolution commutes with pooling; pooling first is cheaper.
        let (student, teacher) = pool_pair(&student, &teacher)?;
        let (a, f) = match &self.adapters {
            Some((adapt, affinity)) => (adapt.forward(&student)?, affinity.forward(&student)?),
            None => (student.clone(), student),
        };
        Ok(vec![
            Term::new("adapt", adaptation_loss(&a, &teacher, norm_over)?, adapt_weight),
            Term::new("affinity", affinity_loss(&f, &teacher, form, squared)?, affinity_weight),
        ])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("adapt".into(), self.config.adapt_weight), ("affinity".into(), self.config.affinity_weight)]
    }
}
