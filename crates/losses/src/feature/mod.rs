//! Losses on feature maps.

pub mod at;
pub mod class_centric;
pub mod fitnet;
pub mod nst;
pub mod nst_all;
pub mod reviewkd;
pub mod vid;
