//! Knowledge review (`reviewkd`): the student's stages, fused from deep to shallow, compared with the
//! teacher's.
//!
//! # Paper
//! P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv
//! 2104.09044, equations (5) and (6), figure 3: attention based fusion (ABF) and hierarchical context
//! loss (HCL).
//!
//! # Equation
//! From the deepest to the shallowest stage, with the resized fused map `r` of the deeper stage:
//!
//! ```text
//! z = bn(conv1x1(student))
//! z = z * a_1 + r * a_2,    a = sigmoid(conv1x1(concat(z, r))) of two channels; not for the deepest
//! r = z, resized to the teacher's map
//! reviewkd = sum over stages of HCL(bn(conv3x3(r)), teacher)
//! HCL(x, y) = (mse(x, y) + sum over l = 4, 2, 1 of mse(pool_l x, pool_l y) / (2, 4, 8)) / their sum of weights
//! ```
//!
//! where `pool_l` averages to l x l, for sizes below the map's height only. Resizing is nearest-neighbor.
//!
//! # Inputs
//! Features at `stages` of both, from shallow to deep: maps `[B, C, H, W]`, and vectors as maps of one
//! pixel. Weights `abf.<stage>.conv1.weight [M, C_S, 1, 1]`, `.conv2.weight [C_T, M, 3, 3]`,
//! `.att.weight [2, 2M, 1, 1]`, `.att.bias [2]` and the batch norms `.bn1`, `.bn2`. In training
//! with a batch of one, batch norm reduces a map of one pixel to its bias.
//!
//! # Defaults and their source
//! Weight 1, warm-up over 20 epochs, M = min(512, the student's deepest channels): the authors'
//! collection mdistiller, CIFAR-100. Its ImageNet weights are 1 (ResNet34 to ResNet18) and 8
//! (ResNet50 to MobileNetV1) with a warm-up of 1.
//!
//! # Where code and paper differ
//! mdistiller reads the maximum M from its configuration but uses 512.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("reviewkd")?;
//! let method = (entry.build)(&toml::toml! { weight = 8.0 })?;
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

use crate::common::connector::{BatchNorm, conv1x1, pixels};
use crate::common::pool::{adaptive_avg_pool, resize_nearest};
use crate::common::reduce::{mean, sum_stages};
use crate::common::{checks, config, constant_like};

