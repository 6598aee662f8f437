//! Evaluation metrics.

use candle_core::Tensor;

use crate::Result;
use crate::data::{Labels, Task};

/// A named value. NaN means "not defined" and is printed as a dash.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Name, for example `top1`.
    pub name: String,
    /// Value.
    pub value: f64,
}

/// An evaluation metric, accumulated over batches.
pub trait Metric: Send {
    /// Registry name.
    fn name(&self) -> &str;
    /// Returns whether the metric applies to labels of that kind.
    fn supports(&self, task: Task) -> bool;
    /// Adds one batch: `logits [B, C]`, or `[B, C, H, W]` in the size of the masks.
    fn update(&mut self, logits: &Tensor, labels: &Labels) -> Result<()>;
    /// Adds the counts of another metric of the same type.
    fn merge(&mut self, other: &dyn Metric) -> Result<()>;
    /// Returns the scores of all batches so far.
    fn scores(&self) -> Vec<Score>;
    /// Returns `self` for the downcast in [`Metric::merge`].
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Creates a metric for a number of classes.
pub type MetricBuild = fn(classes: usize) -> Box<dyn Metric>;
