//! The way back: from the gradients at the taps to those of the parameters.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Elem, Mode, Tape, dispatch_dtype};
use crate::buffers::{Buf, Pool};
use crate::element::{Float, with_values};
use crate::gradients::Gradients;
use crate::kernels::elementwise;
use crate::layers::Record;
use crate::params::Kind;
use crate::{Error, ParamId, Result};

impl Tape {
    /// Gradients of a scalar with respect to every trainable parameter: candle's backward to the
    /// taps, then the tape's own to the parameters. The recorded pass is used up.
    pub fn backward(&mut self, loss: &Tensor) -> Result<Gradients> {
        if !self.mode.records() {
            return Err(Error::usage("backward", format!("a pass in mode {:?} records nothing", self.mode)));
        }
        if self.nodes == 0 {
            return Err(Error::usage("backward", "nothing is recorded; run the network first"));
        }
        if loss.elem_count() != 1 {
            return Err(Error::shape("backward", "a scalar loss", loss.dims()));
        }
        let store = loss.backward()?;
        let mut gradients = Gradients::new(&self.params);
        if self.mode.trains() {
            gradients.collect(&store)?;
        }
        if let Some(composed) = &self.composed {
            let taps = self.taps.iter().map(|tap| (tap.name.as_str(), tap.node));
            gradients.taps = composed.tap_gradients(taps, &store, self.dtype())?;
        } else {
            dispatch_dtype!(self, T => self.sweep::<T>(&store, &mut gradients))?;
        }
        self.forget();
        Ok(gradients)
    }

    fn sweep<T: Elem>(
        &mut self,
        store: &candle_core::backprop::GradStore,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let records = std::mem::take(&mut T::lane(self).records);
        let mut back = Backward {
            grads: (0..self.nodes).map(|_| None).collect(),
            params: HashMap::new(),
            tensors: Vec::new(),
            taps: Vec::new(),
            pool: Arc::clone(&T::lane(self).pool),
        };
        for tap in &self.taps {
            if let Some(g) = tap.leaf.as_ref().and_then(|leaf| store.get(leaf)) {
                let mut buf = back.pool.take(g.elem_count());
                with_values::<T, _>(g, |g| buf.copy_from_slice(g))?;
                back.add(tap.node, buf);
            }
        }
        for record in records.into_iter().rev() {
            self.go_back(record, &mut back)?;
        }
        gradients.taps.append(&mut back.taps);
        for store in &back.tensors {
            gradients.collect(store)?;
        }
        for (id, values) in back.params {
            gradients.insert(id, T::grad(values))?;
        }
        Ok(())
    }

    /// Carries the gradient of a record's node on, if it has one.
    pub(crate) fn go_back<T: Elem>(&mut self, record: Record<T>, back: &mut Backward<T>) -> Result<()> {
        let out = record.out();
        let Some(dy) = back.grads.get_mut(out).and_then(Option::take) else { return Ok(()) };
        // A segment that runs again gives its node's gradient to the record that made it.
        if self.mode == Mode::EvalWithGrad && !matches!(record, Record::Checkpoint(_)) {
            for tap in self.taps.iter().filter(|t| t.node == out) {
                let shape = tap.leaf.as_ref().map_or(tap.tensor.shape(), |l| l.shape());
                let g = Tensor::from_slice(&dy, shape, &Device::Cpu)?;
                let g = if g.rank() == 4 { g.permute((0, 3, 1, 2))? } else { g };
                back.taps.push((tap.name.clone(), g));
            }
        }
        record.backward(dy, back, self)
    }

    /// Whether a parameter gets a gradient in this mode.
    pub(crate) fn trains(&self, id: ParamId) -> bool {
        let param = self.params.get(id);
        self.mode.trains() && param.trainable && param.kind == Kind::Weight
    }
}

/// Gradients on their way back.
pub(crate) struct Backward<T> {
    pub(crate) grads: Vec<Option<Buf<T>>>,
    pub(crate) params: HashMap<ParamId, Buf<T>>,
    pub(crate) tensors: Vec<candle_core::backprop::GradStore>,
    pub(crate) taps: Vec<(String, Tensor)>,
    pub(crate) pool: Arc<Pool<T>>,
}

impl<T: Float> Backward<T> {
    /// Adds to the gradient of a node.
    pub(crate) fn add(&mut self, id: usize, gradient: Buf<T>) {
        match &mut self.grads[id] {
            Some(sum) => elementwise::add_to(sum, &gradient),
            empty => *empty = Some(gradient),
        }
    }

    /// Adds to the gradient of a node what others still read.
    pub(crate) fn add_copy(&mut self, id: usize, gradient: &[T]) {
        match &mut self.grads[id] {
            Some(sum) => elementwise::add_to(sum, gradient),
            empty => {
                let mut copy = self.pool.take(gradient.len());
                elementwise::copy(gradient, &mut copy);
                *empty = Some(copy);
            }
        }
    }

    /// Takes what has been collected for a node, or new memory: `(buffer, whether it holds a sum)`.
    pub(crate) fn slot(&mut self, id: usize, len: usize) -> (Buf<T>, bool) {
        match self.grads[id].take() {
            Some(sum) => (sum, true),
            None => (self.pool.take(len), false),
        }
    }

    /// Adds to the gradient of a parameter.
    pub(crate) fn param(&mut self, id: ParamId, gradient: Buf<T>) {
        match self.params.get_mut(&id) {
            Some(sum) => elementwise::add_to(sum, &gradient),
            None => {
                self.params.insert(id, gradient);
            }
        }
    }
}
