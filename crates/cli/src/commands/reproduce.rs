//! `stillhouse reproduce`.

use std::path::PathBuf;

use serde_json::json;
use stillhouse_core::model::ModelSpec;
use stillhouse_report::text::{Align, Grid};
use stillhouse_report::{State, mksmt, run::state, sets, sizes};
use stillhouse_trainer::{Experiment, Outcome as Run, Plan, Role, run_cell, run_plan};

use crate::commands::{common, estimate, report, table};
use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::{experiments, output, signals};

/// The table of parameters and operations, and that of the datasets: both need no run.
const SIZES: &str = "table4";
const DATASETS: &str = "table1";
/// The same of a network with exits.
const EXIT_SIZES: &str = "mksmt_sizes";

const EXAMPLES: &str = "\
Examples:
  stillhouse reproduce table3                     smoke: all cells in minutes
  stillhouse reproduce table3 --profile reduced   real images, hours
  stillhouse reproduce table3 --list              what would run, and what is done
  stillhouse reproduce table3 --plan              the cells by number, and what each waits for
  stillhouse reproduce table3 --cell 3/46         one of them: for many machines, see `stillhouse submit`
  stillhouse reproduce table3 --set matrix.seed='[0, 1, 2]' --set matrix.student='[\"resnet18\"]'
  stillhouse reproduce table1                     the datasets, as their manifests have them
  stillhouse reproduce table4                     parameters and operations: counts, runs nothing
  stillhouse reproduce mksmt_sizes                the same of Swin-L with two exits
  stillhouse reproduce my.toml --runs /big/disk/runs

Finished runs are skipped, a stopped one goes on where it was: start the same command again. The
table is printed and written to <runs>/<experiment>/<profile> as table.md, table.json and the page
report.html, which needs no network.";

/// Run all cells of an experiment and print its table
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Experiment: a name or a file
    experiment: Option<String>,
    /// Profile: how much of the real thing; smoke where it is left out
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Print the runs and where they stand, and run nothing
    #[arg(long)]
    list: bool,
    /// Print the cells with their numbers and what they wait for, and run nothing
    #[arg(long, conflicts_with = "list")]
    plan: bool,
    /// Run one cell, as numbered by --plan, and make no table: for many machines
    #[arg(long, value_name = "I/N", value_parser = one_of, conflicts_with_all = ["list", "plan"])]
    cell: Option<(usize, usize)>,
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

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    let Some(name) = &args.experiment else { return without_name(args) };
    if name == SIZES {
        return sizes(args.json);
    }
    if name == EXIT_SIZES {
        return exit_sizes(args.json);
    }
    if name == DATASETS {
        return datasets(args.json);
    }
    let experiment = experiments::load(name, &args.set)?;
    let profile = common::profile(&experiment, args.profile.as_deref())?;
    let stop = if args.list || args.plan { Default::default() } else { signals::stop_flag()? };
    let context = common::context(&Paths::new(args.runs.as_deref()), stop);
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
    let maker = table::Maker::new(&experiment, &plan, &context, &args.set, threads)?;
    output::status(&maker.asked.caption.text());
    estimate::announce(&plan, &context, threads);
    let mut progress = Progress::new(&plan, || {
        if let Err(e) = maker.write(&plan.folder) {
            output::status(&format!("warning: the table was not written: {e}"));
        }
    });
    let outcome = run_plan(&plan, &context, &mut progress);
    progress.end();
    drop(progress);
    let made = maker.write(&plan.folder)?;
    let figures = if outcome.is_ok() { figures(&experiment) } else { report::Figures::default() };
    let page = report::write_page(&maker.asked, &made, &plan.folder, &figures, &context)?;
    match outcome {
        Err(e) if e.is_interrupted() => {
            output::status(&e.to_string());
            Ok(ExitStatus::Interrupted)
        }
        Err(e) => Err(e.into()),
        Ok(outcomes) => {
            output::print(&if args.json { made.json()? } else { made.terminal(output::terminal_width()) });
            let folder = plan.folder.display();
            output::status(&format!(
                "\nwritten to {folder}: table.md, table.json and the page {}",
                page.display()
            ));
            let failed = outcomes.iter().any(|o| matches!(o, Run::Failed(_)));
            Ok(if failed { ExitStatus::Failure } else { ExitStatus::Success })
        }
    }
}

/// Reads `3/44`.
fn one_of(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((i, n)) if 1 <= i && i <= n => Ok((i, n)),
        _ => Err(format!("`{text}` is no cell, expected I/N with I from 1 to N, as `--plan` numbers them")),
    }
}

