//! Knowledge review (`reviewkd`): the student's stages, fused from deep to shallow, against the
//! teacher's.
//!
//! # Paper
//! P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv
//! 2104.09044, equations (5) and (6), figure 3: attention based fusion (ABF) and hierarchical context
//! loss (HCL).
//!
//! # Equation
//! From the deepest stage to the shallowest, with `r` the fused map of the stage before, resized:
//!
//! ```text
//! z = bn(conv1x1(student))
//! z = z * a_1 + r * a_2,    a = sigmoid(conv1x1(z beside r)) of two channels; not for the deepest
//! r = z, resized to the teacher's map
//! reviewkd = sum over stages of HCL(bn(conv3x3(r)), teacher)
//! HCL(x, y) = (mse(x, y) + sum over l = 4, 2, 1 of mse(pool_l x, pool_l y) / (2, 4, 8)) / their sum of weights
//! ```
//!
//! where `pool_l` averages to l x l and only sizes below the map's height count. Resizing takes the
//! nearest pixel.
//!
//! # Inputs
//! The taps named by `stages` of both, from shallow to deep: maps `[B, C, H, W]`, and vectors as maps
//! of one pixel. Weights `abf.<stage>.conv1.weight [M, C_S, 1, 1]`, `.conv2.weight [C_T, M, 3, 3]`,
//! `.att.weight [2, 2M, 1, 1]`, `.att.bias [2]` and the batch norms `.bn1`, `.bn2`. In training a batch
//! of one leaves a map of one pixel nothing but its norm's bias.
//!
//! # Defaults and their source
//! Weight 1, warm-up over 20 epochs, M = min(512, the student's deepest channels): the authors'
//! collection mdistiller, CIFAR-100. Its ImageNet weights are 1 (ResNet34 to ResNet18) and 8
//! (ResNet50 to MobileNetV1) with a warm-up of 1.
//!
//! # Where code and paper differ
//! mdistiller reads the largest M from the configuration but uses 512. Where the paper resizes
//! with the nearest pixel, candle's own operation loses gradients; this one does not.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("reviewkd")?;
//! let method = (row.build)(&toml::toml! { weight = 8.0 })?;
//! assert_eq!(method.required_features().student, ["F1", "F2", "F3", "F4", "pooled"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, ParamStore, Result};
use stillhouse_ops::{ConvSpec, Init, graph};

use crate::connector::{BatchNorm, conv1x1, pixels};
use crate::pool::{adaptive_avg_pool, nearest};
use crate::sum::{self, mean};
use crate::{fit, settings};

/// The row of `reviewkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "reviewkd",
    summary: "fused stages of the student against the teacher's",
    source: "Chen et al. 2021, equations (5)-(6), figure 3",
    defaults: || {
        let own = settings::describe::<ReviewKdConfig>(&[
            ("stages", "mdistiller: all stages and the pooled features"),
            ("mid_channels", "min(512, the student's deepest channels), as mdistiller"),
            ("bn_eps", "PyTorch"),
            ("weight", "mdistiller; 5 for its ResNet32x4 to ResNet8x4, 8 for ResNet50 to MobileNetV1"),
        ]);
        settings::with_warmup(&own, 20.0, "mdistiller, CIFAR-100; 1 on ImageNet")
    },
    build: |table| Ok(Box::new(ReviewKd::new(settings::read(table, "reviewkd")?)?)),
};

/// Settings of `reviewkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReviewKdConfig {
    /// Taps that enter, from shallow to deep.
    pub stages: Vec<String>,
    /// Channels of the fused maps. Unset: 512, or the student's deepest channels if they are fewer.
    pub mid_channels: Option<usize>,
    /// Added to the variance by the batch norms.
    pub bn_eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for ReviewKdConfig {
    fn default() -> Self {
        let stages = settings::four_stages().into_iter().chain(["pooled".to_string()]).collect();
        Self { stages, mid_channels: None, bn_eps: 1e-5, weight: 1.0 }
    }
}

/// Knowledge review.
#[derive(Debug)]
pub struct ReviewKd {
    config: ReviewKdConfig,
    /// Made by `connect`, from deep to shallow.
    stages: Vec<Fusion>,
}

/// Attention based fusion at one stage. Inside maps are `[B * H * W, C]`.
#[derive(Debug)]
struct Fusion {
    tap: String,
    conv1: Tensor, // [M, C_S, 1, 1]
    bn1: BatchNorm,
    /// Weight `[2, 2M, 1, 1]` and bias `[2]`; none for the deepest stage.
    attention: Option<(Tensor, Tensor)>,
    conv2: Tensor, // [C_T, M, 3, 3]
    bn2: BatchNorm,
}

impl ReviewKd {
    /// Checks the settings.
    pub fn new(config: ReviewKdConfig) -> Result<Self> {
        settings::stages(ENTRY.name, "stages", &config.stages)?;
        if config.mid_channels == Some(0) {
            return Err(settings::wrong(ENTRY.name, "mid_channels", 0, "1 or more"));
        }
        settings::above_zero(ENTRY.name, "bn_eps", config.bn_eps)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config, stages: Vec::new() })
    }
}

/// Vectors are maps of one pixel.
fn as_map(tap: &Tensor) -> Result<Tensor> {
    Ok(match tap.dims() {
        [b, d] => tap.reshape((*b, *d, 1, 1))?,
        _ => tap.clone(),
    })
}

