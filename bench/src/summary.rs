//! The printed table and `summary.json`.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cases::Case;
use crate::contender::Memory;

/// One case with one number of threads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) case: String,
    pub(crate) threads: usize,
    /// `wall` or `cpu`.
    clock: String,
    ours_ms: f64,
    torch_ms: Option<f64>,
    /// Median of the rounds' ratios; below one we are faster.
    ratio: Option<f64>,
    /// Half of the rounds' ratios lie between these.
    ratio_quartiles: Option<[f64; 2]>,
    ours_peak_mib: f64,
    torch_peak_mib: Option<f64>,
    ours_libraries_mib: f64,
    torch_libraries_mib: Option<f64>,
    /// PyTorch's faster layout.
    torch_layout: Option<String>,
    rounds: usize,
    /// `cpu`, or `cuda` with both sides' precisions: `cuda, bf16, bf16`.
    #[serde(default = "cpu")]
    pub(crate) device: String,
}

fn cpu() -> String {
    "cpu".into()
}

/// The middle value; of an even count the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len().max(1) - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => f64::NAN,
    }
}

impl Line {
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
            torch_layout: torch.map(|(layout, _)| layout.into()),
            rounds: ours.len(),
            device: device.into(),
        }
    }
}

/// How many times as fast a case runs on several threads as on one, where both were measured; one thread
/// by its CPU time, which is what it would take alone on the machine.
pub(crate) fn scaling(lines: &[Line], case: &str) -> Option<String> {
    let of = |wanted: &dyn Fn(usize) -> bool| {
        lines.iter().rev().find(|l| l.case == case && l.device == "cpu" && wanted(l.threads))
    };
    let (one, many) = (of(&|threads| threads == 1)?, of(&|threads| threads > 1)?);
    let torch = match (one.torch_ms, many.torch_ms) {
        (Some(one), Some(many)) => format!(", PyTorch {:.2} times", one / many),
        _ => String::new(),
    };
    Some(format!(
        "{case:26} {} threads beside one: ours {:.2} times as fast{torch}",
        many.threads,
        one.ours_ms / many.ours_ms
    ))
}

/// The heading of the table.
pub(crate) fn head() {
    println!(
        "{:26} {:>7} {:>5} {:>9} {:>9} {:>6} {:>13} {:>15}  layout",
        "case", "threads", "clock", "ours ms", "torch ms", "ratio", "half between", "peak MiB"
    );
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
        let between = self.ratio_quartiles.map_or("-".into(), |[a, b]| format!("{a:.2} to {b:.2}"));
        let memory = format!("{:.0} / {}", self.ours_peak_mib, some(self.torch_peak_mib, 0));
        write!(
            f,
            "{:26} {:>7} {:>5} {:>9.1} {:>9} {:>6} {between:>13} {memory:>15}  {}",
            self.case,
            self.threads,
            self.clock,
            self.ours_ms,
            some(self.torch_ms, 1),
            some(self.ratio, 2),
            self.torch_layout.as_deref().unwrap_or("-")
        )
    }
}

/// Lines of an earlier run, which cases of this one replace; none if there is no such file.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Writes a summary whole.
pub(crate) fn write(path: &Path, lines: &[impl Serialize]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let text = serde_json::to_string_pretty(lines)?;
    stillhouse_core::fs::write_atomic(path, text.as_bytes()).with_context(|| path.display().to_string())
}
