//! Golden reader, central differences and fault injection for stillhouse's own tests.
//!
//! Only ever a dev-dependency. Everything here is test code: what cannot be read or does not hold
//! panics with a message that names the file.

pub mod diff;
pub mod faults;
pub mod generator;
pub mod golden;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
