//! Ctrl-C: the first press stops the run after its current step, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::CliError;
use crate::output;

/// Installs the handler of Ctrl-C and SIGTERM; returns the flag that a run polls.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if shared.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        output::status("\nstopping after a checkpoint; press Ctrl-C again to stop at once");
    })
    .map_err(|e| CliError::failed(format!("cannot install the Ctrl-C handler: {e}")))?;
    Ok(stop)
}
