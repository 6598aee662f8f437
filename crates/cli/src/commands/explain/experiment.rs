//! `stillhouse explain experiment`: the runs of a profile and the resolved configuration of one of them.

use std::sync::Arc;

use serde_json::json;
use stillhouse_report::text_table::{Align, TextTable};
use stillhouse_runs::Role;
use stillhouse_trainer::Cell;

use crate::commands::{common, explain};
use crate::error::{CliError, ExitStatus, Outcome};
use crate::experiments::Loaded;
use crate::paths::Paths;
use crate::{experiments, output};

/// Runs the command.
pub(crate) fn run(name: &str, args: &explain::Args) -> Outcome {
    if let Loaded::Static(table) = experiments::open(name, &args.set)? {
        if args.json {
            output::print_json(&json!({"experiment": name, "title": table.title(), "cells": []}));
        } else {
            let title = table.title();
            output::print(&format!(
                "experiment {name} ({title})\nruns nothing; `stillhouse reproduce {name}` prints its table"
            ));
        }
        return Ok(ExitStatus::Success);
    }
    let experiment = experiments::load(name, &args.set)?;
    let profile = common::profile(&experiment, args.profile.as_deref())?;
    let paths = Paths::new(None);
    let plan = common::planned(&experiment, profile.as_deref(), &common::context(&paths, Arc::default()))?;
    let shown = shown(&plan.cells)?;
    let config = match &shown.config {
        Some(config) => config.to_toml()?,
        None => String::new(),
    };
    if args.json {
        let cells: Vec<_> = plan
            .cells
            .iter()
            .map(|c| {
                json!({
                    "name": c.name, "hash": c.hash, "folder": c.folder, "role": c.role, "method": c.method,
                    "student": c.student, "ratio": c.ratio, "seed": c.seed, "state": c.status(),
                    "config": c.config,
                })
            })
            .collect();
        output::print_json(&json!({
            "experiment": plan.experiment,
            "profile": plan.profile,
            "folder": plan.folder,
            "cells": cells,
        }));
        return Ok(ExitStatus::Success);
    }
    let mut grid = TextTable::new(&[("run", Align::Left), ("role", Align::Left), ("state", Align::Left)]);
    for cell in &plan.cells {
        let role = match cell.role {
            Role::Pretraining => "pretraining",
            Role::Teacher => "teacher",
            Role::Student => "student",
        };
        grid.push([cell.name.clone(), role.to_string(), cell.status().to_string()]);
    }
    output::print(&format!(
        "experiment {} ({})\nprofile {} (of {})\nruns in {}\n\n{}\n# resolved configuration of {}:\n\n{}",
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

/// Selects the run to show: the last student whose method is in the registry.
fn shown(cells: &[Cell]) -> Result<&Cell, CliError> {
    let built = cells.iter().rev().find(|c| c.is_runnable() && c.role == Role::Student);
    built.ok_or_else(|| CliError::usage("none of the methods of this experiment is in the registry"))
}
