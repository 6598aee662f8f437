//! The threads that kernels run on.

use crate::{Error, Result};

/// Makes the global thread pool, one of whose threads is the caller's own; as many as the machine has, or
/// `RAYON_NUM_THREADS` says, without a number. A pool beside the caller is woken for each part of each
/// layer and wakes the caller after it, which takes a tenth of a step of a small network.
///
/// To be called once, by the thread that trains, before anything else uses rayon. Without it rayon makes a
/// pool of its own kind; the numbers are the same.
///
/// # Errors
/// If there is a global pool already, or threads cannot be started.
pub fn init_thread_pool(count: Option<usize>) -> Result<()> {
    let asked = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|n| *n > 0);
    let found = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = count.or_else(asked).unwrap_or_else(found);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count);
    // Alone, the caller would be the pool, and it does not look after what other threads ask of it.
    let pool = if count > 1 { pool.use_current_thread() } else { pool };
    pool.build_global().map_err(|e| Error::usage("init_thread_pool", e))
}
