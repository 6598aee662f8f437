//! Dropout of values and of whole residual branches (stochastic depth).

use crate::buffers::Buf;
use crate::graph;
use crate::kernels::{self, elementwise};
use crate::layers::Record;
use crate::rng::Rng;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::{Error, Result};

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

/// Fills the mask: 0 for dropped values, `1 / (1 - p)` for the rest.
fn draw_dropped<T: Elem>(scale: &mut [T], (rng, step): (Rng, u64), p: f64) {
    const PART: usize = 4096;
    let len = scale.len();
    let keep = T::narrow(1.0 / (1.0 - p));
    let limit = (p * f64::from(u32::MAX)) as u32;
    let parts = kernels::SharedSlice::new(scale);
    kernels::parallel(len.div_ceil(PART), |i| {
        // SAFETY: one chunk per task.
        #[allow(unsafe_code)]
        let part = unsafe { parts.range(i * PART, PART.min(len - i * PART)) };
        let mut draw = rng.at(step, i as u64);
        for s in part {
            *s = if draw.next_u32() < limit { T::ZERO } else { keep };
        }
    });
}

/// One factor per image.
#[derive(Debug)]
pub(crate) struct DropPathRecord {
    pub(crate) out: usize,
    x: usize,
    factors: Vec<f64>,
}

impl DropPathRecord {
    pub(crate) fn backward<T: Elem>(self, dy: Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let mut dx = back.pool.take(dy.len());
        elementwise::scale_images(&dy, &self.factors, &mut dx);
        back.add(self.x, dx);
        Ok(())
    }
}

impl Tape {
    /// Drops values with probability `p` in training and scales the rest by `1 / (1 - p)`. The mask
    /// depends only on the seed, the step and the position in the network.
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
        if self.graph_state.is_some() {
            let mut scale = vec![T::ZERO; x.shape.iter().product()];
            draw_dropped(&mut scale, key, p);
            let composed = self.graph_op("dropout", &[x], |y| graph::scale(&y[0], scale, x.shape));
            return composed.unwrap_or_else(|| Ok(x.clone()));
        }
        let values = self.values::<T>("dropout", x)?;
        let len = values.len();
        let mut scale = T::state(self).pool.take(len);
        draw_dropped(&mut scale, key, p);
        let mut out = T::state(self).pool.take(len);
        elementwise::multiply(&values, &scale, &mut out);
        let needs_grad = x.needs_grad;
        let node = self.node(x.shape, x.flat, needs_grad, out);
        if needs_grad {
            T::state(self).records.push(Record::Dropout(DropoutRecord { out: node.id, x: x.id, scale }));
        }
        Ok(node)
    }

    /// Drops all values of an image with probability `p` in training and scales the others by `1 / (1 -
    /// p)`: stochastic depth for the branch of a residual block (Huang et al., "Deep Networks with
    /// Stochastic Depth", ECCV 2016, DOI 10.1007/978-3-319-46493-0_39). The choice depends only on the
    /// seed, the step and the position in the network.
    pub fn drop_path(&mut self, x: &Node, p: f64) -> Result<Node> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::shape("drop_path", "a probability in [0, 1)", p));
        }
        if !self.mode().trains() || p == 0.0 {
            return Ok(x.clone());
        }
        let (rng, step) = self.draw_key();
        let keep = 1.0 / (1.0 - p);
        let factor = |image: usize| if rng.at(step, image as u64).chance(p) { 0.0 } else { keep };
        let factors: Vec<f64> = (0..x.batch()).map(factor).collect();
        if let Some(node) = self.graph_op("drop_path", &[x], |x| graph::scale_images(&x[0], &factors)) {
            return node;
        }
        dispatch_dtype!(self, T => self.drop_path_t::<T>(x, factors))
    }

    fn drop_path_t<T: Elem>(&mut self, x: &Node, factors: Vec<f64>) -> Result<Node> {
        let values = self.values::<T>("drop_path", x)?;
        let mut out = self.map::<T>(values.len());
        elementwise::scale_images(&values, &factors, &mut out);
        let node = self.node(x.shape, x.flat, x.needs_grad, out);
        if x.needs_grad {
            T::state(self).records.push(Record::DropPath(DropPathRecord { out: node.id, x: x.id, factors }));
        }
        Ok(node)
    }
}
