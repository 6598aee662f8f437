//! The printed numbers of the multi-step self-distillation paper (MKSMT) beside ours. Its tables are
//! lost; the numbers are those of its text, each on the page of the experiment that measures it.

use serde::Serialize;

use crate::beside::{Line, page_of};
use crate::exits::{ExitRow, LAST};
use crate::published::{Published, PublishedCell};
use crate::sizes::Counted;
use crate::text::{Align, Grid};
use crate::{Planned, Record, Result};

/// The pages: one for each dataset, and the ablation.
pub const PAGES: [&str; 4] = ["p3.cub", "p3.nabirds", "p3.dogs", "p3.ablation"];

/// The paper's method, and its backbone alone, as the experiments name them.
const OURS: &str = "mksmt";
const ALONE: &str = "baseline";

/// The page of a number of the text.
pub(crate) fn page(row: &str, col: &str) -> &'static str {
    let text = format!("{row} {col}");
    let ablation =
        ["single step", "asynchronous", "synchronous", "without distillation", "feature", "temperature"];
    if text.contains("NABirds") {
        "p3.nabirds"
    } else if text.contains("Dogs") {
        "p3.dogs"
    } else if ablation.iter().any(|word| row.contains(word)) {
        "p3.ablation"
    } else {
        "p3.cub"
    }
}

/// Row and column of the printed accuracy of a method at an exit on a page.
const ACCURACIES: [(&str, &str, &str, &str, &str); 10] = [
    ("p3.cub", OURS, LAST, "MKSMT", "accuracy CUB"),
    ("p3.cub", ALONE, LAST, "Swin-L alone", "accuracy CUB"),
    ("p3.nabirds", OURS, LAST, "MKSMT", "accuracy NABirds"),
    ("p3.dogs", OURS, LAST, "MKSMT", "accuracy Stanford Dogs"),
    ("p3.ablation", OURS, LAST, "MKSMT", "accuracy CUB"),
    ("p3.ablation", ALONE, LAST, "Swin-L alone", "accuracy CUB"),
    ("p3.ablation", "single", LAST, "single step, S4", "accuracy CUB"),
    ("p3.ablation", "asynchronous", LAST, "asynchronous, S4", "accuracy CUB"),
    ("p3.ablation", "features", LAST, "feature distillation, S4", "accuracy CUB"),
    ("p3.ablation", "no_distillation", LAST, "two steps without distillation, S4", "accuracy CUB"),
];
const NO_DISTILLATION_S3: &str = "two steps without distillation, S3";

/// The printed accuracy of a method at an exit, in percent.
pub(crate) fn accuracy(page: &str, method: &str, exit: &str) -> Option<f64> {
    let numbers = Published::builtin().ok()?;
    if (page, method, exit) == ("p3.ablation", "no_distillation", "exit3") {
        return numbers.cell("p3.text", NO_DISTILLATION_S3, "accuracy CUB")?.value;
    }
    let (.., row, col) = ACCURACIES.iter().find(|(p, m, e, ..)| (*p, *m, *e) == (page, method, exit))?;
    numbers.cell("p3.text", row, col)?.value
}

/// Every printed number of a page beside ours. Ours stands only beside a number of the same dataset.
pub(crate) fn lines(page: &str, exits: &[ExitRow], runs: &[(Planned, Record)]) -> Result<Vec<Line>> {
    let numbers = Published::builtin()?;
    let mine = numbers.cells.iter().filter(|c| page_of(c) == page);
    Ok(mine.map(|c| Line::new(c, ours(page, c, exits, runs))).collect())
}

