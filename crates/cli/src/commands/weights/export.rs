//! `stillhouse weights export`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use stillhouse_backbones::default_image_size;
use stillhouse_backbones::weights::{
    ModelCard, Precision, Preprocessing, WeightsFile, export, load_weights, onnx,
};
use stillhouse_core::data::{IMAGENET_MEAN, IMAGENET_STD};
use stillhouse_core::model::Model;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_runs::RunDir;
use stillhouse_trainer::{Network, RunInfo};

use super::{ModelArgs, build, require_new};
use crate::commands::common;
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights export runs/mine --output exported
  stillhouse weights export runs/mine --output exported --onnx --dtype f16
  stillhouse weights export weights/resnet18.safetensors --arch resnet18 --output exported

Writes model.safetensors with timm's names, README.md (a model card) and, for models that timm has, config.json,
so that timm.create_model('local-dir:exported', pretrained=True) computes the same logits. --onnx adds model.onnx
in f32. Resize, crop, mean and standard deviation of the run are in config.json, the model card and the metadata.";

/// Export a trained model for timm or as ONNX
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run folder, or a weights file with --arch
    from: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Element type of model.safetensors
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Also write model.onnx
    #[arg(long)]
    onnx: bool,
    /// Image size of model.onnx in pixels [default: that of the run]
    #[arg(long, value_name = "PX")]
    size: Option<usize>,
    /// License identifier for the model card (mit, apache-2.0, cc-by-nc-4.0)
    #[arg(long, value_name = "NAME")]
    license: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
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
    require_new(&args.output)?;
    let (model, params, mut card) = if args.from.is_dir() { load_run(&args.from)? } else { load_file(args)? };
    card.license.clone_from(&args.license);
    card.size = args.size.map_or(card.size, |side| (side, side));
    let precision = match args.dtype {
        Dtype::F32 => Precision::F32,
        Dtype::F16 => Precision::F16,
    };
    // Unsupported models fail before any file is written.
    let onnx = args.onnx.then(|| encode_onnx(model.as_ref(), &params, &card)).transpose()?;
    let (mut files, timm_error) = export(&params, &card, &args.output, precision)?;
    if let Some(bytes) = onnx {
        let path = args.output.join("model.onnx");
        stillhouse_core::fs::write_atomic(&path, &bytes)?;
        files.push(path);
    }
    if args.json {
        output::print_json(
            &json!({"files": files, "model": card.arch, "classes": card.class_count, "timm_error": timm_error}),
        );
        return Ok(ExitStatus::Success);
    }
    if let Some(reason) = timm_error {
        output::status(&format!("note: timm cannot load this model: {reason}"));
    }
    let lines: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    output::print(&lines.join("\n"));
    Ok(ExitStatus::Success)
}

/// Encodes the student of a finished run as ONNX, with class names, mean and standard deviation.
pub(crate) fn onnx_of_run(folder: &Path) -> Result<Vec<u8>, CliError> {
    let (model, params, card) = load_run(folder)?;
    encode_onnx(model.as_ref(), &params, &card)
}

fn encode_onnx(model: &dyn Model, params: &ParamStore, card: &ModelCard) -> Result<Vec<u8>, CliError> {
    let mut metadata = card.input_metadata();
    metadata.push(("classes".into(), card.classes.join("\n")));
    let info = onnx::OnnxInfo { name: card.arch.clone(), metadata };
    Ok(onnx::encode(model, params, card.size, &["logits"], &info)?)
}

/// Loads the student of a finished run.
fn load_run(folder: &Path) -> Result<(Box<dyn Model>, ParamStore, ModelCard), CliError> {
    let run = RunDir::new(folder);
    let info: RunInfo = run.info().prepared()?;
    let Some(result) = run.result().prepared()? else {
        return Err(CliError::usage(format!("unfinished run: {}: missing result.json", folder.display())));
    };
    let context = common::context(&Paths::new(None), Arc::default());
    let network = Network::new(&context, &info.run.student, info.classes.len(), Rng::new(0)).prepared()?;
    load_weights(&run.student_path(), &network.params, &network.model.head(), &LoadOptions::default())
        .prepared()?;
    let accuracy = result.correct.map(|correct| format!("{correct} of {} test images correct", result.total));
    let mut facts = vec![
        ("method".to_string(), info.method.clone()),
        (
            "data".to_string(),
            format!("{} ({} training images)", result.summary.title, result.summary.train_images),
        ),
        ("epochs".to_string(), result.epochs.to_string()),
        ("schedule".to_string(), result.summary.schedule.clone()),
        ("initialization".to_string(), result.summary.init.clone()),
        ("seed".to_string(), result.seed.to_string()),
        ("run".to_string(), format!("{} {}, profile {}", info.cell, info.hash, info.profile)),
    ];
    facts.extend(accuracy.map(|text| ("test".to_string(), text)));
    if let Some(teacher) = &result.summary.teacher {
        facts.push(("teacher".to_string(), teacher.model.clone()));
    }
    let card = ModelCard {
        arch: info.run.student.model.clone(),
        variant: info.run.student.variant.clone(),
        class_count: info.classes.len(),
        classes: info.classes.clone(),
        size: info.run.data.size(),
        preprocessing: Preprocessing::from_transforms(&info.run.data.test_transforms),
        mean: info.run.data.mean,
        std: info.run.data.std,
        license: None,
        facts,
    };
    Ok((network.model, network.params, card))
}

/// Loads a weights file of the model of `--arch`.
fn load_file(args: &Args) -> Result<(Box<dyn Model>, ParamStore, ModelCard), CliError> {
    if !args.from.is_file() {
        return Err(CliError::usage(format!("no such file or folder: {}", args.from.display())));
    }
    let file = WeightsFile::open(&args.from).prepared()?;
    let spec = args.model.spec(&file)?;
    let params = ParamStore::new(candle_core::DType::F32, &candle_core::Device::Cpu)?;
    let model = build(&spec, &params)?;
    let notes = load_weights(&args.from, &params, &model.head(), &args.model.options(false))?;
    for note in notes {
        output::status(&format!("note: {note}"));
    }
    let side = default_image_size(&spec.name);
    let card = ModelCard {
        size: (side, side),
        arch: spec.name,
        variant: spec.variant,
        class_count: spec.classes,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
        ..ModelCard::default()
    };
    Ok((model, params, card))
}
