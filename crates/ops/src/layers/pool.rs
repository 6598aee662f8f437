//! Max pooling and global average pooling.

use crate::buffers::Buf;
use crate::graph;
use crate::kernels::pool::{MaxPool, spread, sum_pixels};
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct MaxPoolRecord {
    pub(crate) out: usize,
    x: usize,
    images: usize,
    geo: MaxPool,
    which: Buf<u8>,
}

impl MaxPoolRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let len = self.images * self.geo.input[0] * self.geo.input[1] * self.geo.channels;
        let (mut dx, holds) = back.slot(self.x, len);
        if !holds {
            dx.fill(T::ZERO);
        }
        self.geo.backward(self.images, dy, &self.which, &mut dx);
        back.grads[self.x] = Some(dx);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct AverageRecord {
    pub(crate) out: usize,
    x: usize,
    shape: [usize; 4],
}

impl AverageRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let [b, h, w, c] = self.shape;
        let (mut dx, holds) = back.slot(self.x, b * h * w * c);
        spread(dy, h * w, c, T::narrow(1.0 / (h * w) as f64), holds, &mut dx);
        back.grads[self.x] = Some(dx);
        Ok(())
    }
}

impl Tape {
    /// Max pooling that ignores padding: `[B, C, H, W]` to `[B, C, (H + 2p - k) / s + 1, (W + 2p - k) / s
    /// + 1]`. The gradient goes to the first maximum of a window, as in PyTorch.
    pub fn max_pool(&mut self, x: &Node, kernel: usize, stride: usize, padding: usize) -> Result<Node> {
        let [b, h, w, c] = x.shape;
        let fits = kernel > 0
            && kernel <= 15
            && stride > 0
            && padding < kernel.max(1)
            && h + 2 * padding >= kernel
            && w + 2 * padding >= kernel;
        if !fits {
            return Err(Error::shape(
                "max_pool",
                format!(
                    "kernel {kernel} (1 to 15) <= size + 2 * padding {padding}, padding < kernel, stride {stride} > 0"
                ),
                [h, w],
            ));
        }
        let along = |size: usize| {
            let out = (size + 2 * padding - kernel) / stride + 1;
            // A window that begins past the map would be empty.
            if (out - 1) * stride >= size + padding { out - 1 } else { out }
        };
        let geo =
            MaxPool { input: [h, w], output: [along(h), along(w)], channels: c, kernel, stride, padding };
        let shape = [b, geo.output[0], geo.output[1], c];
        let op = || Op::MaxPool { kernel, stride, padding };
        if let Some(node) = self.traced(op, &[x], shape, false) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("max_pool", &[x], |x| graph::max_pool(&x[0], geo)) {
            return node;
        }
        dispatch_dtype!(self, T => self.max_pool_t::<T>(x, b, geo))
    }

    fn max_pool_t<T: Elem>(&mut self, x: &Node, images: usize, geo: MaxPool) -> Result<Node> {
        let values = self.values::<T>("max_pool", x)?;
        let len = images * geo.output[0] * geo.output[1] * geo.channels;
        let state = T::state(self);
        let (mut out, mut which) = (state.pool.take(len), state.bytes.take(len));
        geo.forward(images, &values, &mut out, &mut which);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node([images, geo.output[0], geo.output[1], geo.channels], false, needs_grad, out);
        if needs_grad {
            let record = MaxPoolRecord { out: node.id, x: x.id, images, geo, which };
            T::state(self).records.push(Record::MaxPool(record));
        }
        Ok(node)
    }

    /// Global average pooling: `[B, C, H, W]` to the vector `[B, C]`.
    pub fn global_avg_pool(&mut self, x: &Node) -> Result<Node> {
        let shape = [x.shape[0], 1, 1, x.shape[3]];
        if let Some(node) = self.traced(|| Op::GlobalAveragePool, &[x], shape, true) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("global_avg_pool", &[x], |x| graph::global_average(&x[0])) {
            return node;
        }
        dispatch_dtype!(self, T => self.global_avg_pool_t::<T>(x))
    }

    fn global_avg_pool_t<T: Elem>(&mut self, x: &Node) -> Result<Node> {
        let [b, h, w, c] = x.shape;
        let values = self.values::<T>("global_avg_pool", x)?;
        let mut out = self.map::<T>(b * c);
        sum_pixels(&values, h * w, c, T::narrow(1.0 / (h * w) as f64), &mut out);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node([b, 1, 1, c], true, needs_grad, out);
        if needs_grad {
            T::state(self).records.push(Record::Average(AverageRecord {
                out: node.id,
                x: x.id,
                shape: x.shape,
            }));
        }
        Ok(node)
    }
}
