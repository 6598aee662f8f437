//! The terms of the loss: resolved settings, built methods, one weight of the cross-entropy.

use stillhouse_core::config;
use stillhouse_core::distiller::Distiller;
use stillhouse_core::registry::Parts;
use toml::Table;

use crate::config::{LossConfig, overlay};
use crate::{Error, Result};

/// Name of the method, and of the term, of the cross-entropy.
pub(crate) const CE: &str = "ce";

/// Adds defaults to the written settings, and the cross-entropy with weight 1 where no method
/// brings it and none was told how much of it to take.
pub(crate) fn resolve(parts: &Parts, written: &[LossConfig]) -> Result<Vec<LossConfig>> {
    let mut losses = Vec::new();
    let mut ce: Option<(String, f64)> = None;
    for loss in written {
        let loss = with_defaults(parts, loss)?;
        let method = build(parts, &loss)?;
        if let Some((_, weight)) = method.weights().into_iter().find(|(name, w)| name == CE && *w != 0.0) {
            if let Some((first, first_weight)) = ce {
                let second = loss.method;
                return Err(Error::TwoCeWeights { first, first_weight, second, second_weight: weight });
            }
            ce = Some((loss.method.clone(), weight));
        }
        losses.push(loss);
    }
    let told = |l: &LossConfig| l.method == CE || l.options.contains_key("ce_weight");
    if ce.is_none() && !written.iter().any(told) {
        let loss = LossConfig { method: CE.into(), warmup_epochs: None, options: Table::new() };
        losses.insert(0, with_defaults(parts, &loss)?);
    }
    Ok(losses)
}

fn with_defaults(parts: &Parts, written: &LossConfig) -> Result<LossConfig> {
    let row = parts.losses.get(&written.method)?;
    let origin = format!("defaults of method `{}`", row.name);
    let mut options: Table = config::parse(&(row.defaults)(), &origin)?;
    overlay(&mut options, &written.options);
    let warmup = match options.remove("warmup_epochs") {
        Some(toml::Value::Float(epochs)) => Some(epochs),
        Some(toml::Value::Integer(epochs)) => Some(epochs as f64),
        _ => None,
    };
    let warmup_epochs = written.warmup_epochs.or(warmup);
    Ok(LossConfig { method: written.method.clone(), warmup_epochs, options })
}

/// Makes a method of a resolved entry.
pub(crate) fn build(parts: &Parts, loss: &LossConfig) -> Result<Box<dyn Distiller>> {
    Ok((parts.losses.get(&loss.method)?.build)(&loss.options)?)
}
