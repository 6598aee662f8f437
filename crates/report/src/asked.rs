//! `plan.json`: what a table was asked to show, so that it can be made again from its run folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillhouse_runs::{Role, RunDir, RunInfo, RunSummary};

use crate::caption;
use crate::record::Record;
use crate::{
    AccuracyTable, Beside, Caption, Error, Planned, Result, by_class, confusion_rows, exits, frkdnet, mksmt,
    networks, page,
};

/// Version of `plan.json`.
const FORMAT: u32 = 1;
/// Name of the file.
const FILE: &str = "plan.json";

/// What a table was asked to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Version of the file.
    pub format: u32,
    /// What stands above the table.
    pub caption: Caption,
    /// Id of the printed table that stands beside ours.
    pub published: Option<String>,
    /// Methods that were asked for and that the program did not have.
    pub not_built: Vec<String>,
    /// The runs; folders below the table's own are relative to it.
    pub runs: Vec<Planned>,
}

impl Asked {
    /// What a program asks for.
    pub fn new(
        caption: Caption,
        published: Option<String>,
        not_built: Vec<String>,
        runs: Vec<Planned>,
    ) -> Self {
        Self { format: FORMAT, caption, published, not_built, runs }
    }

    /// Reads `plan.json` of a table's folder; `None` if there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(stillhouse_core::Error::io(&path)(e).into()),
        };
        let unreadable = |message: String| Error::Unreadable { path: path.display().to_string(), message };
        let mut this: Self = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
        if this.format > FORMAT {
            let what = format!("format {} is newer than this program's {FORMAT}", this.format);
            return Err(unreadable(what));
        }
        for run in &mut this.runs {
            run.folder = folder.join(&run.folder);
        }
        Ok(Some(this))
    }

    /// Writes `plan.json`; it is whole or not there.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut this = self.clone();
        for run in &mut this.runs {
            if let Ok(below) = run.folder.strip_prefix(folder) {
                run.folder = below.to_path_buf();
            }
        }
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(&this)
            .map_err(|e| Error::Unreadable { path: path.display().to_string(), message: e.to_string() })?;
        Ok(stillhouse_core::fs::write_atomic(&path, (text + "\n").as_bytes())?)
    }

    /// The table as its runs stand now.
    pub fn table(&self) -> Result<AccuracyTable> {
        let published = self.published.as_deref().map(Beside::of).transpose()?.flatten();
        let built = |method: &str| !self.not_built.iter().any(|m| m == method);
        let mut table = AccuracyTable::collect(&self.caption, &self.runs, built, published.as_ref())?;
        let runs = self.records()?;
        let teachers = page::teachers(&runs)?;
        if self.published.as_deref() == Some(confusion_rows::TABLE) {
            table.published.extend(confusion_rows::lines(&runs, &teachers)?);
        }
        table.networks = networks::rows(&runs, &teachers);
        table.by_class = by_class::tables(&table.cells, &runs);
        frkdnet::measured(&mut table.published, &table.networks, &runs);
        let page = self.published.as_deref().filter(|page| mksmt::PAGES.contains(page));
        table.exits = exits::rows(&runs, page);
        if let Some(page) = page {
            table.published = mksmt::lines(page, &table.exits, &runs)?;
            table.set_facts(page);
        }
        Ok(table)
    }

    /// The finished runs, in the order in which they were asked for.
    pub fn records(&self) -> Result<Vec<(Planned, Record)>> {
        let mut found = Vec::new();
        for run in &self.runs {
            if let Some(record) = Record::read(&run.folder)? {
                found.push((run.clone(), record));
            }
        }
        Ok(found)
    }

    /// Makes up from run folders what was asked: of each experiment and profile one table. Folders
    /// are runs themselves or hold runs; `published` tells an experiment's printed table.
    pub fn from_runs(folders: &[PathBuf], published: impl Fn(&str) -> Option<String>) -> Result<Vec<Self>> {
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
        let tables = found.into_iter().map(|((experiment, profile), runs)| {
            let caption = caption_of(&experiment, profile, &runs);
            let runs = runs.into_iter().map(|(run, ..)| run).collect();
            Self::new(caption, published(&experiment), Vec::new(), runs)
        });
        Ok(tables.collect())
    }
}

/// The folders that are runs: themselves, or those in them; sorted.
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
    let facts: Vec<&RunSummary> = runs.iter().filter_map(|(.., facts)| facts.as_ref()).collect();
    let all = |value: &dyn Fn(&RunSummary) -> String| {
        let mut values: Vec<String> = facts.iter().map(|f| value(f)).collect();
        values.sort();
        values.dedup();
        if values.is_empty() { "not known: no run is finished".to_string() } else { values.join("; ") }
    };
    let teachers = facts.iter().filter_map(|f| f.teacher.as_ref());
    let mut networks: Vec<&str> = teachers.map(|t| t.model.as_str()).collect();
    networks.sort_unstable();
    networks.dedup();
    let mut seeds: Vec<u64> = runs.iter().map(|(run, ..)| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let begun = |init: &str, epochs: u64| match init {
        "scratch" => format!("from scratch, {epochs} epochs"),
        name => format!("from weights `{name}`, {epochs} epochs"),
    };
    Caption {
        title: experiment.to_string(),
        profile,
        data: all(&|f| format!("{}, {} train, {} test", f.title, f.train_images, f.test_images)),
        synthetic: facts.iter().any(|f| f.synthetic),
        resolution: all(&|f| f.size()),
        tested: String::new(),
        schedule: all(&|f| format!("{} epochs, {}", f.epochs, f.schedule)),
        seeds,
        device: all(&|f| f.device.clone()),
        sampler: all(&|f| f.sampler.clone()),
        steps: caption::steps(runs.iter().map(|(run, config, _)| (run.method.as_str(), config))),
        teacher_network: if let [one] = networks.as_slice() { (*one).to_string() } else { String::new() },
        teacher: all(&|f| f.teacher.as_ref().map_or("none".to_string(), |t| begun(&t.init, t.epochs))),
        student: all(&|f| begun(&f.init, f.epochs)),
        changed: Vec::new(),
    }
}
