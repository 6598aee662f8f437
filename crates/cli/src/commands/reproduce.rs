//! `stillhouse reproduce`.

use std::path::PathBuf;

use serde_json::json;
use stillhouse_core::model::ModelSpec;
use stillhouse_report::static_table::{DatasetCounts, ModelCounts, ModelSizeTable};
use stillhouse_report::text_table::{Align, TextTable};
use stillhouse_report::{PublishedSection, StaticTable};
use stillhouse_runs::{Role, RunStatus};
use stillhouse_trainer::{Experiment, Outcome as Run, Plan, check_cell, check_plan, run_cell, run_plan};

use crate::commands::budget::{self, parse_duration};
use crate::commands::{common, estimate, report, table};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::experiments::Loaded;
use crate::paths::Paths;
use crate::progress::Progress;
use crate::{experiments, output, signals};

const EXAMPLES: &str = "\
Examples:
  stillhouse reproduce table3                     quick profile: all cells, less than half an hour
  stillhouse reproduce table3 --profile reduced   real images, hours
  stillhouse reproduce table3 --budget 10m        fewer epochs, so that it ends in time
  stillhouse reproduce table3 --list              list the runs and their status
  stillhouse reproduce table3 --check             check data, shapes and folders of all runs
  stillhouse reproduce table3 --plan              number the cells and list their dependencies
  stillhouse reproduce table3 --cell 3/47         run one cell; see also `stillhouse submit`
  stillhouse reproduce table3 --set matrix.seed='[0, 1, 2]' --set matrix.student='[\"resnet18\"]'
  stillhouse reproduce table1                     dataset sizes (no training)
  stillhouse reproduce table4                     parameters and FLOPs (no training)
  stillhouse reproduce my.toml --runs /big/disk/runs

Finished runs are skipped and a stopped run resumes: start the same command again. The table is printed
and written to <runs>/<experiment>/<profile> as table.md, table.json and report.html, a self-contained page.";

/// Run all cells of an experiment and print its table
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Experiment: a name or a file
    experiment: Option<String>,
    /// Profile (scale of the run) [default: quick]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// List the runs and their status without running
    #[arg(long)]
    list: bool,
    /// List the numbered cells and their dependencies without running
    #[arg(long, conflicts_with = "list")]
    plan: bool,
    /// Run one cell, numbered as in --plan, without writing a table
    #[arg(long, value_name = "I/N", value_parser = parse_cell, conflicts_with_all = ["list", "plan"])]
    cell: Option<(usize, usize)>,
    /// Check everything that is known before training, and stop
    #[arg(long, conflicts_with_all = ["list", "plan", "cell"])]
    check: bool,
    /// Time budget, such as 10m or 2h; lowers the epochs of all runs alike
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    budget: Option<f64>,
    /// Change a setting, as in train.epochs=3
    #[arg(long, value_name = "A.B=VALUE")]
    set: Vec<String>,
    /// Folder of runs [env: STILLHOUSE_RUNS] [default: runs]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Print the table (or the list) as JSON
    #[arg(long)]
    json: bool,
}

