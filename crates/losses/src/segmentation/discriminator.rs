//! Convolutional discriminator of the holistic loss, and its input gradient.

use candle_core::Tensor;
use stillhouse_core::{ParamBuilder, Result};
use stillhouse_ops::Init;

/// Slope of the leaky ReLU below zero.
const SLOPE: f64 = 0.1;

/// Kernel size, stride and padding of the three convolutions; a stride divides its kernel.
const SPECS: [Spec; 3] = [
    Spec { k: 4, stride: 2, padding: 1 },
    Spec { k: 4, stride: 2, padding: 1 },
    Spec { k: 2, stride: 1, padding: 0 },
];

/// Minimum height and width of the input.
pub(crate) const MIN_SIZE: usize = 8;

/// Twice convolution 4 x 4 (stride 2, padding 1) and leaky ReLU, then convolution 2 x 2: maps
/// `[B, C, H, W]` to scores `[B, 1, h, w]`.
#[derive(Debug)]
pub(crate) struct Discriminator {
    layers: Vec<(Tensor, Tensor)>, // weight [out, in, k, k], bias [out]
}

impl Discriminator {
    /// Creates `conv1.weight`, `conv1.bias` to `conv3.bias` under the builder's prefix.
    pub(crate) fn new(channels: usize, widths: [usize; 2], params: &ParamBuilder) -> Result<Self> {
        let sizes = [channels, widths[0], widths[1], 1];
        let layer = |i: usize| {
            let (from, to, k) = (sizes[i], sizes[i + 1], SPECS[i].k);
            let (conv, init) = (params.pp(format!("conv{}", i + 1)), Init::fan_in_uniform(from * k * k));
            Ok((conv.var("weight", &[to, from, k, k], init)?, conv.var("bias", &[to], init)?))
        };
        Ok(Self { layers: (0..3).map(layer).collect::<Result<_>>()? })
    }

    /// Verdicts `[B, h, w, 1]` on `[B, H, W, C]`, and the slopes of the two leaky ReLUs without gradient.
    fn forward_with_slopes(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let (mut x, mut slopes) = (x.clone(), Vec::new());
        for (i, ((weight, bias), spec)) in self.layers.iter().zip(SPECS).enumerate() {
            x = spec.convolve(&x, weight, bias)?;
            if i < 2 {
                let above = x.detach().gt(0.0)?.to_dtype(x.dtype())?;
                let slope = above.affine(1.0 - SLOPE, SLOPE)?;
                x = (x * &slope)?;
                slopes.push(slope);
            }
        }
        Ok((x, slopes))
    }

    /// `[B, C, H, W] -> [B, 1, h, w]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_slopes(&x.permute((0, 2, 3, 1))?.contiguous()?)?.0.permute((0, 3, 1, 2))?)
    }

    /// Gradient of the sum of each image's scores with respect to a constant input, `[B, C, H, W]`,
    /// differentiable with respect to the weights: the backward pass of the convolutions consists of
    /// transposed convolutions. The slopes of the leaky ReLUs are piecewise constant, so the second
    /// derivative is exact.
    pub(crate) fn input_gradient(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.detach().permute((0, 2, 3, 1))?.contiguous()?;
        let (scores, slopes) = self.forward_with_slopes(&x)?;
        let mut g = Tensor::ones(scores.shape(), scores.dtype(), scores.device())?;
        for i in (0..3).rev() {
            let (_, h, w, _) = if i > 0 { slopes[i - 1].dims4()? } else { x.dims4()? };
            g = SPECS[i].transposed(&g, &self.layers[i].0, (h, w))?;
            if i > 0 {
                g = (g * &slopes[i - 1])?;
            }
        }
        Ok(g.permute((0, 3, 1, 2))?)
    }
}

/// A convolution as matrix products: with a stride s, blocks of s x s pixels become channels, which
/// leaves kernels of k / s blocks with stride 1. candle's gradient of a convolution with stride and
/// padding is slow, and fails unless height and width are both odd or both even.
#[derive(Debug, Clone, Copy)]
struct Spec {
    k: usize,
    stride: usize,
    padding: usize,
}

impl Spec {
    /// Size of the output along an axis.
    fn output(&self, size: usize) -> usize {
        (size + 2 * self.padding - self.k) / self.stride + 1
    }

    /// Blocks of the kernel along an axis.
    fn blocks_of_kernel(&self) -> usize {
        self.k / self.stride
    }

    /// Splits `[out, in, k, k]` into one matrix `[s * s * in, out]` per block of the kernel.
    fn matrices(&self, weight: &Tensor) -> Result<Vec<Tensor>> {
        let (out, from, _, _) = weight.dims4()?;
        let (q, s) = (self.blocks_of_kernel(), self.stride);
        let blocks = weight.reshape(&[out, from, q, s, q, s][..])?.permute(vec![2, 4, 3, 5, 1, 0])?;
        let blocks = blocks.reshape((q * q, s * s * from, out))?;
        (0..q * q).map(|i| Ok(blocks.get(i)?)).collect()
    }

