//! Finds experiments and papers: by path, by name in `experiments/`, or embedded in the binary.

use std::path::{Path, PathBuf};

use stillhouse_core::{config, suggest};
use stillhouse_report::{Paper, PublishedSection, StaticTable};
use stillhouse_trainer::Experiment;

use crate::error::{CliError, Prepared};

/// The repository's `experiments/`, embedded by `build.rs`: path below the folder, text.
const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/experiments.rs"));
/// The folder of experiments in the current folder.
const FOLDER: &str = "experiments";
/// The file of a paper's folder that holds its printed numbers.
const PAPER: &str = "paper.toml";
/// Measured tables, which are not experiments.
const RESULTS: &str = "experiments/results";

/// An experiment that commands accept by name.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Name: the file's, without `.toml`.
    pub(crate) name: String,
    /// Its file; `None` for an embedded one.
    pub(crate) path: Option<PathBuf>,
}

/// All experiments, those of `experiments/` and of its subfolders before the embedded ones.
pub(crate) fn all() -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for entry in std::fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let below = std::fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|e| e.path());
        for path in std::iter::once(entry.path()).chain(below) {
            let is_toml = path.extension().is_some_and(|e| e == "toml");
            if let Some(stem) = path.file_stem()
                && is_toml
                && !path.ends_with(PAPER)
                && !path.starts_with(RESULTS)
            {
                found.push(Found { name: stem.to_string_lossy().into_owned(), path: Some(path) });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, ..) in embedded() {
        if !found.iter().any(|f| f.name == name) {
            found.push(Found { name: name.to_string(), path: None });
        }
    }
    found
}

/// The embedded experiments: name, path below `experiments/`, text.
fn embedded() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    EMBEDDED.iter().filter_map(|(path, text)| {
        let file = path.rsplit('/').next()?;
        (file != PAPER).then_some((file.strip_suffix(".toml")?, *path, *text))
    })
}

/// A loaded experiment file.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// An experiment with runs.
    Runs(Box<Experiment>),
    /// A table that runs nothing.
    Static(Box<StaticTable>),
}

/// Loads an experiment with runs by path or name, with `--set` applied.
pub(crate) fn load(name: &str, sets: &[String]) -> Result<Experiment, CliError> {
    match open(name, sets)? {
        Loaded::Runs(experiment) => Ok(*experiment),
        Loaded::Static(_) => Err(CliError::usage(format!("`{name}` has no runs: expected an experiment"))
            .hint(format!("stillhouse reproduce {name} prints its table"))),
    }
}

/// Loads an experiment file by path or name, with `--set` applied if it has runs.
pub(crate) fn open(name: &str, sets: &[String]) -> Result<Loaded, CliError> {
    if let Some(path) = path(name) {
        let text = std::fs::read_to_string(&path).map_err(stillhouse_core::Error::io(&path))?;
        return match StaticTable::parse(&text, &path.display().to_string()).prepared()? {
            Some(table) => Ok(Loaded::Static(Box::new(table))),
            None => Ok(Loaded::Runs(Box::new(Experiment::load(&path, sets).prepared()?))),
        };
    }
    if is_path(name) {
        return Err(CliError::usage(format!("{name}: no such file"))
            .hint("list experiments with `stillhouse list experiments`"));
    }
    let Some((_, path, text)) = embedded().find(|(known, ..)| *known == name) else {
        let all = all();
        let names: Vec<&str> = all.iter().map(|f| f.name.as_str()).collect();
        let near = suggest(name, names.iter().copied());
        let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        return Err(CliError::usage(format!(
            "unknown experiment `{name}`{near}; known: {}",
            names.join(", ")
        )));
    };
    let origin = format!("{FOLDER}/{path} (embedded)");
    match StaticTable::parse(text, &origin).prepared()? {
        Some(table) => Ok(Loaded::Static(Box::new(table))),
        None => {
            let experiment =
                Experiment::parse_extending(text, &origin, name, sets, &embedded_text).prepared()?;
            Ok(Loaded::Runs(Box::new(experiment)))
        }
    }
}

