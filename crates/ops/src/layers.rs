//! Layers: constructors of parameters, and the operation that each applies.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod group_norm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
mod maps;
