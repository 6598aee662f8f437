//! FRKDNet's distillation (`frkd`): refined logits, distances between class centers and from class
//! edges to their centers.
//!
//! # Paper
//! S. Jiang, Y. Xu, D. Li, R. Fan, "FRKDNet: feature refine semantic segmentation network based on
//! knowledge distillation", Chinese Journal of Liquid Crystals and Displays 38(11), 2023, from p. 1590;
//! equations (1)-(10). Reconstructed: the text at hand has no formulas, and `contribution`, `mask`,
//! `keep`, `rho`, `centers`, `edge`, `total` and `scale` are choices that it leaves open. The distances
//! follow Zhang, Zhou and Tu, "Distilling Inter-class Distance for Semantic Segmentation", IJCAI 2022,
//! arXiv 2205.03650.
//!
//! # Equation
//! For one image, classes i (the channels), positions x of P, the teacher's logits `F_T`, the student's
//! `F_S`, `Y` the classes in the labels:
//!
//! ```text
//! (2) Q(i,x) = softmax over i of F_T(i,x)         (1) R(i,x) = Q(i,x) / sum_x' Q(i,x')
//! (3) keep(i,x) = R(i,x) >= 1/P,   mask = keep, or keep * P * R * Q
//! (4), (5) F* = mask * F, of teacher and student with the teacher's mask
//! (6) c_i = mean of F*(:,x) over the x kept in i
//! (7) D_ij = |c_i - c_j|                          (8) inter = mean over i != j in Y of (D_ij^T - D_ij^S)^2
//! (9) r_i = mean over edge points e of class i of |F(:,e) - c_i|,   intra = mean over i of (r_i^T - r_i^S)^2
//! (10) total = gamma * (inter + intra) + (1 - gamma) * ce
//! ```
//!
//! Distances are at least 1e-6. `inter` and `intra` are means over the images of the batch; images with
//! fewer than two classes, or without edges, give 0. `similarity` (off by default) is the mean squared
//! difference of the N x N Gram matrices of `F*` with unit rows.
//!
//! # Inputs
//! Logits of both at `feature`, `[B, N, H, W]`: `logits`, or `logits_low` of networks with logits before
//! their last upsampling; and masks of any size. Labels are resized to the logits (row
//! `floor(i * H / h)`) for the distances, `logits` to the masks (bilinear, half-pixel centers) for the
//! cross entropy. 255 is ignored.
//!
//! # Defaults and their source
//! gamma 0.4 on Cityscapes, 0.5 on VOC: the paper. The choices: the most literal reading. The weights
//! of `inter` and `intra` are factors on gamma: 0 for an ablation.
//!
//! # Where code and paper differ
//! No code was published. In small runs the unscaled distances (`scale = "none"`) dominated the cross
//! entropy; divided by their mean they did not.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("frkd")?;
//! let method = (entry.build)(&toml::toml! { gamma = 0.5 })?;
//! assert_eq!(method.term_weights()[1], ("inter".to_string(), 0.5));
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::data::{IGNORE_INDEX, Target};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

mod refinement;

use refinement::Refinement;
pub use refinement::{Contribution, Keep, Mask};

use crate::common::normalize::{EPS, l2_normalize};
use crate::common::reduce::{mean, sum};
use crate::common::{checks, config, constant_like, masks};
use crate::response::ce::{Ce, CeConfig};

/// Registry entry of `frkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "frkd",
    summary: "refined logits, distances of class centers and class edges",
    source: "Jiang et al. 2023, equations (1)-(10), reconstructed",
    defaults: || {
        config::document::<FrkdConfig>(&[
            ("feature", "Jiang et al. 2023, Algorithm 1: the outputs before the softmax"),
            ("contribution", "two normalizations, as in the paper's text"),
            ("mask", "keeps the scale of the logits"),
            ("keep", "the paper compares a pixel with its class"),
            ("rho", "choice of this implementation, for keep = top_ratio"),
            ("centers", "the most literal reading"),
            ("edge", "the paper's term is edge pixel"),
            ("total", "the paper on gamma = 0.6: too little weight on the labels"),
            ("scale", "the paper names none; try \"mean\" if training fails"),
            ("gamma", "Jiang et al. 2023, Cityscapes; 0.5 on VOC"),
            ("inter_weight", "Jiang et al. 2023, equation (10)"),
            ("intra_weight", "Jiang et al. 2023, equation (10)"),
            ("similarity_weight", "off: equation (10) has three terms"),
        ])
    },
    build: |table| Ok(Box::new(Frkd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Centers of the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Centers {
    /// Mean refined feature over the positions kept in the class's channel.
    #[default]
    KeptChannel,
    /// Over those of them with the class's label.
    Label,
    /// Over those of them where the class is the teacher's argmax.
    TeacherArgmax,
    /// Mean image coordinates, weighted by mask and the network's own contribution; edge points are
    /// coordinates as well.
    Coordinate,
}

/// Edge pixels of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// Pixels adjacent to another class.
    #[default]
    Boundary,
    /// Pixels that the refinement removed.
    Margin,
}

/// Weights of labels and distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Total {
    /// `1 - gamma` for the labels, gamma for the distances.
    #[default]
    Convex,
    /// 1 for the labels, gamma for the distances.
    Additive,
}

