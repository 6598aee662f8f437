//! Neuron selectivity transfer over the whole batch (`nst_all`): one distribution of all images.
//!
//! # Paper
//! The "improved NST" of X. Liu et al., "Class-centric Knowledge Distillation for RSI Scene
//! Classification", Journal of Geo-information Science 25(5), 2023, DOI
//! 10.12082/dqxxkx.2023.220781, Table 6. Reconstructed: the text at hand does not define it.
//!
//! # Equation
//! `nst_all = sum over stages of MMD^2(teacher's, student's unit channel maps of all images)`, with
//! the kernel `(x . y)^2`. It is at most [`class_centric`](super::class_centric), which is at most
//! [`nst`](super::nst).
//!
//! # Inputs
//! As in [`nst`](super::nst).
//!
//! # Defaults and their source
//! As in [`nst`](super::nst), so that the three are comparable.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let entry = *stillhouse_losses::registry().get("nst_all")?;
//! let method = (entry.build)(&toml::toml! { weight = 200.0 })?;
//! assert_eq!(method.term_weights(), [("nst_all".to_string(), 200.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use candle_core::Tensor;
use stillhouse_core::Result;
use stillhouse_core::distiller::DistillerBuild;
use stillhouse_core::registry::Entry;

use super::nst::{Nst, channel_mmd, defaults};
use crate::common::config;
use crate::common::mmd::{Groups, Kernel};

/// Registry entry of `nst_all`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "nst_all",
    summary: "distribution of the channel maps of the whole batch",
    source: "Liu et al. 2023, Table 6, reconstructed",
    defaults,
    build: |table| Ok(Box::new(Nst::new(config::parse(table, "nst_all")?, "nst_all", nst_all_loss)?)),
};

/// Squared MMD of the unit channel maps of all images at one stage, a scalar. Shapes as in
/// [`nst_loss`](super::nst::nst_loss).
///
/// # Errors
/// If the batch sizes differ.
pub fn nst_all_loss(student: &Tensor, teacher: &Tensor, kernel: Kernel) -> Result<Tensor> {
    channel_mmd(student, teacher, kernel, &Groups::whole_batch(student.dim(0)?)?)
}
