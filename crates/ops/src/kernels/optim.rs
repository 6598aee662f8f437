//! Updates of optimisers, in place.

#![allow(unsafe_code)]

use super::elementwise::looped;
use super::{Shared, parallel};
use crate::lanes::{Kernel, Lanes};
use crate::real::Real;

/// Settings of one SGD update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: f64,
    pub(crate) momentum: f64,
    pub(crate) weight_decay: f64,
    pub(crate) nesterov: bool,
    /// The momentum buffer holds nothing yet.
    pub(crate) first: bool,
}

looped! {
    sgd_part<'a>(p: &'a mut [T], g: &'a [T], m: &'a mut [T], s: SgdStep) {
        let (lr, momentum, decay) = (T::of(s.lr), T::of(s.momentum), T::of(s.weight_decay));
        for ((p, g), m) in p.iter_mut().zip(g).zip(m.iter_mut()) {
            let g = *g + decay * *p;
            let v = if s.first { g } else { momentum * *m + g };
            *m = v;
            *p -= lr * if s.nesterov { g + momentum * v } else { v };
        }
    }
}

/// SGD as PyTorch defines it: `g += wd * p; m = first ? g : momentum * m + g; p -= lr * m`
/// (Nesterov: `p -= lr * (g + momentum * m)`).
pub(crate) fn sgd<T: Real>(p: &mut [T], g: &[T], m: &mut [T], step: SgdStep) {
    const PART: usize = 1 << 15;
    let len = p.len();
    assert!(g.len() == len && m.len() == len);
    let (p, m) = (Shared::new(p), Shared::new(m));
    parallel(len.div_ceil(PART), |i| {
        let (start, n) = (i * PART, PART.min(len - i * PART));
        // SAFETY: one part per task.
        let (p, m) = unsafe { (p.range(start, n), m.range(start, n)) };
        sgd_part(p, &g[start..start + n], m, step);
    });
}
