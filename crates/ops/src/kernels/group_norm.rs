//! Group norm of NHWC maps.

#![allow(unsafe_code)]

use super::{SharedSlice, parallel};
use crate::element::Float;

/// Maps `[images, pixels, channels]` whose channels are normalized in groups.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    pub(crate) images: usize,
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
}

impl Groups {
    /// Channel and index within the image of each value of a group.
    fn values(self, group: usize) -> impl Iterator<Item = (usize, usize)> {
        let width = self.channels / self.groups;
        (0..self.pixels).flat_map(move |pixel| {
            (group * width..(group + 1) * width).map(move |c| (c, pixel * self.channels + c))
        })
    }

    /// Averages `f(channel, index)` over a group, in f64.
    fn mean(self, group: usize, f: impl Fn(usize, usize) -> f64) -> f64 {
        let count = (self.image_len() / self.groups) as f64;
        self.values(group).map(|(c, i)| f(c, i)).sum::<f64>() / count
    }

    fn image_len(self) -> usize {
        self.pixels * self.channels
    }

    /// Computes `gamma * (x - mean) / sqrt(variance + eps) + beta`; stores mean and `1 / sqrt(variance + eps)`
    /// of each image and group in `stats`.
    pub(crate) fn forward<T: Float>(
        self,
        x: &[T],
        (gamma, beta): (&[T], &[T]),
        eps: f64,
        out: &mut [T],
        stats: &mut [T],
    ) {
        let len = self.image_len();
        let (out, stats) = (SharedSlice::new(out), SharedSlice::new(stats));
        parallel(self.images, |image| {
            let x = &x[image * len..(image + 1) * len];
            // SAFETY: one image per task.
            let (out, stats) = unsafe {
                (out.range(image * len, len), stats.range(image * self.groups * 2, self.groups * 2))
            };
            for (group, stats) in stats.chunks_exact_mut(2).enumerate() {
                let mean = self.mean(group, |_, i| x[i].widen());
                let variance = self.mean(group, |_, i| (x[i].widen() - mean).powi(2));
                let (mean, inverse) = (T::narrow(mean), T::narrow(1.0 / (variance + eps).sqrt()));
                (stats[0], stats[1]) = (mean, inverse);
                for (c, i) in self.values(group) {
                    out[i] = (x[i] - mean) * inverse * gamma[c] + beta[c];
                }
            }
        });
    }

    /// Writes (or adds to) `dx` and returns the gradients of gamma and beta.
    pub(crate) fn backward<T: Float>(
        self,
        (x, dy): (&[T], &[T]),
        gamma: &[T],
        stats: &[T],
        add: bool,
        dx: &mut [T],
    ) -> (Vec<f64>, Vec<f64>) {
        let (len, channels) = (self.image_len(), self.channels);
        let mut sums = vec![0.0; self.images * 2 * channels];
        let (dx, partial) = (SharedSlice::new(dx), SharedSlice::new(&mut sums));
        parallel(self.images, |image| {
            let range = image * len..(image + 1) * len;
            let (x, dy, stats) = (&x[range.clone()], &dy[range], &stats[image * self.groups * 2..]);
            // SAFETY: one image per task.
            let (dx, sums) =
                unsafe { (dx.range(image * len, len), partial.range(image * 2 * channels, 2 * channels)) };
            let (d_gamma, d_beta) = sums.split_at_mut(channels);
            for group in 0..self.groups {
                let (mean, inverse) = (stats[group * 2], stats[group * 2 + 1]);
                let normal = |i: usize| (x[i] - mean) * inverse;
                for (c, i) in self.values(group) {
                    d_gamma[c] += (dy[i] * normal(i)).widen();
                    d_beta[c] += dy[i].widen();
                }
                let first = T::narrow(self.mean(group, |c, i| (dy[i] * gamma[c]).widen()));
                let second = T::narrow(self.mean(group, |c, i| (dy[i] * gamma[c] * normal(i)).widen()));
                for (c, i) in self.values(group) {
                    let d = inverse * (dy[i] * gamma[c] - first - normal(i) * second);
                    dx[i] = if add { dx[i] + d } else { d };
                }
            }
        });
        // Images in order: independent of the number of threads.
        let total = |at: usize| (0..self.images).map(|image| sums[image * 2 * channels + at]).sum();
        ((0..channels).map(total).collect(), (channels..2 * channels).map(total).collect())
    }
}
