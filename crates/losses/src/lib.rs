//! Distillation methods, one file each.
//!
//! A method is a struct with [`Distiller`](stillhouse_core::distiller::Distiller), a configuration
//! and a row. A new one is one file, one `mod` line and one row below.
//!
//! What they share: teacher tensors never get gradients; every mean is over the batch; logarithms
//! are natural and taken of a log-softmax, so logits of ±1e4 stay finite; unit vectors and square
//! roots are zero with a zero gradient where their argument is. f32 and f64, by the student's taps.
//!
//! ```
//! use stillhouse_core::distiller::Distiller;
//!
//! let row = *stillhouse_losses::registry().get("kd")?;
//! let kd = (row.build)(&toml::toml! { temperature = 2.0 })?;
//! assert_eq!(kd.required_features().teacher, ["logits"]);
//! assert_eq!(kd.term_weights(), [("kd".to_string(), 0.9)]);
//! # Ok::<(), stillhouse_core::Error>(())
//! ```

use stillhouse_core::distiller::DistillerBuild;
use stillhouse_core::registry::{Entry, Registry};

// Methods.
pub mod at;
pub mod byot;
pub mod cc;
pub mod ce;
pub mod class_centric;
pub mod crd;
pub mod cwd;
pub mod dkd;
pub mod fitnet;
pub mod frkd;
pub mod ifvd;
pub mod kd;
pub mod kdsvd;
pub mod kl_cosine;
pub mod nst;
pub mod nst_all;
pub mod pkt;
pub mod reviewkd;
pub mod rkd;
pub mod self_kl;
pub mod skd_affinity;
pub mod skd_holistic;
pub mod skd_pairwise;
pub mod skd_pixelwise;
pub mod skdd;
pub mod sp;
pub mod vid;

// What several methods share.
mod card;
mod connector;
mod conv1x1;
mod discriminator;
mod fit;
mod labels;
pub mod mmd;
mod pairs;
mod pool;
mod refine;
mod settings;
mod softmax;
mod sum;
mod unit;

pub use card::{Card, card};

/// The rows in the order of listing.
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

/// All methods by name.
pub fn registry() -> Registry<DistillerBuild> {
    Registry::new("method", ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_complete() {
        for (i, row) in ENTRIES.iter().enumerate() {
            assert!(ENTRIES[..i].iter().all(|r| r.name != row.name), "`{}` has two rows", row.name);
            let method = (row.build)(&toml::Table::new()).unwrap();
            assert_eq!(method.name(), row.name);
            assert!(!row.summary.is_empty() && !row.source.is_empty());
            assert!(!method.required_features().student.is_empty());
            assert!(method.term_weights().iter().all(|(name, w)| !name.is_empty() && w.is_finite()));
        }
    }

    /// The printed defaults are the defaults, each line has its source, and unknown keys are errors.
    #[test]
    fn defaults_are_told() {
        for row in ENTRIES {
            let text = (row.defaults)();
            assert!(!text.is_empty(), "{}", row.name);
            for line in text.lines() {
                assert!(line.contains("# "), "{}: no source in `{line}`", row.name);
            }
            let mut told: toml::Table = toml::from_str(&text).unwrap();
            // The trainer's own key.
            assert!(told.remove("warmup_epochs").is_none_or(|epochs| epochs.as_float().is_some()));
            let (with, without) = ((row.build)(&told).unwrap(), (row.build)(&toml::Table::new()).unwrap());
            assert_eq!(with.term_weights(), without.term_weights());
            assert_eq!(with.required_features(), without.required_features());

            let mut wrong = told.clone();
            wrong.insert("no_such_key".into(), 1.into());
            let e = (row.build)(&wrong).err().unwrap().to_string();
            assert!(e.contains("no_such_key") && e.contains(row.name), "{e}");
        }
    }
}
