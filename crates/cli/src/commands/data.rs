//! `stillhouse data`.

use std::path::PathBuf;
use std::sync::Arc;

use stillhouse_core::data::{Dataset, SplitMode, SplitSpec};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::stats;
use stillhouse_report::text::{Align, Grid};

use super::fetch;
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::paths::Paths;
use crate::{output, registries};

const CHECK_EXAMPLES: &str = "\
Examples:
  stillhouse data check ucm                           in the folders that `stillhouse doctor` names
  stillhouse data check ucm --root /data --json
  stillhouse data check cub --subset                  a part of the set: counts are no faults
  stillhouse data check folder --path my/images       any folder with one folder of images per class

The exit code is 1 where something is wrong: layout, lists, labels, counts, broken files, masks,
images that stand in two splits or two classes.";

const STATS_EXAMPLES: &str = "\
Examples:
  stillhouse data stats ucm
  stillhouse data stats camvid --sheet camvid.png     eight images of each class, or images and masks";

const SPLIT_EXAMPLES: &str = "\
Examples:
  stillhouse data split aid --ratio 60 --seed 3 --output splits/aid
  stillhouse data split cub --mode official --output splits/cub

Writes train.txt and test.txt: a line for each image, its name and, after a tab, its class. They are the
splits that a run with the same ratio, mode and seed draws.";

/// Look after datasets
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    Check(Check),
    Stats(Stats),
    Split(Split),
    Fetch(fetch::Args),
}

/// Which dataset, and where it is.
#[derive(Debug, clap::Args)]
struct Which {
    /// Dataset (`stillhouse list datasets`)
    name: String,
    /// Folder that holds it; instead of those of the environment
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The set's own folder; for `folder` that of the class folders
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

impl Which {
    fn request(&self) -> Result<DatasetRequest, CliError> {
        // An unknown name is answered with the nearest one.
        registries::registries().datasets.get(&self.name)?;
        Ok(DatasetRequest {
            name: self.name.clone(),
            roots: self.root.clone().map_or_else(|| Paths::new(None).data, |root| vec![root]),
            // `folder` has no layout of its own: its root is its path.
            path: self.path.clone().or_else(|| self.root.clone().filter(|_| self.name == "folder")),
            options: toml::Table::new(),
        })
    }

    fn open(&self) -> Result<Arc<dyn Dataset>, CliError> {
        (registries::registries().datasets.get(&self.name)?.build)(&self.request()?).prepared()
    }
}

/// Read every file of a dataset, and compare what is there with its manifest
#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(crate) struct Check {
    #[command(flatten)]
    which: Which,
    /// A part of the official set is meant: counts are reported and are no faults
    #[arg(long)]
    subset: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Count classes, sizes and colors, and draw a contact sheet
#[derive(Debug, clap::Args)]
#[command(after_help = STATS_EXAMPLES)]
pub(crate) struct Stats {
    #[command(flatten)]
    which: Which,
    /// Write a contact sheet there, a PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write the lists of a split
#[derive(Debug, clap::Args)]
#[command(after_help = SPLIT_EXAMPLES)]
pub(crate) struct Split {
    #[command(flatten)]
    which: Which,
    /// Per cent of the images that train
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..100))]
    ratio: u32,
    /// Seed of the split
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How it is cut
    #[arg(long, value_enum, default_value_t = Mode::Stratified)]
    mode: Mode,
    /// Folder of the lists
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Each class by itself
    Stratified,
    /// All images at once
    GlobalRandom,
    /// The dataset's own lists
    Official,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match args {
        Args::Check(args) => check(args),
        Args::Stats(args) => statistics(args),
        Args::Split(args) => split(args),
        Args::Fetch(args) => fetch::run(args),
    }
}

fn check(args: &Check) -> Outcome {
    let report = stillhouse_datasets::check(&args.which.request()?, args.subset).prepared()?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["ok"] = report.is_ok().into();
        output::print_json(&value);
    } else {
        output::print(&report.to_string());
    }
    Ok(if report.is_ok() { ExitStatus::Success } else { ExitStatus::Failure })
}

fn statistics(args: &Stats) -> Outcome {
    let set = args.which.open()?;
    let found = stats::stats(set.as_ref())?;
    if let Some(path) = &args.sheet {
        let sheet = stats::contact_sheet(set.as_ref(), 8, 96)?;
        let bytes = stats::png(&sheet).map_err(stillhouse_core::Error::from)?;
        stillhouse_core::fs::write_atomic(path, &bytes)?;
        output::status(&format!("contact sheet: {}", path.display()));
    }
    if args.json {
        output::print_json(&serde_json::to_value(&found)?);
        return Ok(ExitStatus::Success);
    }
    let labeled: u64 = found.classes.iter().map(|c| c.pixels).sum();
    let mut grid = Grid::new(&[("class", Align::Left), ("images", Align::Right), ("pixels", Align::Right)]);
    for class in &found.classes {
        let share = class.pixels as f64 / (labeled.max(1) as f64) * 100.0;
        let pixels = if labeled > 0 { format!("{share:.2} %") } else { String::new() };
        grid.row([class.name.clone(), class.images.to_string(), pixels]);
    }
    let three = |v: [f64; 3]| v.map(|x| format!("{x:.4}")).join(", ");
    let side = |[a, b]: [usize; 2]| if a == b { a.to_string() } else { format!("{a} to {b}") };
    let all = labeled + found.ignored;
    let ignored = match found.ignored {
        0 => String::new(),
        n => format!("ignored  {:.2} % of the masks' pixels\n", n as f64 / all as f64 * 100.0),
    };
    output::print(&format!(
        "{}: {}\n\n{}\nsize     {} x {}\nmean     {}\nstd      {}\n{ignored}",
        found.dataset,
        found.title,
        grid.terminal(),
        side(found.width),
        side(found.height),
        three(found.mean),
        three(found.std),
    ));
    Ok(ExitStatus::Success)
}

fn split(args: &Split) -> Outcome {
    let set = args.which.open()?;
    let (mode, ratio) = match args.mode {
        Mode::Stratified => (SplitMode::Stratified, f64::from(args.ratio) / 100.0),
        Mode::GlobalRandom => (SplitMode::GlobalRandom, f64::from(args.ratio) / 100.0),
        Mode::Official => (SplitMode::Official, 0.0),
    };
    let spec = SplitSpec { ratio, mode, seed: args.seed, per_class: None };
    let cut = stillhouse_datasets::split(set.as_ref(), &spec).prepared()?;
    for (name, list) in [("train", &cut.train), ("test", &cut.test)] {
        let mut text = String::new();
        for &index in list {
            text.push_str(&set.key(index));
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
