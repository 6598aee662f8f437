//! Percentile intervals from resamples (Efron 1979).

use stillhouse_core::Rng;

use crate::numeric::mean;
use crate::seeds::Summary;
use crate::{Error, Result};

/// The mean of values, and how it varies over resamples with replacement.
///
/// For the difference of two methods on the same samples hand in
/// [`crate::paired::differences`].
///
/// ```
/// use stillhouse_core::Rng;
/// use stillhouse_metrics::bootstrap::Bootstrap;
///
/// let right: Vec<f64> = (0..420).map(|i| if i % 20 == 0 { 0.0 } else { 1.0 }).collect();
/// let b = Bootstrap::draw(&right, 2000, 0.95, &Rng::new(0))?;
/// assert_eq!(b.estimate, 0.95);
/// assert!(0.92 < b.low && b.low < b.estimate && b.estimate < b.high && b.high < 0.98);
/// # Ok::<(), stillhouse_metrics::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// Mean of each resample.
    pub means: Vec<f64>,
    /// Mean of the values themselves; NaN without values.
    pub estimate: f64,
    /// Standard deviation of the means with `R - 1`; NaN below two resamples.
    pub std: f64,
    /// Lower limit of the percentile interval; NaN without resamples.
    pub low: f64,
    /// Its upper limit.
    pub high: f64,
}

impl Bootstrap {
    /// From given resamples: `indices` are rows of `values.len()` each. Errors: an uneven last
    /// row, an index that no value has, a level outside (0, 1).
    pub fn of(values: &[f64], indices: &[usize], level: f64) -> Result<Self> {
        if let Some(&bad) = indices.iter().find(|i| **i >= values.len()) {
            return Err(Error::OutOfRange { what: "index", found: bad as u64, limit: values.len() });
        }
        // Without values there are no indices either.
        let rows = indices.chunks(values.len().max(1));
        if let Some(row) = rows.clone().next_back() {
            crate::error::same_length("values and the last resample", values.len(), row.len())?;
        }
        Self::from_means(values, rows.map(|row| mean(row.iter().map(|&i| values[i]))).collect(), level)
    }

    /// From `resamples` resamples that the generator draws, resample `r` at its step `r`. Error: a
    /// level outside (0, 1).
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
            std: Summary::of(&means).std,
            low: quantile(&sorted, (1.0 - level) / 2.0),
            high: quantile(&sorted, (1.0 + level) / 2.0),
            means,
        })
    }
}

/// The value at position `q (n - 1)` of ascending values, linear between neighbors (type 7 of
/// Hyndman and Fan 1996); NaN without values, with a NaN among them, and for `q` outside [0, 1].
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
    fn by_hand() {
        let b = Bootstrap::of(&[1.0, 3.0], &[0, 0, 0, 1, 1, 1], 0.5).unwrap();
        assert_eq!(b.means, [1.0, 2.0, 3.0]);
        assert_eq!((b.estimate, b.std, b.low, b.high), (2.0, 1.0, 1.5, 2.5));
        let one = Bootstrap::of(&[1.0, 3.0], &[1, 1], 0.95).unwrap();
        assert_eq!((one.low, one.high), (3.0, 3.0));
        assert!(one.std.is_nan());
    }

    #[test]
    fn quantiles_are_linear() {
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|q| quantile(&[1.0, 2.0, 4.0], q)), [1.0, 1.5, 2.0, 4.0]);
        assert!(quantile(&[], 0.5).is_nan() && quantile(&[1.0], 1.5).is_nan());
        assert!(quantile(&[1.0, f64::NAN], 0.0).is_nan());
    }

    #[test]
    fn drawn_resamples_repeat() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let draw = |seed| Bootstrap::draw(&values, 200, 0.9, &Rng::new(seed)).unwrap();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).means, draw(2).means);
        // std of the mean: sqrt((50^2 - 1) / 12 / 50) = 2.04
        assert!((draw(1).std - 2.04).abs() < 0.4, "{}", draw(1).std);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(Bootstrap::of(&[1.0, 2.0], &[0, 2], 0.95).unwrap_err().to_string().contains("index 2"));
        assert!(Bootstrap::of(&[1.0, 2.0], &[0, 1, 1], 0.95).is_err());
        for level in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(Bootstrap::of(&[1.0], &[0], level).unwrap_err().to_string().contains("level"));
        }
        let none = Bootstrap::draw(&[], 3, 0.95, &Rng::new(0)).unwrap();
        assert!(none.estimate.is_nan() && none.low.is_nan() && none.high.is_nan());
        assert!(Bootstrap::of(&[], &[], 0.95).unwrap().means.is_empty());
    }
}
