//! Accuracy at every exit of a network, and on flipped test images.

use serde::Serialize;
use stillhouse_metrics::seeds::SeedSummary;

use crate::published::{PublishedTable, test_accuracy};
use crate::results_table::{distinct, ratio_text};
use crate::text_table::{Align, TextTable, optional};
use crate::{Planned, Record};

/// All seeds of one method at one exit, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExitAccuracy {
    /// Row of the table.
    pub method: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: u64,
    /// `exit3` for an early exit, `last` for the network's own output.
    pub exit: String,
    /// Mean accuracy over the seeds.
    pub mean: f64,
    /// Standard deviation (n - 1) in percentage points; none for a single seed.
    pub std: Option<f64>,
    /// 95 % confidence interval of the mean by Student's t; none for a single seed.
    pub interval: Option<[f64; 2]>,
    /// The published number, if there is one.
    pub published: Option<f64>,
    /// Mean accuracy on horizontally flipped images, if it was tested.
    pub hflip: Option<f64>,
    /// Mean accuracy on vertically flipped images, if it was tested.
    pub vflip: Option<f64>,
    /// Seeds.
    pub n: usize,
}

/// The network's own output.
const LAST: &str = "last";
/// Scores at exits and on views end with this.
const SUFFIX: &str = ".accuracy";

/// Returns one row per method and exit, in the order of the runs and of depth. Empty unless a run was tested
/// at an early exit or on another view.
pub(crate) fn rows(runs: &[(Planned, Record)], published: Option<&PublishedTable<'_>>) -> Vec<ExitAccuracy> {
    if !runs.iter().any(|(_, r)| r.result.scores.keys().any(|score| score.ends_with(SUFFIX))) {
        return Vec::new();
    }
    let key = |p: &Planned| (p.method.clone(), p.dataset.clone(), p.ratio);
    let mut rows = Vec::new();
    for group in distinct(runs.iter().map(|(p, _)| key(p))) {
        let here: Vec<_> = runs.iter().filter(|(p, _)| key(p) == group).collect();
        let records: Vec<&Record> = here.iter().map(|(_, record)| record).collect();
        let student = here.first().map_or("", |(p, _)| p.student.as_str());
        let (method, dataset, ratio) = group;
        for exit in exits(&records) {
            let early = (exit != LAST).then_some(exit.as_str());
            let Some(all) = percents(&records, None, early) else { continue };
            let summary = SeedSummary::new(&all);
            let mean = |view| percents(&records, Some(view), early).map(|v| SeedSummary::new(&v).mean);
            rows.push(ExitAccuracy {
                mean: summary.mean,
                std: summary.std.is_finite().then_some(summary.std),
                interval: summary.ci95_low.is_finite().then_some([summary.ci95_low, summary.ci95_high]),
                published: published.and_then(|p| p.score(&method, student, (&dataset, ratio), early)),
                hflip: mean("hflip"),
                vflip: mean("vflip"),
                n: all.len(),
                method: method.clone(),
                dataset: dataset.clone(),
                ratio,
                exit,
            });
        }
    }
    rows
}

/// The tested exits, the network's own output last.
fn exits(records: &[&Record]) -> Vec<String> {
    let scores = records.iter().flat_map(|r| r.result.scores.keys());
    let early = scores.filter_map(|s| s.strip_suffix(SUFFIX)).filter(|s| s.starts_with("exit"));
    let mut found: Vec<String> = early.map(str::to_string).collect();
    found.sort();
    found.dedup();
    found.push(LAST.to_string());
    found
}

/// Accuracy of each run; none unless every run was tested so.
fn percents(records: &[&Record], view: Option<&str>, exit: Option<&str>) -> Option<Vec<f64>> {
    let percent = |record: &&Record| match (view, exit) {
        (None, None) => record.result.percent(),
        _ => test_accuracy(record, view, exit),
    };
    records.iter().map(percent).collect()
}

/// Note below the table.
pub const NOTE: &str = "Percentage of test images classified correctly: mean over n seeds ± standard deviation \
    (n - 1), its 95 % confidence interval by Student's t, and the same network on horizontally and vertically \
    flipped test images.";

/// Returns the rows as a text table.
pub fn text_table(rows: &[ExitAccuracy]) -> TextTable {
    let mut table = TextTable::new(&[
        ("method", Align::Left),
        ("data", Align::Left),
        ("exit", Align::Left),
        ("measured", Align::Right),
        ("95 % interval", Align::Right),
        ("n", Align::Right),
        ("published", Align::Right),
        ("hflip", Align::Right),
        ("vflip", Align::Right),
    ]);
    for row in rows {
        let std = row.std.map_or_else(String::new, |std| format!(" ± {std:.2}"));
        let interval =
            row.interval.map_or_else(|| "-".into(), |[low, high]| format!("{low:.2} to {high:.2}"));
        table.push([
            row.method.clone(),
            format!("{} {}", row.dataset, ratio_text(row.ratio)),
            row.exit.clone(),
            format!("{:.2}{std}", row.mean),
            interval,
            row.n.to_string(),
            optional(row.published, 1),
            optional(row.hflip, 2),
            optional(row.vflip, 2),
        ]);
    }
    table
}
