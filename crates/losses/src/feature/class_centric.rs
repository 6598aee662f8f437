//! Class-centric distillation (`class_centric`): distance between the centers of the teacher's and the
//! student's feature distributions, per class of the batch.
//!
//! # Paper
//! X. Liu, Z. Liu, Y. Lin, S. Wang, X. Zuo, "Class-centric Knowledge Distillation for RSI Scene
//! Classification", Journal of Geo-information Science 25(5), 2023, pp. 1050-1063, DOI
//! 10.12082/dqxxkx.2023.220781; equations (1)-(7), Algorithm 1. Reconstructed: the text at hand has no
//! formulas. All settings but `lambda` and `bn_eps` are choices that it leaves open.
//!
//! # Equation
//! With the unit channel maps `X_i` of image i (`C` points of length `d = H * W`), `k(x, y) =
//! (x . y)^2`, and `n_c` images `I_c` of class `c`:
//!
//! ```text
//! L_j = sum_c n_c / B * MMD^2(teacher's points of I_c, student's points of I_c)
//!     = sum_c n_c / B * || mean_{i in I_c} (M_i^T - M_i^S) ||_F^2,    M_i = X_i^T X_i / C
//! class_centric = sum over stages j of beta_j * L_j,                   total (7): ce + lambda * class_centric
//! ```
//!
//! With one image per class it equals [`nst`](super::nst), with one class [`nst_all`](super::nst_all).
//! In general `nst_all <= class_centric <= nst` for `class_weight = "n_over_b"` and squared distances.
//!
//! # Inputs
//! Maps `[B, C, H, W]` at `stages` of both and classes `[B]`. Batches should have several images of each
//! of their classes (Algorithm 1). The larger map is pooled to the size of the smaller. With a
//! connector: weights `<stage>.connector.weight`, `<stage>.bn.weight`, `<stage>.bn.bias`.
//!
//! # Defaults and their source
//! Feature, kernel and weight are those of NST, which the paper names as related; `n_over_b` makes the
//! inequality hold for any batch; four stages as in the paper's Table 2. The text does not give lambda.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("class_centric")?;
//! let settings = toml::toml! {
//!     stages = ["F3", "F4"]
//!     lambda = 200.0
//! };
//! let method = (entry.build)(&settings)?;
//! assert_eq!(method.required_features().student, ["F3", "F4"]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, ParamStore, Result};

use crate::common::connector::Conv1x1Bn;
use crate::common::mmd::{GroupWeight, Groups, Kernel, grouped_mmd2};
use crate::common::normalize::{EPS, l2_normalize, safe_sqrt};
use crate::common::pool::pool_pair;
use crate::common::reduce::sum_stages;
use crate::common::{checks, config, constant_like};

/// Registry entry of `class_centric`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "class_centric",
    summary: "distance between the class centers of teacher and student features",
    source: "Liu et al. 2023, equations (1)-(7), reconstructed",
    defaults: || {
        config::document::<ClassCentricConfig>(&[
            ("feature", "NST's, to which the paper compares itself"),
            ("kernel", "NST's"),
            ("distance", "NST's; smooth at zero"),
            ("class_weight", "keeps nst_all <= class_centric <= nst for any batch"),
            ("stages", "paper, Table 2"),
            ("stage_weights", "1 for each stage, as NST"),
            ("connector", "channel maps need none"),
            ("lambda", "NST's; the published value is not in the text; try 5 to 1000"),
            ("bn_eps", "PyTorch"),
        ])
    },
    build: |table| Ok(Box::new(ClassCentric::new(config::parse(table, ENTRY.name)?)?)),
};

/// Points of the distributions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Flattened channel maps of unit length: C points of length H * W per image.
    #[default]
    ChannelMap,
    /// Spatial means of unit length: one point of length C per image.
    Pooled,
}

/// Distance between two centers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Squared distance in the kernel's feature space.
    #[default]
    Mmd2,
    /// Square root of `mmd2`.
    Mmd,
    /// Mean squared difference of the class means of the feature tensors; no kernel.
    MeanMapL2,
}

/// Connector from the student's to the teacher's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connector {
    /// Identity.
    #[default]
    None,
    /// 1x1 convolution without bias and batch norm, after the pooling.
    #[serde(rename = "conv1x1_bn")]
    Conv1x1Bn,
}

