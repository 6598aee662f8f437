//! Cross entropy with the labels (`ce`), added to every other method.
//!
//! # Paper
//! Label smoothing: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the
//! Inception Architecture for Computer Vision", CVPR 2016, DOI 10.1109/CVPR.2016.308, section 7.
//!
//! # Equation
//! `ce = mean over labels y that are not ignored of (1 - s) * (-ln p_y) + s * mean_c(-ln p_c)`, with
//! `p = softmax(logits)` and smoothing `s`. If all labels are ignored, 0 with a zero gradient.
//!
//! # Inputs
//! Student `logits [B, N]` with classes `[B]`, or `logits [B, N, h, w]` with masks `[B, H, W]`: if the
//! sizes differ, the logits are resized to the masks' (bilinear, half-pixel centers). `feature` names
//! the logits of an exit instead of the last ones.
//!
//! # Defaults and their source
//! No smoothing. Masks ignore 255 (the convention of VOC and Cityscapes), classes ignore no label.
//!
//! # Where code and paper differ
//! PyTorch returns NaN if all labels are ignored.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("ce")?;
//! let ce = (entry.build)(&toml::toml! { label_smoothing = 0.1 })?;
//! assert!(ce.required_features().teacher.is_empty());
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::data::{IGNORE_INDEX, Labels, Target, Task};
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result};
use stillhouse_ops::graph::{cross_entropy, resize_bilinear};

use crate::common::reduce::sum;
use crate::common::softmax::rows;
use crate::common::{checks, config};

/// Registry entry of `ce`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "ce",
    summary: "cross entropy with the labels, classes or masks",
    source: "Szegedy et al. 2016, section 7 (label smoothing)",
    defaults: || {
        config::document::<CeConfig>(&[
            ("weight", "full weight of the labels"),
            ("label_smoothing", "off, as in paper 1's recipe"),
            ("ignore_index", "255 in masks (VOC, Cityscapes), none in classes"),
            ("feature", "the last logits; \"exit3.logits\" are those of the third exit"),
        ])
    },
    build: |table| Ok(Box::new(Ce::new(config::parse(table, ENTRY.name)?)?)),
};

/// Settings of `ce`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CeConfig {
    /// Weight of the term.
    pub weight: f64,
    /// Fraction of the target distributed over all classes, in [0, 1].
    pub label_smoothing: f64,
    /// Ignored label. Unset: 255 in masks, none in classes.
    pub ignore_index: Option<u32>,
    /// Name of the logits, for example `exit3.logits`. Unset: the last logits.
    pub feature: Option<String>,
}

impl Default for CeConfig {
    fn default() -> Self {
        Self { weight: 1.0, label_smoothing: 0.0, ignore_index: None, feature: None }
    }
}

/// Mean cross entropy over the labels other than `ignore_index`, a scalar; 0 if there are none.
///
/// Logits are `[B, N]` with labels `[B]`, or `[B, N, h, w]` with labels `[B, H, W]`, in which case they
/// are resized to the labels' size. Labels are u32 below N or `ignore_index`.
///
/// # Errors
/// If the shapes do not match, or for a label out of range on the CPU.
pub fn ce_loss(
    logits: &Tensor,
    labels: &Tensor,
    label_smoothing: f64,
    ignore_index: Option<u32>,
) -> Result<Tensor> {
    let fits = match (logits.dims(), labels.dims()) {
        ([b, _], [labels]) => b == labels,
        ([b, _, _, _], [labels, h, w]) => b == labels && *h > 0 && *w > 0,
        _ => false,
    };
    if !fits {
        return Err(Error::incompatible(
            ENTRY.name,
            format!(
                "expected logits [B, N] with labels [B], or [B, N, h, w] with [B, H, W], found {:?} with {:?}",
                logits.dims(),
                labels.dims()
            ),
        ));
    }
    let logits = match *labels.dims() {
        [_, h, w] => resize_bilinear(logits, (h, w), false)?,
        _ => logits.clone(),
    };
    let logits = rows(&logits)?; // [M, N]
    let labels = labels.flatten_all()?;
    let counted = match ignore_index {
        Some(index) => labels.ne(index)?,
        None => labels.ones_like()?.to_dtype(DType::U8)?,
    };
    let labels = counted.where_cond(&labels, &labels.zeros_like()?)?;
    let each = cross_entropy(&logits, &labels, label_smoothing)?; // [M]
    let counted = counted.to_dtype(each.dtype())?;
    let total = sum(&(each * &counted)?)?;
    Ok(total.div(&sum(&counted)?.maximum(1.0)?)?)
}

/// Cross entropy with the labels.
#[derive(Debug)]
pub struct Ce {
    config: CeConfig,
}

impl Ce {
    /// Validates the settings.
    pub fn new(config: CeConfig) -> Result<Self> {
        config::require_non_negative(ENTRY.name, "weight", config.weight)?;
        config::require_fraction(ENTRY.name, "label_smoothing", config.label_smoothing)?;
        Ok(Self { config })
    }

    fn feature(&self) -> &str {
        self.config.feature.as_deref().unwrap_or("logits")
    }

