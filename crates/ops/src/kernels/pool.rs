//! Max pooling and global average pooling of NHWC maps.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// Geometry of a max pooling.
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
    /// Iterates over the window elements of output pixel (y, x) inside the map, as (index, pixel).
    fn window_offsets(&self, y: usize, x: usize) -> impl Iterator<Item = (u8, usize)> + '_ {
        (0..self.kernel * self.kernel).filter_map(move |t| {
            let iy = (y * self.stride + t / self.kernel).checked_sub(self.padding)?;
            let ix = (x * self.stride + t % self.kernel).checked_sub(self.padding)?;
            (iy < self.input[0] && ix < self.input[1]).then_some((t as u8, iy * self.input[1] + ix))
        })
    }

    /// Computes the maximum of each window and its index within the window. The first one wins a tie;
    /// padding is ignored.
    pub(crate) fn forward<T: Float>(&self, images: usize, x: &[T], out: &mut [T], which: &mut [u8]) {
        let (c, [oh, ow]) = (self.channels, self.output);
        let x_len = self.input[0] * self.input[1] * c;
        let (out, which) = (SharedSlice::new(out), SharedSlice::new(which));
        parallel(images * oh, |task| {
            let (image, y) = (task / oh, task % oh);
            let x = &x[image * x_len..(image + 1) * x_len];
            // SAFETY: one output row per task.
            let (out, which) =
                unsafe { (out.range(task * ow * c, ow * c), which.range(task * ow * c, ow * c)) };
            row_max(self, y, x, out, which);
        });
    }

    /// Adds each gradient to the pixel of the maximum.
    pub(crate) fn backward<T: Float>(&self, images: usize, dy: &[T], which: &[u8], dx: &mut [T]) {
        let (c, [oh, ow]) = (self.channels, self.output);
        let (x_len, y_len) = (self.input[0] * self.input[1] * c, oh * ow * c);
        let dx = SharedSlice::new(dx);
        parallel(images, |image| {
            // SAFETY: one image per task.
            let dx = unsafe { dx.range(image * x_len, x_len) };
            let part = image * y_len..(image + 1) * y_len;
            scatter_max(self, &dy[part.clone()], &which[part], dx);
        });
    }
}

looped! {
    /// One row of outputs.
    #[allow(clippy::eq_op)]
    row_max<'a>(pool: &'a MaxPool, y: usize, x: &'a [T], out: &'a mut [T], which: &'a mut [u8]) {
        let c = pool.channels;
        for (ox, (out, which)) in out.chunks_exact_mut(c).zip(which.chunks_exact_mut(c)).enumerate() {
            let mut first = true;
            for (offset, pixel) in pool.window_offsets(y, ox) {
                let x = &x[pixel * c..(pixel + 1) * c];
                if first {
                    out.copy_from_slice(x);
                    which.fill(offset);
                    first = false;
                } else {
                    for ((o, w), x) in out.iter_mut().zip(which.iter_mut()).zip(x) {
                        // NaN propagates, as in PyTorch.
                        let larger = *x > *o || *x != *x;
                        *o = if larger { *x } else { *o };
                        *w = if larger { offset } else { *w };
                    }
                }
            }
        }
    }
}

looped! {
    /// One image.
    scatter_max<'a>(pool: &'a MaxPool, dy: &'a [T], which: &'a [u8], dx: &'a mut [T]) {
        let (c, ow) = (pool.channels, pool.output[1]);
        for (at, (dy, which)) in dy.chunks_exact(c).zip(which.chunks_exact(c)).enumerate() {
            for (offset, pixel) in pool.window_offsets(at / ow, at % ow) {
                let dx = &mut dx[pixel * c..(pixel + 1) * c];
                for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(which) {
                    *dx += if *w == offset { *dy } else { T::ZERO };
                }
            }
        }
    }
}

/// Sums over the pixels of every image and scales: `[images, pixels, channels]` to `[images, channels]`.
pub(crate) fn sum_pixels<T: Float>(x: &[T], pixels: usize, channels: usize, scale: T, out: &mut [T]) {
    let images = out.len() / channels;
    let out = SharedSlice::new(out);
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

/// Broadcasts the scaled vector of every image to its pixels, adding to or overwriting `out`.
pub(crate) fn spread<T: Float>(x: &[T], pixels: usize, channels: usize, scale: T, add: bool, out: &mut [T]) {
    let images = x.len() / channels;
    let out = SharedSlice::new(out);
    parallel(images, |image| {
        // SAFETY: one image per task.
        let out = unsafe { out.range(image * pixels * channels, pixels * channels) };
        let x = &x[image * channels..(image + 1) * channels];
        for row in out.chunks_exact_mut(channels) {
            for (o, x) in row.iter_mut().zip(x) {
                *o = if add { *o + *x * scale } else { *x * scale };
            }
        }
    });
}
