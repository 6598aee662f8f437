//! What the steps tell: read where it is made, or some steps later in one transfer.
//!
//! Whoever reads a value of a card waits for all that was queued before it. So what a step tells stays
//! there as scalars until a few steps have been queued, an epoch is over, or something is to be
//! written. Whatever is not finite is then told as it would have been at once: by its name, its step
//! and its images. On the CPU nothing is gained by waiting, and a step that goes wrong updates nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use stillhouse_core::data::Batch;
use stillhouse_ops::Gradients;

use crate::{Error, Result};

/// Steps of a card that are read together: waiting once for so many costs next to nothing, and an
/// error is told soon enough.
const TOGETHER: u64 = 16;

/// What a step tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// Learning rate.
    pub(crate) lr: f64,
    pub(crate) images: u64,
    pub(crate) terms: Vec<ToldTerm>,
    /// The weighted sum.
    pub(crate) total: f64,
    pub(crate) right: Option<u64>,
    /// Connectors that got a gradient other than 0, as far as that was asked.
    pub(crate) moved: BTreeSet<String>,
}

/// A term as it is logged.
#[derive(Debug, Clone)]
pub(crate) struct ToldTerm {
    /// The method's name, if another method of the step has a term of the same name, and the term's.
    pub(crate) name: String,
    /// `<label>.<term>`
    pub(crate) path: String,
    /// Without the weight.
    pub(crate) value: f64,
    /// In force now.
    pub(crate) weight: f64,
}

/// A part of a batch, for errors.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    step: u64,
    ids: Arc<[u64]>,
}

impl Place {
    pub(crate) fn new(step: u64, batch: &Batch) -> Self {
        Self { step, ids: batch.ids.as_slice().into() }
    }

    fn non_finite(&self, term: &str, value: f64) -> Error {
        Error::NonFinite { term: term.to_string(), value, step: self.step, ids: self.ids.to_vec() }
    }
}

/// What values mean, in the order in which they are made.
enum Note {
    /// Terms of the loss of a part that has this share of the batch; their values are yet to come.
    Terms { of: Place, share: f64, terms: Vec<ToldTerm> },
    /// Zeros of the gradients of these parameters.
    Zeros { of: Place, params: Vec<String> },
    /// Images that are classified right.
    Right,
    /// The largest gradients of these connectors.
    Largest(Vec<String>),
    /// Connectors that got a gradient.
    Moved(Vec<String>),
    /// All parts of the batch are through a training step; whether the sum of its terms is part of
    /// the total.
    Summed { counts: bool },
    /// The batch is over.
    Over { lr: f64, images: u64 },
}

/// Values of steps on their way to the host.
pub(crate) struct Readings {
    together: u64,
    waiting: Vec<(Note, Option<Tensor>)>,
    /// Steps that are over and wait.
    steps: u64,
    /// Sums over the parts of the training step that is being told.
    summed: Told,
    now: Told,
    told: Vec<Told>,
}

impl Readings {
    /// Reads so many steps together, each value at once if that is 1; without a number as it is best for
    /// the device.
    pub(crate) fn new(together: Option<u64>, device: &Device) -> Self {
        let together = together.unwrap_or(if device.is_cpu() { 1 } else { TOGETHER });
        let (summed, now) = (Told::default(), Told::default());
        Self { together, waiting: Vec::new(), steps: 0, summed, now, told: Vec::new() }
    }

    /// The terms of a part of the batch and their values, scalars.
    pub(crate) fn terms(
        &mut self,
        of: &Place,
        share: f64,
        terms: Vec<ToldTerm>,
        values: &[Tensor],
    ) -> Result<()> {
        let values = Tensor::stack(values, 0)?;
        self.note(Note::Terms { of: of.clone(), share, terms }, Some(values))
    }

    /// Refuses gradients that are not finite.
    pub(crate) fn finite(&mut self, of: &Place, gradients: &Gradients) -> Result<()> {
        let params = gradients.names();
        self.note(Note::Zeros { of: of.clone(), params }, Some(gradients.non_finite_flags()?))
    }

    /// How many images of a part are classified right, a scalar.
    pub(crate) fn right(&mut self, count: &Tensor) -> Result<()> {
        self.note(Note::Right, Some(count.reshape(1)?))
    }

