//! ELU.

use std::sync::Arc;

use crate::Result;
use crate::buffers::Buf;
use crate::element::Float;
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;

#[derive(Debug)]
pub(crate) struct EluRecord<T> {
    pub(crate) out: usize,
    x: usize,
    /// Result, from which the derivative is computed.
    values: Arc<Buf<T>>,
}

impl<T: Elem> EluRecord<T> {
    pub(crate) fn backward(self, mut dy: Buf<T>, back: &mut Backward<T>) -> Result<()> {
        for (g, y) in dy.iter_mut().zip(self.values.iter()) {
            if *y < T::ZERO {
                *g *= *y + T::narrow(1.0);
            }
        }
        back.add(self.x, dy);
        Ok(())
    }
}

fn elu<T: Float>(x: T) -> T {
    if x < T::ZERO { T::narrow(x.widen().exp_m1()) } else { x }
}

impl Tape {
    /// Exponential linear unit: `x` above zero, `exp(x) - 1` below (Clevert et al., "Fast and Accurate
    /// Deep Network Learning by Exponential Linear Units", ICLR 2016, arXiv 1511.07289, with alpha 1).
    /// Single-threaded: intended for vectors.
    pub fn elu(&mut self, x: &Node) -> Result<Node> {
        if let Some(node) = self.traced(|| Op::Elu, &[x], x.shape, x.flat) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("elu", &[x], |x| Ok(x[0].elu(1.0)?)) {
            return node;
        }
        dispatch_dtype!(self, T => self.elu_t::<T>(x))
    }

    fn elu_t<T: Elem>(&mut self, x: &Node) -> Result<Node> {
        let values = self.values::<T>("elu", x)?;
        let mut out = self.map::<T>(values.len());
        for (to, from) in out.iter_mut().zip(values.iter()) {
            *to = elu(*from);
        }
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node(x.shape, x.flat, needs_grad, out);
        if needs_grad {
            let values = self.values::<T>("elu", &node)?;
            T::state(self).records.push(Record::Elu(EluRecord { out: node.id, x: x.id, values }));
        }
        Ok(node)
    }
}
