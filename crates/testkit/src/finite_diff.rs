//! Central differences, and comparison with a tolerance.

/// Approximates the gradient of `f` at `x` by `(f(x + eps e_i) - f(x - eps e_i)) / 2 eps`. The error
/// is of order `eps^2` (truncation) plus `2^-53 |f| / eps` (rounding); `eps = 1e-5` suits f64 values
/// around 1.
pub fn central_difference(mut f: impl FnMut(&[f64]) -> f64, x: &[f64], eps: f64) -> Vec<f64> {
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (above, below) = (x[i] + eps, x[i] - eps);
            at[i] = above;
            let high = f(&at);
            at[i] = below;
            let low = f(&at);
            at[i] = x[i];
            (high - low) / (above - below)
        })
        .collect()
}

/// Asserts `|got - want| <= atol + rtol * |want|` for every element. NaN equals NaN only, and
/// infinities must be equal. `what` begins the panic message.
pub fn assert_close(got: &[f64], want: &[f64], rtol: f64, atol: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let close = |g: f64, w: f64| {
        g == w
            || (g.is_nan() && w.is_nan())
            || (g.is_finite() && w.is_finite() && (g - w).abs() <= atol + rtol * w.abs())
    };
    let wrong: Vec<usize> = (0..got.len()).filter(|&i| !close(got[i], want[i])).collect();
    if let Some(&worst) = wrong.iter().max_by(|&&a, &&b| {
        let excess = |i: usize| {
            let e = (got[i] - want[i]).abs() / (atol + rtol * want[i].abs());
            if e.is_nan() { f64::INFINITY } else { e }
        };
        excess(a).total_cmp(&excess(b))
    }) {
        panic!(
            "{what}: {} of {} values differ; worst at {worst}: got {:e}, want {:e}, difference {:e}, \
             allowed {:e}",
            wrong.len(),
            got.len(),
            got[worst],
            want[worst],
            got[worst] - want[worst],
            atol + rtol * want[worst].abs()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_a_known_gradient() {
        // d/dx (x^3 y + sin y) = 3 x^2 y; d/dy = x^3 + cos y
        let (x, y) = (1.3f64, -0.7f64);
        let got = central_difference(|v| v[0].powi(3) * v[1] + v[1].sin(), &[x, y], 1e-5);
        assert_close(&got, &[3. * x * x * y, x.powi(3) + y.cos()], 1e-9, 1e-9, "gradient");
    }

    #[test]
    fn accepts_equal_values() {
        let v = [1., f64::NAN, f64::INFINITY, -0.0];
        assert_close(&v, &[1. + 1e-13, f64::NAN, f64::INFINITY, 0.], 1e-12, 0., "equal");
    }

    #[test]
    #[should_panic(expected = "what: 1 of 2 values differ; worst at 1")]
    fn rejects_a_difference() {
        assert_close(&[1., 2.], &[1., 2.1], 1e-3, 1e-3, "what");
    }

    #[test]
    #[should_panic(expected = "values differ")]
    fn rejects_nan_for_a_number() {
        assert_close(&[f64::NAN], &[0.], 1., 1e9, "nan");
    }

    #[test]
    #[should_panic(expected = "values differ")]
    fn rejects_a_number_for_nan() {
        assert_close(&[0.], &[f64::NAN], 1., 1e9, "nan");
    }

    #[test]
    #[should_panic(expected = "values differ")]
    fn rejects_infinity() {
        assert_close(&[1.], &[f64::INFINITY], 1., 1., "infinity");
    }

    #[test]
    #[should_panic(expected = "number of values")]
    fn rejects_different_lengths() {
        assert_close(&[], &[1.], 1., 1., "length");
    }
}
