//! `stillhouse explain experiment`: the runs of a profile and every resolved value of one of them.

use std::sync::Arc;

use serde_json::json;
use stillhouse_report::text::{Align, Grid};
use stillhouse_trainer::{Cell, Role};

use crate::commands::{common, explain};
use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{experiments, output};

/// Runs the command.
pub(crate) fn run(name: &str, args: &explain::Args) -> Outcome {
    let experiment = experiments::load(name, &args.set)?;
    let profile = common::profile(&experiment, args.profile.as_deref())?;
    let places = Paths::new(None);
    let plan = common::planned(&experiment, profile.as_deref(), &common::context(&places, Arc::default()))?;
    let shown = shown(&plan.cells)?;
    let config = match &shown.config {
        Some(config) => config.to_toml()?,
        None => String::new(),
    };
    if args.json {
        let cells: Vec<_> = plan.cells.iter().map(|c| json!({
            "name": c.name, "hash": c.hash, "folder": c.folder, "role": c.role, "method": c.method,
            "student": c.student, "ratio": c.ratio, "seed": c.seed, "done": c.is_done(), "built": c.is_built(),
            "config": c.config,
        })).collect();
        output::print_json(&json!({
            "experiment": plan.experiment,
            "profile": plan.profile,
            "folder": plan.folder,
            "cells": cells,
        }));
        return Ok(ExitStatus::Success);
    }
    let mut grid = Grid::new(&[("run", Align::Left), ("what", Align::Left), ("state", Align::Left)]);
    for cell in &plan.cells {
        let what = if cell.role == Role::Teacher { "teacher" } else { "student" };
        grid.row([cell.name.clone(), what.to_string(), state(cell).to_string()]);
    }
    output::print(&format!(
        "experiment {} ({})\nprofile {} (of {})\nruns below {}\n\n{}\n# every value of {}:\n\n{}",
        plan.experiment,
        experiment.title(),
        plan.profile,
        experiment.profiles().join(", "),
        plan.folder.display(),
        grid.terminal(),
        shown.name,
        config
    ));
    Ok(ExitStatus::Success)
}

fn state(cell: &Cell) -> &'static str {
    match (cell.is_built(), cell.is_done()) {
        (false, _) => "not built",
        (true, true) => "done",
        (true, false) => "open",
    }
}

/// The run whose values are shown: the last one that has any, which is a student with its method.
fn shown(cells: &[Cell]) -> Result<&Cell, CliError> {
    let built = cells.iter().rev().find(|c| c.is_built() && c.role == Role::Student);
    built.ok_or_else(|| CliError::usage("none of the methods of this experiment is built"))
}
