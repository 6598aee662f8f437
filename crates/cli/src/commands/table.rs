//! The results table of a plan: its caption and its runs.

use std::collections::BTreeMap;
use std::path::Path;

use stillhouse_core::data::{Sampler, Task};
use stillhouse_report::results_table::BASELINE_PLAIN;
use stillhouse_report::{Caption, Paper, Planned, PublishedSection, ResultsTable, TableSpec, caption};
use stillhouse_runs::Role;
use stillhouse_trainer::{Cell, CellConfig, Context, Experiment, Plan};

use crate::commands::common;
use crate::error::CliError;
use crate::{device, experiments};

/// Writes the table of a plan, and updates it as runs finish.
pub(crate) struct TableWriter {
    /// Caption, published table and runs.
    pub(crate) spec: TableSpec,
    /// The paper with the published numbers.
    paper: Option<Paper>,
}

impl TableWriter {
    /// Derives caption and runs from a plan.
    pub(crate) fn new(
        experiment: &Experiment,
        published: PublishedSection,
        plan: &Plan,
        context: &Context,
        sets: &[String],
        threads: usize,
    ) -> Result<Self, CliError> {
        let caption = caption_of(experiment, plan, context, sets, threads)?;
        let paper = experiments::paper(&published)?;
        let students = plan.cells.iter().filter(|c| c.role == Role::Student);
        let runs = students.map(|c| Planned {
            method: c.method.clone(),
            student: backbone(c),
            dataset: c.dataset.clone(),
            ratio: u64::from(c.ratio),
            seed: c.seed,
            folder: c.folder.clone(),
        });
        let unknown = plan.cells.iter().filter(|c| !c.is_runnable()).map(|c| c.method.clone());
        let spec = TableSpec::new(caption, Some(published), unknown.collect(), runs.collect());
        Ok(Self { spec, paper })
    }

    /// Writes the specification and the table of the runs as they are now.
    pub(crate) fn write(&self, folder: &Path) -> stillhouse_report::Result<ResultsTable> {
        self.spec.write(folder)?;
        let table = self.spec.table(self.paper.as_ref())?;
        table.write(folder)?;
        Ok(table)
    }
}

/// The backbone of the trained network: a network with exits and its backbone alone are rows of one table.
fn backbone(cell: &Cell) -> String {
    let variant = cell.config.as_ref().and_then(|c| c.student.variant.get("backbone")?.as_str());
    variant.map_or_else(|| cell.student.clone(), str::to_string)
}

