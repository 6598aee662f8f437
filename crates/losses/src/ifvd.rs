//! Intra-class feature variation distillation (`ifvd`): how near each pixel is to the center of its
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
//! The maps `[B, C, H, W]` named by `tap`, of one size (channels may differ), and masks; labels are
//! brought to the map's size, row `floor(i * H / h)`. A pixel whose label is no class (255) is its
//! own center: the cosine is 1 on both sides, but it counts in the mean.
//!
//! # Defaults and their source
//! Weight 20: the re-implementation in the collection CIRKD, whose pixel-wise term has weight 1 (add
//! `skd_pixelwise` with that weight); the authors' code has 200, 10 for a mean over elements, and
//! an adversarial term of 0.001 (`skd_holistic`). `classes` unset: those of the dataset.
//!
//! # Where code and paper differ
//! Ignored pixels count in the mean of the authors' code; kept.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("ifvd")?;
//! assert_eq!((row.build)(&toml::Table::new())?.required_features().student, ["F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, Result};

use crate::sum::mean;
use crate::unit::unit;
use crate::{fit, labels, settings};

/// The row of `ifvd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "ifvd",
    summary: "how near each pixel is to the center of its class",
    source: "Wang et al. 2020, equations (1)-(3)",
    defaults: || {
        settings::describe::<IfvdConfig>(&[
            ("tap", "the last map before the classifier"),
            ("classes", "those of the dataset"),
            ("eps", "the authors' code"),
            ("weight", "CIRKD; 200 in the authors' code"),
        ])
    },
    build: |table| Ok(Box::new(Ifvd::new(settings::read(table, ENTRY.name)?)?)),
};

/// Norms up to this count as zero, as PyTorch's cosine similarity has it.
const COSINE_EPS: f64 = 1e-8;

/// Settings of `ifvd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IfvdConfig {
    /// The map that enters.
    pub tap: String,
    /// Labels below this are classes; unset: the classes of the dataset.
    pub classes: Option<usize>,
    /// Added to the pixels of a class when its mean is taken.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for IfvdConfig {
    fn default() -> Self {
        Self { tap: "F4".into(), classes: None, eps: 1e-6, weight: 20.0 }
    }
}

/// Intra-class feature variation distillation.
#[derive(Debug)]
pub struct Ifvd {
    config: IfvdConfig,
    /// Set by `connect`.
    classes: usize,
}

impl Ifvd {
    /// Checks the settings.
    pub fn new(config: IfvdConfig) -> Result<Self> {
        settings::above_zero(ENTRY.name, "eps", config.eps)?;
        settings::not_negative(ENTRY.name, "weight", config.weight)?;
        if config.classes == Some(0) {
            return Err(settings::wrong(ENTRY.name, "classes", 0, "at least 1"));
        }
        Ok(Self { classes: 0, config })
    }

    /// The cosine of each position with the center of its class, `[B, P]`; `own [B, K, P]` marks the
    /// class of each position.
    fn cosines(&self, map: &Tensor, own: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = map.dims4()?;
        let points = map.permute((0, 2, 3, 1))?.reshape((b, h * w, c))?; // [B, P, C]
        let counts = (own.sum_keepdim(2)? + self.config.eps)?; // [B, K, 1]
        let centers = own.matmul(&points)?.broadcast_div(&counts)?; // [B, K, C]
        let points = unit(&points, COSINE_EPS)?;
        let all = unit(&centers, COSINE_EPS)?.matmul(&points.transpose(1, 2)?)?; // [B, K, P]
        let of_class = (all * own)?.sum(1)?;
        // A pixel without a class: the cosine with itself, a constant.
        let itself = points.detach().sqr()?.sum(2)?;
        Ok((of_class + (itself * (1.0 - own.sum(1)?)?)?)?)
    }
}

impl Distiller for Ifvd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.config.tap.clone()], teacher: vec![self.config.tap.clone()] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        fit::masks(shapes, ENTRY.name)?;
        fit::same_size_maps(shapes, &self.config.tap, ENTRY.name)?;
        self.classes = self.config.classes.unwrap_or(shapes.classes);
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let (student, teacher) = fit::maps(context, &self.config.tap, ENTRY.name)?;
        let (b, _, h, w) = student.dims4()?;
        let mask = context.target.mask(ENTRY.name)?;
        labels::check(mask, b, ENTRY.name)?;
        let own = labels::one_hot(&labels::at_size(mask, (h, w))?, self.classes, student.dtype())?;
        let value = mean(&(self.cosines(&student, &own)? - self.cosines(&teacher, &own)?)?.sqr()?)?;
        Ok(vec![Term::new("ifvd", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("ifvd".into(), self.config.weight)]
    }
}