/// Divisor of the distances before they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// 1.
    #[default]
    None,
    /// Their mean over the image.
    Mean,
}

/// Settings of `frkd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FrkdConfig {
    /// Logits to compare.
    pub feature: String,
    /// Contribution of a position to a class.
    pub contribution: Contribution,
    /// Factor of kept positions.
    pub mask: Mask,
    /// Positions that are kept.
    pub keep: Keep,
    /// Fraction of the positions that `top_ratio` keeps, in (0, 1].
    pub rho: f64,
    /// Centers of the classes.
    pub centers: Centers,
    /// Edge pixels of a class.
    pub edge: Edge,
    /// Weights of labels and distances.
    pub total: Total,
    /// Divisor of the distances.
    pub scale: Scale,
    /// Weight of the distances, in [0, 1].
    pub gamma: f64,
    /// Factor on gamma for the distances between centers.
    pub inter_weight: f64,
    /// Factor on gamma for the distances from edges to centers.
    pub intra_weight: f64,
    /// Weight of the similarity between classes.
    pub similarity_weight: f64,
}

impl Default for FrkdConfig {
    fn default() -> Self {
        Self {
            feature: "logits".into(),
            contribution: Contribution::default(),
            mask: Mask::default(),
            keep: Keep::default(),
            rho: 0.5,
            centers: Centers::default(),
            edge: Edge::default(),
            total: Total::default(),
            scale: Scale::default(),
            gamma: 0.4,
            inter_weight: 1.0,
            intra_weight: 1.0,
            similarity_weight: 0.0,
        }
    }
}

/// Terms of [`frkd_loss`], scalars.
#[derive(Debug, Clone)]
pub struct FrkdTerms {
    /// Differences of the distances between class centers.
    pub inter: Tensor,
    /// Differences of the distances from class edges to their centers.
    pub intra: Tensor,
    /// Differences of the similarities between classes.
    pub similarity: Tensor,
}

/// FRKDNet's distillation terms without the cross entropy.
///
/// Logits are `[B, N, h, w]` of equal shape; the target has masks `[B, H, W]`. Reads `contribution`,
/// `mask`, `keep`, `rho`, `centers`, `edge` and `scale` of the settings. Jiang et al. 2023, equations
/// (1) to (9), reconstructed.
///
/// # Errors
/// If the shapes do not match, or the target has no masks.
pub fn frkd_loss(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    target: &Target,
    config: &FrkdConfig,
) -> Result<FrkdTerms> {
    let (b, n, h, w) = student_logits.dims4()?;
    let teacher = constant_like(teacher_logits, student_logits)?;
    let (mask, host_mask) = (target.mask(ENTRY.name)?, target.host_mask(ENTRY.name)?);
    masks::require_batch(mask, b, ENTRY.name)?;
    let (s, t) = (student_logits.flatten_from(2)?.contiguous()?, teacher.flatten_from(2)?.contiguous()?);
    let refinement = Refinement::new(&t, config.contribution, config.mask, config.keep, config.rho)?;
    let [labels, host_labels] = [mask, host_mask].map(|mask| masks::resize_nearest(mask, (h, w)));
    let classes = Classes::new(&refinement, &labels?, &host_labels?, config)?;

    let of_teacher = Distances::new(&t, &refinement, &classes, (h, w), config.centers)?;
    let of_student = Distances::new(&s, &refinement, &classes, (h, w), config.centers)?;
    let off_diagonal = (1.0 - Tensor::eye(n, s.dtype(), s.device())?)?;
    let both = classes.present.unsqueeze(2)?.broadcast_mul(&classes.present.unsqueeze(1)?)?;
    let pairs = both.broadcast_mul(&off_diagonal)?.flatten_from(1)?;
    let (inter_t, inter_s) = (of_teacher.inter.flatten_from(1)?, of_student.inter.flatten_from(1)?);
    let gram = |x: &Tensor| -> Result<Tensor> {
        let rows = l2_normalize(&(x * &refinement.mask)?, EPS)?;
        Ok(rows.matmul(&rows.transpose(1, 2)?)?) // [B, N, N]
    };
    Ok(FrkdTerms {
        inter: compare(&inter_t, &inter_s, &pairs, config.scale)?,
        intra: compare(&of_teacher.intra, &of_student.intra, &classes.with_edge, config.scale)?,
        similarity: mean(&(gram(&s)? - gram(&t)?)?.sqr()?)?,
    })
}