/// The file of an experiment; `None` for an embedded or unknown one.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    if Path::new(name).is_file() {
        return Some(PathBuf::from(name));
    }
    all().into_iter().find(|f| f.name == name && !is_path(name))?.path
}

fn is_path(name: &str) -> bool {
    name.ends_with(".toml") || Path::new(name).components().count() > 1
}

/// The text of an embedded experiment.
fn embedded_text(name: &str) -> stillhouse_core::Result<String> {
    let found = embedded().find(|(known, ..)| *known == name).map(|(_, _, text)| text.to_string());
    found.ok_or_else(|| stillhouse_core::Error::incompatible(name, "not an embedded experiment"))
}

/// The `[published]` section of an experiment, with the paper's file if it is next to the experiment's.
pub(crate) fn published(experiment: &Experiment, path: Option<&Path>) -> Result<PublishedSection, CliError> {
    let section: PublishedSection =
        config::from_table(&experiment.published(), &format!("{} [published]", experiment.name()))
            .prepared()?;
    Ok(with_file(section, path))
}

/// Adds the paper's file to a `[published]` section, if it is next to the experiment's.
pub(crate) fn with_file(mut section: PublishedSection, path: Option<&Path>) -> PublishedSection {
    let folder = path.and_then(Path::parent);
    if let (Some(paper), Some(folder), None) = (&section.paper, folder, &section.file)
        && folder.file_name().is_some_and(|name| name == paper.as_str())
        && folder.join(PAPER).is_file()
    {
        section.file = std::path::absolute(folder.join(PAPER)).ok();
    }
    section
}

/// Reads the paper of a `[published]` section: its file, `experiments/<paper>/paper.toml`, or an embedded one.
pub(crate) fn paper(section: &PublishedSection) -> Result<Option<Paper>, CliError> {
    let Some(name) = &section.paper else { return Ok(None) };
    let local = Path::new(FOLDER).join(name).join(PAPER);
    let is_name = Path::new(name).components().count() == 1;
    for file in section.file.iter().chain(is_name.then_some(&local)) {
        if file.is_file() {
            return Ok(Some(Paper::open(file).prepared()?));
        }
    }
    let below = format!("{name}/{PAPER}");
    match EMBEDDED.iter().find(|(path, _)| *path == below) {
        Some((path, text)) => {
            Ok(Some(Paper::parse(text, &format!("{FOLDER}/{path} (embedded)")).prepared()?))
        }
        None => {
            let known = EMBEDDED.iter().filter_map(|(path, _)| path.strip_suffix(PAPER)?.strip_suffix('/'));
            let near = suggest(name, known).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Err(CliError::usage(format!("unknown paper `{name}`{near}"))
                .hint(format!("add {}", local.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_every_embedded_experiment_and_its_paper() {
        for (name, ..) in embedded() {
            let section = match open(name, &[]).unwrap() {
                Loaded::Runs(experiment) => {
                    assert_eq!(experiment.name(), name);
                    published(&experiment, None).unwrap()
                }
                Loaded::Static(table) => table.published().unwrap().clone(),
            };
            if let Some(paper) = paper(&section).unwrap() {
                let table = section.table.unwrap();
                assert!(paper.published_table(&table).unwrap().values().next().is_some(), "{name}");
            }
        }
        assert_eq!(load("mksmt_dogs", &[]).unwrap().profiles(), ["paper", "quick", "reduced"]);
        assert!(load("table1", &[]).unwrap_err().source.to_string().contains("has no runs"));
    }

    #[test]
    fn suggests_the_nearest_name() {
        let error = load("tabel3", &[]).unwrap_err();
        assert_eq!(error.code, 2);
        assert!(error.source.to_string().contains("did you mean `table3`"), "{}", error.source);
    }
}
