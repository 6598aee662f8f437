//! Element-wise loops, auto-vectorized for every instruction set.

use super::{SharedSlice, parallel, rows_per_task};
use crate::element::Float;
use crate::simd::{Kernel, Simd};

/// Declares a loop that is compiled for every instruction set and dispatched at run time.
macro_rules! looped {
    ($(#[$meta:meta])* $name:ident<$lt:lifetime>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name<$lt, T: Float>($($arg: $ty),*) {
            struct Args<$lt, T> { $($arg: $ty),*, over: std::marker::PhantomData<&$lt T> }
            impl<$lt, T: Float> Kernel<T> for Args<$lt, T> {
                type Out = ();
                #[inline(always)]
                fn run<L: Simd<T = T>>(self) {
                    let Args { $($arg),*, .. } = self;
                    $body
                }
            }
            T::run(Args { $($arg),*, over: std::marker::PhantomData })
        }
    };
}
pub(crate) use looped;

looped! {
    add_to_part<'a>(to: &'a mut [T], from: &'a [T]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t += *f;
        }
    }
}

looped! {
    add_part<'a>(a: &'a [T], b: &'a [T], to: &'a mut [T]) {
        for ((t, a), b) in to.iter_mut().zip(a).zip(b) {
            *t = *a + *b;
        }
    }
}

looped! {
    multiply_part<'a>(a: &'a [T], b: &'a [T], to: &'a mut [T]) {
        for ((t, a), b) in to.iter_mut().zip(a).zip(b) {
            *t = *a * *b;
        }
    }
}

looped! {
    clamp_part<'a>(x: &'a [T], low: T, high: T, to: &'a mut [T]) {
        for (t, x) in to.iter_mut().zip(x) {
            let v = if *x > low { *x } else { low };
            *t = if v < high { v } else { high };
        }
    }
}

looped! {
    mask_part<'a>(gradient: &'a mut [T], out: &'a [T], low: T, high: T) {
        for (g, o) in gradient.iter_mut().zip(out) {
            *g = if *o > low && *o < high { *g } else { T::ZERO };
        }
    }
}

/// Copies `columns` values of every row: from rows of `from.0` values, starting at column `from.1`, to
/// rows of `to.0` values, starting at column `to.1`.
pub(crate) fn copy_columns<T: Float>(
    source: &[T],
    from: (usize, usize),
    target: &mut [T],
    to: (usize, usize),
    columns: usize,
) {
    let rows = source.len() / from.0;
    let part = rows_per_task(rows, columns);
    let target = SharedSlice::new(target);
    parallel(rows.div_ceil(part), |i| {
        let (first, n) = (i * part, part.min(rows - i * part));
        // SAFETY: whole rows, each in one task.
        #[allow(unsafe_code)]
        let target = unsafe { target.range(first * to.0, n * to.0) };
        let source = source[first * from.0..(first + n) * from.0].chunks_exact(from.0);
        for (source, target) in source.zip(target.chunks_exact_mut(to.0)) {
            target[to.1..to.1 + columns].copy_from_slice(&source[from.1..from.1 + columns]);
        }
    });
}

/// Values per task.
const PART: usize = 1 << 15;

looped! {
    gelu_part<'a>(x: &'a [T], to: &'a mut [T]) {
        for (t, x) in to.iter_mut().zip(x) {
            *t = *x * x.normal_cdf_pdf().0;
        }
    }
}

looped! {
    gelu_backward_part<'a>(x: &'a [T], gradient: &'a mut [T]) {
        for (g, x) in gradient.iter_mut().zip(x) {
            let (below, density) = x.normal_cdf_pdf();
            *g *= below + *x * density;
        }
    }
}

looped! {
    scale_part<'a>(x: &'a [T], factor: T, to: &'a mut [T]) {
        for (t, x) in to.iter_mut().zip(x) {
            *t = *x * factor;
        }
    }
}