    /// The largest gradient of each of these connectors, scalars.
    pub(crate) fn largest(&mut self, names: Vec<String>, values: &[Tensor]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let values = Tensor::stack(values, 0)?;
        self.note(Note::Largest(names), Some(values))
    }

    /// Connectors that got a gradient.
    pub(crate) fn moved(&mut self, names: Vec<String>) -> Result<()> {
        self.note(Note::Moved(names), None)
    }

    /// All parts are through a training step; `counts` as [`Note::Summed`] has it.
    pub(crate) fn summed(&mut self, counts: bool) -> Result<()> {
        self.note(Note::Summed { counts }, None)
    }

    /// The batch is over.
    pub(crate) fn over(&mut self, lr: f64, images: u64) -> Result<()> {
        self.steps += 1;
        self.note(Note::Over { lr, images }, None)
    }

    fn note(&mut self, note: Note, values: Option<Tensor>) -> Result<()> {
        if self.together > 1 {
            self.waiting.push((note, values));
            return Ok(());
        }
        let values = values.map(|v| v.to_vec1::<f64>()).transpose()?;
        self.settle(note, &values.unwrap_or_default())
    }

    /// The steps that are over and have not been told yet, in their order; `all` of them, or else none
    /// until there are enough.
    pub(crate) fn told(&mut self, all: bool) -> Result<Vec<Told>> {
        if all || self.steps >= self.together {
            self.read()?;
        }
        Ok(std::mem::take(&mut self.told))
    }

    /// Reads what is waiting in one transfer.
    fn read(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.steps = 0;
        let some = |(_, values): &(Note, Option<Tensor>)| values.clone().filter(|v| v.elem_count() > 0);
        let tensors: Vec<Tensor> = waiting.iter().filter_map(some).collect();
        let values = match tensors.is_empty() {
            true => Vec::new(),
            false => Tensor::cat(&tensors, 0)?.to_vec1::<f64>()?,
        };
        let mut rest = values.as_slice();
        for (note, values) in waiting {
            let (own, later) = rest.split_at(values.map_or(0, |v| v.elem_count()));
            rest = later;
            self.settle(note, own)?;
        }
        Ok(())
    }

    fn settle(&mut self, note: Note, values: &[f64]) -> Result<()> {
        match note {
            Note::Terms { of, share, mut terms } => {
                let mut total = 0.0;
                for (term, value) in terms.iter_mut().zip(values) {
                    if !value.is_finite() {
                        return Err(of.non_finite(&term.name, *value));
                    }
                    term.value = *value;
                    total += value * term.weight;
                }
                if !total.is_finite() {
                    return Err(of.non_finite("total", total));
                }
                self.summed.add(terms, total, share);
            }
            Note::Zeros { of, params } => {
                if let Some((name, _)) = params.iter().zip(values).find(|(_, zero)| **zero != 0.0) {
                    return Err(of.non_finite(&format!("gradient of {name}"), f64::NAN));
                }
            }
            Note::Right => {
                let count: f64 = values.iter().sum();
                self.now.right = Some(self.now.right.unwrap_or(0) + count as u64);
            }
            Note::Largest(names) => {
                let moved = names.into_iter().zip(values).filter(|(_, largest)| **largest > 0.0);
                self.now.moved.extend(moved.map(|(name, _)| name));
            }
            Note::Moved(names) => self.now.moved.extend(names),
            Note::Summed { counts } => {
                let summed = std::mem::take(&mut self.summed);
                if counts {
                    self.now.total += summed.total;
                }
                self.now.terms.extend(summed.terms);
            }
            Note::Over { lr, images } => {
                self.told.push(Told { lr, images, ..std::mem::take(&mut self.now) });
            }
        }
        Ok(())
    }
}

impl Told {
    /// Adds the terms of a part of the batch.
    fn add(&mut self, terms: Vec<ToldTerm>, total: f64, share: f64) {
        self.total += share * total;
        for term in terms {
            match self.terms.iter_mut().find(|t| t.path == term.path) {
                Some(sum) => sum.value += share * term.value,
                None => self.terms.push(ToldTerm { value: share * term.value, ..term }),
            }
        }
    }
}

/// A scalar of a graph as it is read later, without the graph.
pub(crate) fn value_of(scalar: &Tensor) -> Result<Tensor> {
    Ok(scalar.detach().to_dtype(DType::F64)?)
}