/// Runs one cell; its teacher must be finished.
fn one_cell(plan: &Plan, at: usize, of: usize, context: &stillhouse_trainer::Context) -> Outcome {
    if of != plan.cells.len() {
        return Err(CliError::usage(format!("--cell {at}/{of}: the plan has {} cells", plan.cells.len()))
            .hint("give the same experiment, profile and settings as for --plan"));
    }
    let cell = &plan.cells[at - 1];
    let mut progress = Progress::new(plan, || ());
    let outcome = run_cell(cell, context, &mut progress);
    if let Ok(outcome) = &outcome {
        stillhouse_trainer::Observer::cell_finished(&mut progress, cell, outcome);
    }
    progress.end();
    match outcome {
        Ok(outcome) => {
            let before = if matches!(outcome, Run::Finished(_)) { " (before)" } else { "" };
            let state = if outcome.result().is_some() { "done" } else { "not built" };
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

/// The cells in the order of their numbers, with what each waits for.
fn show_plan(plan: &Plan, as_json: bool) {
    let of =
        |cell: &stillhouse_trainer::Cell| if cell.is_built() { state(&cell.folder) } else { State::NotBuilt };
    if as_json {
        let cells = plan.cells.iter().enumerate().map(|(i, c)| {
            json!({
                "cell": i + 1, "name": c.name, "role": c.role, "method": c.method, "state": of(c),
                "needs": c.teacher.map(|t| t + 1), "folder": c.folder,
            })
        });
        let cells: Vec<_> = cells.collect();
        output::print_json(&json!({"experiment": plan.experiment, "profile": plan.profile, "cells": cells}));
        return;
    }
    let columns =
        [("cell", Align::Right), ("run", Align::Left), ("waits for", Align::Right), ("state", Align::Left)];
    let mut grid = Grid::new(&columns);
    for (i, cell) in plan.cells.iter().enumerate() {
        let role = if cell.role == Role::Teacher { "teacher " } else { "" };
        let needs = cell.teacher.map_or_else(String::new, |t| (t + 1).to_string());
        grid.row([(i + 1).to_string(), format!("{role}{}", cell.name), needs, of(cell).to_string()]);
    }
    output::print(&grid.terminal());
}

/// What the experiment says that its page shows of features.
fn figures(experiment: &Experiment) -> report::Figures {
    let methods =
        experiment.published().get("features").and_then(|f| f.as_array().cloned()).unwrap_or_default();
    let methods = methods.iter().filter_map(|m| m.as_str().map(str::to_string));
    // The data are there: the runs were just tested on them.
    report::Figures { features: methods.collect(), samples: None, label_maps: true }
}

fn without_name(args: &Args) -> Outcome {
    let all = experiments::all();
    let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).chain([SIZES, DATASETS, EXIT_SIZES]).collect();
    if args.list {
        output::print(&if args.json { json!(names).to_string() } else { names.join("\n") });
        return Ok(ExitStatus::Success);
    }
    Err(CliError::usage(format!("which experiment? known: {}", names.join(", ")))
        .hint("stillhouse reproduce table3"))
}

/// Table 1 needs no run: the manifests tell.
fn datasets(as_json: bool) -> Outcome {
    let known = |name: &str| {
        let manifest = stillhouse_datasets::manifest::find(name)?;
        Some((manifest.class_count()?, manifest.total()?))
    };
    let lines = sets::lines(known)?;
    if as_json {
        output::print_json(&json!(lines));
    } else {
        output::print(&sets::terminal(&lines));
    }
    Ok(ExitStatus::Success)
}

/// Networks with their titles, counted with so many classes on a square image.
fn counted(
    networks: &[(&str, &str)],
    classes: usize,
    side: usize,
) -> Result<Vec<sizes::Counted>, stillhouse_core::Error> {
    let count = |(network, title): &(&str, &str)| {
        let request = ModelSpec { name: (*network).into(), classes, ..Default::default() };
        let counts = stillhouse_backbones::count(&request, side, side)?;
        Ok(sizes::Counted {
            network: (*network).into(),
            title: (*title).into(),
            parameters: counts.parameters as u64,
            flops: counts.table4_flops(),
            macs: counts.macs + counts.attention_macs,
        })
    };
    networks.iter().map(count).collect()
}

/// Table 4 needs no run: it counts.
fn sizes(as_json: bool) -> Outcome {
    let networks = [("resnet50", "ResNet50"), ("resnet18", "ResNet18"), ("mobilenetv2_100", "MobileNetV2")];
    let counted = counted(&networks, 21, 224)?;
    let rows = sizes::rows(&counted)?;
    if as_json {
        output::print_json(&json!(rows));
    } else {
        output::print(&sizes::terminal(&rows));
    }
    Ok(ExitStatus::Success)
}

/// Table 7 of MKSMT needs no run either.
fn exit_sizes(as_json: bool) -> Outcome {
    let networks = ["swin_large_patch4_window12_384", "mksmt"].map(|network| (network, network));
    let counted = counted(&networks, 200, 384)?;
    let rows = mksmt::sizes(&counted)?;
    if as_json {
        output::print_json(&json!(rows));
    } else {
        output::print(&mksmt::sizes_terminal(&rows));
    }
    Ok(ExitStatus::Success)
}

fn list(experiment: &Experiment, plan: &Plan, as_json: bool) {
    let states: Vec<State> =
        plan.cells.iter().map(|c| if c.is_built() { state(&c.folder) } else { State::NotBuilt }).collect();
    if as_json {
        let cells: Vec<_> = plan
            .cells
            .iter()
            .zip(&states)
            .map(|(c, state)| {
                json!({
                    "name": c.name, "role": c.role, "method": c.method, "student": c.student, "ratio": c.ratio,
                    "seed": c.seed, "state": state, "folder": c.folder,
                    "teacher": c.teacher.map(|t| plan.cells[t].name.clone()),
                })
            })
            .collect();
        output::print_json(&json!({"experiment": plan.experiment, "profile": plan.profile, "cells": cells}));
        return;
    }
    let mut grid = Grid::new(&[("run", Align::Left), ("state", Align::Left), ("folder", Align::Left)]);
    for (cell, state) in plan.cells.iter().zip(&states) {
        let folder = if cell.is_built() { cell.folder.display().to_string() } else { String::new() };
        let role = if cell.role == Role::Teacher { "teacher " } else { "" };
        grid.row([format!("{role}{}", cell.name), state.to_string(), folder]);
    }
    output::print(&format!("{}, profile {}\n\n{}", experiment.title(), plan.profile, grid.terminal()));
}