fn caption_of(
    experiment: &Experiment,
    plan: &Plan,
    context: &Context,
    sets: &[String],
    threads: usize,
) -> Result<Caption, CliError> {
    let of = |role: Role| -> Vec<(&Cell, &CellConfig)> {
        let cells = plan.cells.iter().filter(move |c| c.role == role);
        cells.filter_map(|c| c.config.as_ref().map(|config| (c, config))).collect()
    };
    let (students, teachers) = (of(Role::Student), of(Role::Teacher));
    if students.is_empty() {
        return Err(CliError::usage("none of the methods of this experiment is in the registry"));
    }
    let (mut data, mut synthetic, mut masks) = (Vec::new(), false, false);
    for (at, (cell, config)) in students.iter().enumerate() {
        if students[..at].iter().any(|(c, _)| c.dataset == cell.dataset) {
            continue;
        }
        let dataset = common::open(context, config)?;
        masks |= dataset.info().task == Task::Segmentation;
        let mut text = dataset.info().title.clone();
        if dataset.info().synthetic {
            synthetic = true;
            text.push_str(", not real images");
        }
        if let Some([train, test]) = config.data.per_class {
            let of = if dataset.info().task == Task::Segmentation { "" } else { " of each class" };
            text.push_str(&format!(", only {train} training and {test} test images{of}"));
        }
        data.push(text);
    }
    let mut seeds: Vec<u64> = students.iter().map(|(c, _)| c.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let balanced: Vec<_> = students.iter().filter(|(c, _)| c.method != BASELINE_PLAIN).copied().collect();
    let plain = if balanced.len() < students.len() { "; baseline_plain: shuffled" } else { "" };
    let resolved: Vec<(&str, toml::Table)> = students
        .iter()
        .map(|(cell, config)| Ok((cell.method.as_str(), toml::Table::try_from(config)?)))
        .collect::<anyhow::Result<_>>()?;
    // A finished run that serves as the teacher is not a cell of the plan.
    let given = students.iter().find_map(|(_, config)| config.teacher.as_ref());
    Ok(Caption {
        title: experiment.title().to_string(),
        profile: plan.profile.clone(),
        data: data.join("; "),
        synthetic,
        resolution: common_value(&students, |c| match c.data.size() {
            (height, width) if height == width => height.to_string(),
            (height, width) => format!("{height}x{width}"),
        }),
        tested: if masks { common_value(&students, tested) } else { String::new() },
        schedule: common_value(&students, schedule),
        seeds,
        device: device::describe(threads),
        sampler: common_value(if balanced.is_empty() { &students } else { &balanced }, sampler) + plain,
        phases: caption::phases(resolved.iter().map(|(method, config)| (*method, config))),
        teacher_network: match teachers.split_first() {
            Some(((first, _), rest)) if rest.iter().all(|(c, _)| c.student == first.student) => {
                first.student.clone()
            }
            None => given.map(|t| t.model.clone()).unwrap_or_default(),
            _ => String::new(),
        },
        teacher: match teachers.is_empty() {
            true => given
                .map_or_else(|| "none".to_string(), |t| format!("{}, a finished run ({})", t.model, t.cell)),
            false => common_value(&teachers, |c| match c.train.epochs {
                0 => format!("{}, as they are", init_text(c)),
                _ => format!("{}, {}", init_text(c), schedule(c)),
            }),
        },
        student: common_value(&students, init_text),
        changed: sets.to_vec(),
    })
}

/// Returns the value that all runs share, or each value with its networks.
fn common_value(cells: &[(&Cell, &CellConfig)], value: impl Fn(&CellConfig) -> String) -> String {
    let mut values: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (cell, config) in cells {
        let networks = values.entry(value(config)).or_default();
        if !networks.contains(&cell.student.as_str()) {
            networks.push(&cell.student);
        }
    }
    if values.len() == 1 {
        return values.into_keys().next().unwrap_or_default();
    }
    let parts: Vec<String> =
        values.into_iter().map(|(value, networks)| format!("{value} ({})", networks.join(", "))).collect();
    parts.join("; ")
}

fn schedule(config: &CellConfig) -> String {
    let train = &config.train;
    format!("{} epochs, lr {}, {}", train.epochs, train.optimizer.lr(), train.schedule.describe(train.epochs))
}

/// Describes the test transforms of label masks.
fn tested(config: &CellConfig) -> String {
    let number = |t: &toml::Table, key: &str| t.get(key).map_or_else(String::new, ToString::to_string);
    let transforms =
        config.data.test_transforms.iter().map(|t| match t.get("op").and_then(|op| op.as_str()) {
            Some("resize_short") => format!("shorter side {} px", number(t, "size")),
            Some("resize") => format!("resized to {}x{} px", number(t, "height"), number(t, "width")),
            other => other.unwrap_or("?").to_string(),
        });
    std::iter::once("whole images".to_string()).chain(transforms).collect::<Vec<_>>().join(", ")
}

fn init_text(config: &CellConfig) -> String {
    match &config.student.init {
        init if init.is_scratch() => "from scratch".to_string(),
        _ if config.student.pretraining.is_some() => "pretrained here, then fine-tuned".to_string(),
        init => format!("from weights `{init}`"),
    }
}

fn sampler(config: &CellConfig) -> String {
    match &config.train.sampler {
        Sampler::Shuffle { batch, .. } => format!("{batch} images, shuffled"),
        Sampler::Sequential { batch } => format!("{batch} images, in order"),
        Sampler::ClassBalanced { classes, per_class } => {
            format!("class-balanced, {classes} classes x {per_class} images")
        }
    }
}
