//! Top-k accuracy.
//!
//! *Equation.* The rank of the true class `y` in scores `s` is
//! `#{j : s_j > s_y} + #{j < y : s_j = s_y}` (the lower index ranks first among equal scores), and
//! `top-k = #{samples with rank < k} / n`; 1 with fewer than `k` classes.
//!
//! NaN ranks below every number, so that a diverged model is not correct by accident.

use crate::error::same_length;
use crate::numeric::ratio;
use crate::{Error, Result};

/// Returns whether score `a` ranks above score `b`.
fn above(a: f64, b: f64) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}

/// Returns the class of the highest score, the lowest index among equal scores; `None` without scores.
pub fn argmax(scores: &[f64]) -> Option<usize> {
    (0..scores.len()).reduce(|best, i| if above(scores[i], scores[best]) { i } else { best })
}

/// Returns the number of classes that rank before `target`; `None` if the class is out of range.
pub fn rank(scores: &[f64], target: usize) -> Option<usize> {
    let own = *scores.get(target)?;
    let before = |(i, &s): (usize, &f64)| above(s, own) || (i < target && !above(own, s));
    Some(scores.iter().enumerate().filter(|&(i, s)| i != target && before((i, s))).count())
}

/// Number of samples by the rank of their true class, which gives top-k for every `k`.
///
/// ```
/// use stillhouse_metrics::topk::{RankCounts, rank};
///
/// let mut ranks = RankCounts::new(3);
/// ranks.add(rank(&[0.1, 0.7, 0.2], 1).unwrap())?; // best
/// ranks.add(rank(&[0.1, 0.7, 0.2], 2).unwrap())?; // second best
/// assert_eq!((ranks.top(1), ranks.top(2), ranks.top(5)), (0.5, 1.0, 1.0));
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankCounts(Vec<u64>);

impl RankCounts {
    /// Creates counts of zero.
    pub fn new(classes: usize) -> Self {
        Self(vec![0; classes])
    }

    /// Counts one sample.
    ///
    /// # Errors
    /// A rank out of range.
    pub fn add(&mut self, rank: usize) -> Result<()> {
        let limit = self.0.len();
        let count = self.0.get_mut(rank);
        *count.ok_or(Error::OutOfRange { what: "rank", found: rank as u64, limit })? += 1;
        Ok(())
    }

    /// Adds other counts.
    ///
    /// # Errors
    /// A different number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        same_length("classes of two rank counts", self.0.len(), other.0.len())?;
        self.0.iter_mut().zip(&other.0).for_each(|(count, other)| *count += other);
        Ok(())
    }

    /// Returns the fraction of samples whose true class is among the `k` best; NaN without samples.
    pub fn top(&self, k: usize) -> f64 {
        let within: u64 = self.0.iter().take(k).sum();
        let all: u64 = self.0.iter().sum();
        ratio(within as f64, all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_equal_scores_by_index() {
        let s = [2.0, 5.0, 2.0, 5.0];
        assert_eq!((0..4).map(|t| rank(&s, t).unwrap()).collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert_eq!(argmax(&s), Some(1));
        assert_eq!(rank(&s, 4), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn ranks_nan_last() {
        let s = [f64::NAN, -1.0, f64::NAN, f64::NEG_INFINITY];
        assert_eq!((0..4).map(|t| rank(&s, t).unwrap()).collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert_eq!(argmax(&s), Some(1));
        assert_eq!(argmax(&[f64::NAN, f64::NAN]), Some(0));
    }

    #[test]
    fn is_undefined_without_samples() {
        assert!(RankCounts::new(4).top(5).is_nan());
        assert!(RankCounts::new(4).add(4).is_err());
        assert!(RankCounts::new(4).merge(&RankCounts::new(3)).is_err());
    }
}
