//! Squared distance of the teacher's and the student's Gram matrices.

use candle_core::Tensor;
use stillhouse_core::Result;

use super::mmd::{Groups, Kernel, grouped_mmd2};

/// `sum over pairs x, x' of (t_x . t_x' - s_x . s_x')^2` for each image, `[B]`: points `t [B, P,
/// C_T]` and `s [B, P, C_S]`. Only the student gets a gradient.
///
/// `t t^T` is the sum over channels of the outer products of each channel's values, so the distance is a
/// squared MMD of the channels with the kernel `(x . y)^2`. The MMD picks the cheaper of products over
/// pairs of positions and over pairs of channels.
pub(crate) fn gram_distance(t: &Tensor, s: &Tensor) -> Result<Tensor> {
    // The factor turns the MMD's mean over channels into a sum.
    let channels = |points: &Tensor| -> Result<Tensor> {
        Ok((points.transpose(1, 2)?.contiguous()? * (points.dim(2)? as f64).sqrt())?)
    };
    grouped_mmd2(&channels(t)?, &channels(s)?, &Groups::per_image(s.dim(0)?)?, Kernel::Poly2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use stillhouse_core::Rng;

    #[test]
    fn matches_the_definition_in_both_forms() {
        // fewer and more positions than channels
        for p in [2, 9] {
            let draw = |name: &str, c: usize| {
                let mut draw = Rng::new(4).stream(name).at(0, 0);
                let values: Vec<f64> = (0..2 * p * c).map(|_| draw.normal()).collect();
                Tensor::from_vec(values, (2, p, c), &Device::Cpu).unwrap()
            };
            let (t, s) = (draw("t", 4), draw("s", 3));
            let gram = |x: &Tensor| x.matmul(&x.transpose(1, 2).unwrap()).unwrap();
            let want = (gram(&t) - gram(&s)).unwrap().sqr().unwrap().sum((1, 2)).unwrap();
            let (want, got) = (want.to_vec1::<f64>().unwrap(), gram_distance(&t, &s).unwrap());
            let got = got.to_vec1::<f64>().unwrap();
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-10 * w), "{got:?} {want:?}");
        }
    }
}
