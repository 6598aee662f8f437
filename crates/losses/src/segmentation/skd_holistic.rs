//! Holistic distillation (`skd_holistic`): adversarial loss of a discriminator between the student's and
//! the teacher's maps.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equations (3) and (4). Gradient penalty: I. Gulrajani,
//! F. Ahmed, M. Arjovsky, V. Dumoulin, A. Courville, "Improved Training of Wasserstein GANs", NIPS
//! 2017, arXiv 1704.00028, equation (3).
//!
//! # Equation
//! With the discriminator's score `D` on image and map, `m = a t + (1 - a) s` with one random `a` in
//! [0, 1) per image:
//!
//! ```text
//! student:   adversarial      = - mean D(s)
//! adversary:  wasserstein      real = - mean D(t),            fake = mean D(s)
//!            hinge            real = mean max(0, 1 - D(t)),  fake = mean max(0, 1 + D(s))
//!            gradient_penalty = mean over b of (|d sum D(m) / dm| - 1)^2
//! ```
//!
//! The adversary's terms train the discriminator, by the student's optimizer; `train.lr_scale` with the
//! pattern `connector.skd_holistic.d.*` sets its learning rate.
//!
//! # Inputs
//! `logits [B, N, H, W]` of both, at least 8 x 8, and with `condition` the images, resized to the
//! logits (bilinear) and concatenated before their channels. Weights of the discriminator:
//! `d.conv1.weight` to `d.conv3.bias`.
//!
//! # Defaults and their source
//! Wasserstein with penalty 10, conditioned on the images, weight 0.1: the paper. The widths are a
//! choice of this implementation: the authors' discriminator has two more convolutions, spectral norms
//! and attention.
//!
//! # Where code and paper differ
//! The input of the paper's discriminator is image and map; in the released code it is the map alone,
//! after batch norm or tanh (`condition`, `preprocess`).
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("skd_holistic")?;
//! let method = (entry.build)(&toml::toml! { form = "hinge" })?;
//! assert_eq!(method.term_weights(), [("adversarial".to_string(), 0.1)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    ADVERSARY, Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};
use stillhouse_ops::graph::resize_bilinear;

use super::discriminator::{Discriminator, MIN_SIZE};
use crate::common::connector::relu;
use crate::common::normalize::safe_sqrt;
use crate::common::reduce::mean;
use crate::common::softmax::log_softmax;
use crate::common::{checks, config};

/// Registry entry of `skd_holistic`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_holistic",
    summary: "adversarial loss of a discriminator between the maps",
    source: "Liu et al. 2019, equations (3) and (4)",
    defaults: || {
        config::document::<SkdHolisticConfig>(&[
            ("side", "training needs the generator's, which includes the adversary's terms"),
            ("form", "Liu et al. 2019, equation (3)"),
            ("preprocess", "Liu et al. 2019; tanh in the released code"),
            ("condition", "Liu et al. 2019; off in the released code"),
            ("widths", "choice of this implementation; the released discriminator is deeper"),
            ("gp_weight", "Gulrajani et al. 2017"),
            ("weight", "Liu et al. 2019, section 3.2"),
        ])
    },
    build: |table| Ok(Box::new(SkdHolistic::new(config::parse(table, ENTRY.name)?)?)),
};

/// Terms of the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The student's, with those of the adversary as adversary terms.
    #[default]
    Generator,
    /// The adversary's alone, for inspection.
    Discriminator,
}

/// Loss of the discriminator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Difference of the scores.
    #[default]
    Wasserstein,
    /// Hinge loss with a margin of 1.
    Hinge,
}

/// Preprocessing of the logits for the discriminator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocess {
    /// Identity.
    #[default]
    None,
    /// Hyperbolic tangent.
    Tanh,
    /// Softmax over the classes.
    Softmax,
}

