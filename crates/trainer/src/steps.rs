//! The training steps of a batch, from `[[train.step]]`: what each reads and moves. Whatever does not
//! fit is refused before the first one.

use stillhouse_core::model::Model;
use stillhouse_ops::{ParamKind, ParamStore};

use crate::config::CellConfig;
use crate::groups::{Groups, fits};
use crate::step::{Method, is_own};
use crate::{Error, Result};

/// What one training step of a batch is: which taps of the student are kept, which methods count,
/// which parameters move. Plain training has one step.
#[derive(Debug, Clone)]
pub(crate) struct StepPlan {
    pub(crate) taps: Vec<String>,
    /// Places of its methods.
    pub(crate) methods: Vec<usize>,
    /// Patterns of the student's parameters that move; all move where there are none.
    moves: Vec<String>,
}

impl StepPlan {
    /// Whether the step moves a parameter. Connectors move with the methods that read them.
    pub(crate) fn moves(&self, name: &str) -> bool {
        self.moves.is_empty() || !is_own(name) || self.moves.iter().any(|pattern| fits(pattern, name))
    }

    /// Whether only some of the student's parameters move.
    pub(crate) fn is_partial(&self) -> bool {
        !self.moves.is_empty()
    }
}

/// The steps of a configuration. The last one also keeps the logits, for the accuracy in training,
/// unless it stops before them.
pub(crate) fn plans(
    cell: &str,
    config: &CellConfig,
    methods: &[Method],
    network: &dyn Model,
) -> Result<Vec<StepPlan>> {
    let steps = &config.train.step;
    let count = steps.len().max(1);
    let mut plans = Vec::new();
    for at in 0..count {
        let step = steps.get(at).cloned().unwrap_or_default();
        if let Some(exit) = step.exit {
            has_exit(cell, network, exit)?;
        }
        let own: Vec<usize> = (0..methods.len()).filter(|m| methods[*m].step == at).collect();
        let mut taps = Vec::new();
        for method in own.iter().map(|m| &methods[*m]) {
            for tap in method.distiller.required_features().student {
                reads(cell, network, at, step.exit, method.distiller.name(), &tap)?;
                taps.push(tap);
            }
        }
        if at + 1 == count && step.exit.is_none() {
            taps.push("logits".into());
        }
        taps.sort();
        taps.dedup();
        plans.push(StepPlan { taps, methods: own, moves: step.moves });
    }
    Ok(plans)
}

fn origin(cell: &str) -> String {
    format!("{cell} train.step")
}

fn has_exit(cell: &str, network: &dyn Model, exit: usize) -> Result<()> {
    let exits: Vec<usize> = network
        .features()
        .iter()
        .filter_map(|tap| tap.name.strip_prefix("exit")?.strip_suffix(".logits")?.parse().ok())
        .collect();
    if exits.contains(&exit) {
        return Ok(());
    }
    let known = match exits.is_empty() {
        true => "has no exits; take a network that has, as `mksmt`".to_string(),
        false => format!("has exits at the stages {exits:?}"),
    };
    Err(Error::config(origin(cell), format!("`exit` is {exit}, but `{}` {known}", network.name())))
}

/// Refuses a tap that the network does not have, or one behind the last exit that the step runs.
fn reads(
    cell: &str,
    network: &dyn Model,
    at: usize,
    exit: Option<usize>,
    method: &str,
    tap: &str,
) -> Result<()> {
    if !network.features().iter().any(|t| t.name == tap) {
        let known: Vec<&str> = network.features().iter().map(|t| t.name.as_str()).collect();
        let what = format!("has no tap `{tap}`, which `{method}` reads; there are: {}", known.join(", "));
        return Err(stillhouse_core::Error::incompatible(network.name(), what).into());
    }
    match exit {
        Some(exit) if stage(tap).is_none_or(|stage| stage > exit) => {
            let what = format!(
                "step {} runs up to exit {exit}, but its loss `{method}` reads `{tap}`, which lies deeper: raise \
                 `exit`, leave it out, or take the loss into another step",
                at + 1
            );
            Err(Error::config(origin(cell), what))
        }
        _ => Ok(()),
    }
}

/// The stage of a tap, 3 for `F3` and `exit3.logits`; none for one behind the last stage.
fn stage(tap: &str) -> Option<usize> {
    let number = match tap.strip_prefix("exit") {
        Some(rest) => rest.split('.').next()?,
        None => tap.strip_prefix('F')?,
    };
    number.parse().ok()
}

/// Refuses patterns that fit no parameter, and a step that moves none of the student's.
pub(crate) fn check_moves(
    cell: &str,
    plans: &[StepPlan],
    params: &ParamStore,
    groups: &Groups,
) -> Result<()> {
    let all = params.all();
    let own = || all.iter().filter(|p| is_own(&p.name));
    for (at, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.is_partial()) {
        let place = format!("step {} of {}", at + 1, plans.len());
        if let Some(pattern) = plan.moves.iter().find(|pattern| own().all(|p| !fits(pattern, &p.name))) {
            let first = own().next().map_or("", |p| &p.name);
            let what = format!("{place}: `{pattern}` fits no parameter; the first is `{first}`");
            return Err(Error::config(origin(cell), what));
        }
        let trained =
            own().filter(|p| p.kind == ParamKind::Weight && p.trainable && groups.hyper(p, 1.0).is_some());
        if !trained.into_iter().any(|p| plan.moves(&p.name)) {
            let what = format!(
                "{place} moves nothing: no weight that is trained fits {:?} (is it frozen, or a statistic?)",
                plan.moves
            );
            return Err(Error::config(origin(cell), what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_taps() {
        let known = [("F3", Some(3)), ("exit2.feat", Some(2)), ("exit12.logits", Some(12))];
        let behind = ["logits", "pooled", "embedding", "F", "exit"].map(|tap| (tap, None));
        for (tap, expected) in known.into_iter().chain(behind) {
            assert_eq!(stage(tap), expected, "{tap}");
        }
    }
}