/// Class memberships of the positions of each image, without gradient.
struct Classes {
    /// Positions of a class's center, divided by their number, `[B, N, P]`; unused by coordinates.
    centers: Tensor,
    /// 1 for classes in the labels with positions of a center, `[B, N]`.
    present: Tensor,
    /// One-hot label of each position, `[B, N, P]`.
    one_hot: Tensor,
    /// Edge pixels of each class, divided by their number, `[B, N, P]`.
    edges: Tensor,
    /// 1 for present classes with an edge, `[B, N]`.
    with_edge: Tensor,
}

impl Classes {
    /// Labels are `[B, h, w]` on the device and in host memory.
    fn new(
        refinement: &Refinement,
        labels: &Tensor,
        host_labels: &Tensor,
        config: &FrkdConfig,
    ) -> Result<Self> {
        let keep = &refinement.keep;
        let one_hot = masks::one_hot(labels, keep.dim(1)?, keep.dtype())?;
        let positions = match config.centers {
            Centers::KeptChannel | Centers::Coordinate => keep.clone(),
            Centers::Label => (keep * &one_hot)?,
            Centers::TeacherArgmax => (keep * &refinement.argmax)?,
        };
        let edges = match config.edge {
            Edge::Boundary => {
                let boundary =
                    boundary(host_labels)?.to_device(one_hot.device())?.to_dtype(one_hot.dtype())?;
                one_hot.broadcast_mul(&boundary)?
            }
            Edge::Margin => (&one_hot * (1.0 - keep)?)?,
        };
        let any = |x: &Tensor| x.sum(2)?.gt(0.0)?.to_dtype(x.dtype());
        let shares = |x: &Tensor| x.broadcast_div(&x.sum_keepdim(2)?.maximum(1.0)?);
        let present = (any(&one_hot)? * any(&positions)?)?;
        Ok(Self {
            with_edge: (any(&edges)? * &present)?,
            centers: shares(&positions)?,
            edges: shares(&edges)?,
            present,
            one_hot,
        })
    }
}

/// Distances of one network.
struct Distances {
    /// Between centers, `[B, N, N]`.
    inter: Tensor,
    /// From edges to centers, `[B, N]`.
    intra: Tensor,
}

impl Distances {
    /// For logits `[B, N, P]` of a map of the size `(h, w)`.
    fn new(
        logits: &Tensor,
        refinement: &Refinement,
        classes: &Classes,
        (h, w): (usize, usize),
        centers: Centers,
    ) -> Result<Self> {
        let (b, n, p) = logits.dims3()?;
        // points [B, K, P] and centers [B, N, K]
        let (points, centers) = match centers {
            Centers::Coordinate => {
                let grid = coordinates(h, w)?.to_dtype(logits.dtype())?.to_device(logits.device())?; // [2, P]
                let weights = refinement.own_weights(logits)?; // [B, N, P]
                let centers = weights.reshape((b * n, p))?.matmul(&grid.t()?)?.reshape((b, n, 2))?;
                (grid.broadcast_left(b)?.contiguous()?, centers)
            }
            Centers::KeptChannel | Centers::Label | Centers::TeacherArgmax => {
                let masked = (logits * &refinement.mask)?;
                let centers = classes.centers.matmul(&masked.transpose(1, 2)?.contiguous()?)?;
                (logits.clone(), centers)
            }
        };
        let differences = centers.unsqueeze(2)?.broadcast_sub(&centers.unsqueeze(1)?)?; // [B, N, N, K]
        let inter = clamped_sqrt(&differences.sqr()?.sum(3)?)?;
        let own_center = centers.transpose(1, 2)?.contiguous()?.matmul(&classes.one_hot)?; // [B, K, P]
        let from_center = clamped_sqrt(&(points - own_center)?.sqr()?.sum(1)?)?; // [B, P]
        let intra = classes.edges.broadcast_mul(&from_center.unsqueeze(1)?)?.sum(D::Minus1)?;
        Ok(Self { inter, intra })
    }
}

