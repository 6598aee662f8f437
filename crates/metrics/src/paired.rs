//! Tests of paired values: two methods on the same seeds or the same samples.
//!
//! Both tests are two-sided and act on the differences `d = a - b`.

use crate::Result;
use crate::error::same_length;
use crate::numeric::mean;
use crate::seeds::SeedSummary;
use crate::special_functions::{erfc, student_t_two_sided};

/// Returns `a - b`, pair by pair.
///
/// # Errors
/// Lists of different lengths.
pub fn differences(a: &[f64], b: &[f64]) -> Result<Vec<f64>> {
    same_length("paired values", a.len(), b.len())?;
    Ok(a.iter().zip(b).map(|(a, b)| a - b).collect())
}

/// Result of Student's paired t-test (Student 1908): `t = mean(d) / (std(d) / sqrt(n))` with
/// `n - 1` degrees of freedom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TTest {
    /// Number of pairs.
    pub pairs: u64,
    /// Mean of `a - b`; NaN without pairs.
    pub mean_difference: f64,
    /// Statistic; NaN below two pairs and if all differences are equal.
    pub t: f64,
    /// Two-sided p-value; NaN if the statistic is.
    pub p: f64,
}

/// Runs Student's paired t-test.
///
/// # Errors
/// Lists of different lengths.
///
/// ```
/// let test = stillhouse_metrics::paired::t_test(&[97.1, 96.9, 97.4], &[95.2, 95.9, 95.5])?;
/// assert!(test.t > 5.0 && test.p < 0.05);
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
pub fn t_test(a: &[f64], b: &[f64]) -> Result<TTest> {
    let d = SeedSummary::new(&differences(a, b)?);
    let t = if d.std > 0.0 { d.mean / d.sem } else { f64::NAN };
    let p = student_t_two_sided(t, d.count as f64 - 1.0);
    Ok(TTest { pairs: d.count, mean_difference: d.mean, t, p })
}

/// Null distribution of [`wilcoxon`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// All `2^n` sign patterns of the ranks, including ties. Cubic in the number of pairs.
    Exact,
    /// The normal approximation with variance `n(n+1)(2n+1)/24 - sum(t^3 - t)/48` over groups of
    /// `t` tied differences, without continuity correction.
    Normal,
}

/// Result of Wilcoxon's signed-rank test (Wilcoxon 1945).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wilcoxon {
    /// Number of pairs.
    pub pairs: u64,
    /// Number of pairs with a nonzero difference; the others are dropped.
    pub nonzero_pairs: u64,
    /// Mean of `a - b`; NaN without pairs.
    pub mean_difference: f64,
    /// Smaller of the rank sums of positive and negative differences, with mean ranks for ties; NaN
    /// if no pair is left.
    pub statistic: f64,
    /// Two-sided p-value; NaN if the statistic is.
    pub p: f64,
}

/// Runs Wilcoxon's signed-rank test.
///
/// # Errors
/// Lists of different lengths.
pub fn wilcoxon(a: &[f64], b: &[f64], distribution: Distribution) -> Result<Wilcoxon> {
    let mut d = differences(a, b)?;
    let (pairs, mean_difference) = (d.len() as u64, mean(d.iter().copied()));
    d.retain(|d| *d != 0.0);
    let mut test =
        Wilcoxon { pairs, nonzero_pairs: d.len() as u64, mean_difference, statistic: f64::NAN, p: f64::NAN };
    if d.is_empty() || d.iter().any(|d| d.is_nan()) {
        return Ok(test);
    }
    d.sort_by(|x, y| x.abs().total_cmp(&y.abs()));
    let ranks = doubled_ranks(&d);
    let all: usize = ranks.iter().sum();
    let positive: usize = d.iter().zip(&ranks).filter(|(d, _)| **d > 0.0).map(|(_, r)| r).sum();
    let doubled = positive.min(all - positive);
    test.statistic = doubled as f64 / 2.0;
    test.p = match distribution {
        Distribution::Exact => exact_p(&ranks, doubled),
        Distribution::Normal => normal_p(&ranks, test.statistic),
    };
    Ok(test)
}

/// Returns twice the mean rank, from 1, of each value, an integer even for ties. The values must be
/// sorted by magnitude.
fn doubled_ranks(sorted: &[f64]) -> Vec<usize> {
    let mut ranks = Vec::with_capacity(sorted.len());
    for group in sorted.chunk_by(|x, y| x.abs() == y.abs()) {
        let before = ranks.len();
        ranks.resize(before + group.len(), 2 * before + group.len() + 1);
    }
    ranks
}

