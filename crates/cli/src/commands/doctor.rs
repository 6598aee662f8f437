//! `stillhouse doctor`: machine, search paths and findings.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_report::text_table::wrap;
use stillhouse_runs::RunDir;

use crate::error::{ExitStatus, Outcome};
use crate::paths::{Paths, free_bytes};
use crate::{output, registries, system_info};

const EXAMPLES: &str = "\
Examples:
  stillhouse doctor
  stillhouse doctor --json
  STILLHOUSE_DATA=/data stillhouse doctor            search /data for datasets

The exit code is 1 if there are findings.";

/// Minimum free disk space for a run.
const MIN_FREE_DISK: u64 = 1 << 30;

/// Check this machine and the search paths of data, weights and runs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Folder of runs [env: STILLHOUSE_RUNS] [default: runs]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    let paths = Paths::new(args.runs.as_deref());
    let free = free_bytes(&paths.runs);
    let mut findings = Vec::new();
    if let Some(why) = write_error(&paths.runs) {
        findings.push(format!("cannot write to the folder of runs: {}: {why}", paths.runs.display()));
    }
    if free.is_some_and(|f| f < MIN_FREE_DISK) {
        findings.push(format!("only {} free for runs", output::size(free.unwrap_or_default())));
    }
    if let Ok(isa) = std::env::var("STILLHOUSE_ISA")
        && stillhouse_ops::isa().to_string() != isa
    {
        let used = stillhouse_ops::isa();
        findings.push(format!("STILLHOUSE_ISA is `{isa}` but {used} is in use; known: scalar, avx2, avx512"));
    }
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": env!("STILLHOUSE_REVISION"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "cpu": system_info::cpu_name(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "threads": threads,
        "instructions": stillhouse_ops::isa().to_string(),
        "devices": available_devices(),
        "memory_bytes": memory("MemTotal:"),
        "memory_free_bytes": memory("MemAvailable:"),
        "data": { "roots": roots(&paths.data), "datasets": datasets(&paths.data) },
        "weights": { "roots": roots(&paths.weights), "files": weights(&paths.weights) },
        "runs": {
            "path": paths.runs,
            "exists": paths.runs.is_dir(),
            "finished": count_finished(&paths.runs, 4),
            "free_bytes": free,
        },
        "findings": findings,
    });
    if args.json {
        output::print_json(&report);
    } else {
        output::print(&to_text(&report));
    }
    Ok(if findings.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
}

/// Lists the usable values of `--device`.
fn available_devices() -> Vec<&'static str> {
    match candle_core::Device::new_cuda(0) {
        Ok(_) => vec!["cpu", "cuda"],
        Err(_) => vec!["cpu"],
    }
}

fn format_devices(devices: &Value) -> &'static str {
    match (devices.as_array().map_or(0, Vec::len), cfg!(feature = "cuda")) {
        (2.., _) => "cpu, cuda",
        (_, true) => "cpu (no usable CUDA device)",
        (_, false) => "cpu (built without CUDA)",
    }
}

