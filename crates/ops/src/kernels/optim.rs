//! In-place optimizer updates.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use super::elementwise::looped;
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// Values per task of an update: they stay in the cache between the check and the update.
const PART: usize = 1 << 15;

looped! {
    all_finite_part<'a>(values: &'a [T], finite: &'a mut bool) {
        // A value times zero is zero unless it is infinite or NaN. Independent sums keep the loop free of
        // branches and of the latency of one chain of additions.
        let mut sums = [T::ZERO; 64];
        let (whole, rest) = values.as_chunks::<64>();
        for values in whole {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += *value * T::ZERO;
            }
        }
        *finite = sums.iter().all(|sum| *sum == T::ZERO) && rest.iter().all(|v| *v * T::ZERO == T::ZERO);
    }
}

/// Returns whether all values are finite.
pub(crate) fn all_finite<T: Float>(values: &[T]) -> bool {
    let mut finite = true;
    all_finite_part(values, &mut finite);
    finite
}

/// Hyperparameters of one SGD update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: f64,
    pub(crate) momentum: f64,
    pub(crate) weight_decay: f64,
    pub(crate) nesterov: bool,
    /// Whether the momentum buffer is still empty.
    pub(crate) first: bool,
}

looped! {
    sgd_part<'a>(p: &'a mut [T], g: &'a [T], m: &'a mut [T], s: SgdStep) {
        let (lr, momentum, decay) = (T::narrow(s.lr), T::narrow(s.momentum), T::narrow(s.weight_decay));
        for ((p, g), m) in p.iter_mut().zip(g).zip(m.iter_mut()) {
            let g = *g + decay * *p;
            let v = if s.first { g } else { momentum * *m + g };
            *m = v;
            *p -= lr * if s.nesterov { g + momentum * v } else { v };
        }
    }
}

/// SGD as in PyTorch: `g += wd * p; m = first ? g : momentum * m + g; p -= lr * m` (Nesterov: `p -= lr *
/// (g + momentum * m)`). Returns whether all gradients are finite; if not, the parameter is not usable any
/// more.
pub(crate) fn sgd<T: Float>(p: &mut [T], g: &[T], m: &mut [T], step: SgdStep) -> bool {
    let len = p.len();
    assert!(g.len() == len && m.len() == len);
    let (p, m) = (SharedSlice::new(p), SharedSlice::new(m));
    let finite = AtomicBool::new(true);
    parallel(len.div_ceil(PART), |i| {
        let (start, n) = (i * PART, PART.min(len - i * PART));
        let g = &g[start..start + n];
        if !all_finite(g) {
            finite.store(false, Ordering::Relaxed);
        }
        // SAFETY: one part per task.
        let (p, m) = unsafe { (p.range(start, n), m.range(start, n)) };
        sgd_part(p, g, m, step);
    });
    finite.into_inner()
}

/// Hyperparameters of one Adam update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamStep {
    pub(crate) lr: f64,
    pub(crate) betas: [f64; 2],
    /// `1 - beta^steps`.
    pub(crate) correction: [f64; 2],
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    pub(crate) decoupled: bool,
}

looped! {
    adam_part<'a>(p: &'a mut [T], g: &'a [T], m: &'a mut [T], v: &'a mut [T], s: AdamStep) {
        let (keep, keep2) = (T::narrow(s.betas[0]), T::narrow(s.betas[1]));
        let (take, take2) = (T::narrow(1.0 - s.betas[0]), T::narrow(1.0 - s.betas[1]));
        let (lr, eps) = (T::narrow(s.lr / s.correction[0]), T::narrow(s.eps));
        let root = T::narrow(1.0 / s.correction[1].sqrt());
        let shrink = T::narrow(if s.decoupled { 1.0 - s.lr * s.weight_decay } else { 1.0 });
        let decay = T::narrow(if s.decoupled { 0.0 } else { s.weight_decay });
        for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v.iter_mut())) {
            let g = *g + decay * *p;
            *m = keep * *m + take * g;
            *v = keep2 * *v + take2 * g * g;
            *p = shrink * *p - lr * *m / (v.sqrt() * root + eps);
        }
    }
}

/// Adam as in PyTorch: `g += wd * p` (or, decoupled, `p *= 1 - lr * wd`), `m = b1 * m + (1 - b1) * g`, `v
/// = b2 * v + (1 - b2) * g^2`, `p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`. Returns whether
/// all gradients are finite, as [`sgd`] does.
pub(crate) fn adam<T: Float>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], step: AdamStep) -> bool {
    let len = p.len();
    assert!(g.len() == len && m.len() == len && v.len() == len);
    let (p, m, v) = (SharedSlice::new(p), SharedSlice::new(m), SharedSlice::new(v));
    let finite = AtomicBool::new(true);
    parallel(len.div_ceil(PART), |i| {
        let (start, n) = (i * PART, PART.min(len - i * PART));
        let g = &g[start..start + n];
        if !all_finite(g) {
            finite.store(false, Ordering::Relaxed);
        }
        // SAFETY: one part per task.
        let (p, m, v) = unsafe { (p.range(start, n), m.range(start, n), v.range(start, n)) };
        adam_part(p, g, m, v, step);
    });
    finite.into_inner()
}
