//! Adaptive average pooling as products with constant matrices: candle has none, and the gradient
//! of its `avg_pool2d` is wrong where the window does not divide the size.

use candle_core::{Device, Tensor};
use stillhouse_core::Result;

/// `[from, to]`: column i averages the rows `floor(i * from / to) .. ceil((i + 1) * from / to)`.
fn windows(from: usize, to: usize, like: &Tensor) -> Result<Tensor> {
    let mut values = vec![0f64; from * to];
    for i in 0..to {
        let (start, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
        for row in start..end {
            values[row * to + i] = 1.0 / (end - start) as f64;
        }
    }
    let matrix = Tensor::from_vec(values, (from, to), &Device::Cpu)?;
    Ok(matrix.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// `[B, C, H, W] -> [B, C, h, w]`; windows overlap where the sizes do not divide.
pub(crate) fn adaptive_avg_pool(x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (b, c, from_h, from_w) = x.dims4()?;
    let mut y = x.clone();
    if from_w != w {
        y = y.reshape((b * c * from_h, from_w))?.matmul(&windows(from_w, w, x)?)?;
        y = y.reshape((b, c, from_h, w))?;
    }
    if from_h != h {
        y = y.transpose(2, 3)?.reshape((b * c * w, from_h))?.matmul(&windows(from_h, h, x)?)?;
        y = y.reshape((b, c, w, h))?.transpose(2, 3)?;
    }
    Ok(y)
}

/// Both maps at the smaller height and the smaller width of the two.
pub(crate) fn pool_pair(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((_, _, ah, aw), (_, _, bh, bw)) = (a.dims4()?, b.dims4()?);
    let size = (ah.min(bh), aw.min(bw));
    Ok((adaptive_avg_pool(a, size)?, adaptive_avg_pool(b, size)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn windows_are_pytorchs() {
        // torch.nn.functional.adaptive_avg_pool2d of arange(5) to 3: windows 0..2, 1..4, 3..5
        let x = Tensor::arange(0f64, 5., &Device::Cpu).unwrap().reshape((1, 1, 1, 5)).unwrap();
        let y = adaptive_avg_pool(&x, (1, 3)).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(y.iter().zip([0.5, 2.0, 3.5]).all(|(g, w)| (g - w).abs() < 1e-15), "{y:?}");
    }

    #[test]
    fn gradients_share_out_each_window() {
        // Each output's weight is spread over its window: 3 x 4 to 2 x 2 with weights 1, 2, 3, 4.
        let x = Var::zeros((1, 1, 3, 4), candle_core::DType::F64, &Device::Cpu).unwrap();
        let weights = Tensor::new(&[[[[1f64, 2.], [3., 4.]]]], &Device::Cpu).unwrap();
        let y = adaptive_avg_pool(&x, (2, 2)).unwrap();
        let grads = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let g = grads.get(&x).unwrap().squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(g, [[0.25, 0.25, 0.5, 0.5], [1., 1., 1.5, 1.5], [0.75, 0.75, 1., 1.]]);
    }

    #[test]
    fn equal_sizes_are_untouched() {
        let x = Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((1, 1, 2, 3)).unwrap();
        let (a, b) = pool_pair(&x, &Tensor::zeros((1, 4, 3, 2), x.dtype(), &Device::Cpu).unwrap()).unwrap();
        assert_eq!((a.dims(), b.dims()), (&[1, 1, 2, 2][..], &[1, 4, 2, 2][..]));
        let same = adaptive_avg_pool(&x, (2, 3)).unwrap();
        assert_eq!(same.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 2., 3., 4., 5.]);
    }
}
