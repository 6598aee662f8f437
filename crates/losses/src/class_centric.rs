//! Class-centric distillation (`class_centric`): for each class of the batch, the distance between
//! the centers of the teacher's and of the student's feature distributions.
//!
//! # Paper
//! X. Liu, Z. Liu, Y. Lin, S. Wang, X. Zuo, "Class-centric Knowledge Distillation for RSI Scene
//! Classification", Journal of Geo-information Science 25(5), 2023, pp. 1050-1063, DOI
//! 10.12082/dqxxkx.2023.220781; equations (1)-(7), Algorithm 1. The text at hand has no formulas:
//! the equation is a reconstruction, and what it leaves open is a setting, C1 to C6.
//!
//! # Equation
//! With `X_i` the unit channel maps of image i (`C` points of length `d = H * W`), `k(x, y) =
//! (x . y)^2`, class `c` with the images `I_c`, `n_c` of them:
//!
//! ```text
//! L_j = sum_c n_c / B * MMD^2(teacher's points of I_c, student's points of I_c)
//!     = sum_c n_c / B * || mean_{i in I_c} (M_i^T - M_i^S) ||_F^2,    M_i = X_i^T X_i / C
//! class_centric = sum over stages j of beta_j * L_j,                   total (7): ce + lambda * class_centric
//! ```
//!
//! One image per class gives [`nst`](crate::nst), one class [`nst_all`](crate::nst_all); always
//! `nst_all <= class_centric <= nst` with `C4_class_weight = "n_over_b"` and squared distances.
//!
//! # Inputs
//! The maps `[B, C, H, W]` named by `C5_stages` of both, and classes `[B]`. A batch should hold
//! several images of each of its classes (Algorithm 1). The larger map is pooled to the smaller.
//! With a connector: weights `<stage>.connector.weight`, `<stage>.bn.weight`, `<stage>.bn.bias`.
//!
//! # Defaults and their source
//! The feature, the kernel and the weight are NST's, which the paper names as its kin; `n_over_b`
//! makes the ordering hold for any batch; four stages as in the paper's Table 2. The published
//! lambda is not in the text.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("class_centric")?;
//! let settings = toml::toml! {
//!     C5_stages = ["F3", "F4"]
//!     lambda = 200.0
//! };
//! let method = (row.build)(&settings)?;
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

use crate::connector::Conv1x1Bn;
use crate::mmd::{GroupWeight, Groups, Kernel, grouped_mmd2};
use crate::unit::{EPS, safe_sqrt, unit};
use crate::{fit, settings, sum};

/// The row of `class_centric`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "class_centric",
    summary: "distance of the class centers of teacher and student features",
    source: "Liu et al. 2023, equations (1)-(7), reconstructed",
    defaults: || {
        settings::describe::<ClassCentricConfig>(&[
            ("C1_feature", "NST's, to which the paper compares itself"),
            ("C2_kernel", "NST's"),
            ("C3_distance", "NST's; smooth at zero"),
            ("C4_class_weight", "keeps nst_all <= class_centric <= nst for any batch"),
            ("C5_stages", "paper, Table 2"),
            ("C5_stage_weights", "1 for each stage, as NST"),
            ("C6_connector", "channel maps need none"),
            ("lambda", "NST's; the published value is not in the text; try 5 to 1000"),
            ("bn_eps", "PyTorch"),
        ])
    },
    build: |table| Ok(Box::new(ClassCentric::new(settings::read(table, "class_centric")?)?)),
};

/// What a point of the distribution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Each channel's flattened map, of unit length: C points of length H * W for an image.
    #[default]
    ChannelMap,
    /// The mean over the map, of unit length: one point of length C for an image.
    Pooled,
}

/// How far two centers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Squared distance in the kernel's space.
    #[default]
    Mmd2,
    /// Its square root.
    Mmd,
    /// Mean squared difference of the class means of the feature tensors; no kernel.
    MeanMapL2,
}