fn ours(page: &str, cell: &PublishedCell, exits: &[ExitRow], runs: &[(Planned, Record)]) -> Option<f64> {
    let dataset = match page {
        "p3.nabirds" => "nabirds",
        "p3.dogs" => "dogs",
        _ => "cub",
    };
    let of =
        |method: &str| runs.iter().find(|(p, _)| p.method == method && p.dataset == dataset).map(|(_, r)| r);
    let row = |method: &str, exit: &str| {
        exits.iter().find(|e| e.method == method && e.exit == exit && e.dataset == dataset)
    };
    let mean = |method: &str, exit: &str| Some(row(method, exit)?.mean);
    let above = |method: &str, exit: &str| Some(mean(method, exit)? - mean(OURS, exit)?);
    let fall = |method: &str| Some(row(method, LAST)?.mean - row(method, LAST)?.vflip?);
    match (cell.row.as_str(), cell.col.as_str()) {
        (NO_DISTILLATION_S3, _) => mean("no_distillation", "exit3"),
        ("MKSMT against Swin-L", "parameters") => {
            let count = |method| Some(of(method)?.result.parameters as f64).filter(|count| *count > 0.0);
            Some(100.0 * (count(OURS)? / count(ALONE)? - 1.0))
        }
        ("MKSMT against Swin-L", _) => above(ALONE, LAST).map(|gap| -gap),
        ("Swin-L, vertical flip", _) => fall(ALONE),
        ("MKSMT, vertical flip", _) => fall(OURS),
        ("single step S4 below two steps S4", _) => above("single", LAST).map(|gap| -gap),
        ("asynchronous S3 above synchronous", _) => above("asynchronous", "exit3"),
        ("asynchronous S4 below synchronous", _) => above("asynchronous", LAST).map(|gap| -gap),
        ("feature distillation S4 below decision distillation", _) => above("features", LAST).map(|gap| -gap),
        ("lambda1 CUB", _) => setting(of(OURS)?, "lambda1"),
        ("lambda2 CUB", _) => setting(of(OURS)?, "lambda2"),
        (_, "T") => {
            let method =
                if cell.value == Some(1.0) { OURS.to_string() } else { format!("t{}", cell.printed) };
            setting(of(&method)?, "temperature")
        }
        (stage, "blocks") => blocks(of(OURS)?, stage),
        (_, "classes") => Some(of(OURS)?.info.classes.len() as f64),
        (_, "images") => {
            let facts = &of(OURS)?.result.summary;
            Some((facts.train_images + facts.test_images) as f64)
        }
        (row, col) => {
            let (_, method, exit, ..) =
                ACCURACIES.iter().find(|(p, .., r, c)| (*p, *r, *c) == (page, row, col))?;
            mean(method, exit)
        }
    }
}

/// One network of Table 7. These are the fields of the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeRow {
    /// Registry id.
    pub network: String,
    /// Parameters in millions.
    pub parameters_m: f64,
    /// Multiply-accumulates of one image in billions.
    pub macs_g: f64,
    /// Parameters in percent more than the first network's; none for the first.
    pub more_parameters: Option<f64>,
    /// As printed.
    pub published_more_parameters: Option<f64>,
    /// Multiply-accumulates in percent more than the first network's; "unchanged" in print.
    pub more_macs: Option<f64>,
}

/// Table 7: the networks beside the printed increase; the first is the backbone alone.
pub fn sizes(counted: &[Counted]) -> Result<Vec<SizeRow>> {
    let numbers = Published::builtin()?;
    let printed = numbers.cell("p3.text", "MKSMT against Swin-L", "parameters").and_then(|c| c.value);
    let more = |place: usize, of: &dyn Fn(&Counted) -> u64| {
        (place > 0).then(|| 100.0 * (of(&counted[place]) as f64 / of(&counted[0]).max(1) as f64 - 1.0))
    };
    let row = |(place, c): (usize, &Counted)| SizeRow {
        network: c.network.clone(),
        parameters_m: c.parameters as f64 / 1e6,
        macs_g: c.macs as f64 / 1e9,
        more_parameters: more(place, &|c| c.parameters),
        published_more_parameters: printed.filter(|_| place > 0),
        more_macs: more(place, &|c| c.macs),
    };
    Ok(counted.iter().enumerate().map(row).collect())
}

/// Table 7 for a terminal.
pub fn sizes_terminal(rows: &[SizeRow]) -> String {
    let mut columns = vec![("network", Align::Left)];
    for head in ["parameters M", "more %", "paper", "MACs G", "more %"] {
        columns.push((head, Align::Right));
    }
    let mut grid = Grid::new(&columns);
    let some = |v: Option<f64>| v.map_or_else(|| "-".to_string(), |v| format!("{v:.2}"));
    for r in rows {
        grid.row([
            r.network.clone(),
            format!("{:.2}", r.parameters_m),
            some(r.more_parameters),
            some(r.published_more_parameters),
            format!("{:.2}", r.macs_g),
            some(r.more_macs),
        ]);
    }
    format!(
        "Table 7 of MKSMT: size of the networks with 200 classes, one image of 384 x 384. Multiply-accumulates of \n\
         convolutions, linear layers and attention; MKSMT infers at its last exit, the early one counts with it here.\n\n{}",
        grid.terminal()
    )
}

/// A hyper-parameter of the run's self-distillation.
fn setting(run: &Record, key: &str) -> Option<f64> {
    let losses = run.info.get("loss")?.as_array()?;
    let own =
        losses.iter().find(|l| l.get("method").and_then(|m| m.as_str()) == Some("self_kl"))?.get(key)?;
    own.as_float().or(own.as_integer().map(|i| i as f64))
}

/// Blocks of a stage, `S1 blocks` to `S4 blocks`, of a Swin Transformer by its size.
fn blocks(run: &Record, stage: &str) -> Option<f64> {
    let body = run.info.backbone();
    let size = body.strip_prefix("swin_")?.split('_').next()?;
    let third = match size {
        "tiny" => 6.0,
        "small" | "base" | "large" => 18.0,
        _ => return None,
    };
    Some(if stage.starts_with("S3") { third } else { 2.0 })
}
