//! Concatenation along the channels.

use candle_core::Tensor;

use crate::buffers::Buf;
use crate::kernels::elementwise::copy_columns;
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct ConcatRecord {
    pub(crate) out: usize,
    /// Node, channels, and whether it needs a gradient.
    inputs: Vec<(usize, usize, bool)>,
    channels: usize,
}

impl ConcatRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let rows = dy.len() / self.channels;
        let mut first = 0;
        for (id, channels, needs_grad) in self.inputs {
            if needs_grad {
                let mut dx = back.pool.take(rows * channels);
                copy_columns(dy, (self.channels, first), &mut dx, (channels, 0), channels);
                back.add(id, dx);
            }
            first += channels;
        }
        Ok(())
    }
}

impl Tape {
    /// Concatenates along the channels: maps `[B, C1, H, W]`, `[B, C2, H, W]`, ... to `[B, C1 + C2 + ...,
    /// H, W]`; likewise vectors.
    pub fn concat(&mut self, inputs: &[&Node]) -> Result<Node> {
        let Some(first) = inputs.first() else {
            return Err(Error::shape("concat", "at least one map", inputs.len()));
        };
        for x in inputs {
            if x.shape[..3] != first.shape[..3] {
                let expected = format!("maps of one batch and size, as the first, {:?}", first.shape);
                return Err(Error::shape("concat", expected, x.shape));
            }
        }
        let [images, h, w, _] = first.shape;
        let shape = [images, h, w, inputs.iter().map(|x| x.channels()).sum()];
        if let Some(node) = self.traced(|| Op::Concat, inputs, shape, first.flat) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("concat", inputs, |x| Ok(Tensor::cat(x, 1)?)) {
            return node;
        }
        dispatch_dtype!(self, T => self.concat_t::<T>(inputs, first))
    }

    fn concat_t<T: Elem>(&mut self, inputs: &[&Node], first: &Node) -> Result<Node> {
        let channels = inputs.iter().map(|x| x.channels()).sum();
        let [images, h, w, _] = first.shape;
        let mut out = self.map::<T>(images * h * w * channels);
        let mut at = 0;
        for x in inputs {
            let values = self.values::<T>("concat", x)?;
            copy_columns(&values, (x.channels(), 0), &mut out, (channels, at), x.channels());
            at += x.channels();
        }
        let needs_grad = self.mode().records() && inputs.iter().any(|x| x.needs_grad);
        let node = self.node([images, h, w, channels], first.flat, needs_grad, out);
        if needs_grad {
            let inputs = inputs.iter().map(|x| (x.id, x.channels(), x.needs_grad)).collect();
            T::state(self).records.push(Record::Concat(ConcatRecord { out: node.id, inputs, channels }));
        }
        Ok(node)
    }
}
