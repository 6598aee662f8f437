//! GELU.

use std::sync::Arc;

use crate::Result;
use crate::buffers::Buf;
use crate::graph;
use crate::kernels::elementwise::{gelu, gelu_backward};
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;

#[derive(Debug)]
pub(crate) struct GeluRecord<T> {
    pub(crate) out: usize,
    x: usize,
    values: Arc<Buf<T>>,
}

impl<T: Elem> GeluRecord<T> {
    pub(crate) fn backward(self, mut dy: Buf<T>, back: &mut Backward<T>) -> Result<()> {
        gelu_backward(&self.values, &mut dy);
        back.add(self.x, dy);
        Ok(())
    }
}

impl Tape {
    /// GELU, `x * CDF(x)` of the standard normal, in the exact form with the error function (Hendrycks
    /// and Gimpel, "Gaussian Error Linear Units", 2016, arXiv 1606.08415).
    pub fn gelu(&mut self, x: &Node) -> Result<Node> {
        if let Some(node) = self.traced(|| Op::Gelu, &[x], x.shape, x.flat) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("gelu", &[x], |x| graph::gelu(&x[0])) {
            return node;
        }
        dispatch_dtype!(self, T => self.gelu_t::<T>(x))
    }

    fn gelu_t<T: Elem>(&mut self, x: &Node) -> Result<Node> {
        let values = self.values::<T>("gelu", x)?;
        let mut out = self.map::<T>(values.len());
        gelu(&values, &mut out);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node(x.shape, x.flat, needs_grad, out);
        if needs_grad {
            T::state(self).records.push(Record::Gelu(GeluRecord { out: node.id, x: x.id, values }));
        }
        Ok(node)
    }
}
