//! `stillhouse runs`: lists, shows and compares run folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use stillhouse_report::text_table::{Align, TextTable};
use stillhouse_runs::{CellResult, RunDir, RunInfo};

use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

/// Maximum depth of run folders below the folder of runs.
const MAX_DEPTH: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  stillhouse runs ls                          all runs with their status
  stillhouse runs show runs/mine
  stillhouse runs diff runs/a runs/b          settings and results in which two runs differ";

/// List, show and compare runs
#[derive(Debug, clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Args {
    /// List the runs below a folder
    Ls {
        /// Folder [env: STILLHOUSE_RUNS] [default: runs]
        folder: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the settings, status and results of a run
    Show {
        /// Run folder
        run: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the settings and results in which two runs differ
    Diff {
        /// Run folder
        a: PathBuf,
        /// Second run folder
        b: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match args {
        Args::Ls { folder, json } => ls(folder.as_deref(), *json),
        Args::Show { run, json } => show(run, *json),
        Args::Diff { a, b, json } => diff(a, b, *json),
    }
}

fn ls(folder: Option<&Path>, as_json: bool) -> Outcome {
    let root = Paths::new(folder).runs;
    if !root.is_dir() {
        return Err(CliError::usage(format!("{}: no such folder", root.display()))
            .hint("pass the folder of runs, or set STILLHOUSE_RUNS"));
    }
    let mut folders = Vec::new();
    find_runs(&root, MAX_DEPTH, &mut folders);
    folders.sort();
    let mut grid = TextTable::new(&[
        ("run", Align::Left),
        ("method", Align::Left),
        ("state", Align::Left),
        ("correct/total", Align::Right),
        ("%", Align::Right),
    ]);
    let mut list = Vec::new();
    for folder in &folders {
        let name = folder.strip_prefix(&root).unwrap_or(folder).display().to_string();
        let run = RunDir::new(folder);
        let status = run.status();
        // An unreadable run must not hide the others.
        let (info, result): (RunInfo, _) = match (run.info(), run.result()) {
            (Ok(info), Ok(result)) => (info, result),
            (Err(e), _) | (_, Err(e)) => {
                output::status(&format!("error: {e}"));
                continue;
            }
        };
        let (correct, total) = (result.as_ref().and_then(|r| r.correct), result.as_ref().map(|r| r.total));
        let percent = result.as_ref().and_then(CellResult::percent);
        grid.push([
            name,
            info.method.clone(),
            status.to_string(),
            correct.zip(total).map_or_else(String::new, |(correct, total)| format!("{correct}/{total}")),
            percent.map_or_else(String::new, |p| format!("{p:.2}")),
        ]);
        list.push(json!({
            "folder": folder, "experiment": info.experiment, "profile": info.profile, "cell": info.cell,
            "method": info.method, "student": info.student(), "dataset": info.dataset(), "seed": info.seed(),
            "state": status, "correct": correct, "total": total, "percent": percent,
        }));
    }
    if as_json {
        output::print_json(&json!(list));
    } else if grid.is_empty() {
        output::status(&format!("{}: no runs", root.display()));
    } else {
        output::print(&grid.terminal());
    }
    Ok(ExitStatus::Success)
}

/// Collects the run folders below a folder; symbolic links are not followed.
fn find_runs(folder: &Path, depth: u8, found: &mut Vec<PathBuf>) {
    if RunDir::new(folder).is_run() {
        found.push(folder.to_path_buf());
        return;
    }
    if depth > 0 {
        let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            find_runs(&entry.path(), depth - 1, found);
        }
    }
}

/// Settings and results of a run by dotted path: `train.epochs` -> `30`.
struct FlatRun {
    info: RunInfo,
    settings: BTreeMap<String, String>,
    figures: BTreeMap<String, String>,
}

fn open(folder: &Path) -> Result<FlatRun, CliError> {
    let run = RunDir::new(folder);
    if !run.is_run() {
        return Err(CliError::usage(format!(
            "{}: not a run folder: config.toml is missing",
            folder.display()
        ))
        .hint("`stillhouse runs ls` lists all runs"));
    }
    let info: RunInfo = run.info().prepared()?;
    let settings = stillhouse_core::config::flatten(&info.run);
    let mut figures = BTreeMap::from([("state".to_string(), run.status().to_string())]);
    figures.extend(run.failure().map(|error| ("failure".to_string(), error)));
    if let Some(result) = run.result().prepared()? {
        let percent = result.percent();
        figures.extend(result.correct.map(|c| ("correct".to_string(), format!("{c} of {}", result.total))));
        figures.extend(percent.map(|p| ("accuracy, %".to_string(), format!("{p:.2}"))));
        figures.insert("training, s".to_string(), format!("{:.1}", result.seconds.train));
        let scores = result.scores.iter().filter_map(|(n, v)| Some((n.clone(), format!("{:.4}", (*v)?))));
        figures.extend(scores);
        if let Some(speed) = result.speed {
            figures.insert("one image, ms".to_string(), format!("{:.1}", speed.latency_ms));
            figures
                .insert("images/s in batches of 32".to_string(), format!("{:.0}", speed.images_per_second));
        }
    }
    Ok(FlatRun { info, settings, figures })
}

fn show(folder: &Path, as_json: bool) -> Outcome {
    let flat = open(folder)?;
    let info = &flat.info;
    if as_json {
        output::print_json(&json!({
            "folder": folder, "experiment": info.experiment, "profile": info.profile, "cell": info.cell,
            "hash": info.hash, "role": info.role, "method": info.method, "classes": info.classes,
            "settings": flat.settings, "figures": flat.figures,
        }));
        return Ok(ExitStatus::Success);
    }
    let mut grid = TextTable::new(&[("", Align::Left), ("", Align::Left)]);
    for (name, value) in flat.figures.iter().chain(&flat.settings) {
        grid.push([name.clone(), value.clone()]);
    }
    let classes = info.classes.len();
    output::print(&format!(
        "{} ({} {}, {}), {classes} classes\n{}",
        info.cell,
        info.experiment,
        info.profile,
        info.hash,
        grid.terminal()
    ));
    Ok(ExitStatus::Success)
}

fn diff(a: &Path, b: &Path, as_json: bool) -> Outcome {
    let (left, right) = (open(a)?, open(b)?);
    // Runs of one cell with different settings differ in their hash.
    let same = left.info.cell == right.info.cell;
    let head = |side: &FlatRun| match same {
        true => format!("{} {:.8}", side.info.cell, side.info.hash),
        false => side.info.cell.clone(),
    };
    let mut grid =
        TextTable::new(&[("", Align::Left), (&head(&left), Align::Left), (&head(&right), Align::Left)]);
    let mut list = Vec::new();
    for (kind, left, right) in
        [("setting", &left.settings, &right.settings), ("figure", &left.figures, &right.figures)]
    {
        let names: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        for name in names.into_iter().filter(|n| left.get(*n) != right.get(*n)) {
            let word =
                |side: &BTreeMap<String, String>| side.get(name).cloned().unwrap_or_else(|| "-".into());
            grid.push([name.clone(), word(left), word(right)]);
            list.push(json!({"kind": kind, "name": name, "a": left.get(name), "b": right.get(name)}));
        }
    }
    if as_json {
        output::print_json(&json!(list));
    } else if grid.is_empty() {
        output::print("no differences");
    } else {
        output::print(&grid.terminal());
    }
    Ok(ExitStatus::Success)
}
