//! Losses between the exits of one network, without a teacher.

pub mod byot;
pub mod self_kl;
