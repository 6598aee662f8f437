//! Corrections for several tests at once.

/// Returns Holm's adjusted p-values, in the order of `p` (Holm 1979): rejecting those up to `alpha` keeps the
/// probability of any false rejection at most `alpha`, whatever the dependence of the tests.
///
/// *Equation.* For p-values in ascending order, `adjusted_i = max over j <= i of min(1, (m - j + 1) p_j)`.
///
/// ```
/// use stillhouse_metrics::multiple_testing::holm;
///
/// assert_eq!(holm(&[0.5, 0.01, 0.25]), [0.5, 0.03, 0.5]);
/// ```
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        largest = largest.max(((p.len() - rank) as f64 * p[index]).min(1.0));
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_known_values() {
        // R 4.3: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
        let got = holm(&[0.05, 0.01, 0.03, 0.02, 0.04]);
        for (got, want) in got.iter().zip([0.09, 0.05, 0.09, 0.08, 0.09]) {
            assert!((got - want).abs() < 1e-15, "{got} {want}");
        }
        assert_eq!(holm(&[]), [0.0; 0]);
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }
}
