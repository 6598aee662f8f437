//! `stillhouse eval`.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, json};
use stillhouse_report::text::{Align, Grid};
use stillhouse_trainer::evaluate;

use crate::commands::common;
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse eval runs/mine
  stillhouse eval runs/mine --json
  stillhouse eval runs/mine --metric accuracy --metric calibration";

/// Test a finished run again on its own test images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run folder
    run: PathBuf,
    /// What to count; all that fit the labels where it is left out (`stillhouse list metrics`)
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, _threads: usize) -> Outcome {
    let context = common::context(&Paths::new(None), Arc::default());
    for metric in &args.metrics {
        context.registries.metrics.get(metric)?;
    }
    if !args.run.is_dir() {
        return Err(CliError::usage(format!("{}: no such folder", args.run.display()))
            .hint("give the folder of a run"));
    }
    let (info, evaluation) = evaluate(&args.run, &args.metrics, &context, |_, _| {}).prepared()?;
    let percent = evaluation.right.map(|r| 100.0 * r as f64 / evaluation.tested.max(1) as f64);
    if args.json {
        let scores: Map<String, serde_json::Value> = evaluation
            .scores
            .iter()
            .map(|s| (s.name.clone(), json!(Some(s.value).filter(|v| v.is_finite()))))
            .collect();
        output::print_json(&json!({
            "run": info.cell, "right": evaluation.right, "tested": evaluation.tested, "accuracy": percent,
            "scores": scores,
        }));
        return Ok(ExitStatus::Success);
    }
    let mut grid = Grid::new(&[("figure", Align::Left), ("value", Align::Right)]);
    for score in &evaluation.scores {
        let value = if score.value.is_finite() { format!("{:.4}", score.value) } else { "-".to_string() };
        grid.row([score.name.clone(), value]);
    }
    let right = match (evaluation.right, percent) {
        (Some(right), Some(percent)) => format!("{percent:.2} % right ({right}/{})", evaluation.tested),
        _ => format!("{} images", evaluation.tested),
    };
    output::print(&format!("{}: {right}\n\n{}", info.cell, grid.terminal()));
    Ok(ExitStatus::Success)
}
