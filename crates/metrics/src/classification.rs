//! Classification metrics.
//!
//! With counts `m` (rows truth, columns prediction), `tp_c = m_cc`, `support_c` the sum of row `c`
//! and `predicted_c` of column `c`:
//!
//! - overall accuracy `sum_c tp_c / n`
//! - recall `tp_c / support_c` (remote sensing calls it per-class accuracy), precision
//!   `tp_c / predicted_c`, F1 `2 tp_c / (support_c + predicted_c)`
//! - Cohen's kappa `1 - sum w_ij m_ij / sum w_ij e_ij` with `e_ij = support_i predicted_j / n`
//!   (Cohen 1960; weighted: Cohen 1968)

use std::any::Any;

use candle_core::Tensor;
use stillhouse_core::data::{Labels, Task};
use stillhouse_core::metric::{Metric, MetricBuild, Score};
use stillhouse_core::registry::Entry;

use crate::numeric::{mean_defined, mean_zero, ratio};
use crate::topk::{RankCounts, argmax, rank};
use crate::{ConfusionMatrix, batch};

/// Registry entry of [`Accuracy`].
pub const ENTRY: Entry<MetricBuild> = Entry {
    name: "accuracy",
    summary: "top-1 and top-5 accuracy, macro recall and F1, Cohen's kappa",
    source: "Cohen, A coefficient of agreement for nominal scales (1960); overall accuracy as paper 1, Tables 3-7",
    defaults: String::new,
    build: |classes| Box::new(Accuracy::new(classes)),
};

/// Scores of a classification.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Samples by class.
    pub support: Vec<u64>,
    /// Fraction of correct predictions; NaN without samples.
    pub overall_accuracy: f64,
    /// Fraction of the class's samples that are predicted correctly; NaN for a class without samples.
    pub recall: Vec<f64>,
    /// Fraction of the class's predictions that are correct; NaN for a class never predicted.
    pub precision: Vec<f64>,
    /// F1, `2 tp / (support + predicted)`; NaN for a class in neither truth nor prediction.
    pub f1: Vec<f64>,
    /// Mean recall of the classes with samples: balanced accuracy.
    pub macro_recall_present: f64,
    /// Mean recall of all classes, with 0 for undefined values.
    pub macro_recall_zero: f64,
    /// Mean precision of all classes, with 0 for undefined values.
    pub macro_precision_zero: f64,
    /// Mean F1 of all classes, with 0 for undefined values.
    pub macro_f1_zero: f64,
    /// Mean F1 of the classes in truth or prediction.
    pub macro_f1_present: f64,
    /// Mean F1 weighted by support.
    pub weighted_f1: f64,
    /// Cohen's kappa; NaN if chance agreement is 1.
    pub kappa: f64,
    /// Kappa with weights `|i - j|`, for ordered classes.
    pub kappa_linear: f64,
    /// Kappa with weights `(i - j)^2`, for ordered classes.
    pub kappa_quadratic: f64,
}

impl Scores {
    /// Computes the scores from a confusion matrix.
    pub fn new(matrix: &ConfusionMatrix) -> Self {
        let (support, predicted, tp) = (matrix.support(), matrix.predicted(), matrix.true_positives());
        let n = matrix.total() as f64;
        let by_class = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..matrix.classes()).map(|c| f(tp[c] as f64, support[c] as f64, predicted[c] as f64)).collect()
        };
        let recall = by_class(&|tp, s, _| ratio(tp, s));
        let precision = by_class(&|tp, _, p| ratio(tp, p));
        let f1 = by_class(&|tp, s, p| ratio(2.0 * tp, s + p));
        // a class with undefined F1 has no support and adds 0
        let weighted: f64 = by_class(&|tp, s, p| s * 2.0 * tp / (s + p).max(1.0)).iter().sum();
        Self {
            overall_accuracy: ratio(matrix.correct() as f64, n),
            macro_recall_present: mean_defined(&recall),
            macro_recall_zero: mean_zero(&recall),
            macro_precision_zero: mean_zero(&precision),
            macro_f1_zero: mean_zero(&f1),
            macro_f1_present: mean_defined(&f1),
            weighted_f1: ratio(weighted, n),
            kappa: kappa(matrix, |distance| f64::from(u8::from(distance > 0.0))),
            kappa_linear: kappa(matrix, |distance| distance),
            kappa_quadratic: kappa(matrix, |distance| distance * distance),
            support,
            recall,
            precision,
            f1,
        }
    }
}

/// Computes `1 - n sum w m / sum w support predicted`, with `w` a function of the distance `|i - j|`.
fn kappa(matrix: &ConfusionMatrix, weight: impl Fn(f64) -> f64) -> f64 {
    let (support, predicted, c) = (matrix.support(), matrix.predicted(), matrix.classes());
    let (mut observed, mut chance) = (0.0, 0.0);
    for (i, &s) in support.iter().enumerate() {
        for (j, &p) in predicted.iter().enumerate() {
            let w = weight(i.abs_diff(j) as f64);
            observed += w * matrix.counts()[i * c + j] as f64;
            chance += w * s as f64 * p as f64;
        }
    }
    1.0 - ratio(observed * matrix.total() as f64, chance)
}

