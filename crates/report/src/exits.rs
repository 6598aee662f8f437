//! Accuracies of networks with several exits: at each of them, and on mirrored and turned images.

use std::collections::BTreeMap;

use serde::Serialize;
use stillhouse_metrics::seeds::SeedSummary;

use crate::text::{Align, Grid};
use crate::{Planned, Record, mksmt};

/// All seeds of one method at one exit, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExitRow {
    /// Row of the table.
    pub method: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training part in percent; 0 with an official split.
    pub ratio: u64,
    /// `exit3` for an early exit, `last` for the network's own output.
    pub exit: String,
    /// Mean accuracy over the seeds.
    pub mean: f64,
    /// Standard deviation (n - 1) in percentage points; none for a single seed.
    pub std: Option<f64>,
    /// 95 % interval of the mean by Student's t; none for a single seed.
    pub interval: Option<[f64; 2]>,
    /// The printed number, where there is one.
    pub published: Option<f64>,
    /// Mean accuracy on mirrored images, where it was counted.
    pub hflip: Option<f64>,
    /// Mean accuracy on images turned upside down, where it was counted.
    pub vflip: Option<f64>,
    /// Seeds.
    pub n: usize,
}

/// The network's own output.
pub const LAST: &str = "last";
const ACCURACY: &str = "accuracy";

/// One row for each method and exit, in the order of the runs and of depth. Nothing where no run was
/// tested at an early exit or on another view.
pub fn rows(runs: &[(Planned, Record)], page: Option<&str>) -> Vec<ExitRow> {
    let ends = |score: &String| score.ends_with(".accuracy");
    if !runs.iter().any(|(_, r)| r.result.scores.keys().any(ends)) {
        return Vec::new();
    }
    let mut groups: Vec<(&Planned, Vec<&Record>)> = Vec::new();
    for (planned, record) in runs {
        let key = |p: &Planned| (p.method.clone(), p.dataset.clone(), p.ratio);
        match groups.iter_mut().find(|(other, _)| key(other) == key(planned)) {
            Some((_, records)) => records.push(record),
            None => groups.push((planned, vec![record])),
        }
    }
    let mut rows = Vec::new();
    for (planned, records) in groups {
        let (method, dataset, ratio) = (planned.method.as_str(), planned.dataset.as_str(), planned.ratio);
        for exit in exits(&records) {
            let Some(all) = percents(&records, "", &exit) else { continue };
            let (summary, mean) = (SeedSummary::new(&all), |v: Option<Vec<f64>>| v.map(|v| SeedSummary::new(&v).mean));
            rows.push(ExitRow {
                method: method.to_string(),
                dataset: dataset.to_string(),
                ratio,
                mean: summary.mean,
                std: summary.std.is_finite().then_some(summary.std),
                interval: summary.ci95_low.is_finite().then_some([summary.ci95_low, summary.ci95_high]),
                published: page.and_then(|page| mksmt::accuracy(page, method, &exit)),
                hflip: mean(percents(&records, "hflip.", &exit)),
                vflip: mean(percents(&records, "vflip.", &exit)),
                n: all.len(),
                exit,
            });
        }
    }
    rows
}

/// The exits that were tested, the last one last.
fn exits(records: &[&Record]) -> Vec<String> {
    let mut found: BTreeMap<String, ()> = BTreeMap::new();
    for score in records.iter().flat_map(|r| r.result.scores.keys()) {
        if let Some((exit, ACCURACY)) = score.split_once('.')
            && exit.starts_with("exit")
        {
            found.insert(exit.to_string(), ());
        }
    }
    found.into_keys().chain([LAST.to_string()]).collect()
}

/// Accuracies by run on a view (`vflip.`, or empty) at an exit; none unless every run was tested so.
fn percents(records: &[&Record], view: &str, exit: &str) -> Option<Vec<f64>> {
    let at = if exit == LAST { String::new() } else { format!("{exit}.") };
    let one = |record: &&Record| match (view, exit) {
        ("", LAST) => record.result.percent(),
        _ => record.result.scores.get(&format!("{view}{at}{ACCURACY}"))?.map(|share| 100.0 * share),
    };
    records.iter().map(one).collect()
}

/// What stands below the grid.
pub const BELOW: &str = "Percent of the test images: mean over n seeds ± standard deviation (n - 1), its 95 % \
    interval by Student's t, and the same network on the test images mirrored and turned upside down.";

/// The rows as a grid.
pub fn grid(rows: &[ExitRow]) -> Grid {
    let mut grid = Grid::new(&[
        ("method", Align::Left),
        ("data", Align::Left),
        ("exit", Align::Left),
        ("ours", Align::Right),
        ("95 % interval", Align::Right),
        ("n", Align::Right),
        ("paper", Align::Right),
        ("mirrored", Align::Right),
        ("upside down", Align::Right),
    ]);
    let some = |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}"));
    for row in rows {
        let std = row.std.map_or_else(String::new, |std| format!(" ± {std:.2}"));
        let interval =
            row.interval.map_or_else(|| "-".into(), |[low, high]| format!("{low:.2} to {high:.2}"));
        let part = if row.ratio == 0 { "official".to_string() } else { format!("{} %", row.ratio) };
        grid.row([
            row.method.clone(),
            format!("{} {part}", row.dataset),
            row.exit.clone(),
            format!("{:.2}{std}", row.mean),
            interval,
            row.n.to_string(),
            some(row.published, 1),
            some(row.hflip, 2),
            some(row.vflip, 2),
        ]);
    }
    grid
}
