//! Sums over the steps of an epoch, for its log line.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use stillhouse_runs::EpochLog;

use crate::StepMetrics;
use crate::tensorboard::unix_time;

/// Sums over the steps of an epoch. They are part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochStats {
    pub(crate) steps: u64,
    images: u64,
    correct: Option<u64>,
    #[serde(with = "bits")]
    loss: f64,
    #[serde(with = "bits_by_name")]
    terms: BTreeMap<String, f64>,
    /// Weights at the last step.
    #[serde(with = "bits_by_name")]
    weights: BTreeMap<String, f64>,
    /// Paths of the terms that had a value and a nonzero weight at some step.
    pub(crate) active_terms: BTreeSet<String>,
    /// Paths of the terms that were not 0 at some step.
    #[serde(default)]
    pub(crate) nonzero_terms: BTreeSet<String>,
    /// Connectors that had a nonzero gradient at some step.
    pub(crate) trained_connectors: BTreeSet<String>,
    pub(crate) seconds: f64,
    /// Seconds of these that training waited for the loader.
    pub(crate) data_seconds: f64,
}

/// Stores sums bit by bit: a decimal may differ in its last digit when read back.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

mod bits_by_name {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(value.iter().map(|(name, sum)| (name, sum.to_bits())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let sums = BTreeMap::<String, u64>::deserialize(deserializer)?;
        Ok(sums.into_iter().map(|(name, sum)| (name, f64::from_bits(sum))).collect())
    }
}

impl EpochStats {
    /// Adds a step.
    pub(crate) fn add(&mut self, step: &StepMetrics) {
        self.steps += 1;
        self.images += step.images;
        self.loss += step.loss;
        self.correct = step.correct.map(|c| c + self.correct.unwrap_or(0));
        self.trained_connectors.extend(step.trained_connectors.iter().cloned());
        for term in &step.terms {
            *self.terms.entry(term.name.clone()).or_default() += term.value;
            self.weights.insert(term.name.clone(), term.weight);
            if term.weight != 0.0 {
                self.active_terms.insert(term.path.clone());
            }
            if term.value != 0.0 {
                self.nonzero_terms.insert(term.path.clone());
            }
        }
    }

    /// Returns the fraction of the time that training waited for the loader.
    pub(crate) fn data_share(&self) -> f64 {
        self.data_seconds / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Returns the log line of the epoch, without test results and warnings.
    pub(crate) fn into_log(self, epoch: u64, step: u64, lr: f64) -> EpochLog {
        let (steps, images) = (self.steps.max(1) as f64, self.images.max(1) as f64);
        EpochLog {
            epoch,
            step,
            lr,
            terms: self.terms.into_iter().map(|(name, sum)| (name, sum / steps)).collect(),
            weights: self.weights,
            loss: self.loss / steps,
            train_accuracy: self.correct.map(|c| c as f64 / images),
            images_per_second: if self.seconds > 0.0 { images / self.seconds } else { 0.0 },
            seconds: self.seconds,
            data_seconds: self.data_seconds,
            time: unix_time(),
            ..EpochLog::default()
        }
    }
}
