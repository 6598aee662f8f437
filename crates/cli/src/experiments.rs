//! Finds experiment files: by path, by name in ./experiments, or among those of the program.

use std::path::{Path, PathBuf};

use stillhouse_core::suggest;
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

/// Loads an experiment by path or name and lays `--set` on top.
pub(crate) fn load(name: &str, sets: &[String]) -> Result<Experiment, CliError> {
    let mut experiment = open(name)?;
    for set in sets {
        experiment.set(set).prepared()?;
    }
    Ok(experiment)
}

/// The text of an embedded experiment.
fn embedded_text(name: &str) -> stillhouse_core::Result<String> {
    let found = embedded().find(|(known, ..)| *known == name).map(|(_, _, text)| text.to_string());
    found.ok_or_else(|| stillhouse_core::Error::incompatible(name, "not an embedded experiment"))
}

fn open(name: &str) -> Result<Experiment, CliError> {
    let path = Path::new(name);
    if path.is_file() {
        return Experiment::load(path).prepared();
    }
    if name.ends_with(".toml") || path.components().count() > 1 {
        return Err(CliError::usage(format!("{name}: no such file"))
            .hint("`stillhouse list experiments` names those there are"));
    }
    let all = all();
    match all.iter().find(|f| f.name == name) {
        Some(Found { path: Some(path), .. }) => Experiment::load(path).prepared(),
        Some(Found { path: None, .. }) => {
            let path = embedded().find(|(known, ..)| *known == name).map_or(name, |(_, path, _)| path);
            let origin = format!("{FOLDER}/{path} (embedded)");
            Experiment::parse_beside(&embedded_text(name)?, &origin, name, &embedded_text).prepared()
        }
        None => {
            let names: Vec<&str> = all.iter().map(|f| f.name.as_str()).collect();
            let near = suggest(name, names.iter().copied());
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Err(CliError::usage(format!("unknown experiment `{name}`{near}; known: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_every_embedded_experiment() {
        for (name, ..) in embedded() {
            assert_eq!(load(name, &[]).unwrap().name(), name);
        }
        for (name, table) in
            [("mksmt_cub", "p3.cub"), ("mksmt_nabirds", "p3.nabirds"), ("mksmt_dogs", "p3.dogs")]
        {
            let experiment = load(name, &[]).unwrap();
            assert_eq!(experiment.published()["table"].as_str(), Some(table));
            assert_eq!(experiment.profiles(), ["paper", "reduced", "smoke"]);
        }
    }

    #[test]
    fn suggests_the_nearest_name() {
        let error = load("tabel3", &[]).unwrap_err();
        assert_eq!(error.code, 2);
        assert!(error.source.to_string().contains("did you mean `table3`"), "{}", error.source);
    }
}
