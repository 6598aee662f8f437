//! Differentiable tensor operations that candle lacks or has too slow: train conv nets on candle.
//!
//! A network is a handful of layers ([`ConvBnAct`], [`Linear`], [`Tape::max_pool`], ...) that run
//! on a [`Tape`]; what it hands out at its taps are candle tensors, a loss is ordinary candle
//! code, and [`Tape::backward`] carries the gradients all the way. See the crate's README for the
//! shape of a training loop.

mod buffers;
mod composed;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod gradients;
pub mod graph;
mod kernels;
mod lanes;
mod layers;
mod measure;
pub mod optim;
mod panels;
mod params;
mod real;
mod rng;
pub mod sketch;
mod tape;
mod threads;

#[cfg(feature = "cuda")]
pub use cuda::allow_tf32;
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use kernels::geometry::{ConvSpec, Padding};
pub use kernels::memory::keep_freed_memory;
pub use kernels::tap_gemm::Act;
pub use layers::attention::WindowAttention;
pub use layers::conv::ConvBnAct;
pub use layers::layer_norm::LayerNorm;
pub use layers::linear::Linear;
pub use measure::Spent;
pub use params::{Builder, Engine, Init, Kind, Param, ParamId, Params};
pub use real::{Isa, isa};
pub use rng::{Draw, Rng};
pub use tape::{Mode, Node, Precision, Tape};
pub use threads::start_threads;
