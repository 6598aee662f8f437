//! `[[loss]]`: resolved settings of the methods, and the cross-entropy.

use std::collections::BTreeMap;

use stillhouse_core::config;
use stillhouse_core::distiller::Distiller;
use stillhouse_core::registry::Registries;
use toml::Table;

use super::{LossConfig, merge};
use crate::{Error, Result};

/// Name of the cross-entropy, as a method and as a term.
pub(crate) const CE: &str = "ce";

/// Returns whether a term is a cross-entropy with the labels: `ce`, or `ce_` of one of several exits.
pub(crate) fn is_ce(term: &str) -> bool {
    term == CE || term.starts_with("ce_")
}

/// Fills in the defaults of all methods. Adds the cross-entropy with weight 1 if no method includes it,
/// `ce_weight` is not set, and there is a single phase.
pub(crate) fn resolve(registries: &Registries, losses: &[LossConfig]) -> Result<Vec<LossConfig>> {
    let mut resolved = Vec::new();
    // Per phase.
    let mut ce: BTreeMap<Option<usize>, (String, f64)> = BTreeMap::new();
    for loss in losses {
        let loss = with_defaults(registries, loss)?;
        let method = build(registries, &loss)?;
        if let Some((_, weight)) =
            method.term_weights().into_iter().find(|(name, w)| is_ce(name) && *w != 0.0)
        {
            if let Some((first, first_weight)) = ce.remove(&loss.phase) {
                let second = loss.method;
                return Err(Error::TwoCeWeights { first, first_weight, second, second_weight: weight });
            }
            ce.insert(loss.phase, (loss.method.clone(), weight));
        }
        resolved.push(loss);
    }
    let sets_ce = |l: &LossConfig| l.method == CE || l.options.contains_key("ce_weight");
    let in_phases = losses.iter().any(|l| l.phase.is_some());
    if ce.is_empty() && !in_phases && !losses.iter().any(sets_ce) {
        let (method, options) = (CE.into(), Table::new());
        let loss = LossConfig { method, phase: None, warmup_epochs: None, decay: None, options };
        resolved.insert(0, with_defaults(registries, &loss)?);
    }
    Ok(resolved)
}

fn with_defaults(registries: &Registries, written: &LossConfig) -> Result<LossConfig> {
    let entry = registries.losses.get(&written.method)?;
    let origin = format!("defaults of method `{}`", entry.name);
    let mut defaults: Table = config::parse(&(entry.defaults)(), &origin)?;
    defaults.insert("method".into(), entry.name.into());
    // Splits the trainer's fields (warm-up, decay) from those of the method.
    let mut loss: LossConfig = config::from_table(&defaults, &origin)?;
    merge(&mut loss.options, &written.options);
    loss.phase = written.phase;
    loss.warmup_epochs = written.warmup_epochs.or(loss.warmup_epochs);
    loss.decay = written.decay.clone().or(loss.decay);
    Ok(loss)
}

/// Builds the method of a resolved entry.
pub(crate) fn build(registries: &Registries, loss: &LossConfig) -> Result<Box<dyn Distiller>> {
    Ok((registries.losses.get(&loss.method)?.build)(&loss.options)?)
}

#[cfg(test)]
mod tests {
    use super::is_ce;

    #[test]
    fn recognizes_cross_entropy_terms() {
        assert!(["ce", "ce_deep", "ce_s4"].iter().all(|term| is_ce(term)));
        assert!(!["kl", "center", "soft_ce"].iter().any(|term| is_ce(term)));
    }
}
