//! Knowledge distillation losses on candle.
//!
//! [`functional`] has each loss as a function of tensors:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use stillhouse_losses::functional::kd_loss;
//!
//! let student = Tensor::randn(0f32, 1., (8, 10), &Device::Cpu)?;
//! let teacher = Tensor::randn(0f32, 1., (8, 10), &Device::Cpu)?;
//! let loss = kd_loss(&student, &teacher, 4.0)?;
//! # Ok::<(), stillhouse_core::Error>(())
//! ```
//!
//! A method is a [`Distiller`](stillhouse_core::distiller::Distiller) with settings, connectors and
//! state; [`registry`] builds it by name:
//!
//! ```
//! let entry = *stillhouse_losses::registry().get("kd")?;
//! let kd = (entry.build)(&toml::toml! { temperature = 2.0 })?;
//! assert_eq!(kd.required_features().teacher, ["logits"]);
//! assert_eq!(kd.term_weights(), [("kd".to_string(), 0.9)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```
//!
//! Conventions: teachers get no gradient; means are over the batch; logarithms are natural and of a
//! log-softmax, so that logits of ±1e4 stay finite; unit vectors and square roots are zero with a zero
//! gradient at zero. Values are f32 or f64, the student's dtype.

use stillhouse_core::distiller::DistillerBuild;
use stillhouse_core::registry::{Entry, Registry};

pub mod feature;
pub mod functional;
pub mod relation;
pub mod response;
pub mod segmentation;
pub mod self_distillation;

mod common;
mod method_info;

pub use common::mmd;
pub use method_info::{MethodInfo, method_info};

use feature::{at, class_centric, fitnet, nst, nst_all, reviewkd, vid};
use relation::{cc, crd, kdsvd, pkt, rkd, sp};
use response::{ce, dkd, kd, kl_cosine};
use segmentation::{cwd, frkd, ifvd, skd_affinity, skd_holistic, skd_pairwise, skd_pixelwise, skdd};
use self_distillation::{byot, self_kl};

/// Entries of all methods in listing order.
pub const ENTRIES: &[Entry<DistillerBuild>] = &[
    ce::ENTRY,
    kd::ENTRY,
    dkd::ENTRY,
    class_centric::ENTRY,
    nst::ENTRY,
    nst_all::ENTRY,
    vid::ENTRY,
    kdsvd::ENTRY,
    reviewkd::ENTRY,
    rkd::ENTRY,
    sp::ENTRY,
    at::ENTRY,
    fitnet::ENTRY,
    cc::ENTRY,
    pkt::ENTRY,
    crd::ENTRY,
    kl_cosine::ENTRY,
    byot::ENTRY,
    self_kl::ENTRY,
    cwd::ENTRY,
    cwd::CD,
    ifvd::ENTRY,
    skd_pixelwise::ENTRY,
    skd_pairwise::ENTRY,
    skd_holistic::ENTRY,
    skdd::ENTRY,
    skd_affinity::ENTRY,
    skd_affinity::KA,
    frkd::ENTRY,
];

/// Registry of all methods.
pub fn registry() -> Registry<DistillerBuild> {
    Registry::new("method", ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_unique_and_complete() {
        for (i, entry) in ENTRIES.iter().enumerate() {
            assert!(ENTRIES[..i].iter().all(|e| e.name != entry.name), "`{}` has two entries", entry.name);
            let method = (entry.build)(&toml::Table::new()).unwrap();
            assert_eq!(method.name(), entry.name);
            assert!(!entry.summary.is_empty() && !entry.source.is_empty());
            assert!(!method.required_features().student.is_empty());
            assert!(method.term_weights().iter().all(|(name, w)| !name.is_empty() && w.is_finite()));
        }
    }

    /// The documented defaults are the defaults, and each line has its source.
    #[test]
    fn documents_defaults_and_rejects_unknown_keys() {
        for entry in ENTRIES {
            let text = (entry.defaults)();
            assert!(!text.is_empty(), "{}", entry.name);
            for line in text.lines() {
                assert!(line.contains("# "), "{}: no source in `{line}`", entry.name);
            }
            let mut documented: toml::Table = toml::from_str(&text).unwrap();
            // a key of the trainer
            assert!(documented.remove("warmup_epochs").is_none_or(|epochs| epochs.as_float().is_some()));
            let (with, without) =
                ((entry.build)(&documented).unwrap(), (entry.build)(&toml::Table::new()).unwrap());
            assert_eq!(with.term_weights(), without.term_weights());
            assert_eq!(with.required_features(), without.required_features());

            let mut unknown = documented.clone();
            unknown.insert("no_such_key".into(), 1.into());
            let e = (entry.build)(&unknown).err().unwrap().to_string();
            assert!(e.contains("no_such_key") && e.contains(entry.name), "{e}");
        }
    }
}
