//! Knowledge adaptation (`skd_affinity`, and `ka` as FRKDNet's comparison has it): the teacher's
//! compressed feature, and which pixels are alike in it.
//!
//! # Paper
//! T. He, C. Shen, Z. Tian, D. Gong, C. Sun, Y. Yan, "Knowledge Adaptation for Efficient Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04688, equations (3) and (4).
//!
//! # Equation
//! With the student's map through one 1x1 convolution for each term, `u(x)` the unit vector over the
//! channels at position x:
//!
//! ```text
//! adapt    = mean over b, x of | u_T(x) - u_S(x) |_1
//! affinity = mean over b, x, x' of (u_T(x) . u_T(x') - u_S(x) . u_S(x'))^2
//! ```
//!
//! `norm_over = "sample"`: one unit vector for each whole map, and the mean over its elements.
//! `squared = false`: the root of the sum over pairs, divided by the positions, mean over images.
//! `form = "channel"`: outer products of each channel's unit map with itself, the root of the squared
//! difference, divided by the positions, summed over channels, mean over images.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `tap`; the larger is pooled to the smaller. Where the channels
//! differ, weights `adapter.{weight, bias}` and `affinity_adapter.{weight, bias}`. The teacher's map
//! stands for the latent of the paper's auto-encoder: nothing is trained beforehand.
//!
//! # Defaults and their source
//! Weights 50 and 1: the paper.
//!
//! # Where code and paper differ
//! The collection torchdistill has `form = "channel"` with `norm_over = "sample"`.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("skd_affinity")?;
//! let method = (row.build)(&toml::toml! { adapt_weight = 10.0 })?;
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

use crate::conv1x1::Conv1x1;
use crate::pairs::gram_distance;
use crate::sum::{mean, sum};
use crate::unit::{EPS, safe_sqrt, unit};
use crate::{fit, settings};

/// The row of `skd_affinity`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_affinity",
    summary: "the teacher's feature, and which pixels are alike in it",
    source: "He et al. 2019, equations (3) and (4)",
    defaults,
    build: |table| Ok(Box::new(SkdAffinity::new("skd_affinity", settings::read(table, "skd_affinity")?)?)),
};

/// The row of `ka`: the same under the name of the comparison in FRKDNet, which calls it "SKD".
pub const KA: Entry<DistillerBuild> = Entry {
    name: "ka",
    summary: "skd_affinity in the form of FRKDNet's comparison, named SKD there",
    source: "He et al. 2019, equations (3) and (4); Jiang et al. 2023, Tables 2 and 3",
    defaults,
    build: |table| Ok(Box::new(SkdAffinity::new("ka", settings::read(table, "ka")?)?)),
};

fn defaults() -> String {
    settings::describe::<SkdAffinityConfig>(&[
        ("tap", "the last map before the classifier"),
        ("form", "He et al. 2019, equation (4)"),
        ("squared", "He et al. 2019, equation (4)"),
        ("norm_over", "He et al. 2019, equation (3)"),
        ("adapt_weight", "He et al. 2019"),
        ("affinity_weight", "He et al. 2019"),
    ])
}

/// Pairs of what are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Cosines of all pairs of pixels.
    #[default]
    Pixel,
    /// For each channel, the products of all pairs of its values.
    Channel,
}

/// What is brought to unit length before the features are compared.
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
    /// The map that enters.
    pub tap: String,
    /// Pairs of what are compared.
    pub form: Form,
    /// Whether the pixels' cosines differ by squares or by their root; no matter for channels.
    pub squared: bool,
    /// What is brought to unit length in `adapt`.
    pub norm_over: NormOver,
    /// Weight of `adapt`.
    pub adapt_weight: f64,
    /// Weight of `affinity`.
    pub affinity_weight: f64,
}

impl Default for SkdAffinityConfig {
    fn default() -> Self {
        Self {
            tap: "F4".into(),
            form: Form::default(),
            squared: true,
            norm_over: NormOver::default(),
            adapt_weight: 50.0,
            affinity_weight: 1.0,
        }
    }
}

