//! `stillhouse weights check`.

use std::path::Path;

use serde_json::json;
use stillhouse_backbones::Error as WeightsError;
use stillhouse_backbones::weights::{
    Manifest, WeightsFile, compare_weights, find_weights, manifests, non_finite, similar_models,
};
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
  stillhouse weights check my.pth                     state dicts, and the models that they fit
  stillhouse weights check my.pth --arch resnet18     key, prefix, naming scheme, head, what is left out

Exits with 1 if a file differs from its manifest, does not match the model, or has values that are not finite.";

/// Maximum number of tensors that are listed.
const MAX_SHOWN: usize = 10;

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
        Some(target) if Path::new(target).exists() || target.contains(std::path::is_separator) => {
            check_file(Path::new(target), args)
        }
        target => check_manifests(target.as_deref(), args),
    }
}

fn check_file(path: &Path, args: &Args) -> Outcome {
    let file = WeightsFile::open(path)?;
    let mut result = json!({
        "file": path,
        "format": file.format().to_string(),
        "sha256": file.sha256()?,
        "metadata": file.metadata(),
        "state_dicts": file.state_dicts().iter().map(|dict| {
            let values: usize = dict.tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
            json!({"key": dict.key, "tensors": dict.tensors.len(), "values": values})
        }).collect::<Vec<_>>(),
    });
    let mut lines = vec![("file", path.display().to_string()), ("sha256", file.sha256()?)];
    let mut fits = true;
    if args.model.arch.is_some() {
        let spec = args.model.spec(&file)?;
        let params = ParamStore::meta();
        let model = build(&spec, &params)?;
        let report = compare_weights(&file, &params, &model.head(), &args.model.options(true))?;
        fits = report.matches();
        lines.push(("model", format!("{} with {} classes", spec.name, spec.classes)));
        lines.extend(report.lines());
        if !fits {
            let similar = similar_models(&file)?;
            lines.extend((!similar.is_empty()).then(|| ("similar", similar.join(", "))));
            result["similar"] = json!(similar);
        }
        result["model"] = json!(spec.name);
        result["classes"] = json!(spec.classes);
        result["report"] = json!(report);
    } else {
        let similar = similar_models(&file)?;
        lines.push(("format", file.format().to_string()));
        lines.extend(file.state_dicts().iter().map(|dict| ("holds", dict.title())));
        let hint =
            if similar.is_empty() { "none known; compare it by --arch".into() } else { similar.join(", ") };
        lines.push(("fits", hint));
        result["similar"] = json!(similar);
    }
    let tensors = file.state_dicts().iter().flat_map(|dict| &dict.tensors);
    let not_finite = non_finite(&file, tensors)?;
    result["not_finite"] = json!(not_finite);
    for line in not_finite.iter().take(MAX_SHOWN) {
        lines.push(("not finite", line.clone()));
    }
    if let Some(more) = not_finite.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
        lines.push(("not finite", format!("and {more} more tensors")));
    }
    if args.json {
        output::print_json(&result);
    } else {
        let lines: Vec<String> = lines.iter().map(|(what, text)| format!("{what:<12}{text}")).collect();
        output::print(&lines.join("\n"));
    }
    Ok(if fits && not_finite.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
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
