//! The global thread pool.

use crate::{Error, Result};

/// Creates the global thread pool with the calling thread as one of its workers. `count` defaults to
/// `RAYON_NUM_THREADS`, then to the number of hardware threads.
///
/// A caller outside the pool wakes it for every part of every layer and is woken in turn, which costs a
/// tenth of a step of a small network. Call it once, from the training thread, before anything else uses
/// rayon. Without it rayon creates its default pool; results are the same.
///
/// # Errors
/// A global pool exists already, or threads cannot be started.
pub fn init_thread_pool(count: Option<usize>) -> Result<()> {
    let from_env = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|n| *n > 0);
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = count.or_else(from_env).unwrap_or_else(available);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count);
    // A pool of the calling thread alone would not run work submitted by other threads.
    let pool = if count > 1 { pool.use_current_thread() } else { pool };
    pool.build_global().map_err(|e| Error::usage("init_thread_pool", e))
}
