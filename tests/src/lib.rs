//! End-to-end tests of the stillhouse binary live in `tests/`.
