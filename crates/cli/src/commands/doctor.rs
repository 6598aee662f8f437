//! `stillhouse doctor`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_report::text::wrap;

use crate::error::{ExitStatus, Outcome};
use crate::paths::{Paths, free_bytes};
use crate::{output, registries, system_info};

const EXAMPLES: &str = "\
Examples:
  stillhouse doctor
  stillhouse doctor --json
  STILLHOUSE_DATA=/data stillhouse doctor            look for datasets in /data

The exit code is 1 where something stands in the way of a run.";

/// Free disk below which a run may fail.
const LOW_DISK: u64 = 1 << 30;

/// Show what this machine has, and where data, weights and runs are looked for
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
    let places = Paths::new(args.runs.as_deref());
    let free = free_bytes(&places.runs);
    let mut findings = Vec::new();
    if let Some(why) = not_writable(&places.runs) {
        findings.push(format!("the folder of runs {} cannot be written: {why}", places.runs.display()));
    }
    if free.is_some_and(|f| f < LOW_DISK) {
        findings.push(format!("only {} free for runs", output::size(free.unwrap_or_default())));
    }
    if let Ok(isa) = std::env::var("STILLHOUSE_ISA")
        && stillhouse_ops::isa().to_string() != isa
    {
        let used = stillhouse_ops::isa();
        findings.push(format!("STILLHOUSE_ISA is `{isa}`, in use is {used}; known: scalar, avx2, avx512"));
    }
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": env!("STILLHOUSE_REVISION"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "cpu": system_info::cpu_name(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "threads": threads,
        "instructions": stillhouse_ops::isa().to_string(),
        "devices": devices(),
        "memory_bytes": memory("MemTotal:"),
        "memory_free_bytes": memory("MemAvailable:"),
        "data": { "roots": roots(&places.data), "datasets": datasets(&places.data) },
        "weights": { "roots": roots(&places.weights), "files": weights(&places.weights) },
        "runs": {
            "path": places.runs,
            "exists": places.runs.is_dir(),
            "finished": finished(&places.runs, 4),
            "free_bytes": free,
        },
        "findings": findings,
    });
    if args.json {
        output::print_json(&report);
    } else {
        output::print(&readable(&report));
    }
    Ok(if findings.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
}

/// What `--device` can take here.
fn devices() -> Vec<&'static str> {
    match candle_core::Device::new_cuda(0) {
        Ok(_) => vec!["cpu", "cuda"],
        Err(_) => vec!["cpu"],
    }
}

fn readable_devices(devices: &Value) -> &'static str {
    match (devices.as_array().map_or(0, Vec::len), cfg!(feature = "cuda")) {
        (2.., _) => "cpu, cuda",
        (_, true) => "cpu (no CUDA device can be used)",
        (_, false) => "cpu (this build has no CUDA)",
    }
}

fn readable(report: &Value) -> String {
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
        readable_devices(&report["devices"]),
    );
    for (title, kind, list) in [("data", "data", "datasets"), ("weights", "weights", "files")] {
        for root in report[kind]["roots"].as_array().into_iter().flatten() {
            let there = if root["exists"] == true { "" } else { " (not there)" };
            text.push_str(&format!("{title:<12}{}{there}\n", word(&root["path"])));
        }
        for item in report[kind][list].as_array().into_iter().flatten() {
            let state = wrap(&word(&item["state"]), 76).replace('\n', &format!("\n{:28}", ""));
            text.push_str(&format!("  {:<26}{state}\n", word(&item["name"])));
        }
    }
    let runs = &report["runs"];
    let there = if runs["exists"] == true { "" } else { " (not there yet)" };
    text.push_str(&format!(
        "runs        {}{there}, {} finished, {} free\n",
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
    let look = |row: &stillhouse_core::registry::Entry<stillhouse_core::registry::DatasetBuild>| {
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
        // `folder` is whatever the person names.
        .filter(|row| row.name != "folder")
        .map(|row| {
            let (found, state) = look(row);
            json!({"name": row.name, "found": found, "state": state})
        })
        .collect()
}

fn weights(roots: &[PathBuf]) -> Vec<Value> {
    let manifests = stillhouse_backbones::manifests().unwrap_or_default();
    let look = |m: &stillhouse_backbones::Manifest| match roots
        .iter()
        .map(|r| r.join(&m.file))
        .find(|p| p.is_file())
    {
        // Hashing 100 MB is left to the run that loads them.
        Some(path) => match std::fs::metadata(&path) {
            Ok(data) if m.bytes.is_none_or(|bytes| data.len() == bytes) => {
                (true, format!("found: {}", path.display()))
            }
            _ => {
                let expected = m.bytes.unwrap_or_default();
                (false, format!("another file: {}, expected {expected} bytes", path.display()))
            }
        },
        None => (false, format!("not found ({})", m.file)),
    };
    manifests
        .iter()
        .map(|m| {
            let (found, state) = look(m);
            json!({"name": m.title(), "found": found, "state": state})
        })
        .collect()
}

/// Finished runs below a folder.
fn finished(folder: &Path, depth: u8) -> usize {
    let own = usize::from(folder.join("result.json").is_file());
    if depth == 0 || own == 1 {
        return own;
    }
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| finished(&e.path(), depth - 1)).sum()
}

/// Why nothing can be written there, if so; the folder need not exist.
fn not_writable(folder: &Path) -> Option<String> {
    let absolute = std::path::absolute(folder).ok()?;
    let there = absolute.ancestors().find(|p| p.exists())?;
    if !there.is_dir() {
        return Some(format!("{} is a file", there.display()));
    }
    let probe = there.join(format!(".stillhouse-{}.part", std::process::id()));
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
