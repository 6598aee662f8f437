//! Top-k accuracy.
//!
//! *Equation.* The rank of the true class `y` in scores `s` is
//! `#{j : s_j > s_y} + #{j < y : s_j = s_y}` (equal scores: the lower index ranks first), and
//! `top-k = #{samples with rank < k} / n`. With fewer than `k` classes it is 1.
//!
//! A score that is NaN ranks below every number, so a network that has diverged is not right by
//! accident.

use crate::error::same_length;
use crate::numeric::ratio;
use crate::{Error, Result};

/// Whether score `a` stands above score `b`.
fn above(a: f64, b: f64) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}

/// The class of the highest score, the lowest index among equal ones; `None` without scores.
pub fn best(scores: &[f64]) -> Option<usize> {
    (0..scores.len()).reduce(|best, i| if above(scores[i], scores[best]) { i } else { best })
}

/// How many classes rank before `target`; `None` if there is no such class.
pub fn rank(scores: &[f64], target: usize) -> Option<usize> {
    let own = *scores.get(target)?;
    let before = |(i, &s): (usize, &f64)| above(s, own) || (i < target && !above(own, s));
    Some(scores.iter().enumerate().filter(|&(i, s)| i != target && before((i, s))).count())
}

/// Counts of samples by the rank of their true class, from which top-k follows for every `k`.
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
    /// All counts 0.
    pub fn new(classes: usize) -> Self {
        Self(vec![0; classes])
    }

    /// Counts one sample. Error: a rank that no class can have.
    pub fn add(&mut self, rank: usize) -> Result<()> {
        let limit = self.0.len();
        let count = self.0.get_mut(rank);
        *count.ok_or(Error::OutOfRange { what: "rank", found: rank as u64, limit })? += 1;
        Ok(())
    }

    /// Adds the counts of another. Error: another number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        same_length("classes of two rank counts", self.0.len(), other.0.len())?;
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
        Ok(())
    }

    /// Share of the samples whose true class is among the `k` best; NaN without samples.
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
    fn equal_scores_rank_by_index() {
        let s = [2.0, 5.0, 2.0, 5.0];
        assert_eq!((0..4).map(|t| rank(&s, t).unwrap()).collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert_eq!(best(&s), Some(1));
        assert_eq!(rank(&s, 4), None);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn nan_is_never_better() {
        let s = [f64::NAN, -1.0, f64::NAN, f64::NEG_INFINITY];
        assert_eq!((0..4).map(|t| rank(&s, t).unwrap()).collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert_eq!(best(&s), Some(1));
        assert_eq!(best(&[f64::NAN, f64::NAN]), Some(0));
    }

    #[test]
    fn nothing_counted() {
        assert!(RankCounts::new(4).top(5).is_nan());
        assert!(RankCounts::new(4).add(4).is_err());
        assert!(RankCounts::new(4).merge(&RankCounts::new(3)).is_err());
    }
}
