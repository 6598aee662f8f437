//! The contracts and words that all other stillhouse crates speak; no algorithm.
//!
//! Datasets, models, losses and metrics know only this crate (and the tape of
//! `stillhouse-ops`), never each other; the trainer reaches them through [`registry::Registries`].

pub mod config;
pub mod data;
pub mod distiller;
mod error;
pub mod fs;
pub mod metric;
pub mod model;
pub mod registry;

pub use config::suggest;
pub use error::{Error, Result};
pub use stillhouse_ops::{Draw, ParamBuilder, ParamStore, Rng, Tape};
