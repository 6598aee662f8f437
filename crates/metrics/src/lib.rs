//! What is counted, one file each: accuracy and agreement, top-k, segmentation, calibration, and
//! the statistics over seeds.
//!
//! Everything is plain f64 mathematics over slices; counts are integers. **NaN means "not defined"**:
//! no samples, a class without samples, a spread of one value. Nothing answers 0 for "nothing
//! there", and nothing panics.
//!
//! [`registry`] lists what a trainer can run during an evaluation; a new metric is one file, one
//! `mod` line and one row.
//!
//! ```
//! use stillhouse_metrics::{ConfusionMatrix, classification};
//!
//! let matrix = ConfusionMatrix::of(3, &[0, 0, 1, 1], &[0, 1, 1, 1])?;
//! let scores = classification::Scores::of(&matrix);
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
pub mod mcnemar;
mod numeric;
pub mod paired;
pub mod seeds;
pub mod segmentation;
pub mod special;
pub mod topk;

pub use confusion::ConfusionMatrix;
pub use error::{Error, Result};

use stillhouse_core::metric::MetricBuild;
use stillhouse_core::registry::Registry;

/// What a trainer can count during an evaluation.
pub fn registry() -> Registry<MetricBuild> {
    Registry::new("metric", &[classification::ENTRY, segmentation::ENTRY, calibration::ENTRY])
}
