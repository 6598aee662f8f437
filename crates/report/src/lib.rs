//! Tables from run folders, beside the published numbers.
//!
//! The report reads finished run folders (`result.json`) and nothing else; it never trains, and it
//! knows no dataset, network or method by its code. [`Published`] holds every number that the papers
//! print, [`accuracy`] and [`sizes`] put ours beside them.

pub mod accuracy;
mod error;
pub mod published;
pub mod run;
pub mod sizes;
pub mod text;

pub use accuracy::{AccuracyTable, Beside, Caption, Cell, Planned};
pub use error::{Error, Result};
pub use published::Published;
pub use run::{RunResult, State};
