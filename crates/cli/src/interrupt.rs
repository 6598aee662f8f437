//! Ctrl-C: the first press asks the run to stop at its next step, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::problem::Problem;
use crate::talk;

/// Listens to Ctrl-C (and SIGTERM) from now on; the flag is what a run looks at.
pub(crate) fn flag() -> Result<Arc<AtomicBool>, Problem> {
    let stop = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if shared.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        talk::say("\nstopping: a checkpoint is written first; press Ctrl-C again to stop at once");
    })
    .map_err(|e| Problem::failed(format!("cannot listen to Ctrl-C: {e}")))?;
    Ok(stop)
}
