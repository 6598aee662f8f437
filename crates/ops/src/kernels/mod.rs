//! Kernels over slices and shapes; no candle types. The unsafe code of the crate lives here and
//! in [`crate::simd`].
//!
//! Maps are NHWC. Work is split by shape only and partial sums are added in a fixed order, so a
//! result does not depend on the number of threads.

pub(crate) mod attention;
pub(crate) mod depthwise;
pub(crate) mod elementwise;
pub(crate) mod geometry;
pub(crate) mod indirect_gemm;
pub(crate) mod layer_norm;
pub(crate) mod memory;
pub(crate) mod norm;
pub(crate) mod optim;
pub(crate) mod patches;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod resample;
pub(crate) mod small_gemm;
pub(crate) mod softmax;
pub(crate) mod special;
pub(crate) mod wgrad;
pub(crate) mod winograd;

use rayon::prelude::*;

/// Runs `f(0..tasks)` on the thread pool. Tasks must write to disjoint places.
pub(crate) fn parallel(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    // To hand work to the only thread of a pool and to wait for it gains nothing.
    if tasks <= 1 || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().for_each(f);
    }
}

/// Rows in one task of a pass over `[rows, channels]`: fixed by the shape.
pub(crate) fn rows_per_task(rows: usize, channels: usize) -> usize {
    (32_768 / channels.max(1)).clamp(16, 4096).min(rows.max(1))
}

/// A pointer that tasks share to write disjoint parts of one slice.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: users write disjoint ranges only (see `range`).
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No two tasks that run at the same time may ask for overlapping parts, and the slice must
    /// outlive them.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1), "part outside of the slice");
        // SAFETY: inside the slice by the line above, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// The pointer itself, for kernels that scatter.
    pub(crate) fn ptr(&self) -> *mut T {
        self.0
    }
}
