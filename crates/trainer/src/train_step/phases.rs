//! Phases of a training step, from `[[train.phase]]`.

use stillhouse_core::model::Model;
use stillhouse_ops::{ParamKind, ParamStore};

use super::is_student_param;
use super::methods::BoundMethod;
use super::param_groups::{ParamGroups, matches};
use crate::experiment::PhaseConfig;
use crate::{Error, Result};

/// One phase of a training step: a forward pass, its losses and an update of some parameters. Plain training
/// has a single phase.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    /// Features of the student that are kept.
    pub(super) features: Vec<String>,
    /// Indices of its methods.
    pub(super) methods: Vec<usize>,
    /// Patterns of trainable student parameters; empty: all.
    trainable: Vec<String>,
}

impl Phase {
    /// Returns whether the phase updates a parameter. Connectors are updated with the methods that use them.
    pub(super) fn is_trainable(&self, name: &str) -> bool {
        self.trainable.is_empty()
            || !is_student_param(name)
            || self.trainable.iter().any(|pattern| matches(pattern, name))
    }

    /// Returns whether only some of the student's parameters are trainable.
    pub(super) fn is_partial(&self) -> bool {
        !self.trainable.is_empty()
    }
}

/// Returns the phases of a configuration; one phase if it has none. The last phase also keeps the logits,
/// for the training accuracy, unless it ends at an exit.
pub(super) fn build_phases(
    origin: &str,
    configs: &[PhaseConfig],
    methods: &[BoundMethod],
    model: &dyn Model,
) -> Result<Vec<Phase>> {
    let count = configs.len().max(1);
    let mut phases = Vec::new();
    for index in 0..count {
        let config = configs.get(index).cloned().unwrap_or_default();
        if let Some(exit) = config.exit {
            require_exit(origin, model, exit)?;
        }
        let own: Vec<usize> = (0..methods.len()).filter(|m| methods[*m].phase == index).collect();
        let mut features = Vec::new();
        for method in own.iter().map(|m| &methods[*m].distiller) {
            for feature in method.required_features().student {
                require_feature(origin, model, index, config.exit, method.name(), &feature)?;
                features.push(feature);
            }
        }
        if index + 1 == count && config.exit.is_none() {
            features.push("logits".into());
        }
        features.sort();
        features.dedup();
        phases.push(Phase { features, methods: own, trainable: config.trainable });
    }
    Ok(phases)
}

fn phase_error(origin: &str, message: String) -> Error {
    Error::config(format!("{origin} train.phase"), message)
}

fn require_exit(origin: &str, model: &dyn Model, exit: usize) -> Result<()> {
    let exits: Vec<usize> = model
        .features()
        .iter()
        .filter_map(|feature| feature.name.strip_prefix("exit")?.strip_suffix(".logits")?.parse().ok())
        .collect();
    if exits.contains(&exit) {
        return Ok(());
    }
    let expected = match exits.is_empty() {
        true => "no `exit`, because the model has no early exits".to_string(),
        false => format!("one of the stages with exits, {exits:?}"),
    };
    Err(phase_error(
        origin,
        format!("invalid `exit` for `{}`: expected {expected}, found {exit}", model.name()),
    ))
}

/// Rejects features that the model does not have, and features beyond the last exit that the phase runs.
fn require_feature(
    origin: &str,
    model: &dyn Model,
    index: usize,
    exit: Option<usize>,
    method: &str,
    feature: &str,
) -> Result<()> {
    if !model.features().iter().any(|t| t.name == feature) {
        let known: Vec<&str> = model.features().iter().map(|t| t.name.as_str()).collect();
        let reason =
            format!("`{method}` requires the feature `{feature}`; this model has: {}", known.join(", "));
        return Err(stillhouse_core::Error::incompatible(model.name(), reason).into());
    }
    match exit {
        Some(exit) if stage(feature).is_none_or(|stage| stage > exit) => {
            let message = format!(
                "phase {} ends at exit {exit}, but its loss `{method}` requires the deeper feature `{feature}`\n\n\
                 hint: raise `exit`, remove it, or move the loss to another phase",
                index + 1
            );
            Err(phase_error(origin, message))
        }
        _ => Ok(()),
    }
}

/// Returns the stage of a feature: 3 for `F3` and `exit3.logits`; none for features after the last stage.
fn stage(feature: &str) -> Option<usize> {
    let number = match feature.strip_prefix("exit") {
        Some(rest) => rest.split('.').next()?,
        None => feature.strip_prefix('F')?,
    };
    number.parse().ok()
}

/// Rejects patterns that match no parameter, and phases that train none of the student's parameters.
pub(super) fn check_trainable(
    origin: &str,
    phases: &[Phase],
    params: &ParamStore,
    groups: &ParamGroups,
) -> Result<()> {
    let all = params.all();
    let own = || all.iter().filter(|p| is_student_param(&p.name));
    for (index, phase) in phases.iter().enumerate().filter(|(_, phase)| phase.is_partial()) {
        let name = format!("phase {} of {}", index + 1, phases.len());
        let unmatched = |pattern: &&String| own().all(|p| !matches(pattern, &p.name));
        if let Some(pattern) = phase.trainable.iter().find(unmatched) {
            let first = own().next().map_or("", |p| &p.name);
            let message =
                format!("{name}: `{pattern}` matches no parameter; the first parameter is `{first}`");
            return Err(phase_error(origin, message));
        }
        let mut weights =
            own().filter(|p| p.kind == ParamKind::Weight && p.trainable && groups.hyper(p, 1.0).is_some());
        if !weights.any(|p| phase.is_trainable(&p.name)) {
            let message = format!(
                "{name} trains nothing: no trainable parameter matches {:?} (frozen, or a running statistic?)",
                phase.trainable
            );
            return Err(phase_error(origin, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_stage_of_a_feature() {
        let known = [("F3", Some(3)), ("exit2.feat", Some(2)), ("exit12.logits", Some(12))];
        let after = ["logits", "pooled", "embedding", "F", "exit"].map(|feature| (feature, None));
        for (feature, expected) in known.into_iter().chain(after) {
            assert_eq!(stage(feature), expected, "{feature}");
        }
    }
}
