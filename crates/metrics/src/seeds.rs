//! Statistics over seeds.

use crate::numeric::ratio;
use crate::special_functions::student_t_quantile;

/// Mean, standard deviation and confidence interval of a score over seeds.
///
/// *Equation.* `std^2 = sum (v - mean)^2 / (n - 1)`, `sem = std / sqrt(n)`, and the 95 % interval
/// `mean +- t_{0.975, n - 1} sem` (Student 1908).
///
/// ```
/// use stillhouse_metrics::seeds::SeedSummary;
///
/// let s = SeedSummary::new(&[97.1, 96.9, 97.4]);
/// assert_eq!(format!("{:.2} +- {:.2}", s.mean, s.std), "97.13 +- 0.25");
/// assert!(SeedSummary::new(&[97.1]).std.is_nan()); // not defined for one value
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeedSummary {
    /// Number of values.
    pub count: u64,
    /// Mean; NaN without values.
    pub mean: f64,
    /// Standard deviation with `n - 1`; NaN below two values.
    pub std: f64,
    /// Standard error of the mean; NaN below two values.
    pub sem: f64,
    /// Smallest value; NaN without values.
    pub min: f64,
    /// Largest value; NaN without values.
    pub max: f64,
    /// Median; NaN without values.
    pub median: f64,
    /// Lower limit of the 95 % confidence interval of the mean; NaN below two values.
    pub ci95_low: f64,
    /// Upper limit of the interval.
    pub ci95_high: f64,
}

impl SeedSummary {
    /// Computes the statistics in two passes. A NaN among the values makes all but the count NaN.
    pub fn new(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = values.len();
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let nan = values.iter().any(|v| v.is_nan());
        let or_nan = |v: f64| if nan { f64::NAN } else { v };
        // Centered on one of the values, so that equal values have a standard deviation of exactly 0.
        let center = at(n / 2);
        let mean = center + ratio(values.iter().map(|v| v - center).sum(), n as f64);
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let std = if n < 2 { f64::NAN } else { (squares / (n - 1) as f64).sqrt() };
        let sem = std / (n as f64).sqrt();
        let half = if n < 2 { f64::NAN } else { student_t_quantile(0.975, (n - 1) as f64) * sem };
        Self {
            count: n as u64,
            mean,
            std,
            sem,
            min: or_nan(at(0)),
            max: or_nan(at(n.wrapping_sub(1))),
            median: or_nan(if n % 2 == 1 {
                center
            } else {
                center - 0.5 * (center - at((n / 2).wrapping_sub(1)))
            }),
            ci95_low: mean - half,
            ci95_high: mean + half,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_known_values() {
        let s = SeedSummary::new(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((s.count, s.mean, s.median, s.min, s.max), (4, 2.5, 2.5, 1.0, 4.0));
        assert!((s.std - (5.0f64 / 3.0).sqrt()).abs() < 1e-15);
        assert!((s.sem - s.std / 2.0).abs() < 1e-15);
        // t quantile of 3 degrees of freedom: 3.182446305284263
        assert!((s.ci95_high - 2.5 - 3.182_446_305_284_263 * s.sem).abs() < 1e-12);
        assert_eq!(SeedSummary::new(&[5.0, 9.0, 1.0]).median, 5.0);
    }

    #[test]
    fn is_undefined_for_too_few_values() {
        let none = SeedSummary::new(&[]);
        assert_eq!(none.count, 0);
        for v in [none.mean, none.std, none.sem, none.min, none.max, none.median, none.ci95_low] {
            assert!(v.is_nan());
        }
        let one = SeedSummary::new(&[7.0]);
        assert_eq!((one.mean, one.min, one.max, one.median), (7.0, 7.0, 7.0, 7.0));
        assert!(one.std.is_nan() && one.sem.is_nan() && one.ci95_low.is_nan() && one.ci95_high.is_nan());
    }

    #[test]
    fn has_no_deviation_for_equal_values() {
        let s = SeedSummary::new(&[0.1; 7]);
        assert_eq!((s.mean, s.std, s.ci95_low, s.ci95_high), (0.1, 0.0, 0.1, 0.1));
    }

    #[test]
    fn keeps_precision_with_a_large_offset() {
        let (near, far) =
            (SeedSummary::new(&[1.0, 2.0, 4.0]), SeedSummary::new(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 4.0]));
        assert!((near.std - far.std).abs() < 1e-9);
    }

    #[test]
    fn propagates_nan() {
        let s = SeedSummary::new(&[1.0, f64::NAN, 3.0]);
        assert!(s.count == 3 && s.mean.is_nan() && s.min.is_nan() && s.max.is_nan() && s.median.is_nan());
    }
}
