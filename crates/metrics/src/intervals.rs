//! Confidence intervals of proportions.

/// Quantile 0.975 of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Returns Wilson's 95 % score interval of `correct` of `total` samples, as fractions; NaN without samples
/// (Wilson 1927, equation 3).
///
/// *Equation.* With `p = correct / total`, `n = total` and the normal quantile `z`: `(p + z^2 / 2n +- z
/// sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`.
///
/// ```
/// use stillhouse_metrics::intervals::wilson95;
///
/// let [low, high] = wilson95(50, 100);
/// assert!((low - 0.4038).abs() < 1e-4 && (high - 0.5962).abs() < 1e-4);
/// ```
pub fn wilson95(correct: u64, total: u64) -> [f64; 2] {
    let n = total as f64;
    let p = correct as f64 / n;
    let (center, half) = (p + Z * Z / (2.0 * n), Z * (p * (1.0 - p) / n + (Z / (2.0 * n)).powi(2)).sqrt());
    let scale = 1.0 + Z * Z / n;
    [(center - half) / scale, (center + half) / scale]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_known_values() {
        // statsmodels 0.14: proportion_confint(count, nobs, method = "wilson")
        for (correct, total, want) in [(0, 10, [0.0, 0.277_532_799]), (10, 10, [0.722_467_200, 1.0])] {
            let got = wilson95(correct, total);
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?}");
        }
        assert!(wilson95(0, 0).iter().all(|v| v.is_nan()));
    }

    #[test]
    fn contains_the_proportion_and_narrows() {
        let width = |n: u64| {
            let [low, high] = wilson95(n / 4, n);
            assert!((0.0..0.25).contains(&low) && (0.25..1.0).contains(&high));
            high - low
        };
        assert!(width(40) > width(400) && width(400) > width(4000));
    }
}
