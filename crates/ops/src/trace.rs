//! Shape-only trace of a network: operations and shapes, no values.
//!
//! A tape created by [`Tape::trace`](crate::Tape::trace) runs no kernels. The resulting [`Trace`] serves ONNX
//! export, FLOPs, parameter counts and memory estimates.

use std::collections::HashMap;

use crate::op::{Cost, Entry};

/// Operations of a network in execution order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The operations; the first is the input.
    pub entries: Vec<Entry>,
    /// Selected features and the indices of their values.
    pub features: Vec<(String, usize)>,
}

impl Trace {
    /// Returns the cost of all operations; a parameter that several use counts once.
    pub fn cost(&self) -> Cost {
        let mut sum = Cost::default();
        self.entries.iter().for_each(|entry| sum += entry.cost());
        let weights: HashMap<_, _> = self.entries.iter().flat_map(|entry| entry.op.weights()).collect();
        sum.parameters += weights.values().sum::<usize>();
        sum
    }
}
