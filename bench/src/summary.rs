//! The printed table and `summary.json`.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cases::Case;
use crate::worker::Memory;

/// Result of one case with one thread count.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseResult {
    pub(crate) case: String,
    pub(crate) threads: usize,
    /// `wall` or `cpu`.
    clock: String,
    ours_ms: f64,
    torch_ms: Option<f64>,
    /// Median over rounds of stillhouse's time over PyTorch's; below one, stillhouse is faster.
    ratio: Option<f64>,
    /// First and third quartile of the rounds' ratios.
    ratio_quartiles: Option<[f64; 2]>,
    ours_peak_mib: f64,
    torch_peak_mib: Option<f64>,
    ours_libraries_mib: f64,
    torch_libraries_mib: Option<f64>,
    /// Mode of PyTorch, of the faster layout: `eager, channels_last`.
    torch_mode: Option<String>,
    rounds: usize,
    /// `cpu`, or `cuda` with the precisions of stillhouse and PyTorch: `cuda, bf16, bf16`.
    pub(crate) device: String,
}

/// Median; of an even count, the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = q * (sorted.len().max(1) - 1) as f64;
    let (low, high) = (index.floor() as usize, index.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (index - low as f64),
        _ => f64::NAN,
    }
}

impl CaseResult {
    pub(crate) fn new(
        case: &Case,
        (device, threads, clock): (&str, usize, &str),
        ours: &[f64],
        torch: Option<(&str, &[f64])>,
        (memory, torch_memory): (Memory, Option<Memory>),
    ) -> Self {
        let ratios: Option<Vec<f64>> =
            torch.map(|(_, times)| ours.iter().zip(times).map(|(a, b)| a / b).collect());
        Self {
            case: case.name.into(),
            threads,
            clock: clock.into(),
            ours_ms: median(ours),
            torch_ms: torch.map(|(_, times)| median(times)),
            ratio: ratios.as_deref().map(median),
            ratio_quartiles: ratios.as_deref().map(|r| [quantile(r, 0.25), quantile(r, 0.75)]),
            ours_peak_mib: memory.peak,
            torch_peak_mib: torch_memory.map(|m| m.peak),
            ours_libraries_mib: memory.libraries,
            torch_libraries_mib: torch_memory.map(|m| m.libraries),
            torch_mode: torch.map(|(layout, _)| format!("eager, {layout}")),
            rounds: ours.len(),
            device: device.into(),
        }
    }
}

/// Formats the speed-up of several threads over one, if both were measured. One thread counts by CPU time,
/// the wall-clock time of an idle machine.
pub(crate) fn scaling(results: &[CaseResult], case: &str) -> Option<String> {
    let find = |matches: &dyn Fn(usize) -> bool| {
        results.iter().rev().find(|r| r.case == case && r.device == "cpu" && matches(r.threads))
    };
    let (one, many) = (find(&|threads| threads == 1)?, find(&|threads| threads > 1)?);
    let torch = match (one.torch_ms, many.torch_ms) {
        (Some(one), Some(many)) => format!(", PyTorch {:.2}x", one / many),
        _ => String::new(),
    };
    Some(format!(
        "{case:29} {} threads over one: stillhouse {:.2}x{torch}",
        many.threads,
        one.ours_ms / many.ours_ms
    ))
}

/// Prints the table's header.
pub(crate) fn print_header() {
    println!(
        "{:29} {:>7} {:>5} {:>9} {:>9} {:>6} {:>13} {:>15}  torch mode",
        "case", "threads", "clock", "ours ms", "torch ms", "ratio", "quartiles", "peak MiB"
    );
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
        let quartiles = self.ratio_quartiles.map_or("-".into(), |[a, b]| format!("{a:.2} to {b:.2}"));
        let memory = format!("{:.0} / {}", self.ours_peak_mib, optional(self.torch_peak_mib, 0));
        write!(
            f,
            "{:29} {:>7} {:>5} {:>9.1} {:>9} {:>6} {quartiles:>13} {memory:>15}  {}",
            self.case,
            self.threads,
            self.clock,
            self.ours_ms,
            optional(self.torch_ms, 1),
            optional(self.ratio, 2),
            self.torch_mode.as_deref().unwrap_or("-")
        )
    }
}

/// Reads the results of an earlier run; empty if there is no readable file.
pub(crate) fn read(path: &Path) -> Vec<CaseResult> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Writes results as JSON, atomically.
pub(crate) fn write(path: &Path, results: &[impl Serialize]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let text = serde_json::to_string_pretty(results)?;
    stillhouse_core::fs::write_atomic(path, text.as_bytes()).with_context(|| path.display().to_string())
}
