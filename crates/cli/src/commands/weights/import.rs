//! `stillhouse weights import`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device};
use serde_json::json;
use stillhouse_backbones::weights::{WeightsFile, compare_weights, load_weights, save};
use stillhouse_core::ParamStore;

use super::{ModelArgs, build, require_new};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights import swin_t-704ceda3.pth --arch swin_tiny_patch4_window7_224 --output swin.safetensors
  stillhouse weights import pytorch_model.bin --arch resnet50 --output resnet50.safetensors

Reads safetensors and PyTorch checkpoints (without executing them) in f16, bf16, f32 or f64, with the names of
timm, torchvision, Hugging Face or the Swin Transformer's authors, below any key and with any prefix. Writes f32
with timm's names. See docs/weights.md.";

/// Convert a weights file to safetensors with timm's names
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// File
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// File to write, .safetensors
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Initialize the head if the file has none or has a different number of classes
    #[arg(long)]
    new_head: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    if args.output.extension().is_none_or(|e| e != "safetensors") {
        return Err(CliError::usage(format!(
            "invalid output: expected a .safetensors file, found {}",
            args.output.display()
        )));
    }
    require_new(&args.output)?;
    let file = WeightsFile::open(&args.file).prepared()?;
    let spec = args.model.spec(&file)?;
    let params = ParamStore::new(DType::F32, &Device::Cpu)?;
    let model = build(&spec, &params)?;
    let head = model.head();
    let options = args.model.options(args.new_head);
    let report = compare_weights(&file, &params, &head, &options)?;
    let notes = load_weights(&args.file, &params, &head, &options)?;
    let mut metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        ("arch".to_string(), spec.name.clone()),
        ("classes".to_string(), spec.classes.to_string()),
        ("source_sha256".to_string(), file.sha256()?),
    ]);
    if !spec.variant.is_empty() {
        metadata.insert("variant".into(), spec.variant.to_string().trim().replace('\n', "; "));
    }
    save(&params, &args.output, &metadata)?;
    if args.json {
        output::print_json(&json!({
            "file": args.output, "model": spec.name, "classes": spec.classes,
            "source_format": file.format().to_string(), "report": report,
        }));
        return Ok(ExitStatus::Success);
    }
    for line in &notes {
        output::status(&format!("note: {line}"));
    }
    output::print(&format!(
        "{}: {} with {} classes, {} parameters from names of {}",
        args.output.display(),
        spec.name,
        spec.classes,
        report.matched,
        report.naming
    ));
    Ok(ExitStatus::Success)
}
