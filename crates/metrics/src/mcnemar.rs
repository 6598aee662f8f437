//! Two classifiers on the same samples: McNemar's test (McNemar 1947; for classifiers Dietterich
//! 1998), in its exact form.

use crate::Result;
use crate::error::same_length;
use crate::special::regularized_beta;

/// How often two classifiers are right together and alone, and whether that differs.
///
/// *Equation.* `p = min(1, 2 P(Bin(only_a + only_b, 1/2) <= min(only_a, only_b)))`; 1 where they
/// never disagree.
///
/// ```
/// use stillhouse_metrics::mcnemar::McNemar;
///
/// let test = McNemar::of(&[true, true, true, false], &[true, false, false, false])?;
/// assert_eq!((test.both, test.only_a, test.only_b, test.neither), (1, 2, 0, 1));
/// assert!((test.p - 0.5).abs() < 1e-12);
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct McNemar {
    /// Samples that both got right.
    pub both: u64,
    /// Samples that only the first got right.
    pub only_a: u64,
    /// Samples that only the second got right.
    pub only_b: u64,
    /// Samples that both got wrong.
    pub neither: u64,
    /// Two-sided p-value.
    pub p: f64,
}

impl McNemar {
    /// Compares by whether each sample is right. Error: different lengths.
    pub fn of(right_a: &[bool], right_b: &[bool]) -> Result<Self> {
        same_length("samples of two classifiers", right_a.len(), right_b.len())?;
        let count =
            |a: bool, b: bool| right_a.iter().zip(right_b).filter(|(x, y)| (**x, **y) == (a, b)).count();
        let (only_a, only_b) = (count(true, false) as u64, count(false, true) as u64);
        // P(Bin(n, 1/2) <= k) = I_{1/2}(n - k, k + 1)
        let (few, many) = (only_a.min(only_b) as f64, only_a.max(only_b) as f64);
        let p = if few == many { 1.0 } else { (2.0 * regularized_beta(many, few + 1.0, 0.5)).min(1.0) };
        Ok(Self { both: count(true, true) as u64, only_a, only_b, neither: count(false, false) as u64, p })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(a: usize, b: usize) -> f64 {
        let right_a: Vec<bool> = (0..a + b).map(|i| i < a).collect();
        let right_b: Vec<bool> = right_a.iter().map(|x| !x).collect();
        McNemar::of(&right_a, &right_b).unwrap().p
    }

    #[test]
    fn by_hand() {
        assert!((alone(0, 5) - 2.0 / 32.0).abs() < 1e-15);
        assert!((alone(1, 5) - 2.0 * 7.0 / 64.0).abs() < 1e-15);
        assert_eq!((alone(3, 3), alone(0, 0)), (1.0, 1.0));
        assert!((alone(2, 3) - 1.0).abs() < 1e-14 && alone(2, 3) <= 1.0);
        // SciPy 1.17: binomtest(1200, 2500)
        assert!((alone(1200, 1300) / 0.047_681_865_221_043_444 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn lists_must_agree() {
        assert!(McNemar::of(&[true], &[]).is_err());
        assert_eq!(McNemar::of(&[], &[]).unwrap().p, 1.0);
    }
}
