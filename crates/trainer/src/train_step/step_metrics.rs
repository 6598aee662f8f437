//! Deferred per-step metrics.
//!
//! Reading a scalar from the GPU synchronizes with it, so scalars stay on the device and are fetched
//! together every few steps, at the end of an epoch, and before a checkpoint. Values that are not finite
//! are then reported with their own step and samples. On the CPU there is nothing to gain: values are read
//! at once, and a failed step updates nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use stillhouse_core::data::Batch;
use stillhouse_ops::Gradients;

use crate::{Error, Result};

/// Steps on a GPU whose metrics are read together: one synchronization for so many costs next to nothing,
/// and an error is still reported early.
const GPU_BUFFERED_STEPS: u64 = 16;

/// Metrics of one step.
#[derive(Debug, Clone, Default)]
pub struct StepMetrics {
    /// Learning rate.
    pub lr: f64,
    /// Images of the batch.
    pub images: u64,
    /// Terms of the loss, means over the batch.
    pub terms: Vec<LossTerm>,
    /// Weighted sum of the terms, without those of adversaries.
    pub loss: f64,
    /// Images classified correctly; none for label masks.
    pub correct: Option<u64>,
    /// Connectors found to have a nonzero gradient.
    pub(crate) trained_connectors: BTreeSet<String>,
}

/// A loss term in the logs.
#[derive(Debug, Clone)]
pub struct LossTerm {
    /// Name in the logs, prefixed by phase and method where needed to be unique.
    pub name: String,
    /// `<method>.<term>`
    pub path: String,
    /// Value without the weight.
    pub value: f64,
    /// Weight at this step.
    pub weight: f64,
}

/// Step and samples of a micro-batch, for errors.
#[derive(Debug, Clone)]
pub(crate) struct StepRef {
    step: u64,
    ids: Arc<[u64]>,
}

impl StepRef {
    pub(crate) fn new(step: u64, batch: &Batch) -> Self {
        Self { step, ids: batch.ids.as_slice().into() }
    }

    fn non_finite(&self, term: &str, value: f64) -> Error {
        Error::NonFinite { term: term.to_string(), value, step: self.step, ids: self.ids.to_vec() }
    }

    pub(crate) fn non_finite_gradient(&self, param: &str) -> Error {
        self.non_finite(&format!("gradient of {param}"), f64::NAN)
    }
}

/// Meaning of buffered values, in recording order.
enum Entry {
    /// Terms of a micro-batch with this share of the batch; their values follow.
    Terms { step_ref: StepRef, share: f64, terms: Vec<LossTerm> },
    /// Zeros computed from the gradients of these parameters: NaN if a gradient is not finite.
    GradientZeros { step_ref: StepRef, params: Vec<String> },
    /// Count of correct images.
    Correct,
    /// Maximum absolute gradients of these connectors.
    MaxGradients(Vec<String>),
    /// Connectors that were trained.
    Trained(Vec<String>),
    /// End of a phase; whether its terms count towards the loss.
    EndPhase { counts: bool },
    /// End of a step.
    EndStep { lr: f64, images: u64 },
}

/// Metrics of steps that are not read from the device yet.
pub(crate) struct MetricsBuffer {
    /// Steps that are read together.
    capacity: u64,
    entries: Vec<(Entry, Option<Tensor>)>,
    /// Finished steps among the entries.
    steps: u64,
    /// Sums over the micro-batches of the current phase.
    phase: StepMetrics,
    current: StepMetrics,
    finished: Vec<StepMetrics>,
}

impl MetricsBuffer {
    /// A buffer of `capacity` steps; `None`: 1 on the CPU, more on a GPU. With 1 each value is read at once.
    pub(crate) fn new(capacity: Option<u64>, device: &Device) -> Self {
        let capacity = capacity.unwrap_or(if device.is_cpu() { 1 } else { GPU_BUFFERED_STEPS });
        let (phase, current) = (StepMetrics::default(), StepMetrics::default());
        Self { capacity, entries: Vec::new(), steps: 0, phase, current, finished: Vec::new() }
    }

    /// Records the terms of a micro-batch and their values, which are scalars.
    pub(crate) fn record_terms(
        &mut self,
        step_ref: &StepRef,
        share: f64,
        terms: Vec<LossTerm>,
        values: &[Tensor],
    ) -> Result<()> {
        let values = Tensor::stack(values, 0)?;
        self.record(Entry::Terms { step_ref: step_ref.clone(), share, terms }, Some(values))
    }

    /// Checks that all gradients are finite.
    pub(crate) fn check_finite(&mut self, step_ref: &StepRef, gradients: &Gradients) -> Result<()> {
        let params = gradients.names();
        let entry = Entry::GradientZeros { step_ref: step_ref.clone(), params };
        self.record(entry, Some(gradients.non_finite_flags()?))
    }

