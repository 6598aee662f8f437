//! Plain loops, compiled for every instruction set.

use crate::lanes::{Kernel, Lanes};
use crate::real::Real;

/// Declares a loop that is compiled once for every instruction set and runs on the one in use.
macro_rules! looped {
    ($(#[$meta:meta])* $name:ident<$lt:lifetime>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name<$lt, T: Real>($($arg: $ty),*) {
            struct Args<$lt, T> { $($arg: $ty),*, over: std::marker::PhantomData<&$lt T> }
            impl<$lt, T: Real> Kernel<T> for Args<$lt, T> {
                type Out = ();
                #[inline(always)]
                fn run<L: Lanes<T = T>>(self) {
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
    /// `to += from`.
    add_to<'a>(to: &'a mut [T], from: &'a [T]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t += *f;
        }
    }
}

looped! {
    /// `to = a + b`.
    add<'a>(a: &'a [T], b: &'a [T], to: &'a mut [T]) {
        for ((t, a), b) in to.iter_mut().zip(a).zip(b) {
            *t = *a + *b;
        }
    }
}

looped! {
    /// `to = a * b`.
    multiply<'a>(a: &'a [T], b: &'a [T], to: &'a mut [T]) {
        for ((t, a), b) in to.iter_mut().zip(a).zip(b) {
            *t = *a * *b;
        }
    }
}

looped! {
    /// `to = min(max(x, low), high)`.
    clamp<'a>(x: &'a [T], low: T, high: T, to: &'a mut [T]) {
        for (t, x) in to.iter_mut().zip(x) {
            let v = if *x > low { *x } else { low };
            *t = if v < high { v } else { high };
        }
    }
}

looped! {
    /// `gradient = 0` where `out` is not strictly inside (low, high).
    mask<'a>(gradient: &'a mut [T], out: &'a [T], low: T, high: T) {
        for (g, o) in gradient.iter_mut().zip(out) {
            *g = if *o > low && *o < high { *g } else { T::ZERO };
        }
    }
}