/// Registry entry of `reviewkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "reviewkd",
    summary: "fused stages of the student compared with the teacher's",
    source: "Chen et al. 2021, equations (5)-(6), figure 3",
    defaults: || {
        let own = config::document::<ReviewKdConfig>(&[
            ("stages", "mdistiller: all stages and the pooled features"),
            ("mid_channels", "min(512, the student's deepest channels), as mdistiller"),
            ("bn_eps", "PyTorch"),
            ("weight", "mdistiller; 5 for its ResNet32x4 to ResNet8x4, 8 for ResNet50 to MobileNetV1"),
        ]);
        config::with_warmup(&own, 20.0, "mdistiller, CIFAR-100; 1 on ImageNet")
    },
    build: |table| Ok(Box::new(ReviewKd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `reviewkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReviewKdConfig {
    /// Features to compare, from shallow to deep.
    pub stages: Vec<String>,
    /// Channels of the fused maps. Unset: 512, or the channels of the student's deepest stage if fewer.
    pub mid_channels: Option<usize>,
    /// Added to the variance by the batch norms.
    pub bn_eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for ReviewKdConfig {
    fn default() -> Self {
        let stages = config::four_stages().into_iter().chain(["pooled".to_string()]).collect();
        Self { stages, mid_channels: None, bn_eps: 1e-5, weight: 1.0 }
    }
}

/// Knowledge review.
#[derive(Debug)]
pub struct ReviewKd {
    config: ReviewKdConfig,
    /// From deep to shallow. Set by `connect`.
    stages: Vec<Fusion>,
}

/// Attention based fusion at one stage.
#[derive(Debug)]
struct Fusion {
    feature: String,
    conv1: Tensor, // [M, C_S, 1, 1]
    bn1: BatchNorm,
    /// Weight `[2, 2M, 1, 1]` and bias `[2]`; `None` for the deepest stage.
    attention: Option<(Tensor, Tensor)>,
    conv2: Tensor, // [C_T, M, 3, 3]
    bn2: BatchNorm,
}

impl ReviewKd {
    /// Validates the settings.
    pub fn new(config: ReviewKdConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        if config.mid_channels == Some(0) {
            return Err(config::invalid(ENTRY.name, "mid_channels", 0, "1 or more"));
        }
        config::require_positive(ENTRY.name, "bn_eps", config.bn_eps)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        Ok(Self { config, stages: Vec::new() })
    }
}

/// Reshapes vectors to maps of one pixel.
fn as_map(feature: &Tensor) -> Result<Tensor> {
    Ok(match feature.dims() {
        [b, d] => feature.reshape((*b, *d, 1, 1))?,
        _ => feature.clone(),
    })
}

impl Fusion {
    fn new(
        feature: &str,
        (student, mid, teacher): (usize, usize, usize),
        deepest: bool,
        eps: f64,
        params: &ParamBuilder,
    ) -> Result<Self> {
        let params = params.pp("abf").pp(feature);
        // As mdistiller: Kaiming with gain 1 for convolutions, PyTorch's default for the attention.
        let init = |fan_in: usize| Init::Uniform((3.0 / fan_in as f64).sqrt());
        let attention = || {
            let (layer, init) = (params.pp("att"), Init::fan_in_uniform(2 * mid));
            Ok::<_, Error>((layer.var("weight", &[2, 2 * mid, 1, 1], init)?, layer.var("bias", &[2], init)?))
        };
        Ok(Self {
            feature: feature.to_string(),
            conv1: params.pp("conv1").var("weight", &[mid, student, 1, 1], init(student))?,
            bn1: BatchNorm::new(mid, eps, &params.pp("bn1"))?,
            attention: if deepest { None } else { Some(attention()?) },
            conv2: params.pp("conv2").var("weight", &[teacher, mid, 3, 3], init(9 * mid))?,
            bn2: BatchNorm::new(teacher, eps, &params.pp("bn2"))?,
        })
    }

    /// The stage's loss and its fused map `[B, M, H, W]` in the teacher's size.
    fn forward(&self, context: &LossContext, deeper: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let student = as_map(context.student.get(&self.feature)?)?;
        let teacher = constant_like(&as_map(context.teacher.get(&self.feature)?)?, &student)?;
        let ((b, _, h, w), (teacher_batch, channels, th, tw)) = (student.dims4()?, teacher.dims4()?);
        if b != teacher_batch {
            let (s, t) = (student.dims(), teacher.dims());
            return Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "expected maps of one batch at `{}`, found {s:?} (student) and {t:?} (teacher)",
                    self.feature
                ),
            ));
        }
        let mid = self.conv1.dim(0)?;
        let map = |rows: &Tensor| Ok::<_, Error>(rows.reshape((b, h, w, mid))?.permute((0, 3, 1, 2))?);
        let mut fused = self.bn1.forward(&conv1x1(&pixels(&student)?, &self.conv1)?, context.train)?;
        if let (Some((weight, bias)), Some(deeper)) = (&self.attention, deeper) {
            let deeper = pixels(&resize_nearest(deeper, (h, w))?)?;
            // The convolution of concat(fused, deeper), without concatenation.
            let half = |rows: &Tensor, first| conv1x1(rows, &weight.narrow(1, first, mid)?.contiguous()?);
            let scores = (half(&fused, 0)? + half(&deeper, mid)?)?.broadcast_add(bias)?;
            let shares = sigmoid(&scores)?; // [B * H * W, 2]
            let share = |i| shares.narrow(1, i, 1);
            fused = (fused.broadcast_mul(&share(0)?)? + deeper.broadcast_mul(&share(1)?)?)?;
        }
        let fused = resize_nearest(&map(&fused)?, (th, tw))?;
        let out = graph::conv2d(&fused, &self.conv2, ConvSpec::new(mid, channels, 3))?;
        let out = self.bn2.forward(&pixels(&out)?, context.train)?;
        let out = out.reshape((b, th, tw, channels))?.permute((0, 3, 1, 2))?;
        Ok((reviewkd_loss(&out, &teacher)?, fused))
    }
}

/// `1 / (1 + e^-x)` with finite value and gradient for any finite x.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    // (1 + tanh(x / 2)) / 2
    Ok((x / 2.0)?.tanh()?.affine(0.5, 0.5)?)
}

/// Hierarchical context loss (HCL) of the student's fused map and the teacher's map, a scalar. Maps are
/// `[B, C, H, W]` of equal shape. Chen et al. 2021, section 3.3.
///
/// # Errors
/// If the shapes differ.
pub fn reviewkd_loss(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (b, c, height, w) = student.dims4()?;
    // Pooling is linear, so the difference is pooled once.
    let difference = (pixels(student)? - pixels(&constant_like(teacher, student)?)?)?;
    let difference = difference.reshape((b, height, w, c))?.permute((0, 3, 1, 2))?.contiguous()?;
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
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        let mut channels = Vec::new();
        for feature in &self.config.stages {
            channels.push(match shapes.student.get(feature).map(Vec::len) {
                Some(1) => checks::require_vectors(shapes, feature, ENTRY.name)?,
                _ => checks::require_maps(shapes, feature, ENTRY.name)?,
            });
        }
        let deepest = channels.last().map_or(0, |(student, _)| *student);
        let mid = self.config.mid_channels.unwrap_or(deepest.min(512));
        self.stages.clear();
        for (feature, (student, teacher)) in self.config.stages.iter().zip(channels).rev() {
            let deepest = self.stages.is_empty();
            let channels = (student, mid, teacher);
            self.stages.push(Fusion::new(feature, channels, deepest, self.config.bn_eps, params)?);
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let mut deeper: Option<Tensor> = None;
        let values = self.stages.iter().map(|stage| {
            let (value, fused) = stage.forward(context, deeper.as_ref())?;
            deeper = Some(fused);
            Ok(value)
        });
        Ok(vec![Term::new("reviewkd", sum_stages(ENTRY.name, values)?, self.config.weight)])
    }

    fn after_step(&mut self, _context: &LossContext, _params: &ParamStore) -> Result<()> {
        self.stages.iter().flat_map(|s| [&s.bn1, &s.bn2]).try_for_each(BatchNorm::after_step)
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("reviewkd".into(), self.config.weight)]
    }
}
