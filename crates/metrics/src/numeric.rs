//! Ratios and means with NaN for "not defined", and an order-independent sum.

/// Returns `a / b`; NaN if `b` is 0.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { f64::NAN } else { a / b }
}

/// Returns the mean; NaN without values.
pub(crate) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0u64), |(sum, n), v| (sum + v, n + 1));
    ratio(sum, n as f64)
}

/// Returns the mean of the defined values; NaN if none is.
pub(crate) fn mean_defined(values: &[f64]) -> f64 {
    mean(values.iter().copied().filter(|v| !v.is_nan()))
}

/// Returns the mean with undefined values as 0; NaN without values.
pub(crate) fn mean_zero(values: &[f64]) -> f64 {
    mean(values.iter().map(|v| if v.is_nan() { 0.0 } else { *v }))
}

/// A sum in fixed point with 64 fractional bits, which does not depend on the order or grouping of
/// its values. Values are truncated to multiples of 2^-64; infinities, NaN and values of 2^40 and
/// more are summed separately as f64.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    fixed: i128,
    rest: f64,
}

impl Sum {
    const ONE: f64 = (1u128 << 64) as f64;

    pub(crate) fn add(&mut self, value: f64) {
        if value.abs() < (1u64 << 40) as f64 {
            self.fixed = self.fixed.saturating_add((value * Self::ONE) as i128);
        } else {
            self.rest += value;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.fixed = self.fixed.saturating_add(other.fixed);
        self.rest += other.rest;
    }

    pub(crate) fn value(&self) -> f64 {
        self.fixed as f64 / Self::ONE + self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_undefined_without_values() {
        assert!(ratio(1.0, 0.0).is_nan() && mean([]).is_nan() && mean_defined(&[f64::NAN]).is_nan());
        assert_eq!(mean_defined(&[1.0, f64::NAN, 3.0]), 2.0);
        assert_eq!(mean_zero(&[1.0, f64::NAN, 2.0]), 1.0);
    }

    #[test]
    fn sums_in_any_order() {
        let values: Vec<f64> = (0..1000).map(|i| (f64::from(i) * 0.37).sin() / 3.0).collect();
        let sum = |v: &mut dyn Iterator<Item = &f64>| {
            let mut s = Sum::default();
            v.for_each(|x| s.add(*x));
            s
        };
        let whole = sum(&mut values.iter());
        assert_eq!(whole.value(), sum(&mut values.iter().rev()).value());
        let (mut a, b) = (sum(&mut values[..313].iter()), sum(&mut values[313..].iter()));
        a.merge(&b);
        assert_eq!(whole.value(), a.value());
        assert!((whole.value() - values.iter().sum::<f64>()).abs() < 1e-12);
    }

    #[test]
    fn propagates_infinity_and_nan() {
        let mut s = Sum::default();
        s.add(1.5);
        s.add(1e300);
        assert_eq!(s.value(), 1e300);
        s.add(f64::INFINITY);
        assert_eq!(s.value(), f64::INFINITY);
        s.add(f64::NAN);
        assert!(s.value().is_nan());
    }
}