    /// `[B, H, W, in] -> [B, h, w, out]`
    fn convolve(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (b, height, width, from) = x.dims4()?;
        let ((h, w), (q, s), out) =
            ((self.output(height), self.output(width)), (self.blocks_of_kernel(), self.stride), bias.dim(0)?);
        // Zero padding, cropped to the pixels that kernels reach.
        let (m, n) = (h + q - 1, w + q - 1);
        let bordered = x.pad_with_zeros(1, self.padding, self.padding)?.narrow(1, 0, m * s)?;
        let bordered = bordered.pad_with_zeros(2, self.padding, self.padding)?.narrow(2, 0, n * s)?;
        let blocks = bordered.reshape(&[b, m, s, n, s, from][..])?.permute(vec![0, 1, 3, 2, 4, 5])?;
        let blocks = blocks.reshape((b, m, n, s * s * from))?;
        // A product with ones: the gradient of a broadcast is a slow and inaccurate sum.
        let ones = Tensor::ones((b * h * w, 1), x.dtype(), x.device())?;
        let mut y = ones.matmul(&bias.reshape((1, out))?)?;
        for (i, matrix) in self.matrices(weight)?.iter().enumerate() {
            let block = blocks.narrow(1, i / q, h)?.narrow(2, i % q, w)?;
            y = (y + block.reshape((b * h * w, s * s * from))?.matmul(matrix)?)?;
        }
        Ok(y.reshape((b, h, w, out))?)
    }

    /// Transposed convolution to a given size, `[B, h, w, out] -> [B, H, W, in]`.
    fn transposed(&self, g: &Tensor, weight: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        let ((b, h, w, out), from) = (g.dims4()?, weight.dim(1)?);
        let (q, s) = (self.blocks_of_kernel(), self.stride);
        let rows = g.reshape((b * h * w, out))?;
        let (m, n) = (h + q - 1, w + q - 1);
        let mut blocks = Tensor::zeros((b, m, n, s * s * from), g.dtype(), g.device())?;
        for (i, matrix) in self.matrices(weight)?.iter().enumerate() {
            let block = rows.matmul(&matrix.t()?)?.reshape((b, h, w, s * s * from))?;
            let (down, right) = (i / q, i % q);
            let block =
                block.pad_with_zeros(1, down, q - 1 - down)?.pad_with_zeros(2, right, q - 1 - right)?;
            blocks = (blocks + block)?;
        }
        let map = blocks.reshape(&[b, m, n, s, s, from][..])?.permute(vec![0, 1, 3, 2, 4, 5])?;
        let map = map.reshape((b, m * s, n * s, from))?;
        // The padding is at least as wide as the cropped pixels.
        Ok(map.narrow(1, self.padding, height)?.narrow(2, self.padding, width)?.contiguous()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use stillhouse_core::{ParamStore, Rng};
    use stillhouse_testkit::finite_diff;

    fn list(t: &Tensor) -> Vec<f64> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Compares with candle's convolution, for odd and even sizes.
    #[test]
    fn matches_candle_convolution() {
        let mut draw = Rng::new(1).at(0, 0);
        let mut random = |shape: &[usize]| {
            let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        for spec in [SPECS[0], SPECS[2]] {
            for (h, w) in [(8, 8), (7, 10), (5, 9)] {
                let (x, weight) = (random(&[2, 3, h, w]), random(&[4, 3, spec.k, spec.k]));
                let bias = random(&[4]);
                let want = x.conv2d(&weight, spec.padding, spec.stride, 1, 1).unwrap();
                let want = want.broadcast_add(&bias.reshape((1, 4, 1, 1)).unwrap()).unwrap();
                let got = spec.convolve(&x.permute((0, 2, 3, 1)).unwrap(), &weight, &bias).unwrap();
                let got = got.permute((0, 3, 1, 2)).unwrap();
                assert_eq!(got.dims(), want.dims());
                finite_diff::assert_close(
                    &list(&got),
                    &list(&want),
                    1e-12,
                    1e-12,
                    &format!("{spec:?} {h} x {w}"),
                );
            }
        }
    }

    /// Compares with candle's backward, for odd and even sizes.
    #[test]
    fn input_gradient_matches_backward() {
        for (h, w) in [(8, 8), (11, 9), (12, 10)] {
            let params = ParamStore::new(DType::F64, &Device::Cpu).unwrap();
            let d = Discriminator::new(3, [4, 5], &params.builder(Rng::new(2))).unwrap();
            let mut draw = Rng::new(3).at(0, 0);
            let values: Vec<f64> = (0..2 * 3 * h * w).map(|_| draw.normal()).collect();
            let x = Var::from_vec(values, (2, 3, h, w), &Device::Cpu).unwrap();
            let scores = d.forward(x.as_tensor()).unwrap();
            assert_eq!(scores.dims(), [2, 1, h / 4 - 1, w / 4 - 1]);
            let want = scores.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
            let got = d.input_gradient(x.as_tensor()).unwrap();
            finite_diff::assert_close(&list(&got), &list(&want), 1e-10, 1e-12, &format!("{h} x {w}"));

            // second derivatives with respect to the weights
            for name in ["conv1.weight", "conv2.weight", "conv3.weight"] {
                let id = params.id(name).unwrap();
                let weight = params.get(id).var().clone();
                let loss = || d.input_gradient(x.as_tensor()).unwrap().sqr().unwrap().sum_all().unwrap();
                let got = loss().backward().unwrap().get(&weight).unwrap().clone();
                let start = list(weight.as_tensor());
                let at = |v: &[f64]| {
                    let value = Tensor::from_slice(v, weight.shape(), &Device::Cpu).unwrap();
                    params.import(id, &value).unwrap();
                    loss().to_scalar::<f64>().unwrap()
                };
                let want = finite_diff::central_difference(at, &start, 1e-6);
                params
                    .import(id, &Tensor::from_slice(&start, weight.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                finite_diff::assert_close(&list(&got), &want, 1e-6, 1e-7, &format!("{h} x {w} {name}"));
            }
        }
    }
}