    /// Cross entropy of logits with the target's labels, a scalar.
    pub(crate) fn value(&self, logits: &Tensor, target: &Target) -> Result<Tensor> {
        let (labels, ignore) = match &target.device {
            Labels::Classes(t) => (t, self.config.ignore_index),
            Labels::Mask(t) => (t, self.config.ignore_index.or(Some(u32::from(IGNORE_INDEX)))),
        };
        let (largest, classes) = (largest(&target.host, ignore)?, logits.dims().get(1).copied());
        if let Some(classes) = classes
            && largest as usize >= classes
        {
            return Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "expected labels below {classes}, the number of logits, found label {largest}; set \
                     ignore_index to ignore it"
                ),
            ));
        }
        ce_loss(logits, labels, self.config.label_smoothing, ignore)
    }
}

/// The largest label that is not ignored.
fn largest(labels: &Labels, ignore: Option<u32>) -> Result<u32> {
    let labels = labels.tensor().flatten_all()?.to_vec1::<u32>()?;
    Ok(labels.into_iter().filter(|label| Some(*label) != ignore).max().unwrap_or(0))
}

impl Distiller for Ce {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.feature().into()], teacher: vec![] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let logits = checks::require_logits_at(shapes, self.feature(), ENTRY.name)?;
        let expected = match (shapes.task, logits.len()) {
            (Task::Classification, 1) | (Task::Segmentation, 3) => return Ok(()),
            (Task::Classification, _) => "logits [N] for a dataset of one class per image",
            (Task::Segmentation, _) => "logits [N, H, W] for a dataset of label masks",
        };
        Err(Error::incompatible(ENTRY.name, format!("expected {expected}, found the shape {logits:?}")))
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let value = self.value(context.student.get(self.feature())?, context.target)?;
        Ok(vec![Term::new("ce", value, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("ce".into(), self.config.weight)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn ce(table: toml::Table) -> Ce {
        Ce::new(config::parse(&table, "ce").unwrap()).unwrap()
    }

    #[test]
    fn ignores_labels() {
        let logits = Tensor::new(&[[0f64, 3f64.ln()], [9., -9.], [0., 0.]], &Device::Cpu).unwrap();
        let classes = |y: [u32; 3]| Target::on_cpu(Labels::Classes(Tensor::new(&y, &Device::Cpu).unwrap()));
        let value = |ce: &Ce, y| ce.value(&logits, &classes(y)).unwrap().to_scalar::<f64>().unwrap();
        let ignoring = ce(toml::toml! { ignore_index = 7 });
        let want = ((4f64 / 3.0).ln() + 2f64.ln()) / 2.0;
        assert!((value(&ignoring, [1, 7, 0]) - want).abs() < 1e-15);
        assert_eq!(value(&ignoring, [7, 7, 7]), 0.0);

        // 255 is ignored in masks only.
        let e = ce(toml::Table::new()).value(&logits, &classes([1, 255, 0])).unwrap_err().to_string();
        assert!(e.contains("label 255") && e.contains("below 2"), "{e}");
        let maps = logits.reshape((3, 2, 1, 1)).unwrap();
        let mask = Tensor::new(&[1u32, 255, 0], &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap();
        let mask = Target::on_cpu(Labels::Mask(mask));
        let got = ce(toml::Table::new()).value(&maps, &mask).unwrap().to_scalar::<f64>().unwrap();
        assert!((got - want).abs() < 1e-15);
    }

    #[test]
    fn resizes_logits_to_the_masks() {
        // Two pixels become four, at 0, 1/4, 3/4 and 1 between the two.
        let logits = Tensor::new(&[[[[0f64, 4.]], [[0., 0.]]]], &Device::Cpu).unwrap();
        let mask = Target::on_cpu(Labels::Mask(Tensor::new(&[[[0u32, 255, 1, 0]]], &Device::Cpu).unwrap()));
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let want = (softplus(0.0) + softplus(3.0) + softplus(-4.0)) / 3.0;
        let got = ce(toml::Table::new()).value(&logits, &mask).unwrap().to_scalar::<f64>().unwrap();
        assert!((got - want).abs() < 1e-15, "{got} {want}");
    }

    #[test]
    fn rejects_mismatched_labels_and_settings() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let mask = Target::on_cpu(Labels::Mask(zeros(&[1, 4, 4], DType::U32)));
        let e =
            ce(toml::Table::new()).value(&zeros(&[2, 3, 1, 1], DType::F32), &mask).unwrap_err().to_string();
        assert!(e.contains("[2, 3, 1, 1]") && e.contains("[1, 4, 4]"), "{e}");
        let features = [("logits".to_string(), vec![3])].into();
        let shapes =
            FeatureShapes { student: features, classes: 3, task: Task::Segmentation, ..Default::default() };
        let params = stillhouse_core::ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let params = params.builder(stillhouse_core::Rng::new(0));
        let mut plain = ce(toml::Table::new());
        let e = plain.connect(&shapes, &params).unwrap_err().to_string();
        assert!(e.contains("masks") && e.contains("[3]"), "{e}");
        plain.connect(&FeatureShapes { task: Task::Classification, ..shapes }, &params).unwrap();
        let e = (ENTRY.build)(&toml::toml! { label_smoothing = 1.5 }).err().unwrap().to_string();
        assert!(e.contains("`label_smoothing`"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { label_smothing = 0.1 }).err().unwrap().to_string();
        assert!(e.contains("did you mean `label_smoothing`"), "{e}");
    }
}