impl Fusion {
    fn new(
        tap: &str,
        (student, mid, teacher): (usize, usize, usize),
        deepest: bool,
        eps: f64,
        params: &ParamBuilder,
    ) -> Result<Self> {
        let at = params.pp("abf").pp(tap);
        // mdistiller: Kaiming with gain 1 for the convolutions, PyTorch's default for the attention.
        let init = |fan_in: usize| Init::Uniform((3.0 / fan_in as f64).sqrt());
        let attention = || {
            let (at, init) = (at.pp("att"), Init::fan_in_uniform(2 * mid));
            Ok::<_, Error>((at.var("weight", &[2, 2 * mid, 1, 1], init)?, at.var("bias", &[2], init)?))
        };
        Ok(Self {
            tap: tap.to_string(),
            conv1: at.pp("conv1").var("weight", &[mid, student, 1, 1], init(student))?,
            bn1: BatchNorm::new(mid, eps, &at.pp("bn1"))?,
            attention: if deepest { None } else { Some(attention()?) },
            conv2: at.pp("conv2").var("weight", &[teacher, mid, 3, 3], init(9 * mid))?,
            bn2: BatchNorm::new(teacher, eps, &at.pp("bn2"))?,
        })
    }

    /// The loss of the stage, and the fused map `[B, M, H, W]` at the teacher's size.
    fn review(&self, context: &LossContext, deeper: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let student = as_map(context.student.get(&self.tap)?)?;
        let teacher = as_map(context.teacher.get(&self.tap)?)?.detach().to_dtype(student.dtype())?;
        let ((b, _, h, w), (teacher_b, channels, th, tw)) = (student.dims4()?, teacher.dims4()?);
        if b != teacher_b {
            let (s, t) = (student.dims(), teacher.dims());
            return Err(Error::incompatible(
                ENTRY.name,
                format!("needs maps of one batch at `{}`, got {s:?} (student) and {t:?} (teacher)", self.tap),
            ));
        }
        let mid = self.conv1.dim(0)?;
        let map = |rows: &Tensor| Ok::<_, Error>(rows.reshape((b, h, w, mid))?.permute((0, 3, 1, 2))?);
        let mut fused = self.bn1.forward(&conv1x1(&pixels(&student)?, &self.conv1)?, context.train)?;
        if let (Some((weight, bias)), Some(deeper)) = (&self.attention, deeper) {
            let deeper = pixels(&nearest(deeper, (h, w))?)?;
            // The convolution of both side by side, without putting them there.
            let part = |rows: &Tensor, first| conv1x1(rows, &weight.narrow(1, first, mid)?.contiguous()?);
            let scores = (part(&fused, 0)? + part(&deeper, mid)?)?.broadcast_add(bias)?;
            let shares = sigmoid(&scores)?; // [B * H * W, 2]
            let share = |i| shares.narrow(1, i, 1);
            fused = (fused.broadcast_mul(&share(0)?)? + deeper.broadcast_mul(&share(1)?)?)?;
        }
        let fused = nearest(&map(&fused)?, (th, tw))?;
        let out = graph::conv2d(&fused, &self.conv2, ConvSpec::new(mid, channels, 3))?;
        let out = self.bn2.forward(&pixels(&out)?, context.train)?;
        let difference = (out - pixels(&teacher)?)?.reshape((b, th, tw, channels))?.permute((0, 3, 1, 2))?;
        Ok((hierarchical(&difference)?, fused))
    }
}

/// `1 / (1 + e^-x)`, finite for any finite x, value and gradient.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    // (1 + tanh(x / 2)) / 2
    Ok((x / 2.0)?.tanh()?.affine(0.5, 0.5)?)
}

/// Hierarchical context loss of the difference of two maps: averaging is linear.
fn hierarchical(difference: &Tensor) -> Result<Tensor> {
    let (difference, height) = (difference.contiguous()?, difference.dim(2)?);
    let (mut total, mut weight, mut weights) = (mean(&difference.sqr()?)?, 1.0, 1.0);
    for size in [4, 2, 1].into_iter().filter(|size| *size < height) {
        weight /= 2.0;
        weights += weight;
        let pooled = adaptive_avg_pool(&difference, (size, size))?;
        total = (total + (mean(&pooled.sqr()?)? * weight)?)?;
    }
    Ok((total / weights)?)
}

impl Distiller for ReviewKd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let mut channels = Vec::new();
        for tap in &self.config.stages {
            channels.push(match shapes.student.get(tap).map(Vec::len) {
                Some(1) => fit::vector_lengths(shapes, tap, ENTRY.name)?,
                _ => fit::map_channels(shapes, tap, ENTRY.name)?,
            });
        }
        let deepest = channels.last().map_or(0, |(student, _)| *student);
        let mid = self.config.mid_channels.unwrap_or(deepest.min(512));
        self.stages.clear();
        for (tap, (student, teacher)) in self.config.stages.iter().zip(channels).rev() {
            let first = self.stages.is_empty();
            self.stages.push(Fusion::new(tap, (student, mid, teacher), first, self.config.bn_eps, params)?);
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let mut deeper: Option<Tensor> = None;
        let values = self.stages.iter().map(|stage| {
            let (value, fused) = stage.review(context, deeper.as_ref())?;
            deeper = Some(fused);
            Ok(value)
        });
        let value = sum::stages(ENTRY.name, values)?;
        Ok(vec![Term::new("reviewkd", value, self.config.weight)])
    }

    fn after_step(&mut self, _context: &LossContext, _params: &ParamStore) -> Result<()> {
        self.stages.iter().flat_map(|s| [&s.bn1, &s.bn2]).try_for_each(BatchNorm::after_step)
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("reviewkd".into(), self.config.weight)]
    }
}
