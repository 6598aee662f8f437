//! Counts of truth against prediction.

use crate::error::same_length;
use crate::numeric::ratio;
use crate::{Error, Result};

/// Counts by true class (row) and predicted class (column).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: usize,
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// All counts 0.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts two lists of classes. Errors: different lengths, a class that there is not.
    pub fn of(classes: usize, truth: &[u32], predicted: &[u32]) -> Result<Self> {
        same_length("true and predicted classes", truth.len(), predicted.len())?;
        let mut matrix = Self::new(classes);
        for (&t, &p) in truth.iter().zip(predicted) {
            matrix.add(t, p)?;
        }
        Ok(matrix)
    }

    /// Counts one sample. Error: a class that there is not.
    pub fn add(&mut self, truth: u32, predicted: u32) -> Result<()> {
        let row = self.index("true class", truth)?;
        let column = self.index("predicted class", predicted)?;
        self.counts[row * self.classes + column] += 1;
        Ok(())
    }

    /// Adds the counts of another matrix. Error: another number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        same_length("classes of two confusion matrices", self.classes, other.classes)?;
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        Ok(())
    }

    /// Number of classes, `C`.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// All `C * C` counts, row by row.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Samples of each class: sums of the rows.
    pub fn support(&self) -> Vec<u64> {
        self.rows().map(|row| row.iter().sum()).collect()
    }

    /// Predictions of each class: sums of the columns.
    pub fn called(&self) -> Vec<u64> {
        let mut called = vec![0; self.classes];
        for row in self.rows() {
            called.iter_mut().zip(row).for_each(|(c, n)| *c += n);
        }
        called
    }

    /// Right predictions of each class: the diagonal.
    pub fn hits(&self) -> Vec<u64> {
        self.rows().enumerate().map(|(i, row)| row[i]).collect()
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All right predictions.
    pub fn right(&self) -> u64 {
        self.hits().iter().sum()
    }

    /// Each row over its sum, as confusion matrices are printed; a row without samples is 0.
    pub fn row_normalized(&self) -> Vec<f64> {
        let shares = self.rows().flat_map(|row| {
            let sum: u64 = row.iter().sum();
            row.iter().map(move |&n| if sum == 0 { 0.0 } else { ratio(n as f64, sum as f64) })
        });
        shares.collect()
    }

    fn rows(&self) -> impl Iterator<Item = &[u64]> {
        // `chunks_exact` refuses 0; without classes there is nothing to cut.
        self.counts.chunks_exact(self.classes.max(1))
    }

    fn index(&self, what: &'static str, class: u32) -> Result<usize> {
        let index = class as usize;
        if index < self.classes {
            Ok(index)
        } else {
            Err(Error::OutOfRange { what, found: u64::from(class), limit: self.classes })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_truth() {
        let m = ConfusionMatrix::of(3, &[0, 0, 0, 1], &[0, 1, 1, 2]).unwrap();
        assert_eq!(m.counts(), [1, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!((m.support(), m.called(), m.hits()), (vec![3, 1, 0], vec![1, 2, 1], vec![1, 0, 0]));
        assert_eq!((m.total(), m.right()), (4, 1));
        assert_eq!(m.row_normalized()[..3], [1.0 / 3.0, 2.0 / 3.0, 0.0]);
        assert_eq!(m.row_normalized()[6..], [0.0; 3]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let e = ConfusionMatrix::of(2, &[0, 2], &[0, 0]).unwrap_err().to_string();
        assert!(e.contains("true class 2") && e.contains("below 2"), "{e}");
        let e = ConfusionMatrix::of(2, &[0], &[5]).unwrap_err().to_string();
        assert!(e.contains("predicted class 5"), "{e}");
        assert!(ConfusionMatrix::of(2, &[0], &[]).unwrap_err().to_string().contains("1 values against 0"));
        assert!(ConfusionMatrix::new(2).merge(&ConfusionMatrix::new(3)).is_err());
    }

    #[test]
    fn no_classes_at_all() {
        let m = ConfusionMatrix::new(0);
        assert_eq!((m.total(), m.support().len(), m.row_normalized().len()), (0, 0, 0));
    }
}
