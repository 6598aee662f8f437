//! Tables from run folders, beside the published numbers.
//!
//! The report reads run folders and nothing else; it never trains, and it knows no dataset, network or
//! method by its code. [`Published`] holds every number that the papers print, [`accuracy`] and
//! [`sizes`] put ours beside them, [`page`] makes one self-contained HTML page of a table and its runs.

pub mod accuracy;
pub mod asked;
pub mod beside;
pub mod by_class;
pub mod caption;
pub mod compare;
pub mod confusion_rows;
mod error;
pub mod exits;
pub mod facts;
mod frkdnet;
pub mod mksmt;
pub mod networks;
pub mod page;
pub mod published;
pub mod record;
pub mod sets;
pub mod sizes;
pub mod svg;
pub mod text;
pub mod tsne;

pub use accuracy::{AccuracyTable, Cell, Planned};
pub use asked::Asked;
pub use beside::Beside;
pub use caption::Caption;
pub use error::{Error, Result};
pub use published::Published;
pub use record::Record;
pub use stillhouse_runs::{Measure, RunStatus};
