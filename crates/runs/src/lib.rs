//! Run folders: layout, configuration, results, epoch log, status and predictions.
//!
//! [`RunDir`] names the files of a folder and reads and writes them. The trainer writes run folders, the
//! report and the command line read them; each format is declared here once.

mod epoch_log;
mod error;
mod info;
mod predictions;
mod result;
mod run_dir;
mod status;
pub mod tensors;

pub use epoch_log::EpochLog;
pub use error::{Error, Result};
pub use info::{Role, RunInfo};
pub use predictions::Predictions;
pub use result::{
    Best, CellResult, Measure, RunSummary, Seconds, Speed, TeacherSummary, format_size, mean_iou,
};
pub use run_dir::{CHECKPOINT_PREFIX, RunDir, TEACHERS_DIR};
pub use status::RunStatus;
