//! Max pooling and global average pooling of NHWC maps.

#![allow(unsafe_code)]

use super::{Shared, parallel};
use crate::real::Real;

/// Shape of a max pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaxPool {
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) channels: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl MaxPool {
    /// The taps of output pixel (y, x) that lie inside: their number and their pixel.
    fn taps(&self, y: usize, x: usize) -> impl Iterator<Item = (u8, usize)> + '_ {
        (0..self.kernel * self.kernel).filter_map(move |t| {
            let iy = (y * self.stride + t / self.kernel).checked_sub(self.padding)?;
            let ix = (x * self.stride + t % self.kernel).checked_sub(self.padding)?;
            (iy < self.input[0] && ix < self.input[1]).then_some((t as u8, iy * self.input[1] + ix))
        })
    }

    /// Largest value of each window and which tap it was; the first one wins a tie, padding never.
    pub(crate) fn forward<T: Real>(&self, images: usize, x: &[T], out: &mut [T], which: &mut [u8]) {
        let (c, [oh, ow]) = (self.channels, self.output);
        let x_len = self.input[0] * self.input[1] * c;
        let (out, which) = (Shared::new(out), Shared::new(which));
        parallel(images * oh, |task| {
            let (image, y) = (task / oh, task % oh);
            let x = &x[image * x_len..(image + 1) * x_len];
            // SAFETY: one output row per task.
            let (out, which) =
                unsafe { (out.range(task * ow * c, ow * c), which.range(task * ow * c, ow * c)) };
            for ox in 0..ow {
                let (out, which) = (&mut out[ox * c..(ox + 1) * c], &mut which[ox * c..(ox + 1) * c]);
                let mut first = true;
                for (tap, pixel) in self.taps(y, ox) {
                    let x = &x[pixel * c..(pixel + 1) * c];
                    if first {
                        out.copy_from_slice(x);
                        which.fill(tap);
                        first = false;
                    } else {
                        for ((o, w), x) in out.iter_mut().zip(which.iter_mut()).zip(x) {
                            // A value that is not a number wins, as in PyTorch.
                            let larger = *x > *o || x.wide().is_nan();
                            *o = if larger { *x } else { *o };
                            *w = if larger { tap } else { *w };
                        }
                    }
                }
            }
        });
    }

    /// Adds each gradient to the pixel that won.
    pub(crate) fn backward<T: Real>(&self, images: usize, dy: &[T], which: &[u8], dx: &mut [T]) {
        let (c, [oh, ow]) = (self.channels, self.output);
        let (x_len, y_len) = (self.input[0] * self.input[1] * c, oh * ow * c);
        let dx = Shared::new(dx);
        parallel(images, |image| {
            // SAFETY: one image per task.
            let dx = unsafe { dx.range(image * x_len, x_len) };
            for y in 0..oh {
                for ox in 0..ow {
                    let at = image * y_len + (y * ow + ox) * c;
                    let (dy, which) = (&dy[at..at + c], &which[at..at + c]);
                    for (tap, pixel) in self.taps(y, ox) {
                        let dx = &mut dx[pixel * c..(pixel + 1) * c];
                        for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(which) {
                            *dx += if *w == tap { *dy } else { T::ZERO };
                        }
                    }
                }
            }
        });
    }
}

/// Mean over the pixels of every image: `[images, pixels, channels]` to `[images, channels]`.
pub(crate) fn average<T: Real>(x: &[T], pixels: usize, channels: usize, out: &mut [T]) {
    let scale = T::of(1.0 / pixels as f64);
    let images = out.len() / channels;
    let out = Shared::new(out);
    parallel(images, |image| {
        // SAFETY: one image per task.
        let out = unsafe { out.range(image * channels, channels) };
        out.fill(T::ZERO);
        for row in x[image * pixels * channels..(image + 1) * pixels * channels].chunks_exact(channels) {
            for (o, x) in out.iter_mut().zip(row) {
                *o += *x;
            }
        }
        for o in out {
            *o *= scale;
        }
    });
}

/// Gradient of [`average`]: adds to, or writes, `dx`.
pub(crate) fn average_backward<T: Real>(dy: &[T], pixels: usize, channels: usize, add: bool, dx: &mut [T]) {
    let scale = T::of(1.0 / pixels as f64);
    let images = dy.len() / channels;
    let dx = Shared::new(dx);
    parallel(images, |image| {
        // SAFETY: one image per task.
        let dx = unsafe { dx.range(image * pixels * channels, pixels * channels) };
        let dy = &dy[image * channels..(image + 1) * channels];
        for row in dx.chunks_exact_mut(channels) {
            for (d, g) in row.iter_mut().zip(dy) {
                *d = if add { *d + *g * scale } else { *g * scale };
            }
        }
    });
}
