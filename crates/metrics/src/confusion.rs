//! Confusion matrices.

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
    /// Creates a matrix of zeros.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts the pairs of two lists of classes.
    ///
    /// # Errors
    /// Lists of different lengths, or a class out of range.
    pub fn from_labels(classes: usize, truth: &[u32], predicted: &[u32]) -> Result<Self> {
        same_length("true and predicted classes", truth.len(), predicted.len())?;
        let mut matrix = Self::new(classes);
        for (&t, &p) in truth.iter().zip(predicted) {
            matrix.add(t, p)?;
        }
        Ok(matrix)
    }

    /// Counts one sample.
    ///
    /// # Errors
    /// A class out of range.
    pub fn add(&mut self, truth: u32, predicted: u32) -> Result<()> {
        let row = self.index("true class", truth)?;
        let column = self.index("predicted class", predicted)?;
        self.counts[row * self.classes + column] += 1;
        Ok(())
    }

    /// Adds the counts of another matrix.
    ///
    /// # Errors
    /// A different number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        same_length("classes of two confusion matrices", self.classes, other.classes)?;
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
        Ok(())
    }

    /// Returns the number of classes, `C`.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Returns all `C * C` counts in row-major order.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Returns the number of samples of each class, the row sums.
    pub fn support(&self) -> Vec<u64> {
        self.rows().map(|row| row.iter().sum()).collect()
    }

    /// Returns the number of predictions of each class, the column sums.
    pub fn predicted(&self) -> Vec<u64> {
        let mut predicted = vec![0; self.classes];
        for row in self.rows() {
            predicted.iter_mut().zip(row).for_each(|(c, n)| *c += n);
        }
        predicted
    }

    /// Returns the number of correct predictions of each class, the diagonal.
    pub fn true_positives(&self) -> Vec<u64> {
        self.rows().enumerate().map(|(i, row)| row[i]).collect()
    }

    /// Returns the number of samples.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the number of correct predictions.
    pub fn correct(&self) -> u64 {
        self.true_positives().iter().sum()
    }

    /// Returns each row divided by its sum, as confusion matrices are printed. A row without samples is
    /// 0.
    pub fn row_normalized(&self) -> Vec<f64> {
        let shares = self.rows().flat_map(|row| {
            let sum: u64 = row.iter().sum();
            row.iter().map(move |&n| if sum == 0 { 0.0 } else { ratio(n as f64, sum as f64) })
        });
        shares.collect()
    }

    fn rows(&self) -> impl Iterator<Item = &[u64]> {
        // `chunks_exact` panics on 0.
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
    fn counts_truth_by_row() {
        let m = ConfusionMatrix::from_labels(3, &[0, 0, 0, 1], &[0, 1, 1, 2]).unwrap();
        assert_eq!(m.counts(), [1, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(
            (m.support(), m.predicted(), m.true_positives()),
            (vec![3, 1, 0], vec![1, 2, 1], vec![1, 0, 0])
        );
        assert_eq!((m.total(), m.correct()), (4, 1));
        assert_eq!(m.row_normalized()[..3], [1.0 / 3.0, 2.0 / 3.0, 0.0]);
        assert_eq!(m.row_normalized()[6..], [0.0; 3]);
    }

    #[test]
    fn rejects_mismatched_lists_and_classes() {
        let e = ConfusionMatrix::from_labels(2, &[0, 2], &[0, 0]).unwrap_err().to_string();
        assert!(e.contains("true class out of range: expected less than 2, found 2"), "{e}");
        let e = ConfusionMatrix::from_labels(2, &[0], &[5]).unwrap_err().to_string();
        assert!(e.contains("predicted class out of range"), "{e}");
        assert!(ConfusionMatrix::from_labels(2, &[0], &[]).unwrap_err().to_string().contains("1 and 0"));
        assert!(ConfusionMatrix::new(2).merge(&ConfusionMatrix::new(3)).is_err());
    }

    #[test]
    fn accepts_no_classes() {
        let m = ConfusionMatrix::new(0);
        assert_eq!((m.total(), m.support().len(), m.row_normalized().len()), (0, 0, 0));
    }
}