/// What brings the student's channels to the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connector {
    /// Nothing.
    #[default]
    None,
    /// 1x1 convolution without bias, then batch norm; after the pooling.
    #[serde(rename = "conv1x1_bn")]
    Conv1x1Bn,
}

/// Settings of `class_centric`. C1 to C6 are what the paper leaves open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassCentricConfig {
    /// What a point of the distribution is.
    #[serde(rename = "C1_feature")]
    pub feature: Feature,
    /// Similarity of two points.
    #[serde(rename = "C2_kernel")]
    pub kernel: Kernel,
    /// How far two centers are.
    #[serde(rename = "C3_distance")]
    pub distance: Distance,
    /// How classes are weighted.
    #[serde(rename = "C4_class_weight")]
    pub class_weight: GroupWeight,
    /// Taps that enter.
    #[serde(rename = "C5_stages")]
    pub stages: Vec<String>,
    /// Their weights beta; unset: 1 for each.
    #[serde(rename = "C5_stage_weights")]
    pub stage_weights: Option<Vec<f64>>,
    /// What brings the student's channels to the teacher's.
    #[serde(rename = "C6_connector")]
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
            stages: settings::four_stages(),
            stage_weights: None,
            connector: Connector::default(),
            lambda: 50.0,
            bn_eps: 1e-5,
        }
    }
}

/// Class-centric distillation.
#[derive(Debug)]
pub struct ClassCentric {
    config: ClassCentricConfig,
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    tap: String,
    weight: f64,
    /// Made by `connect`.
    connector: Option<Conv1x1Bn>,
}

impl ClassCentric {
    /// Checks the settings.
    pub fn new(config: ClassCentricConfig) -> Result<Self> {
        settings::stages(ENTRY.name, "C5_stages", &config.stages)?;
        let weights = config.stage_weights.clone().unwrap_or_else(|| vec![1.0; config.stages.len()]);
        if weights.len() != config.stages.len() {
            let expected = format!("one number for each of the {} stages", config.stages.len());
            return Err(settings::wrong(ENTRY.name, "C5_stage_weights", format!("{weights:?}"), &expected));
        }
        for weight in &weights {
            settings::not_negative(ENTRY.name, "C5_stage_weights", *weight)?;
        }
        settings::not_negative(ENTRY.name, "lambda", config.lambda)?;
        settings::above_zero(ENTRY.name, "bn_eps", config.bn_eps)?;
        let stages = config.stages.iter().cloned().zip(weights);
        let stages = stages.map(|(tap, weight)| Stage { tap, weight, connector: None }).collect();
        Ok(Self { config, stages })
    }

    /// The loss of one stage before its weight, a scalar.
    fn stage(&self, stage: &Stage, context: &LossContext, groups: &Groups) -> Result<Tensor> {
        let (mut student, teacher) = fit::map_pair(context, &stage.tap, ENTRY.name)?;
        if self.config.connector == Connector::Conv1x1Bn {
            let connector = stage.connector.as_ref().ok_or_else(|| {
                Error::incompatible(
                    ENTRY.name,
                    format!("the connector at `{}` was not made: connect() comes first", stage.tap),
                )
            })?;
            student = connector.forward(&student, context.train)?;
        }
        let (student, teacher) = (self.points(&student)?, self.points(&teacher)?);
        let values = match self.config.distance {
            Distance::Mmd2 => grouped_mmd2(&teacher, &student, groups, self.config.kernel)?,
            Distance::Mmd => safe_sqrt(&grouped_mmd2(&teacher, &student, groups, self.config.kernel)?)?,
            Distance::MeanMapL2 => {
                // The linear kernel on whole feature tensors: one point for each image.
                let (b, p, d) = student.dims3()?;
                let whole = |points: &Tensor| points.reshape((b, 1, p * d));
                let squared = grouped_mmd2(&whole(&teacher)?, &whole(&student)?, groups, Kernel::Linear)?;
                (squared / (p * d) as f64)?
            }
        };
        groups.average(&values, self.config.class_weight)
    }

