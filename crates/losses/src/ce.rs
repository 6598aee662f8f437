//! Cross entropy with the labels (`ce`), the term that every other method is added to.
//!
//! # Paper
//! Label smoothing: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the
//! Inception Architecture for Computer Vision", CVPR 2016, DOI 10.1109/CVPR.2016.308, section 7.
//!
//! # Equation
//! `ce = mean over the labels y that count of (1 - s) * (-ln p_y) + s * mean_c(-ln p_c)`, with
//! `p = softmax(logits)` and smoothing `s`. If no label counts, 0 with a zero gradient.
//!
//! # Inputs
//! Student `logits [B, N]` with classes `[B]`, or `logits [B, N, h, w]` with masks `[B, H, W]`: where
//! the sizes differ, the logits are brought to the masks' (bilinear, half-pixel centers). `tap` names
//! the logits of an exit in place of the last ones.
//!
//! # Defaults and their source
//! No smoothing; 255 is ignored in masks (VOC's and Cityscapes' convention) and nothing in classes.
//!
//! # Where code and paper differ
//! PyTorch gives NaN if no label counts.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("ce")?;
//! let ce = (row.build)(&toml::toml! { label_smoothing = 0.1 })?;
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

use crate::softmax::rows;
use crate::sum::sum;
use crate::{fit, settings};

/// The row of `ce`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "ce",
    summary: "cross entropy with the labels, classes or masks",
    source: "Szegedy et al. 2016, section 7 (label smoothing)",
    defaults: || {
        settings::describe::<CeConfig>(&[
            ("weight", "the whole weight of the labels"),
            ("label_smoothing", "off, as in paper 1's recipe"),
            ("ignore_index", "255 in masks (VOC, Cityscapes), nothing in classes"),
            ("tap", "the last logits; \"exit3.logits\" are those of the third exit"),
        ])
    },
    build: |table| Ok(Box::new(Ce::new(settings::read(table, "ce")?)?)),
};

/// Settings of `ce`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CeConfig {
    /// Weight of the term.
    pub weight: f64,
    /// Part of the target that is shared by all classes, in [0, 1].
    pub label_smoothing: f64,
    /// Label that does not count. Unset: 255 in masks, none in classes.
    pub ignore_index: Option<u32>,
    /// Tap of the logits, as `exit3.logits`. Unset: the last ones.
    pub tap: Option<String>,
}

impl Default for CeConfig {
    fn default() -> Self {
        Self { weight: 1.0, label_smoothing: 0.0, ignore_index: None, tap: None }
    }
}

/// Cross entropy with the labels.
#[derive(Debug)]
pub struct Ce {
    config: CeConfig,
}

impl Ce {
    /// Checks the settings.
    pub fn new(config: CeConfig) -> Result<Self> {
        settings::not_negative("ce", "weight", config.weight)?;
        if !(0.0..=1.0).contains(&config.label_smoothing) {
            return Err(settings::wrong(
                "ce",
                "label_smoothing",
                config.label_smoothing,
                "a number in [0, 1]",
            ));
        }
        Ok(Self { config })
    }

    fn tap(&self) -> &str {
        self.config.tap.as_deref().unwrap_or("logits")
    }

    /// The mean over the labels that count, a scalar.
    pub(crate) fn value(&self, logits: &Tensor, context: &LossContext) -> Result<Tensor> {
        self.of_labels(logits, context.target)
    }

    fn of_labels(&self, logits: &Tensor, target: &Target) -> Result<Tensor> {
        let (labels, ignore) = match &target.device {
            Labels::Classes(t) => (t, self.config.ignore_index),
            Labels::Mask(t) => (t, self.config.ignore_index.or(Some(u32::from(IGNORE_INDEX)))),
        };
        let fits = match (logits.dims(), labels.dims()) {
            ([b, _], [labels]) => b == labels,
            ([b, _, _, _], [labels, h, w]) => b == labels && *h > 0 && *w > 0,
            _ => false,
        };
        if !fits {
            return Err(Error::incompatible(
                "ce",
                format!(
                    "needs logits [B, N] with labels [B], or [B, N, h, w] with [B, H, W]; got {:?} with {:?}",
                    logits.dims(),
                    labels.dims()
                ),
            ));
        }
        let logits = match *labels.dims() {
            [_, h, w] => resize_bilinear(logits, (h, w), false)?,
            _ => logits.clone(),
        };
        let logits = rows(&logits, "ce")?; // [M, N]
        let labels = labels.flatten_all()?;
        let counts = match ignore {
            Some(index) => labels.ne(index)?,
            None => labels.ones_like()?.to_dtype(DType::U8)?,
        };
        let labels = counts.where_cond(&labels, &labels.zeros_like()?)?;
        let (largest, classes) = (largest(&target.host, ignore)?, logits.dim(1)?);
        if largest as usize >= classes {
            return Err(Error::incompatible(
                "ce",
                format!(
                    "found label {largest}, but the logits have {classes} classes; set ignore_index if it is \
                     not to count"
                ),
            ));
        }
        let each = cross_entropy(&logits, &labels, self.config.label_smoothing)?; // [M]
        let counts = counts.to_dtype(each.dtype())?;
        let total = sum(&(each * &counts)?)?;
        Ok(total.div(&sum(&counts)?.maximum(1.0)?)?)
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
        RequiredFeatures { student: vec![self.tap().into()], teacher: vec![] }
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let logits = fit::class_tap(shapes, self.tap(), ENTRY.name)?;
        match (shapes.task, logits.len()) {
            (Task::Classification, 1) | (Task::Segmentation, 3) => Ok(()),
            (Task::Classification, _) => Err(Error::incompatible(
                ENTRY.name,
                format!(
                    "this dataset has one class per image, but the student gives maps of logits {logits:?}"
                ),
            )),
            (Task::Segmentation, _) => Err(Error::incompatible(
                ENTRY.name,
                format!("this dataset has label masks, but the student's logits have the shape {logits:?}"),
            )),
        }
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        Ok(vec![Term::new("ce", self.value(context.student.get(self.tap())?, context)?, self.config.weight)])
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
        Ce::new(settings::read(&table, "ce").unwrap()).unwrap()
    }

