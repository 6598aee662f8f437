//! Methods of a training step and the sum of their loss terms.

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_core::distiller::{Distiller, LossContext, Term};

use super::step_metrics::detached_f64;
use super::{LossTerm, MetricsBuffer, MicroBatch, StepInfo};
use crate::experiment::losses::{CE, is_ce};
use crate::experiment::schedule::WeightSchedule;
use crate::{Error, Result};

/// A method of a training step.
pub struct MethodSpec {
    /// Name in logs and in the parameter names of its connectors.
    pub name: String,
    /// The method.
    pub distiller: Box<dyn Distiller>,
    /// Index of its phase; 0 unless there are several.
    pub phase: usize,
    /// Factor on the weights of its terms by epoch, cross-entropies excepted.
    pub schedule: WeightSchedule,
}

impl MethodSpec {
    /// A method of the first phase with constant weights.
    pub fn new(distiller: Box<dyn Distiller>) -> Self {
        Self { name: distiller.name().to_string(), distiller, phase: 0, schedule: WeightSchedule::default() }
    }
}

/// A method with its names and random numbers.
pub(super) struct BoundMethod {
    pub(super) distiller: Box<dyn Distiller>,
    /// Index of its phase.
    pub(super) phase: usize,
    /// Name of its random number stream and prefix of its connectors. It must not change: it determines the
    /// numbers of a run.
    pub(super) label: String,
    /// Name with its phase: `phase1-ce`; without with a single phase.
    pub(super) display_name: String,
    /// Prefix of its term names, `phase1-`; empty with a single phase.
    prefix: String,
    pub(super) schedule: WeightSchedule,
    pub(super) rng: Rng,
}

impl BoundMethod {
    /// Binds a method to one of `phases` phases; a method may be in several of them.
    pub(super) fn new(spec: MethodSpec, phases: usize, rng: Rng) -> Self {
        let MethodSpec { name, distiller, phase, schedule } = spec;
        let numbered = |word: &str| if phases > 1 { format!("{word}{}-", phase + 1) } else { String::new() };
        let (label, prefix) = (format!("{}{name}", numbered("step")), numbered("phase"));
        let (display_name, rng) = (format!("{prefix}{name}"), rng.stream("method").stream(&label));
        Self { distiller, phase, label, display_name, prefix, schedule, rng }
    }

    /// Returns the unique name of a term in the training step.
    pub(super) fn term_path(&self, term: &str) -> String {
        format!("{}.{term}", self.display_name)
    }

    /// Returns the terms with their weights at this step.
    pub(super) fn scheduled_terms(&self, context: &LossContext, at: StepInfo) -> Result<Vec<Term>> {
        let factor = self.schedule.factor(at.step / at.steps_per_epoch);
        let mut terms = self.distiller.terms(context)?;
        for term in terms.iter_mut().filter(|term| !is_ce(&term.name)) {
            term.weight *= factor;
        }
        Ok(terms)
    }

    /// Returns names and configured weights of the terms.
    pub(super) fn term_weights(&self) -> Vec<(String, f64)> {
        let named = |(name, weight)| (format!("{}{name}", self.prefix), weight);
        self.distiller.term_weights().into_iter().map(named).collect()
    }
}

/// Returns the weighted sum of the terms of a micro-batch and records each of them.
pub(super) fn weighted_sum(
    terms: &[(&BoundMethod, Term)],
    micro_batch: &MicroBatch,
    metrics: &mut MetricsBuffer,
) -> Result<Tensor> {
    let (mut total, mut recorded, mut values): (Option<Tensor>, _, _) = (None, Vec::new(), Vec::new());
    for (i, (method, term)) in terms.iter().enumerate() {
        let own = method.distiller.name();
        let same_name = terms[..i].iter().find(|(_, t)| t.name == term.name);
        if let Some((first, other)) = same_name
            && term.name == CE
        {
            return Err(Error::TwoCeWeights {
                first: first.distiller.name().to_string(),
                first_weight: other.weight,
                second: own.to_string(),
                second_weight: term.weight,
            });
        }
        if term.value.elem_count() != 1 {
            let reason = format!("term `{}`: expected a scalar, found {:?}", term.name, term.value.dims());
            return Err(stillhouse_core::Error::incompatible(own, reason).into());
        }
        let name = if same_name.is_some() { format!("{own}.{}", term.name) } else { term.name.clone() };
        let name = format!("{}{name}", method.prefix);
        let scalar = term.value.reshape(())?;
        recorded.push(LossTerm {
            name,
            path: method.term_path(&term.name),
            value: f64::NAN,
            weight: term.weight,
        });
        values.push(detached_f64(&scalar)?);
        let weighted = (scalar * term.weight)?;
        total = Some(match total {
            Some(total) => (total + weighted)?,
            None => weighted,
        });
    }
    let Some(total) = total else {
        let reason = "no method has a term for this phase";
        return Err(stillhouse_core::Error::incompatible("loss", reason).into());
    };
    metrics.record_terms(&micro_batch.step_ref, micro_batch.share, recorded, &values)?;
    Ok(total)
}
