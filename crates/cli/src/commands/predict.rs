//! `stillhouse predict`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::D;
use serde_json::json;
use stillhouse_core::data::{
    BatchSource, Dataset, DatasetInfo, Image, Label, LoaderSpec, Sample, Sampler, Task,
};
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;
use stillhouse_trainer::{Context, Network, RunInfo};

use crate::commands::common;
use crate::commands::predict_masks::Segmenter;
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse predict runs/mine/student.safetensors image.jpg
  stillhouse predict runs/mine *.jpg --top 5
  stillhouse predict runs/mine/student.safetensors image.png --json
  stillhouse predict runs/streets *.png --output masks     a network for dense prediction: of each image
                                                           NAME-mask.png, NAME-overlay.png, areas by class

A network for dense prediction takes images of any size, at most 2^21 pixels at once: larger ones go in
tiles. A mask is a PNG of class indices with a palette. Class names, network and transforms are read from config.toml beside the weights, as a run leaves it.";

/// Images that are held in memory at a time.
const BATCH: usize = 32;

/// Classify images with a trained student, or their pixels
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Weights of a run (or its folder)
    student: PathBuf,
    /// Image files: JPEG, PNG, TIFF, BMP
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// How many classes to print, the likeliest first
    #[arg(long, default_value_t = 3, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    /// Where masks and overlays of a network for dense prediction go
    #[arg(long, default_value = "predictions", value_name = "DIR")]
    output: PathBuf,
    /// Print JSON, all classes of every image
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let context = common::context(&Paths::new(None), Arc::default());
    let (info, network) = open(&args.student, &context)?;
    let dense = network.model.features().iter().any(|tap| tap.name == "logits" && tap.stride > 0);
    if dense {
        return masks(args, &info, &network, &context);
    }
    let mut lines = Vec::new();
    let mut unread = 0;
    for files in args.images.chunks(BATCH) {
        let mut pictures = Vec::new();
        for file in files {
            match stillhouse_datasets::image::read_image(file) {
                Ok(image) => pictures.push((file.as_path(), image)),
                Err(e) => {
                    unread += 1;
                    output::status(&format!("error: {e}"));
                }
            }
        }
        if !pictures.is_empty() {
            lines.extend(classify(pictures, &info, &network, &context)?);
        }
    }
    if args.json {
        output::print_json(&serde_json::Value::Array(lines.iter().map(|l| l.json()).collect()));
    } else {
        let text: Vec<String> = lines.iter().map(|l| l.readable(usize::from(args.top))).collect();
        if !text.is_empty() {
            output::print(&text.join("\n"));
        }
    }
    Ok(if unread == 0 { ExitStatus::Success } else { ExitStatus::Failure })
}

/// Masks of all images, one after the other.
fn masks(args: &Args, info: &RunInfo, network: &Network, context: &Context) -> Outcome {
    let mut segmenter = Segmenter::new(info, network, context, args.output.clone())?;
    let (mut found, mut unread) = (Vec::new(), 0);
    for file in &args.images {
        match stillhouse_datasets::image::read_image(file) {
            Ok(image) => {
                let one = segmenter.segment(file, image)?;
                if !args.json {
                    output::print(&one.readable(usize::from(args.top)));
                }
                found.push(one.json());
            }
            Err(e) => {
                unread += 1;
                output::status(&format!("error: {e}"));
            }
        }
    }
    if args.json {
        output::print_json(&serde_json::Value::Array(found));
    }
    Ok(if unread == 0 { ExitStatus::Success } else { ExitStatus::Failure })
}

/// The network of a run, with the weights of this file.
fn open(student: &Path, context: &Context) -> Result<(RunInfo, Network), CliError> {
    let file = if student.is_dir() { student.join("student.safetensors") } else { student.to_path_buf() };
    if !file.is_file() {
        return Err(CliError::usage(format!("{}: no such file", file.display()))
            .hint("give the student.safetensors of a finished run"));
    }
    let config = file.with_file_name("config.toml");
    if !config.is_file() {
        return Err(CliError::usage(format!(
            "{}: no such file; it tells the network and its classes",
            config.display()
        ))
        .hint("keep student.safetensors together with the config.toml of its run"));
    }
    let info = RunInfo::read(&config).prepared()?;
    let network = Network::new(context, &info.run.student, info.classes.len(), Rng::new(0)).prepared()?;
    let head = network.model.head();
    (context.registries.load_weights)(&file, &network.params, &head, false).prepared()?;
    Ok((info, network))
}

/// Probabilities of one image, the likeliest first.
struct Line {
    file: String,
    classes: Vec<(String, f32)>,
}

impl Line {
    fn json(&self) -> serde_json::Value {
        let classes: Vec<_> =
            self.classes.iter().map(|(name, p)| json!({"class": name, "probability": p})).collect();
        json!({"image": self.file, "classes": classes})
    }

    fn readable(&self, top: usize) -> String {
        let classes: Vec<String> =
            self.classes.iter().take(top).map(|(name, p)| format!("{name} {:.1} %", 100.0 * p)).collect();
        format!("{}: {}", self.file, classes.join(", "))
    }
}

fn classify(
    pictures: Vec<(&Path, Image)>,
    info: &RunInfo,
    network: &Network,
    context: &Context,
) -> Result<Vec<Line>, CliError> {
    let files: Vec<String> = pictures.iter().map(|(file, _)| file.display().to_string()).collect();
    let set = Arc::new(Pictures::new(info, pictures));
    let spec = LoaderSpec {
        indices: (0..set.len()).collect(),
        sampler: Sampler::Sequential { batch: BATCH },
        transforms: info.run.data.normalized(&info.run.data.test_transforms),
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let mut loader: Box<dyn BatchSource> = (context.registries.loader)(set, &spec)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&["logits"]);
    let mut lines = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        tape.begin(Rng::new(0), 0);
        let features = network.model.forward(&batch.images, &mut tape)?;
        let logits = features.logits()?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?; // [B, N]
        let rows = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?.to_vec2::<f32>()?;
        for (row, id) in rows.into_iter().zip(&batch.ids) {
            let mut classes: Vec<(String, f32)> = info.classes.iter().cloned().zip(row).collect();
            classes.sort_by(|a, b| b.1.total_cmp(&a.1));
            lines.push(Line { file: files[*id as usize].clone(), classes });
        }
    }
    Ok(lines)
}

/// Images given by the person, as a dataset without labels.
pub(crate) struct Pictures {
    info: DatasetInfo,
    images: Vec<(String, Image)>,
}

impl Pictures {
    pub(crate) fn new(info: &RunInfo, images: Vec<(&Path, Image)>) -> Self {
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

impl Dataset for Pictures {
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
