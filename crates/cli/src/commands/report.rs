//! `stillhouse report`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillhouse_report::page::{self, Page, Samples};
use stillhouse_report::{AccuracyTable, Asked, Measure};
use stillhouse_trainer::Context;

use crate::commands::{common, figures, overlays, table};
use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{experiments, output, system_info};

const EXAMPLES: &str = "\
Examples:
  stillhouse report runs/table3/smoke                    what `reproduce` wrote there, again
  stillhouse report runs/table3/reduced --features baseline,class_centric
  stillhouse report runs/mine --samples class_centric     with sample images: the page is then not to be
                                                         passed on where the dataset is not
  stillhouse report runs/a runs/b --output report        own runs side by side

Writes table.md, table.json and report.html, a page that needs no network.";

/// Make tables and pages again, from run folders
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Folders of runs, or folders that hold them
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Where to write; without it into the first folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Bring the pooled features of the teacher and of these methods into the plane (needs the data)
    #[arg(long, value_name = "METHODS", value_delimiter = ',')]
    features: Vec<String>,
    /// Show sample images with Grad-CAM of this method, or with the label maps of all methods where
    /// masks are counted (needs the data)
    #[arg(long, value_name = "METHOD")]
    samples: Option<String>,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

/// What a page shows beyond what lies in the run folders.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Methods whose features are brought into the plane.
    pub(crate) features: Vec<String>,
    /// The method whose samples are shown.
    pub(crate) samples: Option<String>,
    /// Whether label maps are shown where there are some.
    pub(crate) label_maps: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    for folder in &args.folders {
        if !folder.is_dir() {
            return Err(CliError::usage(format!("{}: no such folder", folder.display()))
                .hint("give folders of runs, as runs/table3/smoke"));
        }
    }
    let context = common::context(&Paths::new(None), Arc::default());
    let all = asked(&args.folders)?;
    if all.is_empty() {
        let names: Vec<String> = args.folders.iter().map(|f| f.display().to_string()).collect();
        return Err(CliError::usage(format!("{}: no runs of students here", names.join(", ")))
            .hint("a run folder has a config.toml; `stillhouse runs ls` lists those there are"));
    }
    for method in args.features.iter().chain(&args.samples) {
        if !all.iter().any(|a| a.runs.iter().any(|r| r.method == *method)) {
            let mut known: Vec<&str> = all.iter().flat_map(|a| &a.runs).map(|r| r.method.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(CliError::usage(format!(
                "no run of `{method}` here; there are: {}",
                known.join(", ")
            )));
        }
    }
    let first = args.output.clone().unwrap_or_else(|| args.folders[0].clone());
    let (features, samples) = (args.features.clone(), args.samples.clone());
    let figures = Figures { features, label_maps: samples.is_some(), samples };
    for asked in &all {
        // Several tables do not share a folder.
        let folder = match all.len() {
            1 => first.clone(),
            _ => first.join(format!("{}-{}", asked.caption.title, asked.caption.profile)),
        };
        let made = asked.table()?;
        made.write(&folder)?;
        let page = write_page(asked, &made, &folder, &figures, &context)?;
        output::print(&if args.json { made.json()? } else { made.terminal(output::terminal_width()) });
        output::status(&format!("\nwritten to {}", page.display()));
    }
    Ok(ExitStatus::Success)
}

/// What `reproduce` asked for, or what the run folders tell.
fn asked(folders: &[PathBuf]) -> Result<Vec<Asked>, CliError> {
    if let [one] = folders
        && let Some(asked) = Asked::read(one)?
    {
        return Ok(vec![asked]);
    }
    let published = |name: &str| experiments::load(name, &[]).ok().as_ref().and_then(table::published);
    Ok(Asked::from_runs(folders, published)?)
}

/// Writes the page of a table; gives its path.
pub(crate) fn write_page(
    asked: &Asked,
    table: &AccuracyTable,
    folder: &Path,
    figures: &Figures,
    context: &Context,
) -> Result<PathBuf, CliError> {
    let runs = asked.records()?;
    let teachers = page::teachers(&runs)?;
    let planes = match figures.features.is_empty() {
        true => figures::kept_planes(folder)?,
        false => figures::make_planes(folder, &runs, &teachers, &figures.features, context)?,
    };
    let samples = match &figures.samples {
        _ if figures.label_maps && table.measure == Measure::MeanIou => overlays::make(&runs, context)?,
        Some(method) if table.measure == Measure::Accuracy => {
            figures::make_samples(&runs, std::slice::from_ref(method), context)?
        }
        _ => Samples::default(),
    };
    let page = Page {
        asked,
        table,
        runs: &runs,
        teachers: &teachers,
        features: &planes,
        samples: &samples,
        program: &system_info::program(),
    };
    page.write(folder)?;
    Ok(folder.join("report.html"))
}
