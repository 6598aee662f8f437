//! Test utilities of stillhouse: golden values, central differences, file corruption.
//!
//! Only ever a dev-dependency. Everything here panics on failure, with a message that names the
//! file.

pub mod command;
pub mod corruption;
pub mod finite_diff;
pub mod generator;
pub mod golden;

use candle_core::Device;

/// Returns the device for tests that run on any device: the CPU, or the first GPU if
/// `STILLHOUSE_DEVICE=cuda`.
///
/// # Panics
/// If that device is not available.
pub fn device() -> Device {
    match std::env::var("STILLHOUSE_DEVICE").as_deref() {
        Ok("cuda") => Device::new_cuda(0).unwrap_or_else(|e| panic!("STILLHOUSE_DEVICE=cuda: {e}")),
        Ok("cpu") | Err(_) => Device::Cpu,
        Ok(other) => panic!("STILLHOUSE_DEVICE is `{other}`, expected `cpu` or `cuda`"),
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
