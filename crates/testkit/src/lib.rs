//! Golden reader, central differences and fault injection for stillhouse's own tests.
//!
//! Only ever a dev-dependency. Everything here is test code: what cannot be read or does not hold
//! panics with a message that names the file.

pub mod diff;
pub mod faults;
pub mod generator;
pub mod golden;

use candle_core::Device;

/// The device of tests that run on any: the CPU, or the first card where the environment says
/// `STILLHOUSE_DEVICE=cuda`.
///
/// # Panics
/// If that device is not there.
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
