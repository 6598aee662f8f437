//! `plan.json`: caption, published table and runs of a table, so that it can be made again from its run folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillhouse_runs::{Role, RunDir, RunInfo, RunSummary};

use crate::results_table::BASELINE;
use crate::{
    Caption, Error, Paper, Planned, PublishedSection, Record, Result, ResultsTable, TableRuns, caption, page,
};

/// Version of `plan.json`.
const FORMAT: u32 = 1;
/// Name of the file.
const FILE: &str = "plan.json";

/// The specification of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// Version of the file.
    pub format: u32,
    /// The caption.
    pub caption: Caption,
    /// Published numbers to compare with.
    pub published: Option<PublishedSection>,
    /// Methods that are not in the registry.
    pub unknown_methods: Vec<String>,
    /// The runs; their folders are relative to the table's if they are below it.
    pub runs: Vec<Planned>,
}

/// The finished runs of a table and their teachers.
#[derive(Debug, Clone)]
pub struct FinishedRuns {
    /// The runs, in the order of the plan.
    pub runs: Vec<(Planned, Record)>,
    /// Their teachers.
    pub teachers: Vec<Record>,
}

impl TableSpec {
    /// Creates the specification of a plan.
    pub fn new(
        caption: Caption,
        published: Option<PublishedSection>,
        unknown_methods: Vec<String>,
        runs: Vec<Planned>,
    ) -> Self {
        Self { format: FORMAT, caption, published, unknown_methods, runs }
    }

    /// Reads `plan.json` of a table's folder; `None` if there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(stillhouse_core::Error::io(&path)(e).into()),
        };
        let unreadable = |message: String| Error::unreadable(path.display(), message);
        let mut this: Self = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
        if this.format > FORMAT {
            let message =
                format!("written by a newer program: expected format {FORMAT}, found {}", this.format);
            return Err(unreadable(message));
        }
        for run in &mut this.runs {
            run.folder = folder.join(&run.folder);
        }
        Ok(Some(this))
    }

    /// Writes `plan.json` atomically.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut this = self.clone();
        for run in &mut this.runs {
            if let Ok(below) = run.folder.strip_prefix(folder) {
                run.folder = below.to_path_buf();
            }
        }
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(&this).map_err(|e| Error::unreadable(path.display(), e))?;
        Ok(stillhouse_core::fs::write_atomic(&path, (text + "\n").as_bytes())?)
    }

    /// Builds the table of the runs as they are now, next to the numbers of a paper.
    pub fn table(&self, paper: Option<&Paper>) -> Result<ResultsTable> {
        let finished = self.finished()?;
        let published = match (paper, self.published.as_ref().and_then(|p| p.table.as_ref())) {
            (Some(paper), Some(table)) => Some(paper.published_table(table)?),
            _ => None,
        };
        let runs = TableRuns {
            planned: &self.runs,
            finished: &finished.runs,
            teachers: &finished.teachers,
            unknown_methods: &self.unknown_methods,
        };
        ResultsTable::new(&self.caption, runs, published.as_ref())
    }

    /// Reads the finished runs and their teachers.
    pub fn finished(&self) -> Result<FinishedRuns> {
        let mut runs = Vec::new();
        // A run of an unknown method has no folder.
        for run in self.runs.iter().filter(|r| !r.folder.as_os_str().is_empty()) {
            if let Some(record) = Record::read(&run.folder)? {
                runs.push((run.clone(), record));
            }
        }
        let teachers = page::teachers(&runs)?;
        Ok(FinishedRuns { runs, teachers })
    }

    /// Derives specifications from run folders, or folders of run folders: one for each experiment and
    /// profile. `published` returns the `[published]` section of an experiment and the paper's methods in the
    /// order of print.
    pub fn from_runs(
        folders: &[PathBuf],
        published: impl Fn(&str) -> (Option<PublishedSection>, Vec<String>),
    ) -> Result<Vec<Self>> {
        type Runs = Vec<(Planned, toml::Table, Option<RunSummary>)>;
        let mut found: BTreeMap<(String, String), Runs> = BTreeMap::new();
        for folder in run_folders(folders)? {
            let dir = RunDir::new(&folder);
            let info: RunInfo = dir.info()?;
            if info.role != Role::Student {
                continue;
            }
            let summary = dir.result()?.map(|r| r.summary);
            let run = Planned {
                method: info.method.clone(),
                student: info.backbone(),
                dataset: info.dataset(),
                ratio: info.ratio(),
                seed: info.seed(),
                folder,
            };
            found.entry((info.experiment, info.profile)).or_default().push((run, info.run, summary));
        }
        let specs = found.into_iter().map(|((experiment, profile), mut runs)| {
            let (published, methods) = published(&experiment);
            let order = |method: &str| methods.iter().position(|m| m == method).unwrap_or(usize::MAX);
            runs.sort_by_key(|(run, ..)| (run.method != BASELINE, order(&run.method)));
            let caption = caption_of(&experiment, profile, &runs);
            let runs = runs.into_iter().map(|(run, ..)| run).collect();
            Self::new(caption, published, Vec::new(), runs)
        });
        Ok(specs.collect())
    }
}