fn to_text(report: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let bytes = |value: &Value| value.as_u64().map_or_else(|| "unknown".to_string(), output::size);
    let mut text = format!(
        "stillhouse {} ({})\nsystem      {}, {}\nthreads     {} of {} cores, instructions {}\nmemory      {}, free {}\ndevices     {}\n",
        word(&report["version"]),
        word(&report["revision"]),
        word(&report["system"]),
        word(&report["cpu"]),
        report["threads"],
        report["cores"],
        word(&report["instructions"]),
        bytes(&report["memory_bytes"]),
        bytes(&report["memory_free_bytes"]),
        format_devices(&report["devices"]),
    );
    let lists = [("data", "data", "datasets"), ("weights", "weights", "files")];
    let items = lists.iter().flat_map(|(_, kind, list)| report[kind][list].as_array().into_iter().flatten());
    let width = items.map(|item| word(&item["name"]).chars().count()).max().unwrap_or_default();
    for (title, kind, list) in lists {
        for root in report[kind]["roots"].as_array().into_iter().flatten() {
            let missing = if root["exists"] == true { "" } else { " (missing)" };
            text.push_str(&format!("{title:<12}{}{missing}\n", word(&root["path"])));
        }
        for item in report[kind][list].as_array().into_iter().flatten() {
            let state = wrap(&word(&item["state"]), 76).replace('\n', &format!("\n{:1$}", "", width + 4));
            text.push_str(&format!("  {:<width$}  {state}\n", word(&item["name"])));
        }
    }
    let runs = &report["runs"];
    let missing = if runs["exists"] == true { "" } else { " (will be created)" };
    text.push_str(&format!(
        "runs        {}{missing}, {} finished, {} free\n",
        word(&runs["path"]),
        runs["finished"],
        bytes(&runs["free_bytes"])
    ));
    for finding in report["findings"].as_array().into_iter().flatten() {
        text.push_str(&format!("\nfinding: {}", word(finding)));
    }
    text
}

fn roots(roots: &[PathBuf]) -> Vec<Value> {
    roots.iter().map(|r| json!({"path": r, "exists": r.is_dir()})).collect()
}

fn datasets(roots: &[PathBuf]) -> Vec<Value> {
    let registry = registries::registries().datasets;
    let find = |row: &stillhouse_core::registry::Entry<stillhouse_core::registry::DatasetBuild>| {
        let request = DatasetRequest {
            name: row.name.to_string(),
            roots: roots.to_vec(),
            path: None,
            options: Default::default(),
        };
        match (row.build)(&request) {
            Ok(set) => (true, format!("found: {}", set.info().title)),
            Err(e) => (false, format!("not usable: {e}")),
        }
    };
    registry
        .entries()
        .iter()
        // `folder` has no default location.
        .filter(|row| row.name != "folder")
        .map(|row| {
            let (found, state) = find(row);
            json!({"name": row.name, "found": found, "state": state})
        })
        .collect()
}

fn weights(roots: &[PathBuf]) -> Vec<Value> {
    let manifests = stillhouse_backbones::weights::manifests().unwrap_or_default();
    let find = |m: &stillhouse_backbones::weights::Manifest| match roots
        .iter()
        .map(|r| r.join(&m.file))
        .find(|p| p.is_file())
    {
        // The size alone is checked here: a run hashes the file when it loads it.
        Some(path) => match std::fs::metadata(&path) {
            Ok(data) if m.bytes.is_none_or(|bytes| data.len() == bytes) => {
                (true, format!("found: {}", path.display()))
            }
            _ => {
                let expected = m.bytes.unwrap_or_default();
                (false, format!("wrong size: {}: expected {expected} bytes", path.display()))
            }
        },
        None => (false, format!("not found ({})", m.file)),
    };
    manifests
        .iter()
        .map(|m| {
            let (found, state) = find(m);
            json!({"name": m.title(), "found": found, "state": state})
        })
        .collect()
}

/// Counts the finished runs below a folder.
fn count_finished(folder: &Path, depth: u8) -> usize {
    let own = usize::from(RunDir::new(folder).is_finished());
    if depth == 0 || own == 1 {
        return own;
    }
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    below
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| count_finished(&e.path(), depth - 1))
        .sum()
}

/// Returns why a folder, which need not exist, is not writable.
fn write_error(folder: &Path) -> Option<String> {
    let absolute = std::path::absolute(folder).ok()?;
    let existing = absolute.ancestors().find(|p| p.exists())?;
    if !existing.is_dir() {
        return Some(format!("{} is a file", existing.display()));
    }
    let probe = existing.join(format!(".stillhouse-{}.part", std::process::id()));
    match std::fs::write(&probe, b"") {
        Ok(()) => {
            let _ = std::fs::remove_file(&probe);
            None
        }
        Err(e) => Some(e.to_string()),
    }
}

fn memory(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
