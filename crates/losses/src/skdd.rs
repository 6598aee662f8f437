//! Structured distillation for dense prediction (`skdd`): the pixel-wise, the pair-wise and the
//! holistic loss together, as FRKDNet's comparison has them.
//!
//! # Paper
//! Y. Liu, K. Chen, C. Liu, Z. Qin, Z. Luo, J. Wang, "Structured Knowledge Distillation for Semantic
//! Segmentation", CVPR 2019, arXiv 1903.04197, equation (5).
//!
//! # Equation
//! `10 * pixelwise + pairwise + 0.1 * adversarial`: [`skd_pixelwise`](crate::skd_pixelwise),
//! [`skd_pairwise`](crate::skd_pairwise) and [`skd_holistic`](crate::skd_holistic), whose adversary comes
//! along.
//!
//! # Inputs
//! Those of its parts: `logits [B, N, H, W]`, at least 8 x 8, the maps at `tap`, the images.
//!
//! # Defaults and their source
//! The weights and forms of the authors' code (0.5 for `pairwise` in its run script), the gradient
//! penalty among them. What has no key here has the default of its part.
//!
//! # Where code and paper differ
//! As in the parts.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("skdd")?;
//! let terms = (row.build)(&toml::Table::new())?.term_weights();
//! assert_eq!(terms.iter().map(|(_, w)| *w).collect::<Vec<_>>(), [10.0, 1.0, 0.1]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamBuilder, ParamStore, Result};

use crate::settings;
use crate::skd_holistic::{Form, Preprocess, SkdHolistic, SkdHolisticConfig};
use crate::skd_pairwise::{Pool, SkdPairwise, SkdPairwiseConfig};
use crate::skd_pixelwise::{Reduction, SkdPixelwise, SkdPixelwiseConfig};

/// The row of `skdd`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "skdd",
    summary: "skd_pixelwise, skd_pairwise and skd_holistic together",
    source: "Liu et al. 2019, equation (5); Jiang et al. 2023, Tables 2 and 3",
    defaults: || {
        settings::describe::<SkddConfig>(&[
            ("reduction", "the authors' code"),
            ("pixelwise_weight", "the authors' code"),
            ("tap", "the last map before the classifier"),
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
    build: |table| Ok(Box::new(Skdd::new(settings::read(table, ENTRY.name)?)?)),
};

/// Settings of `skdd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SkddConfig {
    /// Of `skd_pixelwise`.
    pub reduction: Reduction,
    /// Weight of `pixelwise`.
    pub pixelwise_weight: f64,
    /// Of `skd_pairwise`.
    pub tap: String,
    /// Of `skd_pairwise`.
    pub pool: Pool,
    /// Of `skd_pairwise`.
    pub pool_scale: f64,
    /// Weight of `pairwise`.
    pub pairwise_weight: f64,
    /// Of `skd_holistic`.
    pub form: Form,
    /// Of `skd_holistic`.
    pub preprocess: Preprocess,
    /// Of `skd_holistic`.
    pub condition: bool,
    /// Of `skd_holistic`.
    pub gp_weight: f64,
    /// Weight of `adversarial`.
    pub adversarial_weight: f64,
}

impl Default for SkddConfig {
    fn default() -> Self {
        Self {
            reduction: Reduction::SumOverHw,
            pixelwise_weight: 10.0,
            tap: "F4".into(),
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

/// The three parts.
#[derive(Debug)]
pub struct Skdd {
    pixelwise: SkdPixelwise,
    pairwise: SkdPairwise,
    holistic: SkdHolistic,
}

impl Skdd {
    /// Checks the settings.
    pub fn new(config: SkddConfig) -> Result<Self> {
        settings::not_negative(ENTRY.name, "pixelwise_weight", config.pixelwise_weight)?;
        settings::not_negative(ENTRY.name, "pairwise_weight", config.pairwise_weight)?;
        settings::not_negative(ENTRY.name, "adversarial_weight", config.adversarial_weight)?;
        Ok(Self {
            pixelwise: SkdPixelwise::new(SkdPixelwiseConfig {
                reduction: config.reduction,
                weight: config.pixelwise_weight,
                ..Default::default()
            })?,
            pairwise: SkdPairwise::new(SkdPairwiseConfig {
                tap: config.tap,
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

    fn parts(&self) -> [&dyn Distiller; 3] {
        [&self.pixelwise, &self.pairwise, &self.holistic]
    }

    fn parts_mut(&mut self) -> [&mut dyn Distiller; 3] {
        [&mut self.pixelwise, &mut self.pairwise, &mut self.holistic]
    }

    fn gather<T>(&self, of: impl Fn(&dyn Distiller) -> Result<Vec<T>>) -> Result<Vec<T>> {
        let lists = self.parts().into_iter().map(of).collect::<Result<Vec<_>>>()?;
        Ok(lists.into_iter().flatten().collect())
    }
}

impl Distiller for Skdd {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        let mut all = RequiredFeatures::default();
        for needs in self.parts().map(|part| part.required_features()) {
            for (list, more) in [(&mut all.student, needs.student), (&mut all.teacher, needs.teacher)] {
                list.extend(more);
                list.sort();
                list.dedup();
            }
        }
        all
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        self.parts_mut().into_iter().try_for_each(|part| part.connect(shapes, params))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        self.gather(|part| part.terms(context))
    }

    fn adversary_terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        self.gather(|part| part.adversary_terms(context))
    }

    fn after_step(&mut self, context: &LossContext, params: &ParamStore) -> Result<()> {
        self.parts_mut().into_iter().try_for_each(|part| part.after_step(context, params))
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        self.parts().iter().flat_map(|part| part.term_weights()).collect()
    }
}
