//! `stillhouse weights export`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use stillhouse_backbones::weights_file::WeightsFile;
use stillhouse_backbones::{Card, Precision, export, load_weights, onnx, usual_size};
use stillhouse_core::data::{IMAGENET_MEAN, IMAGENET_STD};
use stillhouse_core::model::Model;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_trainer::{CellResult, Network as Trained, RunInfo};

use super::common;
use super::weights::{Network, build, must_be_new};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights export runs/mine --output exported
  stillhouse weights export runs/mine --output exported --onnx --dtype f16
  stillhouse weights export weights/resnet18.safetensors --arch resnet18 --output exported

Writes model.safetensors under timm's names, README.md (a model card) and, for networks that timm has,
config.json: timm.create_model('local-dir:exported', pretrained=True) gives the same logits. With --onnx also
model.onnx, in f32.";

/// Write a trained network for other programs: timm, ONNX
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run folder, or a file of weights with --arch
    from: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Element type of model.safetensors
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Write model.onnx too
    #[arg(long)]
    onnx: bool,
    /// Side of the images of model.onnx in pixels [default: that of the run]
    #[arg(long, value_name = "PX")]
    size: Option<usize>,
    /// License for the model card, as the hub spells it (mit, apache-2.0, cc-by-nc-4.0)
    #[arg(long, value_name = "NAME")]
    license: Option<String>,
    #[command(flatten)]
    network: Network,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Dtype {
    /// 32 bits
    F32,
    /// 16 bits
    F16,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    must_be_new(&args.output)?;
    let (network, params, mut card) = if args.from.is_dir() { of_run(&args.from)? } else { of_file(args)? };
    card.license.clone_from(&args.license);
    card.size = args.size.unwrap_or(card.size);
    let precision = match args.dtype {
        Dtype::F32 => Precision::F32,
        Dtype::F16 => Precision::F16,
    };
    // What ONNX lacks is told before anything is written.
    let onnx = args.onnx.then(|| as_onnx(network.as_ref(), &params, &card)).transpose()?;
    let (mut files, missing) = export(&params, &card, &args.output, precision)?;
    if let Some(bytes) = onnx {
        let path = args.output.join("model.onnx");
        stillhouse_core::fs::write_atomic(&path, &bytes)?;
        files.push(path);
    }
    if args.json {
        output::print_json(
            &json!({"files": files, "network": card.arch, "classes": card.class_count, "not_for_timm": missing}),
        );
        return Ok(ExitStatus::Success);
    }
    if let Some(why) = missing {
        output::status(&format!("note: {why}: timm cannot load it"));
    }
    let lines: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    output::print(&lines.join("\n"));
    Ok(ExitStatus::Success)
}

/// The student of a finished run as ONNX, with its classes and what its images are normalized by.
pub(crate) fn onnx_of_run(folder: &Path) -> Result<Vec<u8>, CliError> {
    let (network, params, card) = of_run(folder)?;
    as_onnx(network.as_ref(), &params, &card)
}

fn as_onnx(network: &dyn Model, params: &ParamStore, card: &Card) -> Result<Vec<u8>, CliError> {
    let about = onnx::About {
        name: card.arch.clone(),
        metadata: vec![
            ("mean".into(), card.mean.map(|v| v.to_string()).join(" ")),
            ("std".into(), card.std.map(|v| v.to_string()).join(" ")),
            ("classes".into(), card.classes.join("\n")),
        ],
    };
    Ok(onnx::model(network, params, (card.size, card.size), &["logits"], &about)?)
}

/// The student of a finished run.
fn of_run(folder: &Path) -> Result<(Box<dyn Model>, ParamStore, Card), CliError> {
    let (config, result) = (folder.join("config.toml"), folder.join("result.json"));
    if !result.is_file() {
        return Err(CliError::usage(format!("{}: no such file: is the run finished?", result.display())));
    }
    let info = RunInfo::read(&config).prepared()?;
    let result = CellResult::read(&result).prepared()?;
    let context = common::context(&Paths::new(None), Arc::default());
    let network = Trained::new(&context, &info.run.student, info.classes.len(), Rng::new(0)).prepared()?;
    let file = folder.join("student.safetensors");
    load_weights(&file, &network.params, &network.model.head(), false).prepared()?;
    let right = result.right.map(|right| format!("{right} of {} test images right", result.tested));
    let mut facts = vec![
        ("method".to_string(), info.method.clone()),
        (
            "data".to_string(),
            format!("{} ({} training images)", result.facts.title, result.facts.train_images),
        ),
        ("epochs".to_string(), result.epochs.to_string()),
        ("schedule".to_string(), result.facts.schedule.clone()),
        ("started from".to_string(), result.facts.init.clone()),
        ("seed".to_string(), result.seed.to_string()),
        ("run".to_string(), format!("{} {}, profile {}", info.cell, info.hash, info.profile)),
    ];
    facts.extend(right.map(|right| ("test".to_string(), right)));
    if let Some(teacher) = &result.facts.teacher {
        facts.push(("teacher".to_string(), teacher.model.clone()));
    }
    let card = Card {
        arch: info.run.student.model.clone(),
        variant: info.run.student.variant.clone(),
        class_count: info.classes.len(),
        classes: info.classes.clone(),
        size: info.run.data.image_size,
        mean: info.run.data.mean,
        std: info.run.data.std,
        license: None,
        facts,
    };
    Ok((network.model, network.params, card))
}

/// A file of weights of a network that is named.
fn of_file(args: &Args) -> Result<(Box<dyn Model>, ParamStore, Card), CliError> {
    if !args.from.is_file() {
        return Err(CliError::usage(format!("{}: no such file or folder", args.from.display())));
    }
    let file = WeightsFile::open(&args.from).prepared()?;
    let request = args.network.request_for(&file)?;
    let params = ParamStore::new(candle_core::DType::F32, &candle_core::Device::Cpu)?;
    let network = build(&request, &params)?;
    load_weights(&args.from, &params, &network.head(), false)?;
    let card = Card {
        size: usual_size(&request.name),
        arch: request.name,
        variant: request.variant,
        class_count: request.classes,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
        ..Card::default()
    };
    Ok((network, params, card))
}
