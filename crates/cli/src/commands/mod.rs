//! Commands of the binary, one file or folder each.

pub(crate) mod budget;
pub(crate) mod common;
pub(crate) mod completions;
pub(crate) mod data;
pub(crate) mod distill;
pub(crate) mod doctor;
pub(crate) mod estimate;
pub(crate) mod eval;
pub(crate) mod explain;
pub(crate) mod figures;
pub(crate) mod list;
pub(crate) mod overlays;
pub(crate) mod predict;
pub(crate) mod report;
pub(crate) mod reproduce;
pub(crate) mod runs;
pub(crate) mod submit;
pub(crate) mod table;
pub(crate) mod train;
pub(crate) mod weights;
