//! Losses on class probabilities.

pub mod ce;
pub mod dkd;
pub mod kd;
pub mod kl_cosine;
