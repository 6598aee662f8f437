//! Calibration metrics.
//!
//! *Equation.* The confidence of a sample is its largest probability, its prediction the lowest
//! index with that probability. With `M` bins `(b/M, (b+1)/M]` (0 belongs to the first), `acc_b` and `conf_b`
//! the accuracy and mean confidence of the `n_b` samples in bin `b`:
//!
//! - `ECE = sum_b n_b / n |acc_b - conf_b|`, `MCE = max_b |acc_b - conf_b|` (Naeini et al. 2015; Guo
//!   et al., On calibration of modern neural networks, 2017, section 2, with `M = 15`)
//! - `NLL = -mean log p_y`, by log-softmax from logits, from probabilities clipped to
//!   `[2^-52, 1 - 2^-52]`
//! - Brier score `mean_i sum_c (p_ic - [c = y_i])^2` in 0..2 (Brier 1950)
//!
//! Sums are kept in fixed point (64 fractional bits), so that the scores depend neither on the order
//! of the samples nor on the batches. Logits without probabilities (NaN, +inf) make the scores NaN.

use std::any::Any;

use candle_core::Tensor;
use stillhouse_core::data::{Labels, Task};
use stillhouse_core::metric::{Metric, MetricBuild, Score};
use stillhouse_core::registry::Entry;

use crate::error::same_length;
use crate::numeric::{Sum, ratio};
use crate::topk::argmax;
use crate::{Error, Result, batch};

/// Number of bins of the registered metric.
pub const BINS: usize = 15;

/// Registry entry of [`Calibration`].
pub const ENTRY: Entry<MetricBuild> = Entry {
    name: "calibration",
    summary: "expected and maximum calibration error, negative log-likelihood, Brier score",
    source: "Guo et al., On calibration of modern neural networks (2017), section 2; Brier (1950)",
    defaults: || format!("bins = {BINS}  # Guo et al. 2017, section 4; fixed\n"),
    build: |classes| Box::new(Calibration::with_classes(classes)),
};

#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    count: u64,
    correct: u64,
    confidence: Sum,
}

impl Bin {
    fn accuracy(&self) -> f64 {
        ratio(self.correct as f64, self.count as f64)
    }

    fn mean_confidence(&self) -> f64 {
        ratio(self.confidence.value(), self.count as f64)
    }

    fn gap(&self) -> f64 {
        (self.accuracy() - self.mean_confidence()).abs()
    }
}

/// Calibration metric of an evaluation, over samples or over pixels without the ignore label.
///
/// Scores: `ece`, `mce`, `nll`, `brier`, `mean_confidence`, and the count `total`.
///
/// ```
/// use stillhouse_metrics::calibration::Calibration;
///
/// let mut c = Calibration::new(10)?;
/// c.add_probabilities(&[0.9, 0.1], 0)?;
/// c.add_probabilities(&[0.9, 0.1], 1)?;
/// assert!((c.ece() - 0.4).abs() < 1e-12); // confidence 90 %, accuracy 50 %
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Number of classes of the logits of [`Metric::update`].
    classes: usize,
    bins: Vec<Bin>,
    nll: Sum,
    brier: Sum,
}

impl Calibration {
    /// Creates a metric without counts.
    ///
    /// # Errors
    /// No bins.
    pub fn new(bins: usize) -> Result<Self> {
        if bins == 0 {
            return Err(Error::Setting { what: "bins", found: "0".into(), expected: "at least 1" });
        }
        Ok(Self { bins: vec![Bin::default(); bins], ..Self::with_classes(0) })
    }

    fn with_classes(classes: usize) -> Self {
        Self { classes, bins: vec![Bin::default(); BINS], nll: Sum::default(), brier: Sum::default() }
    }

    /// Adds one sample by its logits `[C]`.
    ///
    /// # Errors
    /// A class out of range.
    pub fn add_logits(&mut self, logits: &[f64], target: usize) -> Result<()> {
        let largest = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let log_sum = logits.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
        let log_p: Vec<f64> = logits.iter().map(|z| z - largest - log_sum).collect();
        let p: Vec<f64> = log_p.iter().map(|l| l.exp()).collect();
        self.add(&p, target, |_| -log_p[target])
    }

    /// Adds one sample by its probabilities `[C]`.
    ///
    /// # Errors
    /// A class out of range.
    pub fn add_probabilities(&mut self, probabilities: &[f64], target: usize) -> Result<()> {
        self.add(probabilities, target, |p| -p.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln())
    }

    fn add(&mut self, p: &[f64], target: usize, nll: impl FnOnce(f64) -> f64) -> Result<()> {
        let (Some(predicted), Some(&own)) = (argmax(p), p.get(target)) else {
            return Err(Error::OutOfRange { what: "true class", found: target as u64, limit: p.len() });
        };
        let m = self.bins.len();
        // The last bin takes values above all edges, and NaN.
        let inside = |b: &usize| p[predicted] <= (*b + 1) as f64 / m as f64;
        let bin = &mut self.bins[(0..m).find(inside).unwrap_or(m - 1)];
        bin.count += 1;
        bin.correct += u64::from(predicted == target);
        bin.confidence.add(p[predicted]);
        self.nll.add(nll(own));
        let one = |c: usize| f64::from(u8::from(c == target));
        self.brier.add(p.iter().enumerate().map(|(c, p)| (p - one(c)).powi(2)).sum());
        Ok(())
    }

