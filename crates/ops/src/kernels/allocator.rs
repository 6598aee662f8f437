//! Tuning of the system allocator (glibc) for large short-lived buffers.

#![allow(unsafe_code)]

/// Keeps freed memory in the process instead of returning it to the system at once. candle allocates
/// every tensor of a graph separately; without this, mapping and clearing their pages costs a tenth of a step
/// or more. Call it once, before the first tensor. No effect except on Linux with glibc.
///
/// The process then holds its peak memory (up to 2 GiB more than is in use) until it ends.
pub fn disable_trim() {
    // The user's `MALLOC_*` variables take precedence.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if !std::env::vars_os().any(|(name, _)| name.as_encoded_bytes().starts_with(b"MALLOC_")) {
        // SAFETY: `mallopt` takes two integers and sets allocator parameters.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Returns freed memory to the system, wherever it lies in the heap.
///
/// Weights released one by one leave gaps between live allocations that later ones rarely fit.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes an integer and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
