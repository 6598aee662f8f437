//! Structured distillation for dense prediction (`skdd`): the pixel-wise, the pair-wise and the
//! holistic loss together, as in FRKDNet's comparison.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equation (5).
//!
//! # Equation
//! `10 * pixelwise + pairwise + 0.1 * adversarial`: [`skd_pixelwise`](super::skd_pixelwise),
//! [`skd_pairwise`](super::skd_pairwise) and [`skd_holistic`](super::skd_holistic) with its adversary.
//!
//! # Inputs
//! Those of the three: `logits [B, N, H, W]` of at least 8 x 8, the maps at `feature`, the images.
//!
//! # Defaults and their source
//! Weights, forms and gradient penalty of the authors' code (0.5 for `pairwise` in its run script).
//! Settings without a key here have their method's defaults.
//!
//! # Where code and paper differ
//! As in the three.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("skdd")?;
//! let terms = (entry.build)(&toml::Table::new())?.term_weights();
//! assert_eq!(terms.iter().map(|(_, w)| *w).collect::<Vec<_>>(), [10.0, 1.0, 0.1]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, ParamStore, Result};

use super::skd_holistic::{Form, Preprocess, SkdHolistic, SkdHolisticConfig};
use super::skd_pairwise::{Pool, SkdPairwise, SkdPairwiseConfig};
use super::skd_pixelwise::{Reduction, SkdPixelwise, SkdPixelwiseConfig};
use crate::common::config;

/// Registry entry of `skdd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skdd",
    summary: "skd_pixelwise, skd_pairwise and skd_holistic together",
    source: "Liu et al. 2019, equation (5); Jiang et al. 2023, Tables 2 and 3",
    defaults: || {
        config::document::<SkddConfig>(&[
            ("reduction", "the authors' code"),
            ("pixelwise_weight", "the authors' code"),
            ("feature", "the last map before the classifier"),
            ("pool", "the authors' code"),
            ("pool_scale", "the authors' code"),
            ("pairwise_weight", "the authors' code; 0.5 in its run script"),
            ("form", "Liu et al. 2019, equation (3)"),
            ("preprocess", "Liu et al. 2019"),
            ("condition", "Liu et al. 2019"),
            ("gp_weight", "the authors' code"),
            ("adversarial_weight", "the authors' code"),
        ])
    },
    build: |table| Ok(Box::new(Skdd::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `skdd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkddConfig {
    /// `reduction` of `skd_pixelwise`.
    pub reduction: Reduction,
    /// Weight of `pixelwise`.
    pub pixelwise_weight: f64,
    /// `feature` of `skd_pairwise`.
    pub feature: String,
    /// `pool` of `skd_pairwise`.
    pub pool: Pool,
    /// `pool_scale` of `skd_pairwise`.
    pub pool_scale: f64,
    /// Weight of `pairwise`.
    pub pairwise_weight: f64,
    /// `form` of `skd_holistic`.
    pub form: Form,
    /// `preprocess` of `skd_holistic`.
    pub preprocess: Preprocess,
    /// `condition` of `skd_holistic`.
    pub condition: bool,
    /// `gp_weight` of `skd_holistic`.
    pub gp_weight: f64,
    /// Weight of `adversarial`.
    pub adversarial_weight: f64,
}

impl Default for SkddConfig {
    fn default() -> Self {
        Self {
            reduction: Reduction::SumOverHw,
            pixelwise_weight: 10.0,
            feature: "F4".into(),
            pool: Pool::Max,
            pool_scale: 0.5,
            pairwise_weight: 1.0,
            form: Form::Wasserstein,
            preprocess: Preprocess::None,
            condition: true,
            gp_weight: 10.0,
            adversarial_weight: 0.1,
        }
    }
}

/// Structured distillation for dense prediction.
#[derive(Debug)]
pub struct Skdd {
    pixelwise: SkdPixelwise,
    pairwise: SkdPairwise,
    holistic: SkdHolistic,
}

impl Skdd {
    /// Validates the settings.
    pub fn new(config: SkddConfig) -> Result<Self> {
        config::require_non_negative(ENTRY.name, "pixelwise_weight", config.pixelwise_weight)?;
        config::require_non_negative(ENTRY.name, "pairwise_weight", config.pairwise_weight)?;
        config::require_non_negative(ENTRY.name, "adversarial_weight", config.adversarial_weight)?;
        Ok(Self {
            pixelwise: SkdPixelwise::new(SkdPixelwiseConfig {
                reduction: config.reduction,
                weight: config.pixelwise_weight,
                ..Default::default()
            })?,
            pairwise: SkdPairwise::new(SkdPairwiseConfig {
                feature: config.feature,
                pool: config.pool,
                pool_scale: config.pool_scale,
                weight: config.pairwise_weight,
                ..Default::default()
            })?,
            holistic: SkdHolistic::new(SkdHolisticConfig {
                form: config.form,
                preprocess: config.preprocess,
                condition: config.condition,
                gp_weight: config.gp_weight,
                weight: config.adversarial_weight,
                ..Default::default()
            })?,
        })
    }

    fn methods(&self) -> [&dyn Distiller; 3] {
        [&self.pixelwise, &self.pairwise, &self.holistic]
    }

    fn methods_mut(&mut self) -> [&mut dyn Distiller; 3] {
        [&mut self.pixelwise, &mut self.pairwise, &mut self.holistic]
    }

    fn collect<T>(&self, f: impl Fn(&dyn Distiller) -> Result<Vec<T>>) -> Result<Vec<T>> {
        let lists = self.methods().into_iter().map(f).collect::<Result<Vec<_>>>()?;
        Ok(lists.into_iter().flatten().collect())
    }
}

impl Distiller for Skdd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        let mut all = RequiredFeatures::default();
        for required in self.methods().map(|method| method.required_features()) {
            for (list, more) in [(&mut all.student, required.student), (&mut all.teacher, required.teacher)] {
                list.extend(more);
                list.sort();
                list.dedup();
            }
        }
        all
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        self.methods_mut().into_iter().try_for_each(|method| method.connect(shapes, params))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        self.collect(|method| method.terms(context))
    }

    fn adversary_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        self.collect(|method| method.adversary_terms(context))
    }

    fn after_step(&mut self, context: &LossContext, params: &ParamStore) -> Result<()> {
        self.methods_mut().into_iter().try_for_each(|method| method.after_step(context, params))
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        self.methods().iter().flat_map(|method| method.term_weights()).collect()
    }
}
