//! Metrics and statistics: classification, top-k, segmentation, calibration, and tests over seeds.
//!
//! Functions are plain f64 mathematics over slices; counts are integers. **NaN means "not
//! defined"**: no samples, a class without samples, the deviation of one value. Nothing panics.
//!
//! [`registry`] lists the metrics that a trainer runs during an evaluation. A new metric is one
//! file, one `mod` line and one entry.
//!
//! ```
//! use stillhouse_metrics::{ConfusionMatrix, classification};
//!
//! let matrix = ConfusionMatrix::from_labels(3, &[0, 0, 1, 1], &[0, 1, 1, 1])?;
//! let scores = classification::Scores::new(&matrix);
//! assert_eq!(scores.overall_accuracy, 0.75);
//! assert_eq!(scores.recall[..2], [0.5, 1.0]);
//! assert!(scores.recall[2].is_nan()); // no sample of class 2
//! # Ok::<(), stillhouse_metrics::Error>(())
//! ```

mod batch;
pub mod bootstrap;
pub mod calibration;
pub mod classification;
mod confusion;
mod error;
pub mod intervals;
pub mod mcnemar;
pub mod multiple_testing;
mod numeric;
pub mod paired;
pub mod seeds;
pub mod segmentation;
pub mod special_functions;
pub mod topk;

pub use confusion::ConfusionMatrix;
pub use error::{Error, Result};

use stillhouse_core::metric::MetricBuild;
use stillhouse_core::registry::Registry;

/// Returns the metrics that a trainer runs during an evaluation.
pub fn registry() -> Registry<MetricBuild> {
    Registry::new("metric", &[classification::ENTRY, segmentation::ENTRY, calibration::ENTRY])
}