    #[test]
    fn ignored_labels_do_not_count() {
        let logits = Tensor::new(&[[0f64, 3f64.ln()], [9., -9.], [0., 0.]], &Device::Cpu).unwrap();
        let classes = |y: [u32; 3]| Target::on_cpu(Labels::Classes(Tensor::new(&y, &Device::Cpu).unwrap()));
        let value = |ce: &Ce, y| ce.of_labels(&logits, &classes(y)).unwrap().to_scalar::<f64>().unwrap();
        let ignoring = ce(toml::toml! { ignore_index = 7 });
        let want = ((4f64 / 3.0).ln() + 2f64.ln()) / 2.0;
        assert!((value(&ignoring, [1, 7, 0]) - want).abs() < 1e-15);
        assert_eq!(value(&ignoring, [7, 7, 7]), 0.0);

        // 255 is a class like any other, unless it stands in a mask.
        let e = ce(toml::Table::new()).of_labels(&logits, &classes([1, 255, 0])).unwrap_err().to_string();
        assert!(e.contains("label 255") && e.contains("2 classes"), "{e}");
        let maps = logits.reshape((3, 2, 1, 1)).unwrap();
        let mask = Tensor::new(&[1u32, 255, 0], &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap();
        let mask = Target::on_cpu(Labels::Mask(mask));
        let got = ce(toml::Table::new()).of_labels(&maps, &mask).unwrap().to_scalar::<f64>().unwrap();
        assert!((got - want).abs() < 1e-15);
    }

    #[test]
    fn small_maps_grow_to_the_masks() {
        // Two pixels become four: 0, 1/4, 3/4, 1 of the way from one to the other.
        let logits = Tensor::new(&[[[[0f64, 4.]], [[0., 0.]]]], &Device::Cpu).unwrap();
        let mask = Target::on_cpu(Labels::Mask(Tensor::new(&[[[0u32, 255, 1, 0]]], &Device::Cpu).unwrap()));
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let want = (softplus(0.0) + softplus(3.0) + softplus(-4.0)) / 3.0;
        let got = ce(toml::Table::new()).of_labels(&logits, &mask).unwrap().to_scalar::<f64>().unwrap();
        assert!((got - want).abs() < 1e-15, "{got} {want}");
    }

    #[test]
    fn misfits_are_told() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let mask = Target::on_cpu(Labels::Mask(zeros(&[1, 4, 4], DType::U32)));
        let e = ce(toml::Table::new())
            .of_labels(&zeros(&[2, 3, 1, 1], DType::F32), &mask)
            .unwrap_err()
            .to_string();
        assert!(e.contains("[2, 3, 1, 1]") && e.contains("[1, 4, 4]"), "{e}");
        let taps = [("logits".to_string(), vec![3])].into();
        let shapes =
            FeatureShapes { student: taps, classes: 3, task: Task::Segmentation, ..Default::default() };
        let params = stillhouse_core::ParamStore::new(DType::F32, &Device::Cpu).unwrap();
        let params = params.builder(stillhouse_core::Rng::new(0));
        let mut plain = ce(toml::Table::new());
        let e = plain.connect(&shapes, &params).unwrap_err().to_string();
        assert!(e.contains("masks") && e.contains("[3]"), "{e}");
        plain.connect(&FeatureShapes { task: Task::Classification, ..shapes }, &params).unwrap();
        let e = (ENTRY.build)(&toml::toml! { label_smoothing = 1.5 }).err().unwrap().to_string();
        assert!(e.contains("`label_smoothing` is 1.5"), "{e}");
        let e = (ENTRY.build)(&toml::toml! { label_smothing = 0.1 }).err().unwrap().to_string();
        assert!(e.contains("did you mean `label_smoothing`"), "{e}");
    }
}
