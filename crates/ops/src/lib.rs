//! Training of convolutional networks and vision transformers on [candle](candle_core): layers with fast
//! kernels and gradients for the CPU, and the same layers as candle graphs on GPUs.
//!
//! A network is a composition of layers ([`ConvBnAct`], [`Linear`], [`Tape::max_pool`], ...) that record
//! operations ([`Op`]) on a [`Tape`]; an engine runs them. The features it marks are candle tensors, a loss is any candle expression, and
//! [`Tape::backward`] differentiates through both. The crate's README has a training loop.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod buffers;
#[cfg(feature = "cuda")]
mod cuda;
mod element;
mod engine;
mod error;
mod gradients;
pub mod graph;
mod kernels;
mod layers;
mod mode;
mod node;
pub mod op;
pub mod optim;
mod params;
mod profile;
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
pub use kernels::activation::Activation;
pub use kernels::allocator::disable_trim;
pub use kernels::geometry::{ConvSpec, Padding};
pub use layers::attention::WindowAttention;
pub use layers::conv::ConvBnAct;
pub use layers::group_norm::GroupNorm;
pub use layers::layer_norm::LayerNorm;
pub use layers::linear::Linear;
pub use mode::{EngineKind, Mode, Precision};
pub use node::Node;
pub use op::Op;
pub use params::{Init, Param, ParamBuilder, ParamId, ParamKind, ParamStore};
pub use profile::LayerTiming;
pub use rng::{Draw, Rng};
pub use tape::Tape;
pub use threads::init_thread_pool;
