//! Traits and types shared by all stillhouse crates; no algorithm.
//!
//! Datasets, models, losses and metrics depend only on this crate and `stillhouse-ops`, never on
//! each other. The trainer builds them through [`registry::Registries`].

pub mod config;
pub mod data;
pub mod distiller;
mod error;
pub mod fs;
pub mod metric;
pub mod model;
pub mod registry;
pub mod weights;

pub use config::suggest;
pub use error::{Error, Result};
pub use stillhouse_ops::{Draw, ParamBuilder, ParamStore, Rng, Tape};
