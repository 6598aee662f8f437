//! The stillhouse binary.
fn main() {}
