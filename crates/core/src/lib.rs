//! The contracts and words that all other stillhouse crates speak; no algorithm.
//!
//! Datasets, backbones, losses and metrics know only this crate (and the tape of
//! `stillhouse-ops`), never each other; the trainer reaches them through [`registry::Parts`].

pub mod config;
pub mod data;
pub mod distiller;
mod error;
pub mod files;
pub mod metric;
pub mod network;
pub mod registry;

pub use config::nearest;
pub use error::{Error, Result};
pub use stillhouse_ops::{Builder, Draw, Params, Rng, Tape};
