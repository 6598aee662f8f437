//! `log.jsonl`: one line per epoch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of `log.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Optimizer steps done.
    pub step: u64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean of each loss term, unweighted.
    pub terms: BTreeMap<String, f64>,
    /// Weights of the terms at the last step, warm-up and decay included.
    pub weights: BTreeMap<String, f64>,
    /// Mean of the weighted sum of all terms.
    pub loss: f64,
    /// Fraction of the training images classified correctly during training; none for label masks.
    pub train_accuracy: Option<f64>,
    /// Test images classified correctly, if this epoch was tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_correct: Option<u64>,
    /// Scores of the metrics, if this epoch was tested; null where a score is undefined.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, Option<f64>>,
    /// Training throughput in images per second.
    pub images_per_second: f64,
    /// End of the epoch as a Unix time in seconds.
    pub time: f64,
    /// Duration of the epoch in seconds.
    pub seconds: f64,
    /// Seconds of these that training waited for the loader.
    pub data_seconds: f64,
    /// Terms that did not run and connectors without a gradient in this epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
