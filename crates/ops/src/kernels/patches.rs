//! Patch merging: concatenates 2 x 2 neighbors of NHWC maps along the channels, and its inverse.

#![allow(unsafe_code)]

use super::{SharedSlice, parallel};
use crate::element::Float;

/// Row and column of the four neighbors, in channel order.
const ORDER: [(usize, usize); 4] = [(0, 0), (1, 0), (0, 1), (1, 1)];

/// Rearranges `[images, h, w, c]` to `[images, ceil(h / 2), ceil(w / 2), 4 c]`.
pub(crate) fn merge<T: Float>(x: &[T], [images, h, w, c]: [usize; 4], out: &mut [T]) {
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    let out = SharedSlice::new(out);
    parallel(images * oh, |task| {
        let (image, y) = (task / oh, task % oh);
        // SAFETY: one output row per task.
        let out = unsafe { out.range(task * ow * 4 * c, ow * 4 * c) };
        for (x_out, out) in out.chunks_exact_mut(4 * c).enumerate() {
            for ((dy, dx), out) in ORDER.into_iter().zip(out.chunks_exact_mut(c)) {
                let (iy, ix) = (2 * y + dy, 2 * x_out + dx);
                if iy < h && ix < w {
                    let at = ((image * h + iy) * w + ix) * c;
                    out.copy_from_slice(&x[at..at + c]);
                } else {
                    out.fill(T::ZERO);
                }
            }
        }
    });
}

/// Inverse of [`merge`], for gradients; `out` has the given shape.
pub(crate) fn split<T: Float>(x: &[T], [images, h, w, c]: [usize; 4], out: &mut [T]) {
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    let out = SharedSlice::new(out);
    parallel(images * h, |task| {
        let (image, y) = (task / h, task % h);
        // SAFETY: one output row per task.
        let out = unsafe { out.range(task * w * c, w * c) };
        for (column, out) in out.chunks_exact_mut(c).enumerate() {
            let quadrant = y % 2 + 2 * (column % 2);
            let at = (((image * oh + y / 2) * ow + column / 2) * 4 + quadrant) * c;
            out.copy_from_slice(&x[at..at + c]);
        }
    });
}
