//! Differentiable tensor operations that candle lacks or has too slow: train conv nets on candle.
//!
//! A network is a handful of layers ([`ConvBnAct`], [`Linear`], [`Tape::max_pool`], ...) that run
//! on a [`Tape`]; what it hands out at its taps are candle tensors, a loss is ordinary candle
//! code, and [`Tape::backward`] carries the gradients all the way. See the crate's README for the
//! shape of a training loop.

mod buffers;
#[cfg(feature = "cuda")]
mod cuda;
mod element;
mod error;
mod gradients;
pub mod graph;
mod graph_engine;
mod kernels;
mod layers;
mod measure;
pub mod optim;
mod params;
mod rng;
mod simd;
mod tape;
mod threads;
pub mod trace;
mod weight_packing;

#[cfg(feature = "cuda")]
pub use cuda::allow_tf32;
pub use element::{Isa, isa};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use kernels::geometry::{ConvSpec, Padding};
pub use kernels::indirect_gemm::Activation;
pub use kernels::memory::disable_trim;
pub use layers::attention::WindowAttention;
pub use layers::conv::ConvBnAct;
pub use layers::layer_norm::LayerNorm;
pub use layers::linear::Linear;
pub use measure::LayerTiming;
pub use params::{Engine, Init, Kind, Param, ParamBuilder, ParamId, ParamStore};
pub use rng::{Draw, Rng};
pub use tape::{Mode, Node, Precision, Tape};
pub use threads::init_thread_pool;
