//! Separable linear resampling: bilinear interpolation, adaptive average pooling, and their gradients.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// Sparse filter weights along one axis: for every output position, inputs and weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AxisWeights {
    inputs: usize,
    /// `ends[i]` is the end of the weights of output `i`.
    ends: Vec<usize>,
    weights: Vec<(usize, f64)>,
}

impl AxisWeights {
    fn new(inputs: usize, outputs: usize, mut weights: impl FnMut(usize) -> Vec<(usize, f64)>) -> Self {
        let mut axis = Self { inputs, ends: Vec::with_capacity(outputs), weights: Vec::new() };
        for i in 0..outputs {
            axis.weights.extend(weights(i));
            axis.ends.push(axis.weights.len());
        }
        axis
    }

    /// Linear interpolation as in PyTorch. With `align_corners` the centers of the corner pixels are
    /// aligned, without it the outer edges.
    pub(crate) fn bilinear(inputs: usize, outputs: usize, align_corners: bool) -> Self {
        let (from, to) = (inputs as f64, outputs as f64);
        Self::new(inputs, outputs, |i| {
            let at = if align_corners {
                if outputs > 1 { i as f64 * ((from - 1.0) / (to - 1.0)) } else { 0.0 }
            } else {
                ((i as f64 + 0.5) * (from / to) - 0.5).max(0.0)
            };
            let first = (at as usize).min(inputs - 1);
            let second = (first + 1).min(inputs - 1);
            let part = at - first as f64;
            if part == 0.0 || first == second {
                vec![(first, 1.0)]
            } else {
                vec![(first, 1.0 - part), (second, part)]
            }
        })
    }

    /// Output `i` is the mean of `floor(i * n / outputs) .. ceil((i + 1) * n / outputs)`.
    pub(crate) fn adaptive_average(inputs: usize, outputs: usize) -> Self {
        Self::new(inputs, outputs, |i| {
            let range = i * inputs / outputs..((i + 1) * inputs).div_ceil(outputs);
            let weight = 1.0 / range.len() as f64;
            range.map(|at| (at, weight)).collect()
        })
    }

    /// Returns the dense matrix `[inputs, outputs]`.
    pub(crate) fn matrix(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.inputs * self.outputs()];
        for i in 0..self.outputs() {
            for (at, weight) in self.at(i) {
                values[at * self.outputs() + i] += weight;
            }
        }
        values
    }

    /// Returns the output length.
    pub(crate) fn outputs(&self) -> usize {
        self.ends.len()
    }

    /// Returns the input length.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the transposed operator, for gradients.
    pub(crate) fn transposed(&self) -> Self {
        let mut lists = vec![Vec::new(); self.inputs];
        for i in 0..self.outputs() {
            for (at, weight) in self.at(i) {
                lists[*at].push((i, *weight));
            }
        }
        Self::new(self.outputs(), self.inputs, |i| std::mem::take(&mut lists[i]))
    }

    fn at(&self, i: usize) -> &[(usize, f64)] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.weights[start..self.ends[i]]
    }
}

looped! {
    /// One output row from the weighted input rows.
    resample_row<'a>(
        x: &'a [T],
        weights: &'a [(usize, f64)],
        columns: &'a AxisWeights,
        channels: usize,
        add: bool,
        out: &'a mut [T],
    ) {
        if !add {
            out.fill(T::ZERO);
        }
        let width = columns.inputs * channels;
        for (y, wy) in weights {
            let row = &x[y * width..(y + 1) * width];
            for (i, out) in out.chunks_exact_mut(channels).enumerate() {
                for (at, wx) in columns.at(i) {
                    let weight = T::narrow(wy * wx);
                    for (o, v) in out.iter_mut().zip(&row[at * channels..(at + 1) * channels]) {
                        *o += weight * *v;
                    }
                }
            }
        }
    }
}

/// Resamples `[images, rows.inputs, columns.inputs, channels]` to `[images, rows.outputs,
/// columns.outputs, channels]`, adding to or overwriting `out`.
pub(crate) fn resample<T: Float>(
    x: &[T],
    rows: &AxisWeights,
    columns: &AxisWeights,
    channels: usize,
    add: bool,
    out: &mut [T],
) {
    let (h, width) = (rows.outputs(), columns.outputs() * channels);
    let source = rows.inputs * columns.inputs * channels;
    let images = out.len() / (h * width);
    let out = SharedSlice::new(out);
    parallel(images * h, |task| {
        let (image, y) = (task / h, task % h);
        // SAFETY: one output row per task.
        let out = unsafe { out.range(task * width, width) };
        resample_row(&x[image * source..(image + 1) * source], rows.at(y), columns, channels, add, out);
    });
}
