//! CPU kernels on slices and shapes, without candle types. Together with [`crate::simd`] they hold the
//! unsafe code of the crate.
//!
//! Maps are NHWC. Work is partitioned by shape only and partial sums are combined in a fixed order, so
//! results do not depend on the number of threads.

pub(crate) mod activation;
pub(crate) mod allocator;
pub(crate) mod attention;
pub(crate) mod depthwise;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod geometry;
pub(crate) mod group_norm;
pub(crate) mod indirect_gemm;
pub(crate) mod layer_norm;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod optim;
pub(crate) mod patches;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod resample;
pub(crate) mod small_gemm;
pub(crate) mod softmax;
pub(crate) mod wgrad;
pub(crate) mod winograd;

use rayon::prelude::*;

/// Runs `f(0..tasks)` on the thread pool. Tasks must write to disjoint ranges.
pub(crate) fn parallel(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    // A pool of one thread would only add the cost of handing the work over.
    if tasks <= 1 || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().for_each(f);
    }
}

/// Returns the rows per task of a pass over `[rows, channels]`, fixed by the shape.
pub(crate) fn rows_per_task(rows: usize, channels: usize) -> usize {
    (32_768 / channels.max(1)).clamp(16, 4096).min(rows.max(1))
}

/// A slice that tasks share to write disjoint ranges.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<T>(*mut T, usize);

// SAFETY: users write disjoint ranges only (see `range`).
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for SharedSlice<T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for SharedSlice<T> {}

impl<T> SharedSlice<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Returns the range `start..start + len`.
    ///
    /// # Safety
    /// Concurrent tasks must not take overlapping ranges, and the slice must outlive them.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1), "range out of bounds");
        // SAFETY: in bounds by the assertion, disjoint by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// Returns the raw pointer, for kernels that scatter.
    pub(crate) fn ptr(&self) -> *mut T {
        self.0
    }
}
