//! Tables from run folders, beside the published numbers.
//!
//! The report reads finished run folders (`result.json`) and nothing else; it never trains, and it
//! knows no dataset, network or method by its code. [`Published`] holds every number that the papers
//! print, [`table3`] puts ours beside them.

mod error;
pub mod published;
pub mod run;
pub mod table3;
pub mod text;

pub use error::{Error, Result};
pub use published::Published;
pub use run::{RunResult, State};
pub use table3::{Caption, Cell, Planned, Table3};
