//! Bilinear interpolation.

use candle_core::{Device, Tensor};

use crate::{Error, Result};

/// Bilinear interpolation of maps, `[B, C, H, W] -> [B, C, h, w]`, in f32 or f64.
///
/// As PyTorch's `interpolate(mode = "bilinear")`: with `align_corners` the centers of the corner pixels
/// are aligned, without it (half-pixel centers) the corners of the images. No antialiasing when
/// downsampling. Returns the map itself if the size does not change.
///
/// Computed as two products with small constant matrices, one per axis, so it runs on any device with a
/// matrix product.
///
/// # Errors
/// If `x` is not a map, or a size is 0.
pub fn resize_bilinear(x: &Tensor, (h, w): (usize, usize), align_corners: bool) -> Result<Tensor> {
    let [b, c, from_h, from_w] = *x.dims() else {
        return Err(Error::shape("resize_bilinear", "a map [B, C, H, W]", x.dims()));
    };
    if [from_h, from_w, h, w].contains(&0) {
        let found = format!("{:?} to {h} x {w}", x.dims());
        return Err(Error::shape("resize_bilinear", "sizes above 0", found));
    }
    let mut y = x.clone();
    if from_w != w {
        let weights = bilinear(from_w, w, align_corners, x)?;
        y = y.reshape((b * c * from_h, from_w))?.matmul(&weights)?.reshape((b, c, from_h, w))?;
    }
    if from_h != h {
        let weights = bilinear(from_h, h, align_corners, x)?;
        y = y.transpose(2, 3)?.reshape((b * c * w, from_h))?.matmul(&weights)?;
        y = y.reshape((b, c, w, h))?.transpose(2, 3)?;
    }
    Ok(y)
}

/// Returns `[from, to]`: column i holds the weights of the two inputs around output i.
fn bilinear(from: usize, to: usize, align_corners: bool, like: &Tensor) -> Result<Tensor> {
    let mut values = vec![0f64; from * to];
    for i in 0..to {
        let at = if align_corners {
            i as f64 * (from - 1) as f64 / (to - 1).max(1) as f64
        } else {
            ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0)
        };
        let low = (at as usize).min(from - 1);
        let part = at - low as f64;
        values[low * to + i] += 1.0 - part;
        values[(low + 1).min(from - 1) * to + i] += part;
    }
    let matrix = Tensor::from_vec(values, (from, to), &Device::Cpu)?;
    Ok(matrix.to_dtype(like.dtype())?.to_device(like.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use stillhouse_testkit::{device, finite_diff};

    fn map(h: usize, w: usize) -> Tensor {
        let values: Vec<f64> = (0..2 * h * w).map(|i| ((i * i * 7 + 3 * i) % 23) as f64 / 5.0).collect();
        Tensor::from_vec(values, (1, 2, h, w), &device()).unwrap()
    }

    fn list(t: &Tensor) -> Vec<f64> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn matches_pytorch_values() {
        // torch.nn.functional.interpolate of [0, 1, 2] along a line.
        let line = Tensor::arange(0f64, 3., &device()).unwrap().reshape((1, 1, 1, 3)).unwrap();
        let cases: [(usize, bool, &[f64]); 5] = [
            (6, false, &[0.0, 0.25, 0.75, 1.25, 1.75, 2.0]),
            (2, false, &[0.25, 1.75]),
            (5, true, &[0.0, 0.5, 1.0, 1.5, 2.0]),
            (1, true, &[0.0]),
            (1, false, &[1.0]),
        ];
        for (to, align_corners, want) in cases {
            let across = resize_bilinear(&line, (1, to), align_corners).unwrap();
            finite_diff::assert_close(&list(&across), want, 0.0, 1e-15, "along a row");
            let down = resize_bilinear(&line.transpose(2, 3).unwrap(), (to, 1), align_corners).unwrap();
            assert_eq!(down.dims(), [1, 1, to, 1]);
            finite_diff::assert_close(&list(&down), want, 0.0, 1e-15, "along a column");
        }
        // Both axes at once: rows 0 1 / 2 3 to 3 x 3 with aligned corners.
        let square = Tensor::arange(0f64, 4., &device()).unwrap().reshape((1, 1, 2, 2)).unwrap();
        let got = resize_bilinear(&square, (3, 3), true).unwrap();
        finite_diff::assert_close(
            &list(&got),
            &[0., 0.5, 1., 1., 1.5, 2., 2., 2.5, 3.],
            0.0,
            1e-15,
            "square",
        );
    }

    #[test]
    fn gradients_match_central_differences() {
        for (to, align_corners) in [((7, 5), false), ((7, 5), true), ((2, 3), false), ((3, 9), true)] {
            let x = map(4, 3);
            let loss = |x: &Tensor| {
                let y = resize_bilinear(x, to, align_corners).unwrap();
                let weights = Tensor::arange(0f64, y.elem_count() as f64, &device()).unwrap().cos().unwrap();
                (y.sqr().unwrap() * weights.reshape(y.shape()).unwrap()).unwrap().sum_all().unwrap()
            };
            let var = Var::from_tensor(&x).unwrap();
            let gradient = loss(var.as_tensor()).backward().unwrap().get(&var).unwrap().clone();
            let at = |v: &[f64]| {
                loss(&Tensor::from_slice(v, x.shape(), &device()).unwrap()).to_scalar::<f64>().unwrap()
            };
            let want = finite_diff::central_difference(at, &list(&x), 1e-5);
            finite_diff::assert_close(
                &list(&gradient),
                &want,
                1e-7,
                1e-7,
                &format!("{to:?} {align_corners}"),
            );
        }
    }

    #[test]
    fn preserves_constants_and_rejects_bad_sizes() {
        let ones = Tensor::ones((2, 3, 4, 5), candle_core::DType::F32, &device()).unwrap();
        for align_corners in [true, false] {
            let y = resize_bilinear(&ones, (9, 2), align_corners).unwrap().flatten_all().unwrap();
            assert!(y.to_vec1::<f32>().unwrap().iter().all(|v| (v - 1.0).abs() < 1e-6));
        }
        let same = resize_bilinear(&map(2, 3), (2, 3), false).unwrap();
        assert_eq!(list(&same), list(&map(2, 3)));
        let e = resize_bilinear(&ones, (0, 2), true).unwrap_err().to_string();
        assert!(e.contains("0 x 2"), "{e}");
        let e = resize_bilinear(&ones.flatten_all().unwrap(), (1, 2), true).unwrap_err().to_string();
        assert!(e.contains("[B, C, H, W]"), "{e}");
    }
}