/// Settings of `skd_holistic`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdHolisticConfig {
    /// Terms of the method.
    pub side: Side,
    /// Loss of the discriminator.
    pub form: Form,
    /// Preprocessing of the logits for the discriminator.
    pub preprocess: Preprocess,
    /// Whether the discriminator is conditioned on the image.
    pub condition: bool,
    /// Channels of the discriminator after its first two convolutions.
    pub widths: [usize; 2],
    /// Weight of the gradient penalty; 0 disables it.
    pub gp_weight: f64,
    /// Weight of the student's term.
    pub weight: f64,
}

impl Default for SkdHolisticConfig {
    fn default() -> Self {
        Self {
            side: Side::default(),
            form: Form::default(),
            preprocess: Preprocess::default(),
            condition: true,
            widths: [64, 128],
            gp_weight: 10.0,
            weight: 0.1,
        }
    }
}

/// Adversarial loss of the student, `-mean D(s)`, a scalar, of scores of any shape. Liu et al. 2019,
/// equation (4).
pub fn generator_loss(student_scores: &Tensor) -> Result<Tensor> {
    Ok(mean(student_scores)?.neg()?)
}

/// Losses `(real, fake)` of the discriminator, scalars, of its scores on the teacher's and on the
/// student's maps. Liu et al. 2019, equation (3).
pub fn discriminator_loss(
    teacher_scores: &Tensor,
    student_scores: &Tensor,
    form: Form,
) -> Result<(Tensor, Tensor)> {
    Ok(match form {
        Form::Wasserstein => (mean(teacher_scores)?.neg()?, mean(student_scores)?),
        Form::Hinge => {
            let real = mean(&relu(&(1.0 - teacher_scores)?)?)?;
            (real, mean(&relu(&(student_scores + 1.0)?)?)?)
        }
    })
}

/// Mean over images of `(|g| - 1)^2`, a scalar, of the gradients `g [B, ...]` of the scores with
/// respect to the input. Gulrajani et al. 2017, equation (3).
pub fn gradient_penalty_loss(gradients: &Tensor) -> Result<Tensor> {
    let norm = safe_sqrt(&gradients.flatten_from(1)?.sqr()?.sum(1)?)?; // [B]
    mean(&(norm - 1.0)?.sqr()?)
}

/// Holistic distillation.
#[derive(Debug)]
pub struct SkdHolistic {
    config: SkdHolisticConfig,
    /// Set by `connect`.
    discriminator: Option<Discriminator>,
}

impl SkdHolistic {
    /// Validates the settings.
    pub fn new(config: SkdHolisticConfig) -> Result<Self> {
        config::require_non_negative(ENTRY.name, "gp_weight", config.gp_weight)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        if config.widths.contains(&0) {
            let found = format!("{:?}", config.widths);
            return Err(config::invalid(ENTRY.name, "widths", found, "two counts above 0"));
        }
        Ok(Self { config, discriminator: None })
    }

    fn discriminator(&self) -> Result<&Discriminator> {
        self.discriminator.as_ref().ok_or_else(|| {
            Error::incompatible(ENTRY.name, "expected a discriminator, found none: call connect first")
        })
    }

    /// Input of the discriminator for logits `[B, N, H, W]`.
    fn input(&self, logits: &Tensor, context: &LossContext) -> Result<Tensor> {
        let map = match self.config.preprocess {
            Preprocess::None => logits.clone(),
            Preprocess::Tanh => logits.tanh()?,
            Preprocess::Softmax => softmax(logits)?,
        };
        if !self.config.condition {
            return Ok(map);
        }
        let (b, _, h, w) = map.dims4()?;
        let images = context.images.ok_or_else(|| {
            Error::incompatible(
                ENTRY.name,
                "expected the images of the batch (`condition = true`), found none",
            )
        })?;
        let images = images.detach().to_dtype(map.dtype())?;
        if images.rank() != 4 || images.dim(0)? != b {
            let reason = format!("expected the images [B, 3, H, W] of {b} maps, found {:?}", images.dims());
            return Err(Error::incompatible(ENTRY.name, reason));
        }
        Ok(Tensor::cat(&[&resize_bilinear(&images, (h, w), false)?, &map], 1)?)
    }