/// Returns the run folders among these folders and in them, sorted.
fn run_folders(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut runs = Vec::new();
    for folder in folders {
        if RunDir::new(folder).is_run() {
            runs.push(folder.clone());
            continue;
        }
        let entries = std::fs::read_dir(folder).map_err(stillhouse_core::Error::io(folder))?;
        for entry in entries {
            let path = entry.map_err(stillhouse_core::Error::io(folder))?.path();
            if RunDir::new(&path).is_run() {
                runs.push(path);
            }
        }
    }
    runs.sort();
    runs.dedup();
    Ok(runs)
}

fn caption_of(
    experiment: &str,
    profile: String,
    runs: &[(Planned, toml::Table, Option<RunSummary>)],
) -> Caption {
    let summaries: Vec<&RunSummary> = runs.iter().filter_map(|(.., summary)| summary.as_ref()).collect();
    let all = |value: &dyn Fn(&RunSummary) -> String| {
        let mut values: Vec<String> = summaries.iter().map(|s| value(s)).collect();
        values.sort();
        values.dedup();
        if values.is_empty() { "unknown: no run is finished".to_string() } else { values.join("; ") }
    };
    let teachers = summaries.iter().filter_map(|s| s.teacher.as_ref());
    let mut networks: Vec<&str> = teachers.map(|t| t.model.as_str()).collect();
    networks.sort_unstable();
    networks.dedup();
    let mut seeds: Vec<u64> = runs.iter().map(|(run, ..)| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let initialized = |init: &str, epochs: u64| match init {
        name if epochs == 0 => format!("weights `{name}` as they are"),
        "scratch" => format!("from scratch, {epochs} epochs"),
        name if name.starts_with("pretrain: ") => {
            format!("pretrained here ({}), then fine-tuned, {epochs} epochs", &name["pretrain: ".len()..])
        }
        name => format!("from weights `{name}`, {epochs} epochs"),
    };
    Caption {
        title: experiment.to_string(),
        profile,
        data: all(&|s| format!("{}, {} train, {} test", s.title, s.train_images, s.test_images)),
        synthetic: summaries.iter().any(|s| s.synthetic),
        resolution: all(&|s| s.size()),
        tested: String::new(),
        schedule: all(&|s| format!("{} epochs, {}", s.epochs, s.schedule)),
        seeds,
        device: all(&|s| s.device.clone()),
        sampler: all(&|s| s.sampler.clone()),
        phases: caption::phases(runs.iter().map(|(run, config, _)| (run.method.as_str(), config))),
        teacher_network: if let [one] = networks.as_slice() { (*one).to_string() } else { String::new() },
        teacher: all(&|s| s.teacher.as_ref().map_or("none".to_string(), |t| initialized(&t.init, t.epochs))),
        student: all(&|s| initialized(&s.init, s.epochs)),
        changed: Vec::new(),
    }
}
