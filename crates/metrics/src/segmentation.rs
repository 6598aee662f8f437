//! Segmentation metrics, from one confusion matrix over all pixels of all images (never a mean over
//! images). Pixels with the ignore label are not counted.
//!
//! *Equation.* `IoU_c = tp_c / (support_c + predicted_c - tp_c)`; its mean is paper 2, equation 11
//! (over all classes, including background), Everingham et al. (PASCAL VOC, 2010) and Long,
//! Shelhamer and Darrell (2015), section 5. Three means are in use, which agree if every class
//! occurs in the truth:
//!
//! - over the classes in truth or prediction: [`Scores::miou_union`], reported as `miou`
//! - over the classes in the truth: [`Scores::miou_truth`]
//! - over all classes, with 0 for absent classes: [`Scores::miou_zero`], as public Cityscapes code

use std::any::Any;

use candle_core::Tensor;
use stillhouse_core::data::{Labels, Task};
use stillhouse_core::metric::{Metric, MetricBuild, Score};
use stillhouse_core::registry::Entry;

use crate::error::same_length;
use crate::numeric::{mean, mean_defined, mean_zero, ratio};
use crate::topk::argmax;
use crate::{ConfusionMatrix, Result, batch};

/// Registry entry of [`Segmentation`].
pub const ENTRY: Entry<MetricBuild> = Entry {
    name: "segmentation",
    summary: "mean IoU (three conventions), pixel and class accuracy, IoU of each class",
    source: "paper 2, equation 11; Long, Shelhamer and Darrell, Fully convolutional networks (2015), section 5",
    defaults: String::new,
    build: |classes| Box::new(Segmentation::new(classes)),
};

/// Counts the pixels of label masks whose truth is not `ignore`.
///
/// # Errors
/// Masks of different lengths, or a class out of range.
pub fn confusion(classes: usize, ignore: u32, truth: &[u32], predicted: &[u32]) -> Result<ConfusionMatrix> {
    same_length("pixels of truth and prediction", truth.len(), predicted.len())?;
    let mut matrix = ConfusionMatrix::new(classes);
    for (&t, &p) in truth.iter().zip(predicted).filter(|(t, _)| **t != ignore) {
        matrix.add(t, p)?;
    }
    Ok(matrix)
}

/// Scores of a segmentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Fraction of correct pixels; NaN without pixels.
    pub pixel_accuracy: f64,
    /// Fraction of correct pixels by true class; NaN for a class without pixels.
    pub class_accuracy: Vec<f64>,
    /// Mean of the defined class accuracies.
    pub mean_class_accuracy: f64,
    /// Intersection over union by class; NaN for a class in neither truth nor prediction.
    pub iou: Vec<f64>,
    /// Mean IoU of the classes in truth or prediction.
    pub miou_union: f64,
    /// Mean IoU of the classes in the truth.
    pub miou_truth: f64,
    /// Mean IoU of all classes, with 0 for absent classes.
    pub miou_zero: f64,
    /// IoU weighted by the class's fraction of the true pixels.
    pub frequency_weighted_iou: f64,
}

impl Scores {
    /// Computes the scores from a confusion matrix.
    pub fn new(matrix: &ConfusionMatrix) -> Self {
        let (support, predicted, tp) = (matrix.support(), matrix.predicted(), matrix.true_positives());
        let n = matrix.total() as f64;
        let classes = || 0..matrix.classes();
        let class_accuracy: Vec<f64> = classes().map(|c| ratio(tp[c] as f64, support[c] as f64)).collect();
        let iou: Vec<f64> =
            classes().map(|c| ratio(tp[c] as f64, (support[c] + predicted[c] - tp[c]) as f64)).collect();
        let present = || classes().filter(|&c| support[c] > 0);
        Self {
            pixel_accuracy: ratio(matrix.correct() as f64, n),
            mean_class_accuracy: mean_defined(&class_accuracy),
            miou_union: mean_defined(&iou),
            miou_truth: mean(present().map(|c| iou[c])),
            miou_zero: mean_zero(&iou),
            frequency_weighted_iou: ratio(present().map(|c| support[c] as f64 * iou[c]).sum(), n),
            class_accuracy,
            iou,
        }
    }
}

/// Segmentation metric of an evaluation.
///
/// Scores: `miou` (over the classes in truth or prediction), `miou_truth`, `pixel_accuracy`,
/// `mean_class_accuracy`, `frequency_weighted_iou`, the pixel counts `correct` and `total`, and
/// `iou.<class>` for each class.
#[derive(Debug, Clone)]
pub struct Segmentation(ConfusionMatrix);

