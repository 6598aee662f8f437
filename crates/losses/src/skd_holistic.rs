//! Holistic distillation (`skd_holistic`): a discriminator is to take the student's map for the
//! teacher's.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equations (3) and (4). Gradient penalty: I. Gulrajani,
//! F. Ahmed, M. Arjovsky, V. Dumoulin, A. Courville, "Improved Training of Wasserstein GANs", NIPS
//! 2017, arXiv 1704.00028, equation (3).
//!
//! # Equation
//! With `D` the discriminator's verdict on image and map, `m = a t + (1 - a) s` with one random `a` in
//! [0, 1) for each image:
//!
//! ```text
//! student:   adversarial      = - mean D(s)
//! adversary:  wasserstein      real = - mean D(t),            fake = mean D(s)
//!            hinge            real = mean max(0, 1 - D(t)),  fake = mean max(0, 1 + D(s))
//!            gradient_penalty = mean over b of (|d sum D(m) / dm| - 1)^2
//! ```
//!
//! The adversary's terms train the discriminator, the student's the student. It learns with the
//! student's optimizer; `train.lr_scale` with the pattern `connector.skd_holistic.d.*` gives it another
//! rate.
//!
//! # Inputs
//! `logits [B, N, H, W]` of both, at least 8 x 8, and with `condition` the images, brought to the
//! logits' size (bilinear) and set before the map's channels. Weights of the discriminator:
//! `d.conv1.weight` to `d.conv3.bias`.
//!
//! # Defaults and their source
//! Wasserstein with penalty 10, the images seen, weight 0.1: the paper. The widths are ours: the
//! authors' discriminator has two more convolutions, spectral norms and attention.
//!
//! # Where code and paper differ
//! In the paper the discriminator sees image and map; that of the released code sees the map alone,
//! after batch norm or tanh (`condition`, `preprocess`).
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("skd_holistic")?;
//! let method = (row.build)(&toml::toml! { form = "hinge" })?;
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

use crate::connector::relu;
use crate::discriminator::{Discriminator, SMALLEST};
use crate::softmax::log_softmax;
use crate::sum::mean;
use crate::unit::safe_sqrt;
use crate::{fit, settings};

/// The row of `skd_holistic`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skd_holistic",
    summary: "a discriminator is to take the student's map for the teacher's",
    source: "Liu et al. 2019, equations (3) and (4)",
    defaults: || {
        settings::describe::<SkdHolisticConfig>(&[
            ("side", "training needs the generator's; the adversary's terms come by themselves"),
            ("form", "Liu et al. 2019, equation (3)"),
            ("preprocess", "Liu et al. 2019; tanh in the released code"),
            ("condition", "Liu et al. 2019; off in the released code"),
            ("widths", "ours; the released discriminator is deeper"),
            ("gp_weight", "Gulrajani et al. 2017"),
            ("weight", "Liu et al. 2019, section 3.2"),
        ])
    },
    build: |table| Ok(Box::new(SkdHolistic::new(settings::read(table, ENTRY.name)?)?)),
};

/// Whose terms the method gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The student's, and those of the adversary beside them.
    #[default]
    Generator,
    /// The adversary's alone, to look at them.
    Discriminator,
}

/// What the discriminator learns by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The difference of the verdicts.
    #[default]
    Wasserstein,
    /// The verdicts beyond a margin of 1.
    Hinge,
}

/// What is done to the logits before the discriminator sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocess {
    /// Nothing.
    #[default]
    None,
    /// The hyperbolic tangent.
    Tanh,
    /// Softmax over the classes.
    Softmax,
}

/// Settings of `skd_holistic`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkdHolisticConfig {
    /// Whose terms the method gives.
    pub side: Side,
    /// What the discriminator learns by.
    pub form: Form,
    /// What is done to the logits before the discriminator sees them.
    pub preprocess: Preprocess,
    /// Whether the discriminator sees the image beside the map.
    pub condition: bool,
    /// Channels of the discriminator after its first two convolutions.
    pub widths: [usize; 2],
    /// Weight of the gradient penalty; 0 leaves it out.
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

/// Holistic distillation.
#[derive(Debug)]
pub struct SkdHolistic {
    config: SkdHolisticConfig,
    /// Made by `connect`.
    d: Option<Discriminator>,
}