/// Prefix of a cell in lists.
fn role_name(role: Role) -> &'static str {
    match role {
        Role::Pretraining => "pretraining ",
        Role::Teacher => "teacher ",
        Role::Student => "",
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    let Some(name) = &args.experiment else { return without_name(args) };
    if let Loaded::Static(table) = experiments::open(name, &args.set)? {
        return print_static(&table, name, args);
    }
    let mut experiment = experiments::load(name, &args.set)?;
    let published = experiments::published(&experiment, experiments::path(name).as_deref())?;
    let profile = common::profile(&experiment, args.profile.as_deref())?;
    let stop = if args.list || args.plan { Default::default() } else { signals::stop_flag()? };
    let context = common::context(&Paths::new(args.runs.as_deref()), stop);
    let mut sets = args.set.clone();
    if let Some(seconds) = args.budget {
        let fitted = budget::fit(&mut experiment, profile.as_deref(), seconds, &context, threads)?;
        sets.extend(
            fitted.iter().map(|setting| format!("{setting} (--budget {})", output::duration(seconds))),
        );
    }
    let plan = common::planned(&experiment, profile.as_deref(), &context)?;
    if args.list {
        list(&experiment, &plan, args.json);
        return Ok(ExitStatus::Success);
    }
    if args.plan {
        show_plan(&plan, args.json);
        return Ok(ExitStatus::Success);
    }
    if let Some((at, of)) = args.cell {
        return one_cell(&plan, at, of, &context);
    }
    check_plan(&plan, &context).prepared()?;
    if args.check {
        return Ok(common::checked(&plan));
    }
    let figures = figures(&published);
    let writer = table::TableWriter::new(&experiment, published, &plan, &context, &sets, threads)?;
    output::status(&writer.spec.caption.text());
    estimate::announce(&plan, &context, threads);
    let mut progress = Progress::new(&plan, || {
        if let Err(e) = writer.write(&plan.folder) {
            output::status(&format!("warning: cannot write the table: {e}"));
        }
    });
    let outcome = run_plan(&plan, &context, &mut progress);
    progress.clear();
    drop(progress);
    let table = writer.write(&plan.folder)?;
    let figures = if outcome.is_ok() { figures } else { report::Figures::default() };
    let page = report::write_page(&writer.spec, &table, &plan.folder, &figures, &context)?;
    match outcome {
        Err(e) if e.is_interrupted() => {
            output::status(&e.to_string());
            Ok(ExitStatus::Interrupted)
        }
        Err(e) => Err(e.into()),
        Ok(outcomes) => {
            output::print(&if args.json { table.json()? } else { table.terminal(output::terminal_width()) });
            let folder = plan.folder.display();
            output::status(&format!("\nwrote table.md and table.json to {folder}, and {}", page.display()));
            let failed = outcomes.iter().any(|o| matches!(o, Run::Failed(_)));
            Ok(if failed { ExitStatus::Failure } else { ExitStatus::Success })
        }
    }
}

/// Parses `3/44`.
fn parse_cell(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((i, n)) if 1 <= i && i <= n => Ok((i, n)),
        _ => Err(format!("invalid cell `{text}`: expected I/N with 1 <= I <= N (see --plan)")),
    }
}

/// Runs one cell; its teacher must be finished.
fn one_cell(plan: &Plan, at: usize, of: usize, context: &stillhouse_trainer::Context) -> Outcome {
    if of != plan.cells.len() {
        return Err(CliError::usage(format!(
            "invalid cell {at}/{of}: the plan has {} cells",
            plan.cells.len()
        ))
        .hint("use the same experiment, profile and settings as with --plan"));
    }
    let cell = &plan.cells[at - 1];
    check_cell(plan, cell, context).prepared()?;
    let mut progress = Progress::new(plan, || ());
    let outcome = run_cell(cell, context, &mut progress);
    if let Ok(outcome) = &outcome {
        stillhouse_trainer::Observer::cell_finished(&mut progress, cell, outcome);
    }
    progress.clear();
    match outcome {
        Ok(outcome) => {
            let before = if matches!(outcome, Run::Finished(_)) { " (before)" } else { "" };
            let state = if outcome.result().is_some() { "done" } else { "unknown method" };
            output::print(&format!("{at}/{of} {}: {state}{before}", cell.name));
            Ok(if outcome.result().is_some() { ExitStatus::Success } else { ExitStatus::Failure })
        }
        Err(e) if e.is_interrupted() => {
            output::status(&e.to_string());
            Ok(ExitStatus::Interrupted)
        }
        Err(e) => Err(CliError::from(e).hint(format!("cell {at}/{of} is {}", cell.folder.display()))),
    }
}

/// Prints the numbered cells and their dependencies.
fn show_plan(plan: &Plan, as_json: bool) {
    if as_json {
        let cells = plan.cells.iter().enumerate().map(|(i, c)| {
            json!({
                "cell": i + 1, "name": c.name, "role": c.role, "method": c.method, "state": c.status(),
                "needs": c.needs.map(|t| t + 1), "folder": c.folder,
            })
        });
        let cells: Vec<_> = cells.collect();
        output::print_json(&json!({"experiment": plan.experiment, "profile": plan.profile, "cells": cells}));
        return;
    }
    let columns =
        [("cell", Align::Right), ("run", Align::Left), ("waits for", Align::Right), ("state", Align::Left)];
    let mut grid = TextTable::new(&columns);
    for (i, cell) in plan.cells.iter().enumerate() {
        let role = role_name(cell.role);
        let needs = cell.needs.map_or_else(String::new, |t| (t + 1).to_string());
        grid.push([(i + 1).to_string(), format!("{role}{}", cell.name), needs, cell.status().to_string()]);
    }
    output::print(&grid.terminal());
}

