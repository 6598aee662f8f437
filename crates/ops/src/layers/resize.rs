//! Resizing layers: bilinear interpolation, adaptive average pooling, broadcasting a vector to a map.

use crate::buffers::Buf;
use crate::graph;
use crate::kernels::pool::{spread, sum_pixels};
use crate::kernels::resample::{AxisWeights, resample};
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct ResampleRecord {
    pub(crate) out: usize,
    x: usize,
    images: usize,
    channels: usize,
    rows: AxisWeights,
    columns: AxisWeights,
}

impl ResampleRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let len = self.images * self.rows.inputs() * self.columns.inputs() * self.channels;
        let (mut dx, holds) = back.slot(self.x, len);
        resample(dy, &self.rows.transposed(), &self.columns.transposed(), self.channels, holds, &mut dx);
        back.grads[self.x] = Some(dx);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct ExpandRecord {
    pub(crate) out: usize,
    x: usize,
    channels: usize,
    pixels: usize,
}

impl ExpandRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let mut dx = back.pool.take(dy.len() / self.pixels);
        sum_pixels(dy, self.pixels, self.channels, T::narrow(1.0), &mut dx);
        back.add(self.x, dx);
        Ok(())
    }
}

impl Tape {
    /// Bilinear interpolation to `size` rows and columns, as PyTorch's `interpolate`: with
    /// `align_corners` the centers of the corner pixels are aligned, without it the edges of the maps
    /// (`source = (i + 0.5) * in / out - 0.5`, at least 0). `[B, C, H, W]` to `[B, C, size.0, size.1]`.
    pub fn resize_bilinear(&mut self, x: &Node, size: (usize, usize), align_corners: bool) -> Result<Node> {
        let op = Op::Resize { align_corners };
        self.resample("resize_bilinear", op, x, size, |from, to| {
            AxisWeights::bilinear(from, to, align_corners)
        })
    }

    /// Adaptive average pooling: `[B, C, H, W]` to `[B, C, size.0, size.1]`; bin `i` of `n` covers
    /// `floor(i * H / n) .. ceil((i + 1) * H / n)`.
    pub fn adaptive_avg_pool(&mut self, x: &Node, size: (usize, usize)) -> Result<Node> {
        self.resample("adaptive_avg_pool", Op::AdaptiveAveragePool, x, size, AxisWeights::adaptive_average)
    }

    fn resample(
        &mut self,
        op: &'static str,
        step: Op,
        x: &Node,
        size: (usize, usize),
        along: impl Fn(usize, usize) -> AxisWeights,
    ) -> Result<Node> {
        if size.0 * size.1 == 0 {
            return Err(Error::shape(op, "a size of at least one pixel", size));
        }
        if size == x.size() {
            return Ok(x.clone());
        }
        let shape = [x.shape[0], size.0, size.1, x.shape[3]];
        if let Some(node) = self.traced(|| step, &[x], shape, false) {
            return Ok(node);
        }
        let (rows, columns) = (along(x.shape[1], size.0), along(x.shape[2], size.1));
        if let Some(node) = self.graph_op(op, &[x], |x| graph::resample(&x[0], &rows, &columns)) {
            return node;
        }
        dispatch_dtype!(self, T => self.resample_t::<T>(op, x, rows, columns))
    }

    fn resample_t<T: Elem>(
        &mut self,
        op: &'static str,
        x: &Node,
        rows: AxisWeights,
        columns: AxisWeights,
    ) -> Result<Node> {
        let [images, _, _, channels] = x.shape;
        let values = self.values::<T>(op, x)?;
        let shape = [images, rows.outputs(), columns.outputs(), channels];
        let mut out = self.map::<T>(shape.iter().product());
        resample(&values, &rows, &columns, channels, false, &mut out);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node(shape, false, needs_grad, out);
        if needs_grad {
            let record = ResampleRecord { out: node.id, x: x.id, images, channels, rows, columns };
            T::state(self).records.push(Record::Resample(record));
        }
        Ok(node)
    }

    /// Broadcasts a vector `[B, C]` (or a map of one pixel) to all pixels: `[B, C, size.0, size.1]`.
    pub fn expand(&mut self, x: &Node, size: (usize, usize)) -> Result<Node> {
        if x.size() != (1, 1) || size.0 * size.1 == 0 {
            let expected = format!("a vector [B, C] and a size of at least one pixel, not {size:?}");
            return Err(Error::shape("expand", expected, x.shape));
        }
        let shape = [x.shape[0], size.0, size.1, x.shape[3]];
        if let Some(node) = self.traced(|| Op::Expand, &[x], shape, false) {
            return Ok(node);
        }
        if let Some(node) = self.graph_op("expand", &[x], |x| graph::expand(&x[0], size)) {
            return node;
        }
        dispatch_dtype!(self, T => self.expand_t::<T>(x, size))
    }

    fn expand_t<T: Elem>(&mut self, x: &Node, (h, w): (usize, usize)) -> Result<Node> {
        let [images, _, _, channels] = x.shape;
        let values = self.values::<T>("expand", x)?;
        let mut out = self.map::<T>(images * h * w * channels);
        spread(&values, h * w, channels, T::narrow(1.0), false, &mut out);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node([images, h, w, channels], false, needs_grad, out);
        if needs_grad {
            let record = ExpandRecord { out: node.id, x: x.id, channels, pixels: h * w };
            T::state(self).records.push(Record::Expand(record));
        }
        Ok(node)
    }
}
