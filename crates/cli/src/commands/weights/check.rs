//! `stillhouse weights check`.

use std::path::Path;

use serde_json::json;
use stillhouse_backbones::Error as WeightsError;
use stillhouse_backbones::weights::{
    LoadReport, Manifest, WeightsFile, compare_weights, find_weights, manifests,
};
use stillhouse_core::fs::sha256_file;
use stillhouse_core::{Error as CoreError, ParamStore};
use stillhouse_report::text_table::{Align, TextTable};

use super::{ModelArgs, build};
use crate::error::{ExitStatus, Outcome};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights check                            all manifests
  stillhouse weights check resnet50
  stillhouse weights check my.pth --arch resnet18     naming scheme, missing and unexpected tensors

Exits with 1 if a file differs from its manifest or does not match the model.";

/// Verify weights files against their manifests, or compare a file with a model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Model with a manifest, or a file [default: all manifests]
    target: Option<String>,
    /// Name of the weights
    #[arg(long, default_value = "imagenet", value_name = "NAME")]
    name: String,
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match &args.target {
        Some(target) if Path::new(target).is_file() => check_file(Path::new(target), args),
        target => check_manifests(target.as_deref(), args),
    }
}

fn check_file(path: &Path, args: &Args) -> Outcome {
    let file = WeightsFile::open(path)?;
    let values: usize = file.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
    let mut result = json!({
        "file": path,
        "format": file.format().to_string(),
        "tensors": file.tensors().len(),
        "values": values,
        "sha256": sha256_file(path)?,
        "metadata": file.metadata(),
    });
    let mut report = None;
    if args.model.arch.is_some() {
        let spec = args.model.spec(&file)?;
        let params = ParamStore::meta();
        let model = build(&spec, &params)?;
        let found = compare_weights(&file, &params, &model.head(), false);
        result["model"] = json!(spec.name);
        result["classes"] = json!(spec.classes);
        result["report"] = json!(found);
        report = Some(found);
    }
    if args.json {
        output::print_json(&result);
    } else {
        let mut text = format!(
            "{}: {}, {} tensors, {values} values\nsha256  {}\n",
            path.display(),
            file.format(),
            file.tensors().len(),
            result["sha256"].as_str().unwrap_or_default()
        );
        match &report {
            Some(report) => {
                text.push_str(&format_report(report, result["model"].as_str().unwrap_or_default()))
            }
            None => text.push_str("compare the file with a model by --arch\n"),
        }
        output::print(&text);
    }
    Ok(if report.is_none_or(|r| r.matches()) { ExitStatus::Success } else { ExitStatus::Failure })
}

fn format_report(report: &LoadReport, model: &str) -> String {
    let mut text = format!("names   {}\n{model:<8}{} parameters match\n", report.naming, report.matched);
    let lists = [
        ("missing", &report.missing),
        ("unexpected", &report.unexpected),
        ("different shape or type", &report.mismatched),
        ("note", &report.skipped),
    ];
    for (what, list) in lists {
        for line in list {
            text.push_str(&format!("{what}: {line}\n"));
        }
    }
    text
}

fn check_manifests(arch: Option<&str>, args: &Args) -> Outcome {
    let all = match arch {
        Some(arch) => vec![Manifest::find(arch, &args.name)?],
        None => manifests()?,
    };
    let roots = Paths::new(None).weights;
    let mut rows = Vec::new();
    let mut status = ExitStatus::Success;
    for manifest in all {
        let found = find_weights(&manifest.arch, &manifest.variant, &manifest.name.as_str().into(), &roots);
        let (state, file, sha256) = match found {
            Ok(info) => {
                let state = match manifest.sha256.len() {
                    64 => "verified",
                    0 => "found; no hash is published",
                    _ => "found; matches the published hash prefix",
                };
                (state.to_string(), Some(info.path), Some(info.sha256))
            }
            Err(CoreError::Other(e)) => match e.downcast_ref::<WeightsError>() {
                Some(WeightsError::NotFound { .. }) if arch.is_none() => {
                    ("not found".to_string(), None, None)
                }
                _ => {
                    status = ExitStatus::Failure;
                    (e.to_string(), None, None)
                }
            },
            Err(e) => return Err(e.into()),
        };
        rows.push(json!({"weights": manifest.title(), "state": state, "file": file, "sha256": sha256}));
    }
    if args.json {
        output::print_json(&json!(rows));
        return Ok(status);
    }
    let mut table =
        TextTable::new(&[("weights", Align::Left), ("state", Align::Left), ("sha256", Align::Left)]);
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        table.push([text("weights"), text("state"), text("sha256")]);
    }
    output::print(&table.terminal());
    Ok(status)
}
