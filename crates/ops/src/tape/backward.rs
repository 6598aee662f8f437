//! Backward pass: from the gradients of features to those of parameters.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Elem, Mode, Tape, dispatch_dtype};
use crate::buffers::{Buf, Pool};
use crate::element::{Float, with_values};
use crate::gradients::Gradients;
use crate::kernels::elementwise;
use crate::layers::Record;
use crate::params::ParamKind;
use crate::{Error, ParamId, Result};

impl Tape {
    /// Computes the gradients of a scalar with respect to all trainable parameters: candle's backward to
    /// the features, then the tape's own to the parameters. Consumes the recorded pass.
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
        if let Some(graph_state) = &self.graph_state {
            let features = self.features.iter().map(|feature| (feature.name.as_str(), feature.node));
            gradients.features = graph_state.feature_gradients(features, &store, self.dtype())?;
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
        let records = std::mem::take(&mut T::state(self).records);
        let mut back = Backward {
            grads: (0..self.nodes).map(|_| None).collect(),
            params: HashMap::new(),
            tensors: Vec::new(),
            features: Vec::new(),
            pool: Arc::clone(&T::state(self).pool),
        };
        for feature in &self.features {
            if let Some(g) = feature.leaf.as_ref().and_then(|leaf| store.get(leaf)) {
                let mut buf = back.pool.take(g.elem_count());
                with_values::<T, _>(g, |g| buf.copy_from_slice(g))?;
                back.add(feature.node, buf);
            }
        }
        for record in records.into_iter().rev() {
            self.go_back(record, &mut back)?;
        }
        gradients.features.append(&mut back.features);
        for store in &back.tensors {
            gradients.collect(store)?;
        }
        for (id, values) in back.params {
            gradients.insert(id, T::grad(values))?;
        }
        Ok(())
    }

    /// Propagates the gradient of a record's node, if it has one.
    pub(crate) fn go_back<T: Elem>(&mut self, record: Record<T>, back: &mut Backward<T>) -> Result<()> {
        let out = record.out();
        let Some(dy) = back.grads.get_mut(out).and_then(Option::take) else { return Ok(()) };
        // A recomputed segment passes its gradient to the record that produced the node.
        if self.mode == Mode::EvalWithGrad && !matches!(record, Record::Checkpoint(_)) {
            for feature in self.features.iter().filter(|t| t.node == out) {
                let shape = feature.leaf.as_ref().map_or(feature.tensor.shape(), |l| l.shape());
                let g = Tensor::from_slice(&dy, shape, &Device::Cpu)?;
                let g = if g.rank() == 4 { g.permute((0, 3, 1, 2))? } else { g };
                back.features.push((feature.name.clone(), g));
            }
        }
        record.backward(dy, back, self)
    }

    /// Returns whether a parameter gets a gradient in this mode.
    pub(crate) fn trains(&self, id: ParamId) -> bool {
        let param = self.params.get(id);
        self.mode.trains() && param.trainable && param.kind == ParamKind::Weight
    }
}

/// Gradients accumulated during the backward pass.
pub(crate) struct Backward<T> {
    pub(crate) grads: Vec<Option<Buf<T>>>,
    pub(crate) params: HashMap<ParamId, Buf<T>>,
    pub(crate) tensors: Vec<candle_core::backprop::GradStore>,
    pub(crate) features: Vec<(String, Tensor)>,
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

    /// Adds to the gradient of a node, copying since other records still read the values.
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

    /// Takes the accumulated gradient of a node, or a new buffer; the flag says whether it holds a sum.
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