/// Knowledge adaptation.
#[derive(Debug)]
pub struct SkdAffinity {
    name: &'static str,
    config: SkdAffinityConfig,
    /// Of `adapt` and of `affinity`, made by `connect` where the channels differ.
    adapters: Option<(Conv1x1, Conv1x1)>,
}

impl SkdAffinity {
    /// Checks the settings; `name` is the row's.
    pub(crate) fn new(name: &'static str, config: SkdAffinityConfig) -> Result<Self> {
        settings::not_negative(name, "adapt_weight", config.adapt_weight)?;
        settings::not_negative(name, "affinity_weight", config.affinity_weight)?;
        Ok(Self { name, config, adapters: None })
    }

    fn adapt(&self, s: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = s.dims4()?;
        let (units, count) = match self.config.norm_over {
            NormOver::Position => {
                let units = |map: &Tensor| unit(&map.permute((0, 2, 3, 1))?, EPS);
                ((units(t)? - units(s)?)?, b * h * w)
            }
            NormOver::Sample => {
                let units = |map: &Tensor| unit(&map.flatten_from(1)?, EPS);
                ((units(t)? - units(s)?)?, b * c * h * w)
            }
        };
        // The absolute value with derivative 0 at 0.
        let absolute = (&units * units.detach().sign()?)?;
        Ok((sum(&absolute)? / count as f64)?)
    }

    fn affinity(&self, s: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (b, _, h, w) = s.dims4()?;
        let positions = (h * w) as f64;
        match self.config.form {
            Form::Pixel => {
                let units = |map: &Tensor| unit(&map.flatten_from(2)?.transpose(1, 2)?, EPS); // [B, P, C]
                let square = gram_distance(&units(t)?, &units(s)?)?; // [B]
                match self.config.squared {
                    true => Ok((mean(&square)? / (positions * positions))?),
                    false => Ok((mean(&safe_sqrt(&square)?)? / positions)?),
                }
            }
            Form::Channel => {
                let units = |map: &Tensor| unit(&map.flatten_from(2)?, EPS); // [B, C, P]
                let (s, t) = (units(s)?, units(t)?);
                // |s s^T - t t^T|^2 = |s|^4 + |t|^4 - 2 (s . t)^2
                //                   = (|s - t|^2 |s + t|^2 + (|s|^2 - |t|^2)^2) / 2,
                // which has no difference of nearly equal numbers: a norm is 1, or 0 in a zero map.
                let live = |x: &Tensor| x.detach().sqr()?.sum(2)?.round();
                let apart = (&s - &t)?.sqr()?.sum(2)?.mul(&(&s + &t)?.sqr()?.sum(2)?)?;
                let square = ((apart + (live(&s)? - live(&t)?)?.sqr()?)? / 2.0)?; // [B, C]
                Ok((sum(&safe_sqrt(&square)?)? / (b as f64 * positions))?)
            }
        }
    }
}

impl Distiller for SkdAffinity {
    fn name(&self) -> &str {
        self.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.config.tap.clone()], teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let (student, teacher) = fit::map_channels(shapes, &self.config.tap, self.name)?;
        if student != teacher {
            let make = |name| Conv1x1::new(student, teacher, &params.pp(name));
            self.adapters = Some((make("adapter")?, make("affinity_adapter")?));
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        // Pooling first is cheaper and the same: averages pass through a 1x1 convolution.
        let (student, teacher) = fit::map_pair(context, &self.config.tap, self.name)?;
        let (a, f) = match &self.adapters {
            Some((adapt, affinity)) => (adapt.forward(&student)?, affinity.forward(&student)?),
            None => (student.clone(), student),
        };
        Ok(vec![
            Term::new("adapt", self.adapt(&a, &teacher)?, self.config.adapt_weight),
            Term::new("affinity", self.affinity(&f, &teacher)?, self.config.affinity_weight),
        ])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("adapt".into(), self.config.adapt_weight), ("affinity".into(), self.config.affinity_weight)]
    }
}
