//! Losses for dense prediction.

pub mod cwd;
mod discriminator;
pub mod frkd;
pub mod ifvd;
pub mod skd_affinity;
pub mod skd_holistic;
pub mod skd_pairwise;
pub mod skd_pixelwise;
pub mod skdd;