impl Segmentation {
    /// Creates a metric without counts.
    pub fn new(classes: usize) -> Self {
        Self(ConfusionMatrix::new(classes))
    }

    /// Returns the counts so far.
    pub fn matrix(&self) -> &ConfusionMatrix {
        &self.0
    }
}

impl Metric for Segmentation {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn supports(&self, task: Task) -> bool {
        task == Task::Segmentation
    }

    fn update(&mut self, logits: &Tensor, target: &Labels) -> stillhouse_core::Result<()> {
        target.mask(ENTRY.name)?;
        let matrix = &mut self.0;
        batch::for_each(ENTRY.name, matrix.classes(), logits, target, |scores, label| {
            argmax(scores).map_or(Ok(()), |predicted| matrix.add(label, predicted as u32))
        })
    }

    fn merge(&mut self, other: &dyn Metric) -> stillhouse_core::Result<()> {
        let other = batch::same_kind(self, other)?;
        Ok(self.0.merge(&other.0)?)
    }

    fn scores(&self) -> Vec<Score> {
        let scores = Scores::new(&self.0);
        let named = [
            ("miou", scores.miou_union),
            ("miou_truth", scores.miou_truth),
            ("pixel_accuracy", scores.pixel_accuracy),
            ("mean_class_accuracy", scores.mean_class_accuracy),
            ("frequency_weighted_iou", scores.frequency_weighted_iou),
            ("correct", self.0.correct() as f64),
            ("total", self.0.total() as f64),
        ];
        let named = named.map(|(name, value)| Score { name: name.to_string(), value });
        let classes = scores.iou.iter().enumerate();
        let classes = classes.map(|(c, &value)| Score { name: format!("iou.{c}"), value });
        named.into_iter().chain(classes).collect()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn matches_known_values() {
        // class 0: tp 1, support 2, predicted 1; class 1: tp 1, support 1, predicted 2; class 2 only predicted
        let m = confusion(4, 255, &[0, 0, 1, 255, 255, 0], &[0, 1, 1, 3, 0, 2]).unwrap();
        assert_eq!(m.total(), 4);
        let s = Scores::new(&m);
        assert_eq!((s.iou[0], s.iou[1], s.iou[2]), (1.0 / 3.0, 0.5, 0.0));
        assert!(s.iou[3].is_nan());
        assert_eq!(s.miou_union, (1.0 / 3.0 + 0.5) / 3.0);
        assert_eq!(s.miou_truth, (1.0 / 3.0 + 0.5) / 2.0);
        assert_eq!(s.miou_zero, (1.0 / 3.0 + 0.5) / 4.0);
        assert_eq!(s.frequency_weighted_iou, (3.0 * (1.0 / 3.0) + 0.5) / 4.0);
        assert_eq!(s.pixel_accuracy, 0.5);
    }

    #[test]
    fn skips_ignored_pixels() {
        assert_eq!(confusion(2, 255, &[255], &[77]).unwrap().total(), 0);
        assert!(confusion(2, 255, &[1], &[77]).is_err());
        assert!(confusion(2, 255, &[7], &[0]).is_err());
        assert!(confusion(2, 0, &[0, 1], &[0]).is_err());
        let s = Scores::new(&confusion(2, 255, &[255; 3], &[0; 3]).unwrap());
        assert!(s.pixel_accuracy.is_nan() && s.miou_union.is_nan() && s.miou_truth.is_nan());
        assert_eq!(s.miou_zero, 0.0);
    }

    #[test]
    fn predicts_the_highest_score() {
        let dev = &Device::Cpu;
        // [1, 2, 1, 3]: predictions 0, 1, 0 (equal scores: the lower index)
        let logits = Tensor::new(&[[[[2f32, 0., 1.]], [[1., 5., 1.]]]], dev).unwrap();
        let target = Labels::Mask(Tensor::new(&[[[0u32, 0, 255]]], dev).unwrap());
        let mut metric = Segmentation::new(2);
        metric.update(&logits, &target).unwrap();
        assert_eq!(metric.matrix().counts(), [1, 1, 0, 0]);
        let classes = Labels::Classes(Tensor::new(&[0u32], dev).unwrap());
        let e = metric.update(&logits, &classes).unwrap_err().to_string();
        assert!(e.contains("label masks"), "{e}");
    }
}
