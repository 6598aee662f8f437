//! `stillhouse eval`: evaluates a finished run again.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, json};
use stillhouse_report::text_table::{Align, TextTable};
use stillhouse_trainer::evaluate;

use crate::commands::common;
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse eval runs/mine
  stillhouse eval runs/mine --json
  stillhouse eval runs/mine --metric accuracy --metric calibration
  stillhouse eval runs/mine --path /data/moved          the same images in another folder
  stillhouse eval runs/mine --set data.cache_mib=0 --set eval.batch=8";

/// Evaluate a finished run on its test images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run folder
    run: PathBuf,
    /// Metrics [default: all that support the labels] (`stillhouse list metrics`)
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<String>,
    /// Folder of the images, if they were moved since the training
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Override a setting of `data` or `eval`, for example eval.batch=8
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
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
            .hint("expected the folder of a finished run"));
    }
    let mut overrides = toml::Table::new();
    for assignment in &args.set {
        stillhouse_core::config::set(&mut overrides, assignment)?;
    }
    if let Some(path) = &args.path {
        let path = std::path::absolute(path).map_err(stillhouse_core::Error::io(path))?;
        let Some(path) = path.to_str() else {
            return Err(CliError::usage(format!("{}: the path is not UTF-8", path.display())));
        };
        stillhouse_core::config::set(&mut overrides, &format!("data.path={}", toml::Value::from(path)))?;
    }
    let (info, evaluation) =
        evaluate(&args.run, &args.metrics, &overrides, &context, |_, _| {}).prepared()?;
    let percent = evaluation.correct.map(|c| 100.0 * c as f64 / evaluation.total.max(1) as f64);
    if args.json {
        let scores: Map<String, serde_json::Value> = evaluation
            .scores
            .iter()
            .map(|s| (s.name.clone(), json!(Some(s.value).filter(|v| v.is_finite()))))
            .collect();
        output::print_json(&json!({
            "run": info.cell, "correct": evaluation.correct, "total": evaluation.total, "accuracy": percent,
            "scores": scores,
        }));
        return Ok(ExitStatus::Success);
    }
    let mut grid = TextTable::new(&[("figure", Align::Left), ("value", Align::Right)]);
    for score in &evaluation.scores {
        let value = if score.value.is_finite() { format!("{:.4}", score.value) } else { "-".to_string() };
        grid.push([score.name.clone(), value]);
    }
    let right = match (evaluation.correct, percent) {
        (Some(correct), Some(percent)) => format!("{percent:.2} % correct ({correct}/{})", evaluation.total),
        _ => format!("{} images", evaluation.total),
    };
    output::print(&format!("{}: {right}\n\n{}", info.cell, grid.terminal()));
    Ok(ExitStatus::Success)
}
