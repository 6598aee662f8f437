//! Tables and pages from run folders, next to the published numbers of papers.
//!
//! The report reads run folders and papers, and never trains. It knows no paper, method, network or dataset by
//! name: a [`Paper`] holds printed numbers with a [`published::Selector`] each, which says which measured number
//! it is compared with. [`ResultsTable`] compares runs, [`StaticTable`] dataset counts and model sizes;
//! [`page`] renders one self-contained HTML page of a table and its runs.

pub mod caption;
pub mod charts;
mod error;
pub mod exit_accuracy;
pub mod networks;
pub mod page;
pub mod per_class_iou;
pub mod published;
pub mod record;
pub mod results_table;
pub mod significance;
pub mod static_table;
mod summary;
pub mod table_spec;
pub mod text_table;
pub mod tsne;

pub use caption::Caption;
pub use error::{Error, Result};
pub use published::{Paper, PublishedSection};
pub use record::Record;
pub use results_table::{Planned, ResultsTable, TableCell, TableRuns};
pub use static_table::StaticTable;
pub use stillhouse_runs::{Measure, RunStatus};
pub use table_spec::{FinishedRuns, TableSpec};
