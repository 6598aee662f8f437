//! FRKDNet's distillation (`frkd`): salient features of the logits, distances between the classes'
//! centers and from the classes' edges to their centers.
//!
//! # Paper
//! S. Jiang, Y. Xu, D. Li, R. Fan, "FRKDNet: feature refine semantic segmentation network based on
//! knowledge distillation", Chinese Journal of Liquid Crystals and Displays 38(11), 2023, from p. 1590;
//! equations (1)-(10). The text at hand has no formulas: they are a reconstruction, and what it
//! leaves open is a setting, C7 to C11. The idea of the distances is that of Zhang, Zhou and Tu,
//! "Distilling Inter-class Distance for Semantic Segmentation", IJCAI 2022, arXiv 2205.03650.
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
//! A distance is never below 1e-6. `inter` and `intra` are means over the images of the batch; one
//! with fewer than two classes, or without edges, gives 0. `similarity` (off by default): unit rows
//! of `F*`, their N x N Gram matrices, mean squared difference.
//!
//! # Inputs
//! The logits of both at `tap`, `[B, N, H, W]`: `logits`, or `logits_low` of a network that has them
//! before its last upsampling; and masks of any size: labels are brought to the size at `tap` (row
//! `floor(i * H / h)`) for the distances, `logits` to the masks' for the cross entropy (bilinear,
//! half-pixel centers). 255 is ignored.
//!
//! # Defaults and their source
//! gamma 0.4 on Cityscapes, 0.5 on VOC: the paper. The choices: the most literal reading. The weights
//! of `inter` and `intra` are factors on gamma: 0 for an ablation.
//!
//! # Where code and paper differ
//! No code was published. In small runs the distances as they are (`C11_scale = "none"`) outweighed
//! the labels; divided by their mean they did not.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("frkd")?;
//! let method = (row.build)(&toml::toml! { gamma = 0.5 })?;
//! assert_eq!(method.term_weights()[1], ("inter".to_string(), 0.5));
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::data::IGNORE_INDEX;
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::ce::{Ce, CeConfig};
use crate::refine::Refined;
pub use crate::refine::{Contribution, Keep, Mask};
use crate::sum::{mean, sum};
use crate::unit::{EPS, unit};
use crate::{fit, labels, settings};

/// The row of `frkd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "frkd",
    summary: "salient features, distances of class centers and of class edges",
    source: "Jiang et al. 2023, equations (1)-(10), reconstructed",
    defaults: || {
        settings::describe::<FrkdConfig>(&[
            ("tap", "Jiang et al. 2023, Algorithm 1: the outputs before the softmax"),
            ("C7_contribution", "two normalizations, as the paper words it"),
            ("C8_mask", "keeps the scale of the logits"),
            ("C8_keep", "the paper compares a pixel with its class"),
            ("C8_rho", "ours, for C8_keep = top_ratio"),
            ("C9_center", "the most literal reading"),
            ("C10_edge", "the paper's word is edge pixel"),
            ("C11_total", "the paper on gamma = 0.6: too little weight on the labels"),
            ("C11_scale", "the paper names none; try \"mean\" where training fails"),
            ("gamma", "Jiang et al. 2023, Cityscapes; 0.5 on VOC"),
            ("inter_weight", "Jiang et al. 2023, equation (10)"),
            ("intra_weight", "Jiang et al. 2023, equation (10)"),
            ("similarity_weight", "off: equation (10) has three parts"),
        ])
    },
    build: |table| Ok(Box::new(Frkd::new(settings::read(table, ENTRY.name)?)?)),
};

/// Where the center of a class is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Center {
    /// The mean refined feature over the positions kept in the class's channel.
    #[default]
    KeptChannel,
    /// Over those of them that have its label.
    Label,
    /// Over those of them where it is the teacher's largest.
    TeacherArgmax,
    /// The mean place in the image, weighted by mask and the network's own contribution; edge points
    /// are places too.
    Coordinate,
}

/// Which pixels of a class are its edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// Those beside a pixel of another class.
    #[default]
    Boundary,
    /// Those that the refinement removed.
    Margin,
}