/// Settings of `class_centric`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassCentricConfig {
    /// Points of the distributions.
    pub feature: Feature,
    /// Kernel of two points.
    pub kernel: Kernel,
    /// Distance between two centers.
    pub distance: Distance,
    /// Weights of the classes.
    pub class_weight: GroupWeight,
    /// Features to compare.
    pub stages: Vec<String>,
    /// Weights beta of the stages. Unset: 1 for each.
    pub stage_weights: Option<Vec<f64>>,
    /// Connector from the student's to the teacher's channels.
    pub connector: Connector,
    /// Weight of the term.
    pub lambda: f64,
    /// Added to the variance by the connector's batch norm.
    pub bn_eps: f64,
}

impl Default for ClassCentricConfig {
    fn default() -> Self {
        Self {
            feature: Feature::default(),
            kernel: Kernel::default(),
            distance: Distance::default(),
            class_weight: GroupWeight::default(),
            stages: config::four_stages(),
            stage_weights: None,
            connector: Connector::default(),
            lambda: 50.0,
            bn_eps: 1e-5,
        }
    }
}

/// Weighted mean over classes of the distance between the centers of one stage, a scalar.
///
/// Maps are `[B, C, H, W]`; the larger map is pooled to the size of the smaller. `classes` groups the
/// images, for example `Groups::by_id(&[0, 0, 1])`. Channels may differ with `Feature::ChannelMap` and
/// the two MMD distances. Reads `feature`, `kernel`, `distance` and `class_weight` of the settings. Liu
/// et al. 2023, equations (1) to (6), reconstructed.
///
/// # Errors
/// If the shapes differ.
pub fn class_centric_loss(
    student: &Tensor,
    teacher: &Tensor,
    classes: &Groups,
    config: &ClassCentricConfig,
) -> Result<Tensor> {
    let (student, teacher) = pool_pair(student, &constant_like(teacher, student)?)?;
    // [B, C, H, W] -> [B, C, H * W] or [B, 1, C]
    let points = |map: &Tensor| match config.feature {
        Feature::ChannelMap => l2_normalize(&map.flatten_from(2)?, EPS),
        Feature::Pooled => l2_normalize(&map.flatten_from(2)?.mean(2)?.unsqueeze(1)?, EPS),
    };
    let (student, teacher) = (points(&student)?, points(&teacher)?);
    let values = match config.distance {
        Distance::Mmd2 => grouped_mmd2(&teacher, &student, classes, config.kernel)?,
        Distance::Mmd => safe_sqrt(&grouped_mmd2(&teacher, &student, classes, config.kernel)?)?,
        Distance::MeanMapL2 => {
            // Linear kernel on whole feature tensors: one point per image.
            let (b, p, d) = student.dims3()?;
            let whole = |points: &Tensor| points.reshape((b, 1, p * d));
            let squared = grouped_mmd2(&whole(&teacher)?, &whole(&student)?, classes, Kernel::Linear)?;
            (squared / (p * d) as f64)?
        }
    };
    classes.average(&values, config.class_weight)
}

/// Class-centric distillation.
#[derive(Debug)]
pub struct ClassCentric {
    config: ClassCentricConfig,
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    feature: String,
    weight: f64,
    /// Set by `connect`.
    connector: Option<Conv1x1Bn>,
}

impl ClassCentric {
    /// Validates the settings.
    pub fn new(config: ClassCentricConfig) -> Result<Self> {
        config::require_stages(ENTRY.name, "stages", &config.stages)?;
        let weights = config.stage_weights.clone().unwrap_or_else(|| vec![1.0; config.stages.len()]);
        if weights.len() != config.stages.len() {
            let expected = format!("one number for each of the {} stages", config.stages.len());
            return Err(config::invalid(ENTRY.name, "stage_weights", format!("{weights:?}"), &expected));
        }
        for weight in &weights {
            config::require_non_negative(ENTRY.name, "stage_weights", *weight)?;
        }
        config::require_non_negative(ENTRY.name, "lambda", config.lambda)?;
        config::require_positive(ENTRY.name, "bn_eps", config.bn_eps)?;
        let stages = config.stages.iter().cloned().zip(weights);
        let stages = stages.map(|(feature, weight)| Stage { feature, weight, connector: None }).collect();
        Ok(Self { config, stages })
    }

    /// The loss of one stage, weighted.
    fn stage(&self, stage: &Stage, context: &LossContext, classes: &Groups) -> Result<Tensor> {
        let (student, teacher) = checks::map_pair(context, &stage.feature, ENTRY.name)?;
        let (mut student, teacher) = pool_pair(&student, &teacher)?;
        if self.config.connector == Connector::Conv1x1Bn {
            let connector = stage.connector.as_ref().ok_or_else(|| {
                let reason =
                    format!("expected a connector at `{}`, found none: call connect first", stage.feature);
                Error::incompatible(ENTRY.name, reason)
            })?;
            student = connector.forward(&student, context.train)?;
        }
        Ok((class_centric_loss(&student, &teacher, classes, &self.config)? * stage.weight)?)
    }
}

