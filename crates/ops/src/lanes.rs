//! Sixteen values at a time, on whatever the machine has.
//!
//! A kernel is written once over [`Lanes`] and compiled for every instruction set; [`Plain`] is the
//! scalar twin and the only one that also runs in `f64`.

#![allow(unsafe_code, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // lanes are indexed

use crate::real::Real;

/// A kernel that any instruction set can run. Implementations mark `run` `#[inline(always)]` so
/// that it is compiled inside the function that enables the instructions.
pub(crate) trait Kernel<T: Real> {
    /// What it returns.
    type Out;
    /// Runs it.
    fn run<L: Lanes<T = T>>(self) -> Self::Out;
}

/// Sixteen values of one type.
///
/// # Safety
/// Pointers must be valid for sixteen values (or for the first `n` in the partial forms). The
/// vector types of an instruction set may only be used inside a function that enables it, which
/// [`Real::run`] sees to.
pub(crate) trait Lanes: Copy {
    /// Element type.
    type T: Real;
    /// Whether there are registers for a tile of 6 x 4 vectors.
    const WIDE: bool;
    /// All the same value.
    unsafe fn splat(x: Self::T) -> Self;
    /// From memory, unaligned.
    unsafe fn load(p: *const Self::T) -> Self;
    /// The first `n <= 16` values from memory, zeros after.
    unsafe fn load_part(p: *const Self::T, n: usize) -> Self;
    /// To memory, unaligned.
    unsafe fn store(self, p: *mut Self::T);
    /// The first `n <= 16` values to memory.
    unsafe fn store_part(self, p: *mut Self::T, n: usize);
    /// `self + a * b`.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// Sum.
    unsafe fn add(self, o: Self) -> Self;
    /// The larger one.
    unsafe fn max(self, o: Self) -> Self;
    /// The smaller one.
    unsafe fn min(self, o: Self) -> Self;
    /// Asks for the memory at `p`, which need not be valid, to read it soon.
    #[inline(always)]
    unsafe fn prefetch(p: *const Self::T) {
        let _ = p;
    }
    /// The same, to write it soon.
    #[inline(always)]
    unsafe fn prefetch_write(p: *const Self::T) {
        let _ = p;
    }
}

/// Sixteen values in an array: the scalar twin.
#[derive(Clone, Copy)]
pub(crate) struct Plain<T>([T; 16]);

impl<T: Real> Plain<T> {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(T, T) -> T) -> Self {
        let mut r = self.0;
        for i in 0..16 {
            r[i] = f(self.0[i], o.0[i]);
        }
        Self(r)
    }
}

// SAFETY (all blocks below): the trait demands valid pointers; arrays have sixteen values.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<T: Real> Lanes for Plain<T> {
    type T = T;
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn splat(x: T) -> Self {
        Self([x; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const T) -> Self {
        Self(unsafe { p.cast::<[T; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_part(p: *const T, n: usize) -> Self {
        let mut r = [T::ZERO; 16];
        for (i, r) in r.iter_mut().enumerate().take(n) {
            *r = unsafe { *p.add(i) };
        }
        Self(r)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut T) {
        unsafe { p.cast::<[T; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut T, n: usize) {
        for i in 0..n {
            unsafe { *p.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let mut r = self.0;
        for i in 0..16 {
            r[i] += a.0[i] * b.0[i];
        }
        Self(r)
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    // The operand order of x86: the second one where either is not a number.
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Lanes};
    use std::arch::x86_64::*;

    /// One AVX-512 register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    impl Avx512 {
        /// Runs a kernel with AVX-512 enabled; only chosen where the machine has it.
        pub(crate) fn run<K: Kernel<f32>>(kernel: K) -> K::Out {
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn inside<K: Kernel<f32>>(kernel: K) -> K::Out {
                kernel.run::<Avx512>()
            }
            // SAFETY: `isa()` returned Avx512, so the instructions exist.
            unsafe { inside(kernel) }
        }
    }

    #[inline(always)]
    fn mask(n: usize) -> __mmask16 {
        if n >= 16 { 0xffff } else { (1u16 << n) - 1 }
    }

    // SAFETY (all blocks): pointers by the trait's contract, instructions by `run`.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx512 {
        type T = f32;
        const WIDE: bool = true;
        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_write(p: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(p)) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(mask(n), p)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, mask(n), self.0) }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Self(_mm512_max_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Self(_mm512_min_ps(self.0, o.0)) }
        }
    }

    /// Two AVX2 registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    impl Avx2 {
        /// Runs a kernel with AVX2 and FMA enabled; only chosen where the machine has them.
        pub(crate) fn run<K: Kernel<f32>>(kernel: K) -> K::Out {
            #[target_feature(enable = "avx2,fma")]
            fn inside<K: Kernel<f32>>(kernel: K) -> K::Out {
                kernel.run::<Avx2>()
            }
            // SAFETY: `isa()` returned Avx2, so the instructions exist.
            unsafe { inside(kernel) }
        }
    }

    // SAFETY (all blocks): pointers by the trait's contract, instructions by `run`.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx2 {
        type T = f32;
        const WIDE: bool = false;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            // Nearly always; a copy of so many values is a call.
            if n == 16 {
                return unsafe { Self::load(p) };
            }
            let mut values = [0f32; 16];
            for (i, v) in values.iter_mut().enumerate().take(n) {
                *v = unsafe { *p.add(i) };
            }
            unsafe { Self::load(values.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            if n == 16 {
                return unsafe { self.store(p) };
            }
            let mut values = [0f32; 16];
            unsafe { self.store(values.as_mut_ptr()) }
            for (i, v) in values.iter().enumerate().take(n) {
                unsafe { *p.add(i) = *v }
            }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Self(_mm256_max_ps(self.0, o.0), _mm256_max_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Self(_mm256_min_ps(self.0, o.0), _mm256_min_ps(self.1, o.1)) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// On other machines the plain lanes stand in for the x86 ones.
#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Kernel, Plain};

    /// Not on this machine.
    pub(crate) struct Avx512;
    /// Not on this machine.
    pub(crate) struct Avx2;

    impl Avx512 {
        pub(crate) fn run<K: Kernel<f32>>(kernel: K) -> K::Out {
            kernel.run::<Plain<f32>>()
        }
    }
    impl Avx2 {
        pub(crate) fn run<K: Kernel<f32>>(kernel: K) -> K::Out {
            kernel.run::<Plain<f32>>()
        }
    }
}
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use other::{Avx2, Avx512};
