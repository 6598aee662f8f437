//! Neuron selectivity transfer over the whole batch (`nst_all`): one distribution of all images.
//!
//! # Paper
//! The "improved NST" of X. Liu et al., "Class-centric Knowledge Distillation for RSI Scene
//! Classification", Journal of Geo-information Science 25(5), 2023, DOI
//! 10.12082/dqxxkx.2023.220781, Table 6; the text at hand does not define it, this is a reading.
//!
//! # Equation
//! `nst_all = sum over stages of MMD^2(teacher's, student's unit channel maps of all images)`, with
//! the kernel `(x . y)^2`. Never larger than [`class_centric`](crate::class_centric), which is never
//! larger than [`nst`](crate::nst).
//!
//! # Inputs
//! As [`nst`](crate::nst).
//!
//! # Defaults and their source
//! As [`nst`](crate::nst), so that the three are comparable.
//!
//! # Where code and paper differ
//! No code was published.
//!
//! # Example
//! ```
//! let row = *stillhouse_losses::registry().get("nst_all")?;
//! let method = (row.build)(&toml::toml! { weight = 200.0 })?;
//! assert_eq!(method.term_weights(), [("nst_all".to_string(), 200.0)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use stillhouse_core::distiller::DistillerBuild;
use stillhouse_core::registry::Entry;

use crate::mmd::Groups;
use crate::nst::{Nst, defaults};
use crate::settings;

/// The row of `nst_all`.
pub const ENTRY: Entry<DistillerBuild> = Entry {
    name: "nst_all",
    summary: "distribution of the channels' maps of the whole batch",
    source: "Liu et al. 2023, Table 6, reconstructed",
    defaults,
    build: |table| Ok(Box::new(Nst::new(settings::read(table, "nst_all")?, "nst_all", Groups::whole)?)),
};
