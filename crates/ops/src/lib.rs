//! Differentiable tensor operations that candle lacks or has too slow: train conv nets on candle.

mod error;
pub mod lanes;
pub mod panels;
mod params;
mod real;
mod rng;
mod tape;

pub use error::{Error, Result};
pub use params::{Builder, Init, Kind, Layout, Param, ParamId, Params};
pub use real::{Isa, Real, isa};
pub use rng::{Draw, Rng};
pub use tape::{Mode, Tape};
