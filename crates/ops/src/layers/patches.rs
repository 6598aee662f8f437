//! Patch merging layer.

use crate::Result;
use crate::buffers::Buf;
use crate::graph;
use crate::kernels::patches::{merge, split};
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;

#[derive(Debug)]
pub(crate) struct PatchesRecord {
    pub(crate) out: usize,
    x: usize,
    shape: [usize; 4],
}

impl PatchesRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let mut dx = back.pool.take(self.shape.iter().product());
        split(dy, self.shape, &mut dx);
        back.add(self.x, dx);
        Ok(())
    }
}

impl Tape {
    /// Concatenates 2 x 2 neighbors along the channels, `[B, C, H, W]` to `[B, 4C, ceil(H / 2), ceil(W /
    /// 2)]`, in the order (row 0, column 0), (1, 0), (0, 1), (1, 1); an odd edge is zero-padded. The
    /// first half of Swin's patch merging.
    pub fn merge_patches(&mut self, x: &Node) -> Result<Node> {
        let [b, h, w, c] = x.shape;
        let shape = [b, h.div_ceil(2), w.div_ceil(2), 4 * c];
        if let Some(node) = self.traced(|| Op::MergePatches, &[x], shape, false) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("merge_patches", &[x], |x| graph::merge_patches(&x[0])) {
            return node;
        }
        dispatch_dtype!(self, T => self.merge_patches_t::<T>(x))
    }

    fn merge_patches_t<T: Elem>(&mut self, x: &Node) -> Result<Node> {
        let values = self.values::<T>("merge_patches", x)?;
        let [b, h, w, c] = x.shape;
        let shape = [b, h.div_ceil(2), w.div_ceil(2), 4 * c];
        let mut out = self.map::<T>(shape.iter().product());
        merge(&values, x.shape, &mut out);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node(shape, false, needs_grad, out);
        if needs_grad {
            let record = PatchesRecord { out: node.id, x: x.id, shape: x.shape };
            T::state(self).records.push(Record::Patches(record));
        }
        Ok(node)
    }
}
