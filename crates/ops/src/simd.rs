//! SIMD abstraction over vectors of sixteen values.
//!
//! A kernel is written once over [`Simd`] and compiled for every instruction set. [`Scalar`] is the
//! portable fallback and the only implementation for `f64`.

#![allow(unsafe_code, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // lanes are indexed

use crate::element::Float;

/// A kernel that runs on any instruction set. `run` must be `#[inline(always)]`, so that it is compiled
/// inside the function that enables the instructions.
pub(crate) trait Kernel<T: Float> {
    /// Return type.
    type Out;
    /// Runs the kernel.
    fn run<L: Simd<T = T>>(self) -> Self::Out;
}

/// A vector of sixteen values.
///
/// # Safety
/// Pointers must be valid for sixteen values (partial forms: for the first `n`). Vector types may only be
/// used inside a function that enables their instruction set, which [`Float::run`] ensures.
pub(crate) trait Simd: Copy {
    /// Element type.
    type T: Float;
    /// Whether the register file holds a tile of 6 x 4 vectors.
    const LARGE_TILES: bool;
    /// Broadcasts a value.
    unsafe fn splat(x: Self::T) -> Self;
    /// Loads from unaligned memory.
    unsafe fn load(p: *const Self::T) -> Self;
    /// Loads the first `n <= 16` values; the rest is zero.
    unsafe fn load_partial(p: *const Self::T, n: usize) -> Self;
    /// Stores to unaligned memory.
    unsafe fn store(self, p: *mut Self::T);
    /// Stores the first `n <= 16` values.
    unsafe fn store_partial(self, p: *mut Self::T, n: usize);
    /// `self + a * b`.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, o: Self) -> Self;
    /// Element-wise maximum.
    unsafe fn max(self, o: Self) -> Self;
    /// Element-wise minimum.
    unsafe fn min(self, o: Self) -> Self;
    /// Transposes a block of 16 x 16 values with the given row strides.
    #[inline(always)]
    unsafe fn transpose((from, from_row): (*const Self::T, usize), (to, to_row): (*mut Self::T, usize)) {
        for i in 0..16 {
            for j in 0..16 {
                // SAFETY: both blocks are valid by the caller's contract.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) }
            }
        }
    }
    /// Prefetches the line at `p` for reading; `p` need not be valid.
    #[inline(always)]
    unsafe fn prefetch(p: *const Self::T) {
        let _ = p;
    }
    /// Prefetches the line at `p` for writing.
    #[inline(always)]
    unsafe fn prefetch_write(p: *const Self::T) {
        let _ = p;
    }
}

/// Portable fallback: an array of sixteen values.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<T>([T; 16]);

impl<T: Float> Scalar<T> {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(T, T) -> T) -> Self {
        let mut r = self.0;
        for i in 0..16 {
            r[i] = f(self.0[i], o.0[i]);
        }
        Self(r)
    }
}

// SAFETY (all blocks below): the trait requires valid pointers; arrays have sixteen values.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<T: Float> Simd for Scalar<T> {
    type T = T;
    const LARGE_TILES: bool = false;
    #[inline(always)]
    unsafe fn splat(x: T) -> Self {
        Self([x; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const T) -> Self {
        Self(unsafe { p.cast::<[T; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const T, n: usize) -> Self {
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
    unsafe fn store_partial(self, p: *mut T, n: usize) {
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
    // Operand order of x86: the second operand if either is NaN.
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
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    /// One AVX-512 register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    impl Avx512 {
        /// Runs a kernel with AVX-512 enabled; only called if the CPU supports it.
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
    impl Simd for Avx512 {
        type T = f32;
        const LARGE_TILES: bool = true;
        #[inline(always)]
        unsafe fn transpose((from, from_row): (*const f32, usize), (to, to_row): (*mut f32, usize)) {
            unsafe {
                // Four rows at a time: vector `c` then has column `4 lane + c` in each 128-bit lane.
                let mut part = [[_mm512_setzero_ps(); 4]; 4];
                for (i, part) in part.iter_mut().enumerate() {
                    let row = |j: usize| _mm512_loadu_ps(from.add((4 * i + j) * from_row));
                    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                    let wide = |x| _mm512_castps_pd(x);
                    let (ab, cd) = (wide(_mm512_unpacklo_ps(a, b)), wide(_mm512_unpacklo_ps(c, d)));
                    let (ab2, cd2) = (wide(_mm512_unpackhi_ps(a, b)), wide(_mm512_unpackhi_ps(c, d)));
                    *part = [
                        _mm512_unpacklo_pd(ab, cd),
                        _mm512_unpackhi_pd(ab, cd),
                        _mm512_unpacklo_pd(ab2, cd2),
                        _mm512_unpackhi_pd(ab2, cd2),
                    ]
                    .map(|x| _mm512_castpd_ps(x));
                }
                for c in 0..4 {
                    let (a, b, d, e) = (part[0][c], part[1][c], part[2][c], part[3][c]);
                    let early = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(d, e));
                    let late = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(d, e));
                    let store = |lane: usize, x| _mm512_storeu_ps(to.add((4 * lane + c) * to_row), x);
                    store(0, _mm512_shuffle_f32x4::<0x88>(early.0, early.1));
                    store(1, _mm512_shuffle_f32x4::<0xdd>(early.0, early.1));
                    store(2, _mm512_shuffle_f32x4::<0x88>(late.0, late.1));
                    store(3, _mm512_shuffle_f32x4::<0xdd>(late.0, late.1));
                }
            }
        }
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
        unsafe fn load_partial(p: *const f32, n: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(mask(n), p)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn store_partial(self, p: *mut f32, n: usize) {
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
        /// Runs a kernel with AVX2 and FMA enabled; only called if the CPU supports them.
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
    impl Simd for Avx2 {
        type T = f32;
        const LARGE_TILES: bool = false;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_partial(p: *const f32, n: usize) -> Self {
            // The common case; a copy of variable length is a call.
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
        unsafe fn store_partial(self, p: *mut f32, n: usize) {
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

/// Fallbacks for other architectures.
#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Kernel, Scalar};

    /// Unavailable on this architecture.
    pub(crate) struct Avx512;
    /// Unavailable on this architecture.
    pub(crate) struct Avx2;

    impl Avx512 {
        pub(crate) fn run<K: Kernel<f32>>(kernel: K) -> K::Out {
            kernel.run::<Scalar<f32>>()
        }
    }
    impl Avx2 {
        pub(crate) fn run<K: Kernel<f32>>(kernel: K) -> K::Out {
            kernel.run::<Scalar<f32>>()
        }
    }
}
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use other::{Avx2, Avx512};

#[cfg(test)]
mod tests {
    use super::*;

    struct Transpose<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel<f32> for Transpose<'_> {
        type Out = ();
        #[inline(always)]
        fn run<L: Simd<T = f32>>(self) {
            assert!(self.0.len() >= 15 * 20 + 16 && self.1.len() >= 15 * 24 + 16);
            // SAFETY: both buffers have sixteen rows.
            unsafe { L::transpose((self.0.as_ptr(), 20), (self.1.as_mut_ptr(), 24)) }
        }
    }

    #[test]
    fn transposes_a_block() {
        let from: Vec<f32> = (0..320).map(|i| i as f32).collect();
        let mut to = vec![-1.0; 384];
        f32::run(Transpose(&from, &mut to));
        for (j, row) in to.chunks(24).enumerate() {
            for (i, x) in row.iter().enumerate() {
                assert_eq!(*x, if i < 16 { from[i * 20 + j] } else { -1.0 }, "{i} {j}");
            }
        }
    }
}