/// Computes `min(1, 2 P(W <= w))` for independent, equally likely signs: the distribution of the sum
/// is convolved rank by rank up to `w`.
fn exact_p(doubled_ranks: &[usize], doubled: usize) -> f64 {
    let mut probability = vec![0.0; doubled + 1];
    probability[0] = 1.0;
    for &rank in doubled_ranks {
        for sum in (0..=doubled).rev() {
            let with = if sum >= rank { probability[sum - rank] } else { 0.0 };
            probability[sum] = 0.5 * (probability[sum] + with);
        }
    }
    (2.0 * probability.iter().sum::<f64>()).min(1.0)
}

fn normal_p(doubled_ranks: &[usize], statistic: f64) -> f64 {
    let n = doubled_ranks.len() as f64;
    let ties = doubled_ranks.chunk_by(|x, y| x == y).map(|g| (g.len() as f64).powi(3) - g.len() as f64);
    let variance = n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - ties.sum::<f64>() / 48.0;
    let z = (statistic - n * (n + 1.0) / 4.0) / variance.sqrt();
    erfc(z.abs() / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t_test_matches_known_values() {
        // d = 1, 2, 3: mean 2, std 1, t = 2 sqrt 3 with 2 degrees of freedom
        let test = t_test(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((test.pairs, test.mean_difference), (3, 2.0));
        assert!((test.t - 12.0f64.sqrt()).abs() < 1e-14);
        // 2 degrees of freedom have a closed form: p = 1 - t / sqrt(t^2 + 2)
        assert!((test.p - (1.0 - test.t / (test.t * test.t + 2.0).sqrt())).abs() < 1e-14);
    }

    #[test]
    fn is_undefined_without_differences() {
        for (a, b) in [(vec![], vec![]), (vec![1.0], vec![0.5]), (vec![0.3; 3], vec![0.1; 3])] {
            let test = t_test(&a, &b).unwrap();
            assert!(test.t.is_nan() && test.p.is_nan());
        }
        let same = wilcoxon(&[1.0, 2.0], &[1.0, 2.0], Distribution::Exact).unwrap();
        assert!(same.statistic.is_nan() && same.p.is_nan());
        assert_eq!((same.pairs, same.nonzero_pairs, same.mean_difference), (2, 0, 0.0));
        assert!(t_test(&[1.0], &[]).is_err() && wilcoxon(&[1.0], &[], Distribution::Normal).is_err());
    }

    #[test]
    fn exact_wilcoxon_matches_known_values() {
        // ranks 1..5, all positive: the smaller sum is 0, reached by 1 of 32 patterns
        let test = wilcoxon(&[1.0, 2.0, 3.0, 4.0, 5.0], &[0.0; 5], Distribution::Exact).unwrap();
        assert_eq!((test.statistic, test.p), (0.0, 2.0 / 32.0));
        // one negative of rank 2: sums 0, 1, 2 are reached by one pattern each
        let test = wilcoxon(&[1.0, -2.0, 3.0, 4.0, 5.0], &[0.0; 5], Distribution::Exact).unwrap();
        assert_eq!((test.statistic, test.p), (2.0, 6.0 / 32.0));
    }

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(doubled_ranks(&[0.5, -1.0, 1.0, 1.0, 2.0]), [2, 6, 6, 6, 10]);
        // magnitudes 1, 1, 2; only one 1 is negative: rank sum 1.5; patterns with a sum below or
        // at 1.5: none, {1}, {1'}: 3 of 8
        let test = wilcoxon(&[1.0, -1.0, 2.0, 0.0], &[0.0; 4], Distribution::Exact).unwrap();
        assert_eq!((test.statistic, test.p, test.nonzero_pairs), (1.5, 6.0 / 8.0, 3));
    }

    #[test]
    fn propagates_nan() {
        let test = wilcoxon(&[1.0, f64::NAN], &[0.0; 2], Distribution::Normal).unwrap();
        assert!(test.statistic.is_nan() && test.p.is_nan());
        assert!(t_test(&[1.0, f64::NAN, 2.0], &[0.0; 3]).unwrap().p.is_nan());
    }
}
