//! `stillhouse report`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillhouse_report::page::{Page, Samples};
use stillhouse_report::{Measure, PublishedSection, ResultsTable, TableSpec};
use stillhouse_trainer::Context;

use crate::commands::{common, figures, overlays};
use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{experiments, output, system_info};

const EXAMPLES: &str = "\
Examples:
  stillhouse report runs/table3/quick                                         rewrite the table of `reproduce`
  stillhouse report runs/table3/reduced --features baseline,class_centric     add plots of features
  stillhouse report runs/mine --samples class_centric                         add sample images
  stillhouse report runs/a runs/b --output report                             compare your own runs

Writes table.md, table.json and report.html, a self-contained page. Share a page with sample images only if the
dataset's license permits.";

/// Write tables and pages from run folders
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run folders, or folders of run folders
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Output folder [default: the first folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Plot the pooled features of the teacher and of these methods (requires the data)
    #[arg(long, value_name = "METHODS", value_delimiter = ',')]
    features: Vec<String>,
    /// Show sample images with Grad-CAM of this method, or with the label maps of all methods for
    /// segmentation (requires the data)
    #[arg(long, value_name = "METHOD")]
    samples: Option<String>,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

/// Figures of a page that require the data.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Methods whose features are plotted.
    pub(crate) features: Vec<String>,
    /// The method whose samples are shown.
    pub(crate) samples: Option<String>,
    /// Whether label maps are shown.
    pub(crate) label_maps: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    for folder in &args.folders {
        if !folder.is_dir() {
            return Err(CliError::usage(format!("{}: no such folder", folder.display()))
                .hint("expected run folders, for example runs/table3/quick"));
        }
    }
    let context = common::context(&Paths::new(None), Arc::default());
    let all = table_specs(&args.folders)?;
    if all.is_empty() {
        let names: Vec<String> = args.folders.iter().map(|f| f.display().to_string()).collect();
        return Err(CliError::usage(format!("{}: no runs of students found", names.join(", ")))
            .hint("a run folder has a config.toml; list runs with `stillhouse runs ls`"));
    }
    for method in args.features.iter().chain(&args.samples) {
        if !all.iter().any(|a| a.runs.iter().any(|r| r.method == *method)) {
            let mut known: Vec<&str> = all.iter().flat_map(|a| &a.runs).map(|r| r.method.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(CliError::usage(format!(
                "no run of `{method}` found; methods: {}",
                known.join(", ")
            )));
        }
    }
    let first = args.output.clone().unwrap_or_else(|| args.folders[0].clone());
    let (features, samples) = (args.features.clone(), args.samples.clone());
    let figures = Figures { features, label_maps: samples.is_some(), samples };
    for spec in &all {
        // Several tables get a folder each.
        let folder = match all.len() {
            1 => first.clone(),
            _ => first.join(format!("{}-{}", spec.caption.title, spec.caption.profile)),
        };
        let paper = spec.published.as_ref().map(experiments::paper).transpose()?.flatten();
        let table = spec.table(paper.as_ref())?;
        table.write(&folder)?;
        let page = write_page(spec, &table, &folder, &figures, &context)?;
        output::print(&if args.json { table.json()? } else { table.terminal(output::terminal_width()) });
        output::status(&format!("\nwrote {}", page.display()));
    }
    Ok(ExitStatus::Success)
}

/// Reads the specification that `reproduce` wrote, or derives specifications from run folders.
fn table_specs(folders: &[PathBuf]) -> Result<Vec<TableSpec>, CliError> {
    if let [one] = folders
        && let Some(spec) = TableSpec::read(one)?
    {
        return Ok(vec![spec]);
    }
    Ok(TableSpec::from_runs(folders, |name| published(name).unwrap_or_default())?)
}

/// The `[published]` section of an experiment, and the methods of its printed table.
fn published(name: &str) -> Option<(Option<PublishedSection>, Vec<String>)> {
    let experiment = experiments::load(name, &[]).ok()?;
    let section = experiments::published(&experiment, experiments::path(name).as_deref()).ok()?;
    let paper = experiments::paper(&section).ok()?;
    let table = paper.as_ref().zip(section.table.as_ref()).and_then(|(p, t)| p.published_table(t).ok());
    let methods = table.map_or_else(Vec::new, |t| t.methods().into_iter().map(str::to_string).collect());
    Some((Some(section), methods))
}

/// Writes the page of a table; returns its path.
pub(crate) fn write_page(
    spec: &TableSpec,
    table: &ResultsTable,
    folder: &Path,
    figures: &Figures,
    context: &Context,
) -> Result<PathBuf, CliError> {
    let finished = spec.finished()?;
    let embeddings = match figures.features.is_empty() {
        true => figures::read_embeddings(folder)?,
        false => figures::write_embeddings(folder, &finished, &figures.features, context)?,
    };
    let samples = match &figures.samples {
        _ if figures.label_maps && table.measure == Measure::MeanIou => {
            overlays::make(&finished.runs, context)?
        }
        Some(method) if table.measure == Measure::Accuracy => {
            figures::grad_cam_samples(&finished.runs, std::slice::from_ref(method), context)?
        }
        _ => Samples::default(),
    };
    let program = system_info::program();
    let page = Page {
        spec,
        table,
        finished: &finished,
        embeddings: &embeddings,
        samples: &samples,
        program: &program,
    };
    page.write(folder)?;
    Ok(folder.join("report.html"))
}