impl Distiller for ClassCentric {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&self.config.stages)
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        checks::require_class_labels(shapes, ENTRY.name)?;
        for stage in &mut self.stages {
            let (student, teacher) = checks::require_maps(shapes, &stage.feature, ENTRY.name)?;
            if self.config.connector == Connector::Conv1x1Bn {
                let params = params.pp(&stage.feature);
                stage.connector = Some(Conv1x1Bn::new(student, teacher, self.config.bn_eps, &params)?);
                continue;
            }
            let setting = match (self.config.feature, self.config.distance) {
                _ if student == teacher => continue,
                (_, Distance::MeanMapL2) => "distance = \"mean_map_l2\"",
                (Feature::Pooled, _) => "feature = \"pooled\"",
                (Feature::ChannelMap, _) => continue,
            };
            return Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "{setting}: expected equal channels at `{}`, found {student} channels (student) and {teacher} \
                     (teacher); set connector = \"conv1x1_bn\"",
                    stage.feature
                ),
            ));
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let classes = context.target.host_classes(ENTRY.name)?.to_vec1::<u32>()?;
        let classes = Groups::by_id(&classes)?;
        let values = self.stages.iter().map(|stage| self.stage(stage, context, &classes));
        Ok(vec![Term::new("class_centric", sum_stages(ENTRY.name, values)?, self.config.lambda)])
    }

    fn after_step(&mut self, _context: &LossContext, _params: &ParamStore) -> Result<()> {
        self.stages.iter().filter_map(|s| s.connector.as_ref()).try_for_each(Conv1x1Bn::after_step)
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("class_centric".into(), self.config.lambda)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use stillhouse_core::data::Task;
    use stillhouse_core::{ParamStore, Rng};

    const CLASSES: Task = Task::Classification;

    fn connect(table: toml::Table, student: usize, teacher: usize, task: Task) -> Result<Vec<String>> {
        let params = ParamStore::new(DType::F32, &Device::Cpu)?;
        let features = |c: usize| [("F1".to_string(), vec![c, 4, 4])].into();
        let shapes = FeatureShapes {
            student: features(student),
            teacher: features(teacher),
            task,
            ..Default::default()
        };
        let mut table = table;
        table.insert("stages".into(), vec!["F1"].into());
        (ENTRY.build)(&table)?.connect(&shapes, &params.builder(Rng::new(0)))?;
        Ok(params.all().into_iter().map(|p| p.name).collect())
    }

    #[test]
    fn rejects_unequal_channels_and_masks() {
        let plain = toml::Table::new;
        assert!(connect(plain(), 3, 5, CLASSES).unwrap().is_empty());
        let e = connect(plain(), 3, 5, Task::Segmentation).unwrap_err().to_string();
        assert!(e.contains("class_centric") && e.contains("masks"), "{e}");
        for table in [toml::toml! { distance = "mean_map_l2" }, toml::toml! { feature = "pooled" }] {
            assert!(connect(table.clone(), 5, 5, CLASSES).unwrap().is_empty());
            let e = connect(table.clone(), 3, 5, CLASSES).unwrap_err().to_string();
            assert!(e.contains("`F1`") && e.contains("3 channels") && e.contains("conv1x1_bn"), "{e}");
            let mut connected = table;
            connected.insert("connector".into(), "conv1x1_bn".into());
            let names = connect(connected, 3, 5, CLASSES).unwrap();
            assert_eq!(
                names,
                [
                    "F1.connector.weight",
                    "F1.bn.weight",
                    "F1.bn.bias",
                    "F1.bn.running_mean",
                    "F1.bn.running_var"
                ]
            );
        }
    }

    #[test]
    fn rejects_invalid_settings() {
        let error = |table: toml::Table| (ENTRY.build)(&table).err().unwrap().to_string();
        let e = error(toml::toml! {
            stages = ["F3", "F4"]
            stage_weights = [1.0]
        });
        assert!(e.contains("stage_weights") && e.contains("2 stages"), "{e}");
        let e = error(toml::toml! { kernel = "poly3" });
        assert!(e.contains("kernel") && e.contains("did you mean `poly2`"), "{e}");
        assert!(error(toml::toml! { lambda = -1.0 }).contains("invalid `lambda`"));
        assert!(error(toml::toml! { stages = [] }).contains("stages"));
    }
}
