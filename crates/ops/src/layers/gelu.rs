//! GELU, and dropping whole branches.

use std::sync::Arc;

use crate::buffers::Buf;
use crate::graph;
use crate::kernels::elementwise::{self, gelu, gelu_backward};
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, Result};

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

/// One factor for every image.
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
    /// `x * P(normal <= x)`, the exact form with the error function (Hendrycks and Gimpel, "Gaussian
    /// Error Linear Units", 2016, arXiv 1606.08415).
    pub fn gelu(&mut self, x: &Node) -> Result<Node> {
        if let Some(node) = self.sketched(|| Op::Gelu, &[x], x.shape, x.flat) {
            return Ok(node);
        }
        if let Some(node) = self.compose("gelu", &[x], |x| graph::gelu(&x[0])) {
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
            T::lane(self).records.push(Record::Gelu(GeluRecord { out: node.id, x: x.id, values }));
        }
        Ok(node)
    }

    /// Drops all values of an image with probability `p` in training and scales the others by
    /// `1 / (1 - p)`, for the branch of a residual block (Huang et al., "Deep Networks with Stochastic
    /// Depth", ECCV 2016, DOI 10.1007/978-3-319-46493-0_39). What is dropped depends on the seed, the
    /// step and the place in the network only.
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
        if let Some(node) = self.compose("drop_path", &[x], |x| graph::scale_images(&x[0], &factors)) {
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
            T::lane(self).records.push(Record::DropPath(DropPathRecord { out: node.id, x: x.id, factors }));
        }
        Ok(node)
    }
}