    fn add_all(&mut self, other: &Self) -> Result<()> {
        same_length("bins of two calibrations", self.bins.len(), other.bins.len())?;
        for (bin, other) in self.bins.iter_mut().zip(&other.bins) {
            bin.count += other.count;
            bin.correct += other.correct;
            bin.confidence.merge(&other.confidence);
        }
        self.nll.merge(&other.nll);
        self.brier.merge(&other.brier);
        Ok(())
    }

    /// Returns the number of samples.
    pub fn total(&self) -> u64 {
        self.bins.iter().map(|b| b.count).sum()
    }

    /// Returns the number of samples by bin.
    pub fn bin_count(&self) -> Vec<u64> {
        self.bins.iter().map(|b| b.count).collect()
    }

    /// Returns the accuracy by bin; NaN for an empty bin.
    pub fn bin_accuracy(&self) -> Vec<f64> {
        self.bins.iter().map(Bin::accuracy).collect()
    }

    /// Returns the mean confidence by bin; NaN for an empty bin.
    pub fn bin_confidence(&self) -> Vec<f64> {
        self.bins.iter().map(Bin::mean_confidence).collect()
    }

    /// Returns the expected calibration error; NaN without samples.
    pub fn ece(&self) -> f64 {
        self.mean(self.filled().map(|b| b.gap() * b.count as f64).sum())
    }

    /// Returns the maximum calibration error; NaN without samples.
    pub fn mce(&self) -> f64 {
        let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
        self.filled().map(Bin::gap).reduce(larger).unwrap_or(f64::NAN)
    }

    /// Returns the mean negative log-likelihood, in nats; NaN without samples.
    pub fn nll(&self) -> f64 {
        self.mean(self.nll.value())
    }

    /// Returns the Brier score; NaN without samples.
    pub fn brier(&self) -> f64 {
        self.mean(self.brier.value())
    }

    /// Returns the mean confidence; NaN without samples.
    pub fn mean_confidence(&self) -> f64 {
        let mut sum = Sum::default();
        self.bins.iter().for_each(|b| sum.merge(&b.confidence));
        self.mean(sum.value())
    }

    fn filled(&self) -> impl Iterator<Item = &Bin> {
        self.bins.iter().filter(|b| b.count > 0)
    }

    fn mean(&self, sum: f64) -> f64 {
        ratio(sum, self.total() as f64)
    }
}

impl Metric for Calibration {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn supports(&self, _task: Task) -> bool {
        true
    }

    fn update(&mut self, logits: &Tensor, target: &Labels) -> stillhouse_core::Result<()> {
        batch::for_each(ENTRY.name, self.classes, logits, target, |scores, label| {
            self.add_logits(scores, label as usize)
        })
    }

    fn merge(&mut self, other: &dyn Metric) -> stillhouse_core::Result<()> {
        let other = batch::same_kind(self, other)?;
        same_length("classes of two calibrations", self.classes, other.classes)?;
        Ok(self.add_all(other)?)
    }

    fn scores(&self) -> Vec<Score> {
        [
            ("ece", self.ece()),
            ("mce", self.mce()),
            ("nll", self.nll()),
            ("brier", self.brier()),
            ("mean_confidence", self.mean_confidence()),
            ("total", self.total() as f64),
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

    #[test]
    fn assigns_edges_to_the_lower_bin() {
        let mut c = Calibration::new(4).unwrap();
        for p in [0.0, 0.25, 0.25f64.next_up(), 0.5, 1.0] {
            c.add_probabilities(&[p], 0).unwrap();
        }
        assert_eq!(c.bin_count(), [2, 2, 0, 1]);
        assert!(c.bin_accuracy()[2].is_nan() && c.bin_confidence()[2].is_nan());
    }

    #[test]
    fn stays_finite_for_huge_logits() {
        let mut c = Calibration::new(15).unwrap();
        c.add_logits(&[1e4, -1e4], 1).unwrap();
        assert_eq!((c.nll(), c.brier(), c.ece(), c.mce()), (2e4, 2.0, 1.0, 1.0));
    }

    #[test]
    fn clips_a_probability_of_zero() {
        let mut c = Calibration::new(15).unwrap();
        c.add_probabilities(&[0.0, 1.0], 0).unwrap();
        assert!((c.nll() - 52.0 * std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn propagates_nan_logits() {
        let mut c = Calibration::new(15).unwrap();
        c.add_logits(&[1.0, 2.0], 0).unwrap();
        assert!(c.ece().is_finite() && c.mce().is_finite());
        c.add_logits(&[f64::NAN, 2.0], 0).unwrap();
        for value in [c.ece(), c.mce(), c.nll(), c.brier(), c.mean_confidence()] {
            assert!(value.is_nan(), "{value}");
        }
        assert_eq!(c.total(), 2);
    }

    #[test]
    fn rejects_invalid_bins_and_classes() {
        assert!(Calibration::new(0).is_err());
        let mut c = Calibration::new(3).unwrap();
        assert!(c.add_logits(&[1.0, 2.0], 2).is_err());
        assert!(c.add_probabilities(&[], 0).is_err());
        assert_eq!(c.total(), 0);
        assert!(c.merge(&Calibration::new(4).unwrap()).is_err());
        assert!(c.ece().is_nan() && c.mce().is_nan() && c.nll().is_nan());
    }
}
