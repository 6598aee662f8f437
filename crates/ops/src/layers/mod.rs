//! Layers: written once, forward and backward side by side.

pub(crate) mod conv;
pub(crate) mod graph;
pub(crate) mod linear;
pub(crate) mod shape;

use crate::Result;
use crate::buffers::Buf;
use crate::tape::{Backward, Elem, Tape};

/// What a layer has left on the tape.
#[derive(Debug)]
pub(crate) enum Record<T> {
    Conv(Box<conv::ConvRecord<T>>),
    MaxPool(shape::MaxPoolRecord),
    Average(shape::AverageRecord),
    Add(shape::AddRecord<T>),
    Dropout(shape::DropoutRecord<T>),
    Graph(graph::GraphRecord),
}

impl<T: Elem> Record<T> {
    /// The node it made.
    pub(crate) fn out(&self) -> usize {
        match self {
            Self::Conv(r) => r.out,
            Self::MaxPool(r) => r.out,
            Self::Average(r) => r.out,
            Self::Add(r) => r.out,
            Self::Dropout(r) => r.out,
            Self::Graph(r) => r.out,
        }
    }

    /// Carries the gradient of its node to its inputs and parameters.
    pub(crate) fn backward(self, dy: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        match self {
            Self::Conv(r) => r.backward(dy, back, tape),
            Self::MaxPool(r) => r.backward(&dy, back),
            Self::Average(r) => r.backward(&dy, back),
            Self::Add(r) => r.backward(dy, back),
            Self::Dropout(r) => r.backward(dy, back),
            Self::Graph(r) => r.backward(&dy, back),
        }
    }
}