    /// The points of the distribution, `[B, C, H, W] -> [B, C, H * W]` or `[B, 1, C]`.
    fn points(&self, map: &Tensor) -> Result<Tensor> {
        match self.config.feature {
            Feature::ChannelMap => unit(&map.flatten_from(2)?, EPS),
            Feature::Pooled => unit(&map.flatten_from(2)?.mean(2)?.unsqueeze(1)?, EPS),
        }
    }
}

impl Distiller for ClassCentric {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: self.config.stages.clone(), teacher: self.config.stages.clone() }
    }

    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()> {
        fit::class_labels(shapes, ENTRY.name)?;
        for stage in &mut self.stages {
            let (student, teacher) = fit::map_channels(shapes, &stage.tap, ENTRY.name)?;
            if self.config.connector == Connector::Conv1x1Bn {
                let at = params.pp(&stage.tap);
                stage.connector = Some(Conv1x1Bn::new(student, teacher, self.config.bn_eps, &at)?);
                continue;
            }
            let why = match (self.config.feature, self.config.distance) {
                _ if student == teacher => continue,
                (_, Distance::MeanMapL2) => "C3_distance = \"mean_map_l2\" compares whole maps",
                (Feature::Pooled, _) => "C1_feature = \"pooled\" compares vectors over the channels",
                (Feature::ChannelMap, _) => continue,
            };
            return Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "{why}, but at `{}` the student has {student} channels and the teacher {teacher}; set \
                     C6_connector = \"conv1x1_bn\"",
                    stage.tap
                ),
            ));
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let classes = context.target.host_classes(ENTRY.name)?.to_vec1::<u32>()?;
        let groups = Groups::by_id(&classes)?;
        let values =
            self.stages.iter().map(|stage| Ok((self.stage(stage, context, &groups)? * stage.weight)?));
        let value = sum::stages(ENTRY.name, values)?;
        Ok(vec![Term::new("class_centric", value, self.config.lambda)])
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
        let taps = |c: usize| [("F1".to_string(), vec![c, 4, 4])].into();
        let shapes =
            FeatureShapes { student: taps(student), teacher: taps(teacher), task, ..Default::default() };
        let mut table = table;
        table.insert("C5_stages".into(), vec!["F1"].into());
        (ENTRY.build)(&table)?.connect(&shapes, &params.builder(Rng::new(0)))?;
        Ok(params.all().into_iter().map(|p| p.name).collect())
    }

    #[test]
    fn misfits_are_told_before_the_first_step() {
        let plain = toml::Table::new;
        assert!(connect(plain(), 3, 5, CLASSES).unwrap().is_empty());
        let e = connect(plain(), 3, 5, Task::Segmentation).unwrap_err().to_string();
        assert!(e.contains("class_centric") && e.contains("masks"), "{e}");
        for table in [toml::toml! { C3_distance = "mean_map_l2" }, toml::toml! { C1_feature = "pooled" }] {
            assert!(connect(table.clone(), 5, 5, CLASSES).unwrap().is_empty());
            let e = connect(table.clone(), 3, 5, CLASSES).unwrap_err().to_string();
            assert!(e.contains("`F1`") && e.contains("3 channels") && e.contains("conv1x1_bn"), "{e}");
            let mut connected = table;
            connected.insert("C6_connector".into(), "conv1x1_bn".into());
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
    fn settings_are_checked() {
        let error = |table: toml::Table| (ENTRY.build)(&table).err().unwrap().to_string();
        let e = error(toml::toml! {
            C5_stages = ["F3", "F4"]
            C5_stage_weights = [1.0]
        });
        assert!(e.contains("C5_stage_weights") && e.contains("2 stages"), "{e}");
        let e = error(toml::toml! { C2_kernel = "poly3" });
        assert!(e.contains("C2_kernel") && e.contains("did you mean `poly2`"), "{e}");
        assert!(error(toml::toml! { lambda = -1.0 }).contains("`lambda` is -1"));
        assert!(error(toml::toml! { C5_stages = [] }).contains("C5_stages"));
    }
}
