//! `stillhouse data split`.

use std::path::PathBuf;

use stillhouse_core::data::{SplitMode, SplitSpec};
use stillhouse_datasets::list_field;

use super::DatasetArgs;
use crate::error::{ExitStatus, Outcome, Prepared};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse data split aid --ratio 60 --seed 3 --output splits/aid
  stillhouse data split cub --mode official --output splits/cub

Writes train.txt and test.txt with a line per image: its key and, after a tab, its class. A run with the
same ratio, mode and seed uses the same split. A split that the folders define takes precedence.";

/// Write the image lists of a split
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Percentage of training images
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..100))]
    ratio: u32,
    /// Seed of the split
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Split mode
    #[arg(long, value_enum, default_value_t = Mode::Stratified)]
    mode: Mode,
    /// Output folder
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Split each class by the ratio
    Stratified,
    /// Split all images by the ratio
    GlobalRandom,
    /// Use the dataset's own lists
    Official,
}

pub(super) fn run(args: &Args) -> Outcome {
    let set = args.dataset.open()?;
    let (mode, ratio) = match args.mode {
        Mode::Stratified => (SplitMode::Stratified, f64::from(args.ratio) / 100.0),
        Mode::GlobalRandom => (SplitMode::GlobalRandom, f64::from(args.ratio) / 100.0),
        Mode::Official => (SplitMode::Official, 0.0),
    };
    let spec = SplitSpec { ratio, mode, seed: args.seed, per_class: None };
    let split = stillhouse_datasets::split(set.as_ref(), &spec).prepared()?;
    for (name, list) in [("train", &split.train), ("test", &split.test)] {
        let mut text = String::new();
        for &index in list {
            text.push_str(&list_field(&set.key(index)));
            if let Some(class) = set.class(index) {
                text.push_str(&format!("\t{}", set.info().classes[class as usize]));
            }
            text.push('\n');
        }
        let path = args.output.join(format!("{name}.txt"));
        stillhouse_core::fs::write_atomic(&path, text.as_bytes())?;
        output::print(&format!("{}: {} images", path.display(), list.len()));
    }
    Ok(ExitStatus::Success)
}
