//! Losses on relations between images, or between the stages of a network.

pub mod cc;
pub mod crd;
pub mod kdsvd;
pub mod pkt;
pub mod rkd;
pub mod sp;