    fn student_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let scores = self.discriminator()?.forward(&self.input(context.student.logits()?, context)?)?;
        Ok(vec![Term::new("adversarial", generator_loss(&scores)?, self.config.weight)])
    }

    fn discriminator_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let d = self.discriminator()?;
        let (student, teacher) = checks::map_pair(context, "logits", ENTRY.name)?;
        let student = student.detach();
        let of_student = d.forward(&self.input(&student, context)?)?;
        let of_teacher = d.forward(&self.input(&teacher, context)?)?;
        let (real, fake) = discriminator_loss(&of_teacher, &of_student, self.config.form)?;
        let mut terms = vec![Term::new("real", real, 1.0), Term::new("fake", fake, 1.0)];
        if self.config.gp_weight > 0.0 {
            let penalty = self.penalty(d, &student, &teacher, context)?;
            terms.push(Term::new("gradient_penalty", penalty, self.config.gp_weight));
        }
        Ok(terms)
    }

    /// Gradient penalty between the two maps.
    fn penalty(
        &self,
        d: &Discriminator,
        student: &Tensor,
        teacher: &Tensor,
        context: &LossContext,
    ) -> Result<Tensor> {
        let (b, classes, _, _) = student.dims4()?;
        let a = match context.overrides.get("gp_mix") {
            Ok(a) => a.to_dtype(student.dtype())?,
            Err(_) => {
                let mut draw = context.rng.stream("gp_mix").at(context.step, 0);
                let values: Vec<f64> = (0..b).map(|_| draw.uniform()).collect();
                let values = Tensor::from_vec(values, (b, 1, 1, 1), student.device())?;
                values.to_dtype(student.dtype())?
            }
        };
        let mid = (teacher.broadcast_mul(&a)? + student.broadcast_mul(&(1.0 - &a)?)?)?;
        let g = d.input_gradient(&self.input(&mid, context)?)?;
        // Without the image's channels, and through the preprocessing.
        let g = g.narrow(1, g.dim(1)? - classes, classes)?;
        let g = match self.config.preprocess {
            Preprocess::None => g,
            Preprocess::Tanh => (g * (1.0 - mid.tanh()?.sqr()?)?)?,
            Preprocess::Softmax => {
                let p = softmax(&mid)?;
                let mean = (&g * &p)?.sum_keepdim(1)?;
                (g.broadcast_sub(&mean)? * p)?
            }
        };
        gradient_penalty_loss(&g)
    }
}

/// Softmax over the classes, `[B, N, H, W]`.
fn softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(log_softmax(&logits.permute((0, 2, 3, 1))?.contiguous()?)?.exp()?.permute((0, 3, 1, 2))?)
}

impl Distiller for SkdHolistic {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["logits"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let logits = checks::require_logit_maps(shapes, ENTRY.name)?;
        if logits[1..].iter().any(|side| *side < MIN_SIZE) {
            let reason = format!(
                "expected logits of at least {MIN_SIZE} x {MIN_SIZE} for the discriminator, found the shape \
                 {logits:?}; use larger images or a smaller output stride"
            );
            return Err(Error::incompatible(ENTRY.name, reason));
        }
        let channels = logits[0] + if self.config.condition { 3 } else { 0 };
        let discriminator = Discriminator::new(channels, self.config.widths, &params.pp(ADVERSARY))?;
        self.discriminator = Some(discriminator);
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        match self.config.side {
            Side::Generator => self.student_terms(context),
            Side::Discriminator => self.discriminator_terms(context),
        }
    }

    fn adversary_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        match self.config.side {
            Side::Generator => self.discriminator_terms(context),
            Side::Discriminator => Ok(Vec::new()),
        }
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        let named = |all: &[(&str, f64)]| all.iter().map(|(name, w)| (name.to_string(), *w)).collect();
        match (self.config.side, self.config.gp_weight) {
            (Side::Generator, _) => named(&[("adversarial", self.config.weight)]),
            (Side::Discriminator, gp) if gp > 0.0 => {
                named(&[("real", 1.0), ("fake", 1.0), ("gradient_penalty", gp)])
            }
            (Side::Discriminator, _) => named(&[("real", 1.0), ("fake", 1.0)]),
        }
    }
}
