//! Metrics as the trainer sees them.

use candle_core::Tensor;

use crate::Result;
use crate::data::{Target, Task};

/// A named figure; NaN means "not defined" and is printed as a dash.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Name, for example `top1`.
    pub name: String,
    /// Value.
    pub value: f64,
}

/// Something counted over an evaluation.
pub trait Metric: Send {
    /// Registry name.
    fn name(&self) -> &str;
    /// Whether it counts labels of that kind.
    fn supports(&self, task: Task) -> bool;
    /// Counts one batch: `logits [B, N]`, or `[B, N, H, W]` in the size of the masks.
    fn update(&mut self, logits: &Tensor, target: &Target) -> Result<()>;
    /// Adds what another one of the same kind has counted.
    fn merge(&mut self, other: &dyn Metric) -> Result<()>;
    /// The figures so far.
    fn scores(&self) -> Vec<Score>;
    /// For `merge`.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Makes a metric for that many classes.
pub type MetricBuild = fn(classes: usize) -> Box<dyn Metric>;
