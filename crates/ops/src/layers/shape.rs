//! Pooling, sums and dropout.

use std::sync::Arc;

use crate::buffers::Buf;
use crate::graph;
use crate::kernels::indirect_gemm::Activation;
use crate::kernels::pool::{MaxPool, spread, sum_pixels};
use crate::kernels::{self, elementwise};
use crate::layers::Record;
use crate::rng::Rng;
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
        spread(dy, h * w, c, T::of(1.0 / (h * w) as f64), holds, &mut dx);
        back.grads[self.x] = Some(dx);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct AddRecord<T> {
    pub(crate) out: usize,
    inputs: Vec<usize>,
    /// The result and its activation, where there is one.
    mask: Option<(Arc<Buf<T>>, Activation)>,
}

impl<T: Elem> AddRecord<T> {
    pub(crate) fn backward(self, mut dy: Buf<T>, back: &mut Backward<T>) -> Result<()> {
        if let Some((out, act)) = &self.mask
            && let Some((low, high)) = act.bounds()
        {
            elementwise::mask(&mut dy, out, T::of(low), T::of(high));
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

#[derive(Debug)]
pub(crate) struct DropoutRecord<T> {
    pub(crate) out: usize,
    x: usize,
    /// 0 or 1 / (1 - p).
    scale: Buf<T>,
}

impl<T: Elem> DropoutRecord<T> {
    pub(crate) fn backward(self, dy: Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let mut dx = back.pool.take(dy.len());
        elementwise::multiply(&dy, &self.scale, &mut dx);
        back.add(self.x, dx);
        Ok(())
    }
}

/// 0 for what is dropped, `1 / (1 - p)` for the rest.
fn draw_dropped<T: Elem>(scale: &mut [T], (rng, step): (Rng, u64), p: f64) {
    const PART: usize = 4096;
    let len = scale.len();
    let keep = T::of(1.0 / (1.0 - p));
    let limit = (p * f64::from(u32::MAX)) as u32;
    let parts = kernels::Shared::new(scale);
    kernels::parallel(len.div_ceil(PART), |i| {
        // SAFETY: one part per task.
        #[allow(unsafe_code)]
        let part = unsafe { parts.range(i * PART, PART.min(len - i * PART)) };
        let mut draw = rng.at(step, i as u64);
        for s in part {
            *s = if draw.next_u32() < limit { T::ZERO } else { keep };
        }
    });
}

impl Tape {
    /// Max pooling with padding that never wins: `[B, C, H, W]` to
    /// `[B, C, (H + 2p - k) / s + 1, (W + 2p - k) / s + 1]`. The first maximum of a window takes
    /// its gradient, as in PyTorch.
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
            // A window that begins behind the map sees nothing.
            if (out - 1) * stride >= size + padding { out - 1 } else { out }
        };
        let geo =
            MaxPool { input: [h, w], output: [along(h), along(w)], channels: c, kernel, stride, padding };
        let shape = [b, geo.output[0], geo.output[1], c];
        let op = || Op::MaxPool { kernel, stride, padding };
        if let Some(node) = self.sketched(op, &[x], shape, false) {
            return Ok(node);
        }
        if let Some(node) = self.compose("max_pool", &[x], |x| graph::max_pool(&x[0], geo)) {
            return node;
        }
        dispatch_dtype!(self, T => self.max_pool_t::<T>(x, b, geo))
    }

    fn max_pool_t<T: Elem>(&mut self, x: &Node, images: usize, geo: MaxPool) -> Result<Node> {
        let values = self.values::<T>("max_pool", x)?;
        let len = images * geo.output[0] * geo.output[1] * geo.channels;
        let lane = T::lane(self);
        let (mut out, mut which) = (lane.pool.take(len), lane.bytes.take(len));
        geo.forward(images, &values, &mut out, &mut which);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node([images, geo.output[0], geo.output[1], geo.channels], false, needs_grad, out);
        if needs_grad {
            let record = MaxPoolRecord { out: node.id, x: x.id, images, geo, which };
            T::lane(self).records.push(Record::MaxPool(record));
        }
        Ok(node)
    }

    /// Mean over all pixels: `[B, C, H, W]` to the vector `[B, C]`.
    pub fn global_avg_pool(&mut self, x: &Node) -> Result<Node> {
        let shape = [x.shape[0], 1, 1, x.shape[3]];
        if let Some(node) = self.sketched(|| Op::GlobalAveragePool, &[x], shape, true) {
            return Ok(node);
        }
        if let Some(node) = self.compose("global_avg_pool", &[x], |x| graph::global_average(&x[0])) {
            return node;
        }
        dispatch_dtype!(self, T => self.global_avg_pool_t::<T>(x))
    }

    fn global_avg_pool_t<T: Elem>(&mut self, x: &Node) -> Result<Node> {
        let [b, h, w, c] = x.shape;
        let values = self.values::<T>("global_avg_pool", x)?;
        let mut out = self.map::<T>(b * c);
        sum_pixels(&values, h * w, c, T::of(1.0 / (h * w) as f64), &mut out);
        let needs_grad = self.mode().records() && x.needs_grad;
        let node = self.node([b, 1, 1, c], true, needs_grad, out);
        if needs_grad {
            T::lane(self).records.push(Record::Average(AverageRecord {
                out: node.id,
                x: x.id,
                shape: x.shape,
            }));
        }
        Ok(node)
    }

    /// Sum of two maps of one shape.
    pub fn add(&mut self, a: &Node, b: &Node) -> Result<Node> {
        if a.shape != b.shape {
            return Err(Error::shape("add", format!("two maps of shape {:?}", a.shape), b.shape));
        }
        if let Some(node) = self.sketched(|| Op::Add, &[a, b], a.shape, a.flat) {
            return Ok(node);
        }
        if let Some(node) = self.compose("add", &[a, b], |x| graph::add(&x[0], &x[1])) {
            return node;
        }
        dispatch_dtype!(self, T => self.sum_t::<T>(a, Some(b), Activation::None))
    }

    /// `max(x, 0)`; the derivative at 0 is 0.
    pub fn relu(&mut self, x: &Node) -> Result<Node> {
        if let Some(node) = self.sketched(|| Op::Relu, &[x], x.shape, x.flat) {
            return Ok(node);
        }
        if let Some(node) = self.compose("relu", &[x], |x| graph::activate(&x[0], Activation::Relu)) {
            return node;
        }
        dispatch_dtype!(self, T => self.sum_t::<T>(x, None, Activation::Relu))
    }

    fn sum_t<T: Elem>(&mut self, a: &Node, b: Option<&Node>, act: Activation) -> Result<Node> {
        let x = self.values::<T>("add", a)?;
        let mut out = self.map::<T>(x.len());
        match b {
            Some(b) => elementwise::add(&x, &self.values::<T>("add", b)?, &mut out),
            None => elementwise::clamp(&x, T::ZERO, T::of(f64::INFINITY), &mut out),
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
            T::lane(self).records.push(Record::Add(AddRecord { out: node.id, inputs, mask }));
        }
        Ok(node)
    }

    /// Drops values with probability `p` in training and scales the rest by `1 / (1 - p)`; what
    /// is dropped depends on the seed, the step and the place in the network only.
    pub fn dropout(&mut self, x: &Node, p: f64) -> Result<Node> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::shape("dropout", "a probability in [0, 1)", p));
        }
        if !self.mode().trains() || p == 0.0 {
            return Ok(x.clone());
        }
        dispatch_dtype!(self, T => self.dropout_t::<T>(x, p))
    }

    fn dropout_t<T: Elem>(&mut self, x: &Node, p: f64) -> Result<Node> {
        let key = self.draw_key();
        if self.composed.is_some() {
            let mut scale = vec![T::ZERO; x.shape.iter().product()];
            draw_dropped(&mut scale, key, p);
            let composed = self.compose("dropout", &[x], |y| graph::scale(&y[0], scale, x.shape));
            return composed.unwrap_or_else(|| Ok(x.clone()));
        }
        let values = self.values::<T>("dropout", x)?;
        let len = values.len();
        let mut scale = T::lane(self).pool.take(len);
        draw_dropped(&mut scale, key, p);
        let mut out = T::lane(self).pool.take(len);
        elementwise::multiply(&values, &scale, &mut out);
        let needs_grad = x.needs_grad;
        let node = self.node(x.shape, x.flat, needs_grad, out);
        if needs_grad {
            T::lane(self).records.push(Record::Dropout(DropoutRecord { out: node.id, x: x.id, scale }));
        }
        Ok(node)
    }
}