    /// Records the count of correct images of a micro-batch, a scalar.
    pub(crate) fn record_correct(&mut self, count: &Tensor) -> Result<()> {
        self.record(Entry::Correct, Some(count.reshape(1)?))
    }

    /// Records the maximum absolute gradient of each of these connectors, scalars.
    pub(crate) fn record_max_gradients(&mut self, names: Vec<String>, values: &[Tensor]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let values = Tensor::stack(values, 0)?;
        self.record(Entry::MaxGradients(names), Some(values))
    }

    /// Records connectors that were trained.
    pub(crate) fn record_trained(&mut self, names: Vec<String>) -> Result<()> {
        self.record(Entry::Trained(names), None)
    }

    /// Ends a phase; `counts`: its terms count towards the loss.
    pub(crate) fn end_phase(&mut self, counts: bool) -> Result<()> {
        self.record(Entry::EndPhase { counts }, None)
    }

    /// Ends a step.
    pub(crate) fn end_step(&mut self, lr: f64, images: u64) -> Result<()> {
        self.steps += 1;
        self.record(Entry::EndStep { lr, images }, None)
    }

    fn record(&mut self, entry: Entry, values: Option<Tensor>) -> Result<()> {
        if self.capacity > 1 {
            self.entries.push((entry, values));
            return Ok(());
        }
        let values = values.map(|v| v.to_vec1::<f64>()).transpose()?;
        self.apply(entry, &values.unwrap_or_default())
    }

    /// Returns the metrics of finished steps in order and removes them: `all` of them, or none until the
    /// buffer is full.
    pub(crate) fn take(&mut self, all: bool) -> Result<Vec<StepMetrics>> {
        if all || self.steps >= self.capacity {
            self.read_all()?;
        }
        Ok(std::mem::take(&mut self.finished))
    }

    /// Reads all buffered values in one transfer.
    fn read_all(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        self.steps = 0;
        let non_empty = |(_, values): &(Entry, Option<Tensor>)| values.clone().filter(|v| v.elem_count() > 0);
        let tensors: Vec<Tensor> = entries.iter().filter_map(non_empty).collect();
        let values = match tensors.is_empty() {
            true => Vec::new(),
            false => Tensor::cat(&tensors, 0)?.to_vec1::<f64>()?,
        };
        let mut rest = values.as_slice();
        for (entry, values) in entries {
            let (own, later) = rest.split_at(values.map_or(0, |v| v.elem_count()));
            rest = later;
            self.apply(entry, own)?;
        }
        Ok(())
    }

    fn apply(&mut self, entry: Entry, values: &[f64]) -> Result<()> {
        match entry {
            Entry::Terms { step_ref, share, mut terms } => {
                let mut loss = 0.0;
                for (term, value) in terms.iter_mut().zip(values) {
                    if !value.is_finite() {
                        return Err(step_ref.non_finite(&term.name, *value));
                    }
                    term.value = *value;
                    loss += value * term.weight;
                }
                if !loss.is_finite() {
                    return Err(step_ref.non_finite("loss", loss));
                }
                self.phase.add_terms(terms, loss, share);
            }
            Entry::GradientZeros { step_ref, params } => {
                if let Some((name, _)) = params.iter().zip(values).find(|(_, zero)| **zero != 0.0) {
                    return Err(step_ref.non_finite_gradient(name));
                }
            }
            Entry::Correct => {
                let count: f64 = values.iter().sum();
                self.current.correct = Some(self.current.correct.unwrap_or(0) + count as u64);
            }
            Entry::MaxGradients(names) => {
                let trained = names.into_iter().zip(values).filter(|(_, max)| **max > 0.0);
                self.current.trained_connectors.extend(trained.map(|(name, _)| name));
            }
            Entry::Trained(names) => self.current.trained_connectors.extend(names),
            Entry::EndPhase { counts } => {
                let phase = std::mem::take(&mut self.phase);
                if counts {
                    self.current.loss += phase.loss;
                }
                self.current.terms.extend(phase.terms);
            }
            Entry::EndStep { lr, images } => {
                let metrics = StepMetrics { lr, images, ..std::mem::take(&mut self.current) };
                self.finished.push(metrics);
            }
        }
        Ok(())
    }
}

impl StepMetrics {
    /// Adds the terms of a micro-batch.
    fn add_terms(&mut self, terms: Vec<LossTerm>, loss: f64, share: f64) {
        self.loss += share * loss;
        for term in terms {
            match self.terms.iter_mut().find(|t| t.path == term.path) {
                Some(sum) => sum.value += share * term.value,
                None => self.terms.push(LossTerm { value: share * term.value, ..term }),
            }
        }
    }
}

/// Detaches a scalar from its graph and converts it to f64, on its device.
pub(crate) fn detached_f64(scalar: &Tensor) -> Result<Tensor> {
    Ok(scalar.detach().to_dtype(DType::F64)?)
}
