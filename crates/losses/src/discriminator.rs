//! The convolutional discriminator of the holistic loss, and its input gradient.

use candle_core::Tensor;
use stillhouse_core::{Builder, Result};
use stillhouse_ops::Init;

/// Slope of the leaky ReLU below zero.
const SLOPE: f64 = 0.1;

/// Stride and padding of the three convolutions.
const STEPS: [(usize, usize); 3] = [(2, 1), (2, 1), (1, 0)];

/// Kernel sizes.
const KERNELS: [usize; 3] = [4, 4, 2];

/// Convolution 4 x 4 (stride 2, padding 1), leaky ReLU, the same once more, convolution 2 x 2:
/// `[B, C, H, W]` to a map of verdicts `[B, 1, h, w]`.
#[derive(Debug)]
pub(crate) struct Discriminator {
    layers: Vec<(Tensor, Tensor)>, // weight [out, in, k, k], bias [out]
}

/// The smallest height and width that it takes.
pub(crate) const SMALLEST: usize = 8;

impl Discriminator {
    /// Makes `conv1.weight`, `conv1.bias` to `conv3.bias` below the builder.
    pub(crate) fn new(channels: usize, widths: [usize; 2], params: &Builder) -> Result<Self> {
        let sizes = [channels, widths[0], widths[1], 1];
        let layer = |i: usize| {
            let (from, to, k) = (sizes[i], sizes[i + 1], KERNELS[i]);
            let (at, init) = (params.pp(format!("conv{}", i + 1)), Init::fan_in_uniform(from * k * k));
            Ok((at.var("weight", &[to, from, k, k], init)?, at.var("bias", &[to], init)?))
        };
        Ok(Self { layers: (0..3).map(layer).collect::<Result<_>>()? })
    }

    /// The verdicts, and the factors of the leaky ReLUs after the first two convolutions: constants.
    fn run(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let (mut x, mut factors) = (x.clone(), Vec::new());
        for (i, ((weight, bias), (stride, padding))) in self.layers.iter().zip(STEPS).enumerate() {
            let y = covered(&x, KERNELS[i], (stride, padding))?.conv2d(weight, 0, stride, 1, 1)?;
            x = y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?;
            if i < 2 {
                let above = x.detach().gt(0.0)?.to_dtype(x.dtype())?;
                let factor = above.affine(1.0 - SLOPE, SLOPE)?;
                x = (x * &factor)?;
                factors.push(factor);
            }
        }
        Ok((x, factors))
    }

    /// `[B, C, H, W] -> [B, 1, h, w]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.run(x)?.0)
    }

    /// The gradient of the sum of each image's verdicts with respect to a constant input, `[B, C, H, W]`,
    /// as a function of the weights that can be differentiated once more: the backward pass of the
    /// convolutions is written as transposed convolutions. The slopes of the leaky ReLUs are
    /// constants, so nothing is left out.
    pub(crate) fn input_gradient(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.detach();
        let (verdicts, factors) = self.run(&x)?;
        let sizes: Vec<[usize; 2]> = std::iter::once(&x)
            .chain(&factors)
            .map(|t| t.dims4().map(|(_, _, h, w)| [h, w]))
            .collect::<candle_core::Result<_>>()?;
        let mut g = Tensor::ones(verdicts.shape(), verdicts.dtype(), verdicts.device())?;
        for i in (0..3).rev() {
            let ((weight, _), (stride, padding)) = (&self.layers[i], STEPS[i]);
            g = transposed(&g, weight, (stride, padding), sizes[i])?;
            if i > 0 {
                g = (g * &factors[i - 1])?;
            }
        }
        Ok(g)
    }
}

/// The map in its border of zeros, without what no window reaches. A convolution without padding of
/// its own gives the same, and candle's gradient of it is right for all sizes: with padding and
/// stride it fails where height and width are not both odd or both even.
fn covered(x: &Tensor, k: usize, (stride, padding): (usize, usize)) -> Result<Tensor> {
    let mut y = x.clone();
    for dim in [2, 3] {
        let reached = |size: usize| (size + 2 * padding - k) / stride * stride + k;
        let length = reached(x.dim(dim)?);
        y = y.pad_with_zeros(dim, padding, padding)?.narrow(dim, 0, length)?;
    }
    Ok(y.contiguous()?)
}

/// The transposed convolution that leads back to a map of that size.
fn transposed(
    g: &Tensor,
    weight: &Tensor,
    (stride, padding): (usize, usize),
    [h, w]: [usize; 2],
) -> Result<Tensor> {
    let y = g.conv_transpose2d(weight, 0, 0, stride, 1)?;
    // Without the border, which is wider than what no window reaches.
    Ok(y.narrow(2, padding, h)?.narrow(3, padding, w)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};
    use stillhouse_core::{Params, Rng};
    use stillhouse_testkit::diff;

    fn list(t: &Tensor) -> Vec<f64> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The input gradient against candle's own backward, for odd and even sizes.
    #[test]
    fn the_input_gradient_is_the_gradient() {
        for (h, w) in [(8, 8), (11, 9), (12, 10)] {
            let params = Params::new(DType::F64, &Device::Cpu).unwrap();
            let d = Discriminator::new(3, [4, 5], &params.builder(Rng::new(2))).unwrap();
            let mut draw = Rng::new(3).at(0, 0);
            let values: Vec<f64> = (0..2 * 3 * h * w).map(|_| draw.normal()).collect();
            let x = Var::from_vec(values, (2, 3, h, w), &Device::Cpu).unwrap();
            let verdicts = d.forward(x.as_tensor()).unwrap();
            assert_eq!(verdicts.dims(), [2, 1, h / 4 - 1, w / 4 - 1]);
            let want = verdicts.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
            let got = d.input_gradient(x.as_tensor()).unwrap();
            diff::assert_close(&list(&got), &list(&want), 1e-10, 1e-12, &format!("{h} x {w}"));

            // And it is differentiated right with respect to the weights.
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
                let want = diff::central(at, &start, 1e-6);
                params
                    .import(id, &Tensor::from_slice(&start, weight.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                diff::assert_close(&list(&got), &want, 1e-6, 1e-7, &format!("{h} x {w} {name}"));
            }
        }
    }
}
