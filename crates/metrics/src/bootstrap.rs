//! Bootstrap percentile intervals (Efron 1979).

use stillhouse_core::Rng;

use crate::numeric::mean;
use crate::seeds::SeedSummary;
use crate::{Error, Result};

/// Mean of values and its variation over resamples with replacement.
///
/// For two methods on the same samples, resample their [`crate::paired::differences`].
///
/// ```
/// use stillhouse_core::Rng;
/// use stillhouse_metrics::bootstrap::Bootstrap;
///
/// let correct: Vec<f64> = (0..420).map(|i| if i % 20 == 0 { 0.0 } else { 1.0 }).collect();
/// let b = Bootstrap::draw(&correct, 2000, 0.95, &Rng::new(0))?;
/// assert_eq!(b.estimate, 0.95);
/// assert!(0.92 < b.low && b.low < b.estimate && b.estimate < b.high && b.high < 0.98);
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// Mean of each resample.
    pub means: Vec<f64>,
    /// Mean of the values; NaN without values.
    pub estimate: f64,
    /// Standard deviation of the `R` means (denominator `R - 1`); NaN below two resamples.
    pub std: f64,
    /// Lower limit of the percentile interval; NaN without resamples.
    pub low: f64,
    /// Upper limit of the interval.
    pub high: f64,
}

impl Bootstrap {
    /// Computes the interval from given resamples: rows of `values.len()` indices each.
    ///
    /// # Errors
    /// An incomplete last row, an index out of range, or a level outside (0, 1).
    pub fn from_resamples(values: &[f64], indices: &[usize], level: f64) -> Result<Self> {
        if let Some(&bad) = indices.iter().find(|i| **i >= values.len()) {
            return Err(Error::OutOfRange { what: "index", found: bad as u64, limit: values.len() });
        }
        let rows = indices.chunks(values.len().max(1));
        if let Some(row) = rows.clone().next_back() {
            crate::error::same_length("values and the last resample", values.len(), row.len())?;
        }
        Self::from_means(values, rows.map(|row| mean(row.iter().map(|&i| values[i]))).collect(), level)
    }

    /// Draws the resamples, resample `r` at step `r` of the generator, and computes the interval.
    ///
    /// # Errors
    /// A level outside (0, 1).
    pub fn draw(values: &[f64], resamples: usize, level: f64, rng: &Rng) -> Result<Self> {
        let n = values.len() as u64;
        let means = (0..resamples as u64).map(|r| {
            let mut draw = rng.at(r, 0);
            mean((0..n).map(|_| values[draw.below(n) as usize]))
        });
        Self::from_means(values, means.collect(), level)
    }

    fn from_means(values: &[f64], means: Vec<f64>, level: f64) -> Result<Self> {
        if !(level > 0.0 && level < 1.0) {
            return Err(Error::Setting {
                what: "level",
                found: level.to_string(),
                expected: "between 0 and 1",
            });
        }
        let mut sorted = means.clone();
        sorted.sort_by(f64::total_cmp);
        Ok(Self {
            estimate: mean(values.iter().copied()),
            std: SeedSummary::new(&means).std,
            low: quantile(&sorted, (1.0 - level) / 2.0),
            high: quantile(&sorted, (1.0 + level) / 2.0),
            means,
        })
    }
}

/// Returns the quantile of ascending values at position `q (n - 1)`, interpolated linearly (type 7 of
/// Hyndman and Fan 1996). NaN without values, with a NaN among them, and for `q` outside [0, 1].
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() as f64 - 1.0);
    let below = position.floor();
    let value = |at: f64| sorted.get(at as usize).copied().unwrap_or(f64::NAN);
    if sorted.is_empty() || !(0.0..=1.0).contains(&q) || sorted.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let (low, high) = (value(below), value(position.ceil()));
    low + (position - below) * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_known_values() {
        let b = Bootstrap::from_resamples(&[1.0, 3.0], &[0, 0, 0, 1, 1, 1], 0.5).unwrap();
        assert_eq!(b.means, [1.0, 2.0, 3.0]);
        assert_eq!((b.estimate, b.std, b.low, b.high), (2.0, 1.0, 1.5, 2.5));
        let one = Bootstrap::from_resamples(&[1.0, 3.0], &[1, 1], 0.95).unwrap();
        assert_eq!((one.low, one.high), (3.0, 3.0));
        assert!(one.std.is_nan());
    }

    #[test]
    fn interpolates_quantiles() {
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|q| quantile(&[1.0, 2.0, 4.0], q)), [1.0, 1.5, 2.0, 4.0]);
        assert!(quantile(&[], 0.5).is_nan() && quantile(&[1.0], 1.5).is_nan());
        assert!(quantile(&[1.0, f64::NAN], 0.0).is_nan());
    }

    #[test]
    fn draws_the_same_resamples_for_a_seed() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let draw = |seed| Bootstrap::draw(&values, 200, 0.9, &Rng::new(seed)).unwrap();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).means, draw(2).means);
        // std of the mean: sqrt((50^2 - 1) / 12 / 50) = 2.04
        assert!((draw(1).std - 2.04).abs() < 0.4, "{}", draw(1).std);
    }

    #[test]
    fn rejects_invalid_indices_and_levels() {
        assert!(
            Bootstrap::from_resamples(&[1.0, 2.0], &[0, 2], 0.95)
                .unwrap_err()
                .to_string()
                .contains("index out of range: expected less than 2, found 2")
        );
        assert!(Bootstrap::from_resamples(&[1.0, 2.0], &[0, 1, 1], 0.95).is_err());
        for level in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(
                Bootstrap::from_resamples(&[1.0], &[0], level).unwrap_err().to_string().contains("level")
            );
        }
        let none = Bootstrap::draw(&[], 3, 0.95, &Rng::new(0)).unwrap();
        assert!(none.estimate.is_nan() && none.low.is_nan() && none.high.is_nan());
        assert!(Bootstrap::from_resamples(&[], &[], 0.95).unwrap().means.is_empty());
    }
}
