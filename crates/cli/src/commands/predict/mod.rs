//! `stillhouse predict`: classes or masks for images.

mod classify;
mod segment;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, DatasetInfo, Image, Label, Sample, Task, WHITE_LEVEL};
use stillhouse_core::weights::LoadOptions;
use stillhouse_trainer::{CellConfig, Context, Network, RunInfo};

use self::classify::classify;
use self::segment::Segmenter;
use crate::commands::common;
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse predict runs/mine/student.safetensors image.jpg
  stillhouse predict runs/mine *.jpg --top 5
  stillhouse predict runs/mine/student.safetensors image.png --json
  stillhouse predict runs/streets *.png --output masks     segmentation: NAME-mask.png and NAME-overlay.png
                                                           per image, and the area of each class

Segmentation models take images of any size; images over 2^21 pixels are processed in tiles. A mask is a
PNG of class indices with a palette. Class names, model and transforms are read from the config.toml next
to the weights.";

/// Images per batch.
const BATCH: usize = 32;

/// Classify or segment images with a trained student
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Weights of a run, or its folder
    student: PathBuf,
    /// Image files (JPEG, PNG, TIFF, BMP)
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Number of classes to print, most probable first
    #[arg(long, default_value_t = 3, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// Output folder for masks and overlays (segmentation only)
    #[arg(long, default_value = "predictions", value_name = "DIR")]
    output: PathBuf,
    /// Print all classes of every image as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let context = common::context(&Paths::new(None), Arc::default());
    let (info, network) = load_model(&args.student, &context)?;
    let dense = network.model.features().iter().any(|feature| feature.name == "logits" && feature.stride > 0);
    if dense {
        return segment_all(args, &info, &network, &context);
    }
    let mut results = Vec::new();
    let mut failed = 0;
    for files in args.images.chunks(BATCH) {
        let mut images = Vec::new();
        for file in files {
            match stillhouse_datasets::decode::read_image(file, white_level(&info.run)) {
                Ok(image) => images.push((file.as_path(), image)),
                Err(e) => {
                    failed += 1;
                    output::status(&format!("error: {e}"));
                }
            }
        }
        if !images.is_empty() {
            results.extend(classify(images, &info, &network, &context)?);
        }
    }
    if args.json {
        output::print_json(&serde_json::Value::Array(results.iter().map(|r| r.to_json()).collect()));
    } else {
        let text: Vec<String> = results.iter().map(|r| r.to_text(usize::from(args.top))).collect();
        if !text.is_empty() {
            output::print(&text.join("\n"));
        }
    }
    Ok(if failed == 0 { ExitStatus::Success } else { ExitStatus::Failure })
}

/// Returns the 16-bit value that was white in the training images.
fn white_level(run: &CellConfig) -> Option<u16> {
    run.data.options.get(WHITE_LEVEL)?.as_integer().and_then(|value| value.try_into().ok())
}

/// Segments all images, one at a time.
fn segment_all(args: &Args, info: &RunInfo, network: &Network, context: &Context) -> Outcome {
    let mut segmenter = Segmenter::new(info, network, context, args.output.clone())?;
    let (mut results, mut failed) = (Vec::new(), 0);
    for file in &args.images {
        match stillhouse_datasets::decode::read_image(file, white_level(&info.run)) {
            Ok(image) => {
                let result = segmenter.segment(file, image)?;
                if !args.json {
                    output::print(&result.to_text(usize::from(args.top)));
                }
                results.push(result.to_json());
            }
            Err(e) => {
                failed += 1;
                output::status(&format!("error: {e}"));
            }
        }
    }
    if args.json {
        output::print_json(&serde_json::Value::Array(results));
    }
    Ok(if failed == 0 { ExitStatus::Success } else { ExitStatus::Failure })
}

/// Loads the model of a run with the weights of a file.
fn load_model(student: &Path, context: &Context) -> Result<(RunInfo, Network), CliError> {
    let file = if student.is_dir() { student.join("student.safetensors") } else { student.to_path_buf() };
    if !file.is_file() {
        return Err(CliError::usage(format!("{}: no such file", file.display()))
            .hint("give the student.safetensors of a finished run"));
    }
    let config = file.with_file_name("config.toml");
    if !config.is_file() {
        return Err(CliError::usage(format!(
            "{}: no such file; it names the model and its classes",
            config.display()
        ))
        .hint("keep student.safetensors next to the config.toml of its run"));
    }
    let text = std::fs::read_to_string(&config).map_err(stillhouse_core::Error::io(&config)).prepared()?;
    let info = RunInfo::parse(&text, &config).prepared()?;
    let network = Network::new(context, &info.run.student, info.classes.len(), Rng::new(0)).prepared()?;
    let head = network.model.head();
    (context.registries.load_weights)(&file, &network.params, &head, &LoadOptions::default()).prepared()?;
    Ok((info, network))
}

/// In-memory images as a dataset without labels.
struct UnlabeledImages {
    info: DatasetInfo,
    images: Vec<(String, Image)>,
}

impl UnlabeledImages {
    fn new(info: &RunInfo, images: Vec<(&Path, Image)>) -> Self {
        let info = DatasetInfo {
            name: "images".to_string(),
            title: "images".to_string(),
            classes: info.classes.clone(),
            task: Task::Classification,
            synthetic: false,
        };
        let images = images.into_iter().map(|(file, image)| (file.display().to_string(), image)).collect();
        Self { info, images }
    }
}

impl Dataset for UnlabeledImages {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn key(&self, index: usize) -> String {
        self.images[index].0.clone()
    }

    fn class(&self, _index: usize) -> Option<u32> {
        Some(0)
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        Ok(Sample { id: index as u64, image: self.images[index].1.clone(), label: Label::Class(0) })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        Ok(String::new())
    }
}
