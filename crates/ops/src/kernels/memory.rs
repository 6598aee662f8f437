//! What the allocator does with large buffers that were given back.

#![allow(unsafe_code)]

/// Keeps freed memory in the process instead of handing it back to the system at once. candle makes
/// every value of a graph anew; fetching and clearing their pages again in each step takes a tenth of
/// a step and more. To be called once, before the first tensor; acts on Linux with glibc, else not.
///
/// The process then holds what its fullest moment needed (up to 2 GiB beyond what is in use) until it
/// ends.
pub fn disable_trim() {
    // `MALLOC_*` variables of the environment are the user's own word on it.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if !std::env::vars_os().any(|(name, _)| name.as_encoded_bytes().starts_with(b"MALLOC_")) {
        // SAFETY: `mallopt` takes two numbers and sets parameters of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Gives memory that was freed, wherever it lies, back to the system.
///
/// What a network gives up weight by weight lies between what stays, where little that is asked for
/// later fits.
pub(crate) fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