impl SkdHolistic {
    /// Checks the settings.
    pub fn new(config: SkdHolisticConfig) -> Result<Self> {
        settings::not_negative(ENTRY.name, "gp_weight", config.gp_weight)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        if config.widths.contains(&0) {
            let found = format!("{:?}", config.widths);
            return Err(settings::wrong(ENTRY.name, "widths", found, "two counts above 0"));
        }
        Ok(Self { config, d: None })
    }

    fn discriminator(&self) -> Result<&Discriminator> {
        self.d
            .as_ref()
            .ok_or_else(|| Error::incompatible(ENTRY.name, "is used before its connectors are made"))
    }

    /// What the discriminator sees of logits `[B, N, H, W]`.
    fn view(&self, logits: &Tensor, context: &LossContext) -> Result<Tensor> {
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
            let found = images.dims();
            let what = format!("needs the images [B, 3, H, W] of {b} maps, got {found:?}");
            return Err(Error::incompatible(ENTRY.name, what));
        }
        Ok(Tensor::cat(&[&resize_bilinear(&images, (h, w), false)?, &map], 1)?)
    }

    fn student_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let verdicts = self.discriminator()?.forward(&self.view(context.student.logits()?, context)?)?;
        Ok(vec![Term::new("adversarial", mean(&verdicts)?.neg()?, self.config.weight)])
    }

    fn opponent_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let d = self.discriminator()?;
        let (student, teacher) = fit::maps(context, "logits", ENTRY.name)?;
        let student = student.detach();
        let of_student = d.forward(&self.view(&student, context)?)?;
        let of_teacher = d.forward(&self.view(&teacher, context)?)?;
        let (real, fake) = match self.config.form {
            Form::Wasserstein => (mean(&of_teacher)?.neg()?, mean(&of_student)?),
            Form::Hinge => (mean(&relu(&(1.0 - of_teacher)?)?)?, mean(&relu(&(of_student + 1.0)?)?)?),
        };
        let mut terms = vec![Term::new("real", real, 1.0), Term::new("fake", fake, 1.0)];
        if self.config.gp_weight > 0.0 {
            let penalty = self.penalty(d, &student, &teacher, context)?;
            terms.push(Term::new("gradient_penalty", penalty, self.config.gp_weight));
        }
        Ok(terms)
    }

    /// How far the slope of the verdicts between the two maps is from 1.
    fn penalty(
        &self,
        d: &Discriminator,
        student: &Tensor,
        teacher: &Tensor,
        context: &LossContext,
    ) -> Result<Tensor> {
        let (b, classes, _, _) = student.dims4()?;
        let a = match context.overrides.get("gp_mix") {
            Ok(given) => given.to_dtype(student.dtype())?,
            Err(_) => {
                let mut draw = context.rng.stream("gp_mix").at(context.step, 0);
                let values: Vec<f64> = (0..b).map(|_| draw.uniform()).collect();
                let values = Tensor::from_vec(values, (b, 1, 1, 1), student.device())?;
                values.to_dtype(student.dtype())?
            }
        };
        let mid = (teacher.broadcast_mul(&a)? + student.broadcast_mul(&(1.0 - &a)?)?)?;
        let g = d.input_gradient(&self.view(&mid, context)?)?;
        // Of the map alone, and back through what was done to it.
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
        let norm = safe_sqrt(&g.flatten_from(1)?.sqr()?.sum(1)?)?; // [B]
        mean(&(norm - 1.0)?.sqr()?)
    }
}

/// Softmax over the classes of `[B, N, H, W]`.
fn softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(log_softmax(&logits.permute((0, 2, 3, 1))?.contiguous()?)?.exp()?.permute((0, 3, 1, 2))?)
}

impl Distiller for SkdHolistic {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: vec!["logits".into()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let logits = fit::same_logit_maps(shapes, ENTRY.name)?;
        if logits[1..].iter().any(|side| *side < SMALLEST) {
            let what = format!(
                "its discriminator takes maps of at least {SMALLEST} x {SMALLEST}, but the logits have the shape \
                 {logits:?}; take larger images or a smaller output stride"
            );
            return Err(Error::incompatible(ENTRY.name, what));
        }
        let channels = logits[0] + if self.config.condition { 3 } else { 0 };
        self.d = Some(Discriminator::new(channels, self.config.widths, &params.pp(ADVERSARY))?);
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        match self.config.side {
            Side::Generator => self.student_terms(context),
            Side::Discriminator => self.opponent_terms(context),
        }
    }

    fn adversary_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        match self.config.side {
            Side::Generator => self.opponent_terms(context),
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