/// How labels and distances are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Total {
    /// `1 - gamma` for the labels, gamma for the distances.
    #[default]
    Convex,
    /// 1 for the labels, gamma for the distances.
    Additive,
}

/// What distances are divided by before they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Nothing.
    #[default]
    None,
    /// Their mean over the image.
    Mean,
}

/// Settings of `frkd`. C7 to C11 are what the paper leaves open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FrkdConfig {
    /// The logits that enter.
    pub tap: String,
    /// What a position contributes to a class.
    #[serde(rename = "C7_contribution")]
    pub contribution: Contribution,
    /// What kept positions are multiplied by.
    #[serde(rename = "C8_mask")]
    pub mask: Mask,
    /// Which positions are kept.
    #[serde(rename = "C8_keep")]
    pub keep: Keep,
    /// Part of the positions that `top_ratio` keeps, in (0, 1].
    #[serde(rename = "C8_rho")]
    pub rho: f64,
    /// Where the center of a class is.
    #[serde(rename = "C9_center")]
    pub center: Center,
    /// Which pixels of a class are its edge.
    #[serde(rename = "C10_edge")]
    pub edge: Edge,
    /// How labels and distances are weighed.
    #[serde(rename = "C11_total")]
    pub total: Total,
    /// What distances are divided by.
    #[serde(rename = "C11_scale")]
    pub scale: Scale,
    /// Weight of the distances, in [0, 1].
    pub gamma: f64,
    /// Factor on gamma for the distances between centers.
    pub inter_weight: f64,
    /// Factor on gamma for the distances from edges to centers.
    pub intra_weight: f64,
    /// Weight of the similarity of classes.
    pub similarity_weight: f64,
}