/// The figures of the experiment's page. The data is available: the runs were just tested on it.
fn figures(published: &PublishedSection) -> report::Figures {
    report::Figures { features: published.features.clone(), samples: None, label_maps: true }
}

fn without_name(args: &Args) -> Outcome {
    let all = experiments::all();
    let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
    if args.list {
        output::print(&if args.json { json!(names).to_string() } else { names.join("\n") });
        return Ok(ExitStatus::Success);
    }
    Err(CliError::usage(format!("which experiment? known: {}", names.join(", ")))
        .hint("stillhouse reproduce table3"))
}

/// Prints a table that runs nothing.
fn print_static(table: &StaticTable, name: &str, args: &Args) -> Outcome {
    if let Some(set) = args.set.first() {
        return Err(CliError::usage(format!("--set {set}: `{name}` has no settings")));
    }
    let section = table.published().cloned().unwrap_or_default();
    let section = experiments::with_file(section, experiments::path(name).as_deref());
    let paper = experiments::paper(&section)?;
    let published = match (&paper, &section.table) {
        (Some(paper), Some(table)) => Some(paper.published_table(table)?),
        _ => None,
    };
    let result = match table {
        StaticTable::Datasets(datasets) => {
            let counts = datasets.datasets.iter().filter_map(|name| dataset_counts(name)).collect();
            datasets.result(counts, published.as_ref())
        }
        StaticTable::ModelSizes(sizes) => sizes.result(model_counts(sizes)?, published.as_ref()),
    };
    if args.json {
        output::print_json(&json!(result));
    } else {
        output::print(&result.terminal());
    }
    Ok(ExitStatus::Success)
}

/// Counts a dataset by its manifest.
fn dataset_counts(name: &str) -> Option<DatasetCounts> {
    let manifest = stillhouse_datasets::manifest::find(name, &[]).ok()??;
    Some(DatasetCounts {
        dataset: name.to_string(),
        classes: manifest.class_count()?,
        images: manifest.total()?,
    })
}

/// Counts the networks of a table of model sizes.
fn model_counts(table: &ModelSizeTable) -> Result<Vec<ModelCounts>, stillhouse_core::Error> {
    let count = |name: &String| {
        let spec = ModelSpec { name: name.clone(), classes: table.classes, ..Default::default() };
        let counts = stillhouse_backbones::count(&spec, table.image_size, table.image_size)?;
        let macs = counts.macs + counts.attention_macs;
        Ok(ModelCounts {
            model: name.clone(),
            parameters: counts.parameters as u64,
            macs,
            flops: table.flops.per_mac * macs + table.flops.per_batch_norm_output * counts.batch_norm_outputs,
        })
    };
    table.models.iter().map(count).collect()
}

fn list(experiment: &Experiment, plan: &Plan, as_json: bool) {
    let states: Vec<RunStatus> = plan.cells.iter().map(|c| c.status()).collect();
    if as_json {
        let cells: Vec<_> = plan
            .cells
            .iter()
            .zip(&states)
            .map(|(c, state)| {
                json!({
                    "name": c.name, "role": c.role, "method": c.method, "student": c.student, "ratio": c.ratio,
                    "seed": c.seed, "state": state, "folder": c.folder,
                    "teacher": c.needs.map(|t| plan.cells[t].name.clone()),
                })
            })
            .collect();
        output::print_json(&json!({"experiment": plan.experiment, "profile": plan.profile, "cells": cells}));
        return;
    }
    let mut grid = TextTable::new(&[("run", Align::Left), ("state", Align::Left), ("folder", Align::Left)]);
    for (cell, state) in plan.cells.iter().zip(&states) {
        let folder = if cell.is_runnable() { cell.folder.display().to_string() } else { String::new() };
        let role = role_name(cell.role);
        grid.push([format!("{role}{}", cell.name), state.to_string(), folder]);
    }
    output::print(&format!("{}, profile {}\n\n{}", experiment.title(), plan.profile, grid.terminal()));
}