/// Classification metric of an evaluation.
///
/// Scores: `top1` (overall accuracy), `top5`, `macro_recall` and `macro_f1` (over the classes that
/// occur), `weighted_f1`, `kappa`, and the counts `correct` and `total`.
#[derive(Debug, Clone)]
pub struct Accuracy {
    matrix: ConfusionMatrix,
    ranks: RankCounts,
}

impl Accuracy {
    /// Creates a metric without counts.
    pub fn new(classes: usize) -> Self {
        Self { matrix: ConfusionMatrix::new(classes), ranks: RankCounts::new(classes) }
    }

    /// Returns the counts so far.
    pub fn matrix(&self) -> &ConfusionMatrix {
        &self.matrix
    }
}

impl Metric for Accuracy {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn supports(&self, task: Task) -> bool {
        task == Task::Classification
    }

    fn update(&mut self, logits: &Tensor, target: &Labels) -> stillhouse_core::Result<()> {
        target.classes(ENTRY.name)?;
        let (matrix, ranks) = (&mut self.matrix, &mut self.ranks);
        batch::for_each(ENTRY.name, matrix.classes(), logits, target, |scores, label| {
            if let (Some(predicted), Some(rank)) = (argmax(scores), rank(scores, label as usize)) {
                matrix.add(label, predicted as u32)?;
                ranks.add(rank)?;
            }
            Ok(())
        })
    }

    fn merge(&mut self, other: &dyn Metric) -> stillhouse_core::Result<()> {
        let other = batch::same_kind(self, other)?;
        self.matrix.merge(&other.matrix)?;
        Ok(self.ranks.merge(&other.ranks)?)
    }

    fn scores(&self) -> Vec<Score> {
        let scores = Scores::new(&self.matrix);
        [
            ("top1", scores.overall_accuracy),
            ("top5", self.ranks.top(5)),
            ("macro_recall", scores.macro_recall_present),
            ("macro_f1", scores.macro_f1_present),
            ("weighted_f1", scores.weighted_f1),
            ("kappa", scores.kappa),
            ("correct", self.matrix.correct() as f64),
            ("total", self.matrix.total() as f64),
        ]
        .map(|(name, value)| Score { name: name.to_string(), value })
        .into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn matches_known_values() {
        // rows truth: [2, 1, 0], [0, 1, 0], class 2 in neither
        let s = Scores::new(&ConfusionMatrix::from_labels(3, &[0, 0, 0, 1], &[0, 0, 1, 1]).unwrap());
        assert_eq!(s.overall_accuracy, 0.75);
        assert_eq!((s.recall[0], s.precision[1], s.f1[0]), (2.0 / 3.0, 0.5, 0.8));
        assert!(s.recall[2].is_nan() && s.precision[2].is_nan() && s.f1[2].is_nan());
        assert_eq!(s.macro_recall_present, (2.0 / 3.0 + 1.0) / 2.0);
        assert_eq!(s.macro_recall_zero, (2.0 / 3.0 + 1.0) / 3.0);
        assert!((s.weighted_f1 - (3.0 * 0.8 + 2.0 / 3.0) / 4.0).abs() < 1e-15);
        // chance agreement (3 * 2 + 1 * 2) / 16 = 0.5
        assert!((s.kappa - 0.5).abs() < 1e-15);
    }

    #[test]
    fn has_no_kappa_for_one_class() {
        let s = Scores::new(&ConfusionMatrix::from_labels(3, &[1; 4], &[1; 4]).unwrap());
        assert!(s.kappa.is_nan() && s.kappa_linear.is_nan() && s.kappa_quadratic.is_nan());
        assert_eq!(s.overall_accuracy, 1.0);
    }

    #[test]
    fn weights_kappa_by_distance() {
        let near = Scores::new(&ConfusionMatrix::from_labels(3, &[0, 1, 2, 2], &[0, 1, 2, 1]).unwrap());
        let far = Scores::new(&ConfusionMatrix::from_labels(3, &[0, 1, 2, 2], &[0, 1, 2, 0]).unwrap());
        assert_eq!(near.overall_accuracy, far.overall_accuracy);
        assert!(near.kappa_quadratic > near.kappa_linear && near.kappa_linear > far.kappa_linear);
        assert!(far.kappa_linear > far.kappa_quadratic);
    }

    #[test]
    fn counts_nan_logits_as_wrong() {
        let mut metric = Accuracy::new(3);
        let logits = Tensor::full(f32::NAN, (2, 3), &Device::Cpu).unwrap();
        let target = Labels::Classes(Tensor::new(&[1u32, 2], &Device::Cpu).unwrap());
        metric.update(&logits, &target).unwrap();
        let score = |name: &str| metric.scores().into_iter().find(|s| s.name == name).unwrap().value;
        assert_eq!((score("top1"), score("correct"), score("total")), (0.0, 0.0, 2.0));
    }

    #[test]
    fn rejects_masks() {
        let logits = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mask = Labels::Mask(Tensor::zeros((1, 2, 2), candle_core::DType::U32, &Device::Cpu).unwrap());
        let e = Accuracy::new(3).update(&logits, &mask).unwrap_err().to_string();
        assert!(e.contains("accuracy") && e.contains("one class per image"), "{e}");
    }
}
