//! Maps that are linear along rows and along columns: bilinear resizing, adaptive average pooling,
//! and the gradients of both.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{Shared, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// For every output position of one direction, the inputs it reads and their weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Along {
    inputs: usize,
    /// `ends[i]` is where the taps of output `i` end.
    ends: Vec<usize>,
    taps: Vec<(usize, f64)>,
}

impl Along {
    fn new(inputs: usize, outputs: usize, mut taps: impl FnMut(usize) -> Vec<(usize, f64)>) -> Self {
        let mut along = Self { inputs, ends: Vec::with_capacity(outputs), taps: Vec::new() };
        for i in 0..outputs {
            along.taps.extend(taps(i));
            along.ends.push(along.taps.len());
        }
        along
    }

    /// Linear interpolation as PyTorch has it. With `align_corners` the first and last pixels of
    /// both sides lie on each other, without it the outer edges do.
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

    /// `[inputs, outputs]`: column `i` holds the weights of output `i`.
    pub(crate) fn matrix(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.inputs * self.outputs()];
        for i in 0..self.outputs() {
            for (at, weight) in self.at(i) {
                values[at * self.outputs() + i] += weight;
            }
        }
        values
    }

    /// Outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.ends.len()
    }

    /// Inputs.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// The map that carries gradients back.
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
        &self.taps[start..self.ends[i]]
    }
}

looped! {
    /// One output row from the rows that `taps` names.
    resample_row<'a>(
        x: &'a [T],
        taps: &'a [(usize, f64)],
        columns: &'a Along,
        channels: usize,
        add: bool,
        out: &'a mut [T],
    ) {
        if !add {
            out.fill(T::ZERO);
        }
        let width = columns.inputs * channels;
        for (y, wy) in taps {
            let row = &x[y * width..(y + 1) * width];
            for (i, out) in out.chunks_exact_mut(channels).enumerate() {
                for (at, wx) in columns.at(i) {
                    let weight = T::of(wy * wx);
                    for (o, v) in out.iter_mut().zip(&row[at * channels..(at + 1) * channels]) {
                        *o += weight * *v;
                    }
                }
            }
        }
    }
}

/// `[images, rows.inputs, columns.inputs, channels]` to `[images, rows.outputs, columns.outputs,
/// channels]`, added to what is there or written.
pub(crate) fn resample<T: Float>(
    x: &[T],
    rows: &Along,
    columns: &Along,
    channels: usize,
    add: bool,
    out: &mut [T],
) {
    let (h, width) = (rows.outputs(), columns.outputs() * channels);
    let source = rows.inputs * columns.inputs * channels;
    let images = out.len() / (h * width);
    let out = Shared::new(out);
    parallel(images * h, |task| {
        let (image, y) = (task / h, task % h);
        // SAFETY: one output row per task.
        let out = unsafe { out.range(task * width, width) };
        resample_row(&x[image * source..(image + 1) * source], rows.at(y), columns, channels, add, out);
    });
}
