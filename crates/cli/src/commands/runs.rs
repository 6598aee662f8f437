//! `stillhouse runs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use stillhouse_report::record::About;
use stillhouse_report::run::{FAILURE, RunResult, state};
use stillhouse_report::text::{Align, Grid};

use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

/// Run folders lie at most so deep below the folder of runs.
const DEPTH: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  stillhouse runs ls                          all runs below the folder of runs, with their state
  stillhouse runs show runs/mine
  stillhouse runs diff runs/a runs/b          settings and figures in which two runs differ";

/// List runs, show one, compare two
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
    /// Show what a run is, where it stands and what came out
    Show {
        /// Run folder
        run: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show in what two runs differ: settings first, then figures
    Diff {
        /// Run folder
        a: PathBuf,
        /// Another one
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
            .hint("name the folder of runs, or set STILLHOUSE_RUNS"));
    }
    let mut folders = Vec::new();
    find(&root, DEPTH, &mut folders);
    folders.sort();
    let mut grid = Grid::new(&[
        ("run", Align::Left),
        ("method", Align::Left),
        ("state", Align::Left),
        ("right/tested", Align::Right),
        ("%", Align::Right),
    ]);
    let mut list = Vec::new();
    for folder in &folders {
        let name = folder.strip_prefix(&root).unwrap_or(folder).display().to_string();
        let state = state(folder);
        // One broken run does not hide the others.
        let (about, result) = match (About::read(folder), RunResult::read(folder)) {
            (Ok(Some((about, _))), Ok(result)) => (about, result),
            (Err(e), _) | (_, Err(e)) => {
                output::status(&format!("error: {e}"));
                continue;
            }
            (Ok(None), _) => continue,
        };
        let right = result.as_ref().and_then(|r| r.right);
        let percent = result.as_ref().and_then(RunResult::percent);
        grid.row([
            name,
            about.method.clone(),
            state.to_string(),
            right.zip(result.as_ref()).map_or_else(String::new, |(right, r)| format!("{right}/{}", r.tested)),
            percent.map_or_else(String::new, |p| format!("{p:.2}")),
        ]);
        list.push(json!({
            "folder": folder, "experiment": about.experiment, "profile": about.profile, "cell": about.cell,
            "method": about.method, "student": about.student(), "dataset": about.dataset(), "seed": about.seed(),
            "state": state, "right": right, "tested": result.as_ref().map(|r| r.tested), "percent": percent,
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

/// Run folders below a folder; links are not followed.
fn find(folder: &Path, depth: u8, found: &mut Vec<PathBuf>) {
    if folder.join("config.toml").is_file() {
        found.push(folder.to_path_buf());
        return;
    }
    if depth > 0 {
        let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            find(&entry.path(), depth - 1, found);
        }
    }
}

/// A run's settings and figures, flat: `train.epochs` -> `30`.
struct Flat {
    about: About,
    settings: BTreeMap<String, String>,
    figures: BTreeMap<String, String>,
}

fn open(folder: &Path) -> Result<Flat, CliError> {
    let Some((about, _)) = About::read(folder).prepared()? else {
        return Err(CliError::usage(format!("{}: no run folder, it has no config.toml", folder.display()))
            .hint("`stillhouse runs ls` lists those there are"));
    };
    let mut settings = BTreeMap::new();
    flatten("", &toml::Value::Table(about.run.clone()), &mut settings);
    let mut figures = BTreeMap::from([("state".to_string(), state(folder).to_string())]);
    if let Ok(why) = std::fs::read_to_string(folder.join(FAILURE)) {
        figures.insert("failure".to_string(), why.trim().to_string());
    }
    if let Some(result) = RunResult::read(folder).prepared()? {
        let percent = result.percent();
        figures.extend(result.right.map(|r| ("right".to_string(), format!("{r} of {}", result.tested))));
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
    Ok(Flat { about, settings, figures })
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    let below = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| flatten(&below(key), value, out)),
        // Lists of tables (terms, transforms) differ entry by entry, other lists as a whole.
        toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
            list.iter().enumerate().for_each(|(i, value)| flatten(&below(&i.to_string()), value, out));
        }
        toml::Value::String(text) => {
            out.insert(prefix.to_string(), text.clone());
        }
        other => {
            out.insert(prefix.to_string(), other.to_string());
        }
    }
}

fn show(folder: &Path, as_json: bool) -> Outcome {
    let flat = open(folder)?;
    let about = &flat.about;
    if as_json {
        output::print_json(&json!({
            "folder": folder, "experiment": about.experiment, "profile": about.profile, "cell": about.cell,
            "hash": about.hash, "role": about.role, "method": about.method, "classes": about.classes,
            "settings": flat.settings, "figures": flat.figures,
        }));
        return Ok(ExitStatus::Success);
    }
    let mut grid = Grid::new(&[("", Align::Left), ("", Align::Left)]);
    for (name, value) in flat.figures.iter().chain(&flat.settings) {
        grid.row([name.clone(), value.clone()]);
    }
    let classes = about.classes.len();
    output::print(&format!(
        "{} ({} {}, {}), {classes} classes\n{}",
        about.cell,
        about.experiment,
        about.profile,
        about.hash,
        grid.terminal()
    ));
    Ok(ExitStatus::Success)
}

fn diff(a: &Path, b: &Path, as_json: bool) -> Outcome {
    let (left, right) = (open(a)?, open(b)?);
    // Runs of one cell under other settings are told apart by their hash.
    let same = left.about.cell == right.about.cell;
    let head = |side: &Flat| match same {
        true => format!("{} {:.8}", side.about.cell, side.about.hash),
        false => side.about.cell.clone(),
    };
    let mut grid = Grid::new(&[("", Align::Left), (&head(&left), Align::Left), (&head(&right), Align::Left)]);
    let mut list = Vec::new();
    for (kind, left, right) in
        [("setting", &left.settings, &right.settings), ("figure", &left.figures, &right.figures)]
    {
        let names: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        for name in names.into_iter().filter(|n| left.get(*n) != right.get(*n)) {
            let word =
                |side: &BTreeMap<String, String>| side.get(name).cloned().unwrap_or_else(|| "-".into());
            grid.row([name.clone(), word(left), word(right)]);
            list.push(json!({"kind": kind, "name": name, "a": left.get(name), "b": right.get(name)}));
        }
    }
    if as_json {
        output::print_json(&json!(list));
    } else if grid.is_empty() {
        output::print("the runs do not differ");
    } else {
        output::print(&grid.terminal());
    }
    Ok(ExitStatus::Success)
}
