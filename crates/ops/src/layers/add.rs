//! Element-wise sum and ReLU.

use std::sync::Arc;

use crate::buffers::Buf;
use crate::graph;
use crate::kernels::elementwise;
use crate::kernels::indirect_gemm::Activation;
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct AddRecord<T> {
    pub(crate) out: usize,
    inputs: Vec<usize>,
    /// Result and activation, if any.
    mask: Option<(Arc<Buf<T>>, Activation)>,
}

impl<T: Elem> AddRecord<T> {
    pub(crate) fn backward(self, mut dy: Buf<T>, back: &mut Backward<T>) -> Result<()> {
        if let Some((out, act)) = &self.mask
            && let Some((low, high)) = act.bounds()
        {
            elementwise::mask(&mut dy, out, T::narrow(low), T::narrow(high));
        }
        let mut inputs = self.inputs.into_iter();
        let last = inputs.next_back();
        for id in inputs {
            back.add_copy(id, &dy);
        }
        if let Some(id) = last {
            back.add(id, dy);
        }
        Ok(())
    }
}

impl Tape {
    /// Adds two maps of one shape.
    pub fn add(&mut self, a: &Node, b: &Node) -> Result<Node> {
        if a.shape != b.shape {
            return Err(Error::shape("add", format!("two maps of shape {:?}", a.shape), b.shape));
        }
        if let Some(node) = self.traced(|| Op::Add, &[a, b], a.shape, a.flat) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("add", &[a, b], |x| graph::add(&x[0], &x[1])) {
            return node;
        }
        dispatch_dtype!(self, T => self.sum_t::<T>(a, Some(b), Activation::None))
    }

    /// Computes `max(x, 0)`; the derivative at 0 is 0.
    pub fn relu(&mut self, x: &Node) -> Result<Node> {
        if let Some(node) = self.traced(|| Op::Relu, &[x], x.shape, x.flat) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("relu", &[x], |x| graph::activate(&x[0], Activation::Relu)) {
            return node;
        }
        dispatch_dtype!(self, T => self.sum_t::<T>(x, None, Activation::Relu))
    }

    fn sum_t<T: Elem>(&mut self, a: &Node, b: Option<&Node>, act: Activation) -> Result<Node> {
        let x = self.values::<T>("add", a)?;
        let mut out = self.map::<T>(x.len());
        match b {
            Some(b) => elementwise::add(&x, &self.values::<T>("add", b)?, &mut out),
            None => elementwise::clamp(&x, T::ZERO, T::narrow(f64::INFINITY), &mut out),
        }
        let inputs: Vec<usize> =
            [Some(a), b].into_iter().flatten().filter(|x| x.needs_grad).map(|x| x.id).collect();
        let needs_grad = self.mode().records() && !inputs.is_empty();
        let node = self.node(a.shape, a.flat, needs_grad, out);
        if needs_grad {
            let mask = match act {
                Activation::None => None,
                act => Some((self.values::<T>("add", &node)?, act)),
            };
            T::state(self).records.push(Record::Add(AddRecord { out: node.id, inputs, mask }));
        }
        Ok(node)
    }
}