/// Mean over images of the weighted mean of squared differences. `weights [B, M]` are 0 or 1; images
/// without weights give 0.
fn compare(teacher: &Tensor, student: &Tensor, weights: &Tensor, scale: Scale) -> Result<Tensor> {
    let shares = weights.broadcast_div(&weights.sum_keepdim(1)?.maximum(1.0)?)?;
    let scaled = |x: &Tensor| -> Result<Tensor> {
        match scale {
            Scale::None => Ok(x.clone()),
            Scale::Mean => {
                let mean = (x * &shares)?.sum_keepdim(1)?;
                let nonzero = mean.gt(0.0)?;
                Ok(x.broadcast_div(&nonzero.where_cond(&mean, &mean.ones_like()?)?)?)
            }
        }
    };
    let square = (scaled(teacher)? - scaled(student)?)?.sqr()?;
    Ok((sum(&(square * &shares)?)? / teacher.dim(0)? as f64)?)
}

/// Square root of at least 1e-6, below which the gradient is 0.
fn clamped_sqrt(square: &Tensor) -> Result<Tensor> {
    let above = square.gt(1e-12)?;
    let min = Tensor::full(1e-12, square.shape(), square.device())?.to_dtype(square.dtype())?;
    Ok(above.where_cond(square, &min)?.sqrt()?)
}

/// Row and column of each position in [0, 1], `[2, P]`.
fn coordinates(h: usize, w: usize) -> Result<Tensor> {
    let scaled = |i: usize, n: usize| i as f64 / n.saturating_sub(1).max(1) as f64;
    let rows = (0..h * w).map(|x| scaled(x / w, h));
    let columns = (0..h * w).map(|x| scaled(x % w, w));
    Ok(Tensor::from_iter(rows.chain(columns), &candle_core::Device::Cpu)?.reshape((2, h * w))?)
}

/// 1 for positions adjacent to another class, `[B, h, w] -> [B, 1, P]`, u8. Ignored pixels are no class.
fn boundary(labels: &Tensor) -> Result<Tensor> {
    let (b, h, w) = labels.dims3()?;
    let values = labels.flatten_all()?.to_vec1::<u32>()?;
    let mut edges = vec![0u8; values.len()];
    for (i, edge) in edges.iter_mut().enumerate() {
        let (row, column) = (i / w % h, i % w);
        let neighbors = [
            (row > 0).then(|| i - w),
            (row + 1 < h).then(|| i + w),
            (column > 0).then(|| i - 1),
            (column + 1 < w).then(|| i + 1),
        ];
        let differs = |j: usize| values[j] != u32::from(IGNORE_INDEX) && values[j] != values[i];
        *edge = u8::from(neighbors.into_iter().flatten().any(differs));
    }
    Ok(Tensor::from_vec(edges, (b, 1, h * w), labels.device())?)
}

/// FRKDNet's distillation.
#[derive(Debug)]
pub struct Frkd {
    config: FrkdConfig,
    ce: Ce,
}

impl Frkd {
    /// Validates the settings.
    pub fn new(config: FrkdConfig) -> Result<Self> {
        config::require_fraction(ENTRY.name, "gamma", config.gamma)?;
        if !(config.rho > 0.0 && config.rho <= 1.0) {
            return Err(config::invalid(ENTRY.name, "rho", config.rho, "a number in (0, 1]"));
        }
        config::require_non_negative(ENTRY.name, "inter_weight", config.inter_weight)?;
        config::require_non_negative(ENTRY.name, "intra_weight", config.intra_weight)?;
        config::require_non_negative(ENTRY.name, "similarity_weight", config.similarity_weight)?;
        Ok(Self { ce: Ce::new(CeConfig::default())?, config })
    }
}

impl Distiller for Frkd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        // The cross entropy always reads `logits`.
        let mut student = vec!["logits".to_string(), self.config.feature.clone()];
        student.dedup();
        RequiredFeatures { student, teacher: vec![self.config.feature.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_masks(shapes, ENTRY.name)?;
        checks::require_class_maps(shapes, &self.config.feature, ENTRY.name)
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = checks::map_pair(context, &self.config.feature, ENTRY.name)?;
        let FrkdTerms { inter, intra, similarity } =
            frkd_loss(&student, &teacher, context.target, &self.config)?;
        let ce = self.ce.value(context.student.logits()?, context.target)?;
        let terms = self.term_weights().into_iter().zip([ce, inter, intra, similarity]);
        Ok(terms.map(|((name, weight), value)| Term::new(name, value, weight)).collect())
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        let FrkdConfig { gamma, inter_weight, intra_weight, similarity_weight, .. } = self.config;
        let ce = match self.config.total {
            Total::Convex => 1.0 - gamma,
            Total::Additive => 1.0,
        };
        vec![
            ("ce".into(), ce),
            ("inter".into(), gamma * inter_weight),
            ("intra".into(), gamma * intra_weight),
            ("similarity".into(), similarity_weight),
        ]
    }
}