/// Runs `f(start, chunk)` over chunks of `to` in parallel.
fn by_parts<T: Float>(to: &mut [T], f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let len = to.len();
    let to = SharedSlice::new(to);
    parallel(len.div_ceil(PART), |i| {
        // SAFETY: one part per task.
        #[allow(unsafe_code)]
        let to = unsafe { to.range(i * PART, PART.min(len - i * PART)) };
        f(i * PART, to);
    });
}

/// `to = from`.
pub(crate) fn copy<T: Float>(from: &[T], to: &mut [T]) {
    by_parts(to, |start, to| to.copy_from_slice(&from[start..start + to.len()]));
}

/// `to += from`.
pub(crate) fn add_to<T: Float>(to: &mut [T], from: &[T]) {
    by_parts(to, |start, to| add_to_part(to, &from[start..start + to.len()]));
}

/// `to = a + b`.
pub(crate) fn add<T: Float>(a: &[T], b: &[T], to: &mut [T]) {
    by_parts(to, |start, to| add_part(&a[start..start + to.len()], &b[start..start + to.len()], to));
}

/// `to = a * b`.
pub(crate) fn multiply<T: Float>(a: &[T], b: &[T], to: &mut [T]) {
    by_parts(to, |start, to| multiply_part(&a[start..start + to.len()], &b[start..start + to.len()], to));
}

/// `to = min(max(x, low), high)`.
pub(crate) fn clamp<T: Float>(x: &[T], low: T, high: T, to: &mut [T]) {
    by_parts(to, |start, to| clamp_part(&x[start..start + to.len()], low, high, to));
}

/// Zeroes `gradient` where `out` is not strictly inside (low, high).
pub(crate) fn mask<T: Float>(gradient: &mut [T], out: &[T], low: T, high: T) {
    by_parts(gradient, |start, g| mask_part(g, &out[start..start + g.len()], low, high));
}

/// `to = x * CDF(x)` of the standard normal.
pub(crate) fn gelu<T: Float>(x: &[T], to: &mut [T]) {
    by_parts(to, |start, to| gelu_part(&x[start..start + to.len()], to));
}

/// Multiplies a gradient by the derivative of [`gelu`] at `x`.
pub(crate) fn gelu_backward<T: Float>(x: &[T], gradient: &mut [T]) {
    by_parts(gradient, |start, g| gelu_backward_part(&x[start..start + g.len()], g));
}

/// `to = x * factors[image]`.
pub(crate) fn scale_images<T: Float>(x: &[T], factors: &[f64], to: &mut [T]) {
    let len = x.len() / factors.len().max(1);
    let to = SharedSlice::new(to);
    parallel(factors.len(), |image| {
        // SAFETY: one image per task.
        #[allow(unsafe_code)]
        let to = unsafe { to.range(image * len, len) };
        scale_part(&x[image * len..(image + 1) * len], T::narrow(factors[image]), to);
    });
}

/// ELU; single-threaded.
pub(crate) fn elu<T: Float>(x: &[T], to: &mut [T]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to = if *x < T::ZERO { T::narrow(x.widen().exp_m1()) } else { *x };
    }
}

/// Multiplies a gradient with the derivative of ELU, computed from its result `y`.
pub(crate) fn elu_backward<T: Float>(y: &[T], gradient: &mut [T]) {
    for (g, y) in gradient.iter_mut().zip(y) {
        if *y < T::ZERO {
            *g *= *y + T::narrow(1.0);
        }
    }
}

/// Transposes `[B, C, P]` to `[B, P, C]`.
pub(crate) fn channels_last<T: Float>(x: &[T], channels: usize, pixels: usize, out: &mut [T]) {
    let len = channels * pixels;
    let images = x.len() / len;
    let out = SharedSlice::new(out);
    parallel(images, |i| {
        // SAFETY: one image per task.
        #[allow(unsafe_code)]
        let out = unsafe { out.range(i * len, len) };
        let x = &x[i * len..(i + 1) * len];
        for (c, plane) in x.chunks_exact(pixels).enumerate() {
            for (p, v) in plane.iter().enumerate() {
                out[p * channels + c] = *v;
            }
        }
    });
}
