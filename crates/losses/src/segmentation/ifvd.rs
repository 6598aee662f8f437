//! Intra-class feature variation distillation (`ifvd`): similarity of each pixel to the center of its
//! class.
//!
//! # Paper
//! Y. Wang, W. Zhou, T. Jiang, X. Bai, Y. Xu, "Intra-class Feature Variation Distillation for
//! Semantic Segmentation", ECCV 2020, DOI 10.1007/978-3-030-58571-6_21, equations (1)-(3).
//!
//! # Equation
//! Per image, `center_k = sum over x with y(x) = k of f(x) / (n_k + eps)`; then
//! `ifvd = mean over b, x of (cos(f_S(x), center_S,y(x)) - cos(f_T(x), center_T,y(x)))^2`.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `feature` of equal size (channels may differ), and masks, resized to the map:
//! row `floor(i * H / h)`. The cosine of ignored pixels (255) is 1 on both sides; they are counted in
//! the mean.
//!
//! # Defaults and their source
//! Weight 20: the re-implementation in the collection CIRKD, whose pixel-wise term has weight 1 (add
//! `skd_pixelwise` with that weight). The authors' code has 200, 10 for a mean over elements, and
//! an adversarial term of 0.001 (`skd_holistic`). `classes` unset: those of the dataset.
//!
//! # Where code and paper differ
//! The mean of the authors' code, and of this, includes ignored pixels.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("ifvd")?;
//! assert_eq!((entry.build)(&toml::Table::new())?.required_features().student, ["F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::common::normalize::l2_normalize;
use crate::common::reduce::mean;
use crate::common::{checks, config, constant_like, masks};

/// Registry entry of `ifvd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "ifvd",
    summary: "similarity of each pixel to the center of its class",
    source: "Wang et al. 2020, equations (1)-(3)",
    defaults: || {
        config::document::<IfvdConfig>(&[
            ("feature", "the last map before the classifier"),
            ("classes", "those of the dataset"),
            ("eps", "the authors' code"),
            ("weight", "CIRKD; 200 in the authors' code"),
        ])
    },
    build: |table| Ok(Box::new(Ifvd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Norms up to this threshold are treated as zero, as in PyTorch's cosine similarity.
const COSINE_EPS: f64 = 1e-8;

/// Settings of `ifvd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IfvdConfig {
    /// Feature to compare.
    pub feature: String,
    /// Number of classes; larger labels are ignored. Unset: the classes of the dataset.
    pub classes: Option<usize>,
    /// Added to the number of pixels of a class.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for IfvdConfig {
    fn default() -> Self {
        Self { feature: "F4".into(), classes: None, eps: 1e-6, weight: 20.0 }
    }
}

/// Mean squared difference of the cosines between pixels and the centers of their classes, a scalar.
///
/// Maps are `[B, C, h, w]` of equal size; channels may differ. `mask [B, H, W]` holds u32 labels; those
/// of `classes` and above are ignored. `eps` is added to the number of pixels of a class. Wang et al.
/// 2020, equations (1) to (3).
///
/// # Errors
/// If the shapes do not match.
pub fn ifvd_loss(
    student: &Tensor,
    teacher: &Tensor,
    mask: &Tensor,
    classes: usize,
    eps: f64,
) -> Result<Tensor> {
    let (b, _, h, w) = student.dims4()?;
    masks::require_batch(mask, b, ENTRY.name)?;
    let one_hot = masks::one_hot(&masks::resize_nearest(mask, (h, w))?, classes, student.dtype())?;
    let teacher = constant_like(teacher, student)?;
    mean(&(cosines(student, &one_hot, eps)? - cosines(&teacher, &one_hot, eps)?)?.sqr()?)
}

/// Cosine between each position and the center of its class, `[B, P]`, for classes `[B, K, P]`.
fn cosines(map: &Tensor, one_hot: &Tensor, eps: f64) -> Result<Tensor> {
    let (b, c, h, w) = map.dims4()?;
    let points = map.permute((0, 2, 3, 1))?.reshape((b, h * w, c))?; // [B, P, C]
    let counts = (one_hot.sum_keepdim(2)? + eps)?; // [B, K, 1]
    let centers = one_hot.matmul(&points)?.broadcast_div(&counts)?; // [B, K, C]
    let points = l2_normalize(&points, COSINE_EPS)?;
    let all = l2_normalize(&centers, COSINE_EPS)?.matmul(&points.transpose(1, 2)?)?; // [B, K, P]
    let of_class = (all * one_hot)?.sum(1)?;
    // Ignored pixels: the cosine with themselves, a constant.
    let itself = points.detach().sqr()?.sum(2)?;
    Ok((of_class + (itself * (1.0 - one_hot.sum(1)?)?)?)?)
}

/// Intra-class feature variation distillation.
#[derive(Debug)]
pub struct Ifvd {
    config: IfvdConfig,
    /// Set by `connect`.
    classes: usize,
}

impl Ifvd {
    /// Validates the settings.
    pub fn new(config: IfvdConfig) -> Result<Self> {
        config::require_positive(ENTRY.name, "eps", config.eps)?;
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        if config.classes == Some(0) {
            return Err(config::invalid(ENTRY.name, "classes", 0, "1 or more"));
        }
        Ok(Self { classes: 0, config })
    }
}

impl Distiller for Ifvd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&[&self.config.feature])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        checks::require_masks(shapes, ENTRY.name)?;
        checks::require_same_size_maps(shapes, &self.config.feature, ENTRY.name)?;
        self.classes = self.config.classes.unwrap_or(shapes.classes);
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = checks::map_pair(context, &self.config.feature, ENTRY.name)?;
        let mask = context.target.mask(ENTRY.name)?;
        let value = ifvd_loss(&student, &teacher, mask, self.classes, self.config.eps)?;
        Ok(vec![Term::new("ifvd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("ifvd".into(), self.config.weight)]
    }
}
