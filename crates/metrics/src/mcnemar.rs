//! McNemar's exact test of two classifiers on the same samples (McNemar 1947; for classifiers
//! Dietterich 1998).

use crate::Result;
use crate::error::same_length;
use crate::special_functions::regularized_beta;

/// McNemar's exact test.
///
/// *Equation.* `p = min(1, 2 P(Bin(only_a + only_b, 1/2) <= min(only_a, only_b)))`; 1 if the two
/// classifiers never disagree.
///
/// ```
/// use stillhouse_metrics::mcnemar::McNemar;
///
/// let test = McNemar::new(&[true, true, true, false], &[true, false, false, false])?;
/// assert_eq!((test.both, test.only_a, test.only_b, test.neither), (1, 2, 0, 1));
/// assert!((test.p - 0.5).abs() < 1e-12);
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct McNemar {
    /// Samples that both classify correctly.
    pub both: u64,
    /// Discordant samples: only the first classifier is correct.
    pub only_a: u64,
    /// Discordant samples: only the second classifier is correct.
    pub only_b: u64,
    /// Samples that both misclassify.
    pub neither: u64,
    /// Two-sided p-value.
    pub p: f64,
}

impl McNemar {
    /// Tests two classifiers by whether each of their predictions is correct.
    ///
    /// # Errors
    /// Lists of different lengths.
    pub fn new(correct_a: &[bool], correct_b: &[bool]) -> Result<Self> {
        same_length("samples of two classifiers", correct_a.len(), correct_b.len())?;
        let count =
            |a: bool, b: bool| correct_a.iter().zip(correct_b).filter(|(x, y)| (**x, **y) == (a, b)).count();
        let (only_a, only_b) = (count(true, false) as u64, count(false, true) as u64);
        let p = p_value(only_a, only_b);
        Ok(Self { both: count(true, true) as u64, only_a, only_b, neither: count(false, false) as u64, p })
    }
}

/// Returns the two-sided p-value of McNemar's exact test for these counts of discordant samples.
pub fn p_value(only_a: u64, only_b: u64) -> f64 {
    // P(Bin(n, 1/2) <= k) = I_{1/2}(n - k, k + 1)
    let (few, many) = (only_a.min(only_b) as f64, only_a.max(only_b) as f64);
    if few == many { 1.0 } else { (2.0 * regularized_beta(many, few + 1.0, 0.5)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p_of_discordant(a: usize, b: usize) -> f64 {
        let correct_a: Vec<bool> = (0..a + b).map(|i| i < a).collect();
        let correct_b: Vec<bool> = correct_a.iter().map(|x| !x).collect();
        McNemar::new(&correct_a, &correct_b).unwrap().p
    }

    #[test]
    fn matches_known_values() {
        assert!((p_of_discordant(0, 5) - 2.0 / 32.0).abs() < 1e-15);
        assert!((p_of_discordant(1, 5) - 2.0 * 7.0 / 64.0).abs() < 1e-15);
        assert_eq!((p_of_discordant(3, 3), p_of_discordant(0, 0)), (1.0, 1.0));
        assert!((p_of_discordant(2, 3) - 1.0).abs() < 1e-14 && p_of_discordant(2, 3) <= 1.0);
        // SciPy 1.17: binomtest(1200, 2500)
        assert!((p_of_discordant(1200, 1300) / 0.047_681_865_221_043_444 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn rejects_lists_of_different_lengths() {
        assert!(McNemar::new(&[true], &[]).is_err());
        assert_eq!(McNemar::new(&[], &[]).unwrap().p, 1.0);
    }
}
