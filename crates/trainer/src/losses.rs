//! The terms of the loss: resolved settings, built methods, one weight of the cross-entropy.

use std::collections::BTreeMap;

use stillhouse_core::config;
use stillhouse_core::distiller::Distiller;
use stillhouse_core::registry::Registries;
use toml::Table;

use crate::config::{LossConfig, merge};
use crate::{Error, Result};

/// Name of the method, and of the term, of the cross-entropy.
pub(crate) const CE: &str = "ce";

/// Whether a term is a cross-entropy with the labels: `ce`, or that of one of several exits.
pub(crate) fn is_ce(term: &str) -> bool {
    term == CE || term.starts_with("ce_")
}

/// Adds defaults to the written settings, and the cross-entropy with weight 1 where no method
/// brings it, none was told how much of it to take, and none is told its step of several.
pub(crate) fn resolve(registries: &Registries, written: &[LossConfig]) -> Result<Vec<LossConfig>> {
    let mut losses = Vec::new();
    // Of each step by itself.
    let mut ce: BTreeMap<Option<usize>, (String, f64)> = BTreeMap::new();
    for loss in written {
        let loss = with_defaults(registries, loss)?;
        let method = build(registries, &loss)?;
        if let Some((_, weight)) =
            method.term_weights().into_iter().find(|(name, w)| is_ce(name) && *w != 0.0)
        {
            if let Some((first, first_weight)) = ce.remove(&loss.step) {
                let second = loss.method;
                return Err(Error::TwoCeWeights { first, first_weight, second, second_weight: weight });
            }
            ce.insert(loss.step, (loss.method.clone(), weight));
        }
        losses.push(loss);
    }
    let told = |l: &LossConfig| l.method == CE || l.options.contains_key("ce_weight");
    let in_steps = written.iter().any(|l| l.step.is_some());
    if ce.is_empty() && !in_steps && !written.iter().any(told) {
        let (method, options) = (CE.into(), Table::new());
        let loss = LossConfig { method, step: None, warmup_epochs: None, decay: None, options };
        losses.insert(0, with_defaults(registries, &loss)?);
    }
    Ok(losses)
}

fn with_defaults(registries: &Registries, written: &LossConfig) -> Result<LossConfig> {
    let row = registries.losses.get(&written.method)?;
    let origin = format!("defaults of method `{}`", row.name);
    let mut defaults: Table = config::parse(&(row.defaults)(), &origin)?;
    defaults.insert("method".into(), row.name.into());
    // What is the trainer's, warm-up and decay, is read out; the rest is the method's.
    let mut loss: LossConfig = config::from_table(&defaults, &origin)?;
    merge(&mut loss.options, &written.options);
    loss.step = written.step;
    loss.warmup_epochs = written.warmup_epochs.or(loss.warmup_epochs);
    loss.decay = written.decay.clone().or(loss.decay);
    Ok(loss)
}

/// Makes a method of a resolved entry.
pub(crate) fn build(registries: &Registries, loss: &LossConfig) -> Result<Box<dyn Distiller>> {
    Ok((registries.losses.get(&loss.method)?.build)(&loss.options)?)
}

#[cfg(test)]
mod tests {
    use super::is_ce;

    #[test]
    fn the_labels_terms_are_known_by_name() {
        assert!(["ce", "ce_deep", "ce_s4"].iter().all(|term| is_ce(term)));
        assert!(!["kl", "center", "soft_ce"].iter().any(|term| is_ce(term)));
    }
}