impl Default for FrkdConfig {
    fn default() -> Self {
        Self {
            tap: "logits".into(),
            contribution: Contribution::default(),
            mask: Mask::default(),
            keep: Keep::default(),
            rho: 0.5,
            center: Center::default(),
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

/// FRKDNet's distillation.
#[derive(Debug)]
pub struct Frkd {
    config: FrkdConfig,
    ce: Ce,
}

/// What is known of the classes of each image; constants.
struct Classes {
    /// Positions whose mean is a class's center, divided by their number, `[B, N, P]`; unused with
    /// coordinates.
    centers: Tensor,
    /// 1 for classes in the labels that have such a position, `[B, N]`.
    present: Tensor,
    /// The class of each position, `[B, N, P]`.
    own: Tensor,
    /// Edge points of each class, divided by their number, `[B, N, P]`.
    edges: Tensor,
    /// 1 for present classes with an edge, `[B, N]`.
    edged: Tensor,
}

/// The distances of one network.
struct Distances {
    /// Between centers, `[B, N, N]`.
    between: Tensor,
    /// From edges to centers, `[B, N]`.
    inside: Tensor,
}

impl Frkd {
    /// Checks the settings.
    pub fn new(config: FrkdConfig) -> Result<Self> {
        if !(0.0..=1.0).contains(&config.gamma) {
            return Err(settings::wrong(ENTRY.name, "gamma", config.gamma, "a number in [0, 1]"));
        }
        if !(config.rho > 0.0 && config.rho <= 1.0) {
            return Err(settings::wrong(ENTRY.name, "C8_rho", config.rho, "a number in (0, 1]"));
        }
        for (key, weight) in [
            ("inter_weight", config.inter_weight),
            ("intra_weight", config.intra_weight),
            ("similarity_weight", config.similarity_weight),
        ] {
            settings::not_negative(ENTRY.name, key, weight)?;
        }
        Ok(Self { ce: Ce::new(CeConfig::default())?, config })
    }

    fn weighted(&self) -> [(&'static str, f64); 4] {
        let FrkdConfig { gamma, inter_weight, intra_weight, similarity_weight, .. } = self.config;
        let ce = match self.config.total {
            Total::Convex => 1.0 - gamma,
            Total::Additive => 1.0,
        };
        let (inter, intra) = (gamma * inter_weight, gamma * intra_weight);
        [("ce", ce), ("inter", inter), ("intra", intra), ("similarity", similarity_weight)]
    }

    /// `labels` are those of the map's size, where the map is and in the host's memory.
    fn classes(&self, refined: &Refined, labels: &Tensor, on_host: &Tensor) -> Result<Classes> {
        let (_, n, _) = refined.keep.dims3()?;
        let own = labels::one_hot(labels, n, refined.keep.dtype())?;
        let positions = match self.config.center {
            Center::KeptChannel | Center::Coordinate => refined.keep.clone(),
            Center::Label => (&refined.keep * &own)?,
            Center::TeacherArgmax => (&refined.keep * &refined.largest)?,
        };
        let edges = match self.config.edge {
            Edge::Boundary => {
                own.broadcast_mul(&boundary(on_host)?.to_device(own.device())?.to_dtype(own.dtype())?)?
            }
            Edge::Margin => (&own * (1.0 - &refined.keep)?)?,
        };
        let some = |x: &Tensor| x.sum(2)?.gt(0.0)?.to_dtype(x.dtype());
        let shares = |x: &Tensor| x.broadcast_div(&x.sum_keepdim(2)?.maximum(1.0)?);
        let present = (some(&own)? * some(&positions)?)?;
        Ok(Classes {
            edged: (some(&edges)? * &present)?,
            centers: shares(&positions)?,
            edges: shares(&edges)?,
            present,
            own,
        })
    }

    /// The distances in a network with those logits `[B, N, P]`; `(h, w)` is the size of its map.
    fn distances(
        &self,
        logits: &Tensor,
        refined: &Refined,
        classes: &Classes,
        (h, w): (usize, usize),
    ) -> Result<Distances> {
        let (b, n, p) = logits.dims3()?;
        // Points of each position [B, K, P], and the centers [B, N, K].
        let (points, centers) = match self.config.center {
            Center::Coordinate => {
                let grid = places(h, w)?.to_dtype(logits.dtype())?.to_device(logits.device())?; // [2, P]
                let weights = refined.own_weights(logits)?; // [B, N, P]
                let centers = weights.reshape((b * n, p))?.matmul(&grid.t()?)?.reshape((b, n, 2))?;
                (grid.broadcast_left(b)?.contiguous()?, centers)
            }
            _ => {
                let masked = (logits * &refined.mask)?;
                let centers = classes.centers.matmul(&masked.transpose(1, 2)?.contiguous()?)?;
                (logits.clone(), centers)
            }
        };
        let apart = centers.unsqueeze(2)?.broadcast_sub(&centers.unsqueeze(1)?)?; // [B, N, N, K]
        let between = far(&apart.sqr()?.sum(3)?)?;
        let own_center = centers.transpose(1, 2)?.contiguous()?.matmul(&classes.own)?; // [B, K, P]
        let from_center = far(&(points - own_center)?.sqr()?.sum(1)?)?; // [B, P]
        let inside = classes.edges.broadcast_mul(&from_center.unsqueeze(1)?)?.sum(D::Minus1)?;
        Ok(Distances { between, inside })
    }

    /// The mean over images of the weighted mean of squared differences; `weights [B, M]` are 0 or 1,
    /// an image without any gives 0.
    fn compare(&self, teacher: &Tensor, student: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let shares = weights.broadcast_div(&weights.sum_keepdim(1)?.maximum(1.0)?)?;
        let scaled = |x: &Tensor| -> Result<Tensor> {
            match self.config.scale {
                Scale::None => Ok(x.clone()),
                Scale::Mean => {
                    let mean = (x * &shares)?.sum_keepdim(1)?;
                    let some = mean.gt(0.0)?;
                    Ok(x.broadcast_div(&some.where_cond(&mean, &mean.ones_like()?)?)?)
                }
            }
        };
        let square = (scaled(teacher)? - scaled(student)?)?.sqr()?;
        Ok((sum(&(square * &shares)?)? / teacher.dim(0)? as f64)?)
    }
}

/// The distance of its square, not below 1e-6; there the gradient is 0.
fn far(square: &Tensor) -> Result<Tensor> {
    let live = square.gt(1e-12)?;
    let least = Tensor::full(1e-12, square.shape(), square.device())?.to_dtype(square.dtype())?;
    Ok(live.where_cond(square, &least)?.sqrt()?)
}

/// Row and column of each position as parts of the map, `[2, P]`.
fn places(h: usize, w: usize) -> Result<Tensor> {
    let part = |i: usize, n: usize| i as f64 / n.saturating_sub(1).max(1) as f64;
    let rows = (0..h * w).map(|x| part(x / w, h));
    let columns = (0..h * w).map(|x| part(x % w, w));
    Ok(Tensor::from_iter(rows.chain(columns), &candle_core::Device::Cpu)?.reshape((2, h * w))?)
}

/// 1 for positions beside one of another class, `[B, h, w] -> [B, 1, P]`, u8; 255 is no class.
fn boundary(labels: &Tensor) -> Result<Tensor> {
    let (b, h, w) = labels.dims3()?;
    let values = labels.flatten_all()?.to_vec1::<u32>()?;
    let mut edges = vec![0u8; values.len()];
    for (at, edge) in edges.iter_mut().enumerate() {
        let (row, column) = (at / w % h, at % w);
        let beside = [
            (row > 0).then(|| at - w),
            (row + 1 < h).then(|| at + w),
            (column > 0).then(|| at - 1),
            (column + 1 < w).then(|| at + 1),
        ];
        let other = |near: usize| values[near] != u32::from(IGNORE_INDEX) && values[near] != values[at];
        *edge = u8::from(beside.into_iter().flatten().any(other));
    }
    Ok(Tensor::from_vec(edges, (b, 1, h * w), labels.device())?)
}

impl Distiller for Frkd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        // The cross entropy reads `logits` in any case.
        let mut student = vec!["logits".to_string(), self.config.tap.clone()];
        student.dedup();
        RequiredFeatures { student, teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::masks(shapes, ENTRY.name)?;
        fit::same_maps_of_logits(shapes, &self.config.tap, ENTRY.name)
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = fit::maps(context, &self.config.tap, ENTRY.name)?;
        let (b, n, h, w) = student.dims4()?;
        let mask = context.target.mask(ENTRY.name)?;
        labels::check(mask, b, ENTRY.name)?;
        let (s, t) = (student.flatten_from(2)?.contiguous()?, teacher.flatten_from(2)?.contiguous()?);
        let config = &self.config;
        let refined = Refined::of(&t, config.contribution, config.mask, config.keep, config.rho)?;
        let [here, on_host] =
            [mask, context.target.host_mask(ENTRY.name)?].map(|mask| labels::at_size(mask, (h, w)));
        let classes = self.classes(&refined, &here?, &on_host?)?;

        let of_teacher = self.distances(&t, &refined, &classes, (h, w))?;
        let of_student = self.distances(&s, &refined, &classes, (h, w))?;
        let off_diagonal = (1.0 - Tensor::eye(n, s.dtype(), s.device())?)?;
        let both = classes.present.unsqueeze(2)?.broadcast_mul(&classes.present.unsqueeze(1)?)?;
        let pairs = both.broadcast_mul(&off_diagonal)?.flatten_from(1)?;
        let flat = |x: &Tensor| x.flatten_from(1);
        let inter = self.compare(&flat(&of_teacher.between)?, &flat(&of_student.between)?, &pairs)?;
        let intra = self.compare(&of_teacher.inside, &of_student.inside, &classes.edged)?;

        let gram = |x: &Tensor| -> Result<Tensor> {
            let rows = unit(&(x * &refined.mask)?, EPS)?;
            Ok(rows.matmul(&rows.transpose(1, 2)?)?) // [B, N, N]
        };
        let similarity = mean(&(gram(&s)? - gram(&t)?)?.sqr()?)?;
        let values = [self.ce.value(context.student.logits()?, context)?, inter, intra, similarity];
        let terms = self.weighted().into_iter().zip(values);
        Ok(terms.map(|((name, weight), value)| Term::new(name, value, weight)).collect())
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        self.weighted().into_iter().map(|(name, weight)| (name.to_string(), weight)).collect()
    }
}
