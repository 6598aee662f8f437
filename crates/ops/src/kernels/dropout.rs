//! Random masks.

#![allow(unsafe_code)]

use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::rng::Rng;

/// Fills the mask of dropout: 0 for dropped values, `1 / (1 - p)` for the rest.
pub(crate) fn fill_mask<T: Float>(mask: &mut [T], (rng, step): (Rng, u64), p: f64) {
    const PART: usize = 4096;
    let len = mask.len();
    let keep = T::narrow(1.0 / (1.0 - p));
    let limit = (p * f64::from(u32::MAX)) as u32;
    let parts = SharedSlice::new(mask);
    parallel(len.div_ceil(PART), |i| {
        // SAFETY: one chunk per task.
        let part = unsafe { parts.range(i * PART, PART.min(len - i * PART)) };
        let mut draw = rng.at(step, i as u64);
        for s in part {
            *s = if draw.next_u32() < limit { T::ZERO } else { keep };
        }
    });
}

/// Draws a factor for each image: 0 with probability `p`, otherwise `1 / (1 - p)`.
pub(crate) fn image_factors(images: usize, (rng, step): (Rng, u64), p: f64) -> Vec<f64> {
    let keep = 1.0 / (1.0 - p);
    (0..images).map(|image| if rng.at(step, image as u64).chance(p) { 0.0 } else { keep }).collect()
}
