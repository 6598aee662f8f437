//! Vectorizable exponential and normal distribution.

/// `exp(x)` with a relative error of 3e-7: range reduction by powers of two and a polynomial of degree 7.
/// Below -87.3 it stays at the smallest normal number.
#[inline(always)]
pub(crate) fn exp32(x: f32) -> f32 {
    // Adding this constant leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.3 { x } else { -87.3 };
    let x = if x < 88.3 { x } else { 88.3 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + c;
    }
    sum * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// CDF and density of the standard normal; the CDF within 3e-7 by Hastings' rational approximation
/// (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn normal32(x: f32) -> (f32, f32) {
    let size = if x < 0.0 { -x } else { x };
    let exp = exp32(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * size);
    let mut sum = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        sum = sum * t + c;
    }
    let tail = 0.5 * sum * t * exp;
    (if x < 0.0 { tail } else { 1.0 - tail }, 0.398_942_3 * exp)
}

/// CDF and density of the standard normal to full f64 precision.
pub(crate) fn normal64(x: f64) -> (f64, f64) {
    let erf = candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2);
    (0.5 * (1.0 + erf), 0.398_942_280_401_432_7 * (-0.5 * x * x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_is_near_f64() {
        let mut worst = [0.0f64; 3];
        for i in -90_000..=88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let off = (f64::from(exp32(x)) - want).abs();
            assert!(x > -87.3 || off < 1.3e-38, "{x}: {off:e}");
            if x > -87.3 {
                worst[0] = worst[0].max(off / want);
            }
            let ((p, d), (want_p, want_d)) = (normal32(x), normal64(f64::from(x)));
            worst[1] = worst[1].max((f64::from(p) - want_p).abs());
            worst[2] = worst[2].max((f64::from(d) - want_d).abs());
        }
        assert!(worst[0] < 3e-7 && worst[1] < 3e-7 && worst[2] < 1e-7, "{worst:?}");
        assert!(exp32(f32::NEG_INFINITY) < 2e-38 && exp32(0.0) == 1.0);
    }

    /// Values from tables of the normal distribution.
    #[test]
    fn normal_matches_table() {
        for (x, p) in [(0.0, 0.5), (1.0, 0.841_344_746_068_543), (-1.96, 0.024_997_895_148_220_4)] {
            assert!((normal64(x).0 - p).abs() < 1e-15, "{x}");
        }
        assert!((normal64(1.0).1 - 0.241_970_724_519_143_37).abs() < 1e-16);
    }
}
