//! Finds experiment files: by path, by name in ./experiments, or among those of the program.

use std::path::{Path, PathBuf};

use stillhouse_core::suggest;
use stillhouse_trainer::Experiment;

use crate::error::{CliError, Prepared};

/// The repository's experiments, so that the binary works outside of the checkout.
const BUILTIN: &[(&str, &str)] = &[
    ("table3", include_str!("../../../experiments/table3.toml")),
    ("table5", include_str!("../../../experiments/table5.toml")),
    ("table6", include_str!("../../../experiments/table6.toml")),
    ("table7", include_str!("../../../experiments/table7.toml")),
    ("landuse", include_str!("../../../experiments/landuse.toml")),
    ("frkd_table1", include_str!("../../../experiments/frkd_table1.toml")),
    ("frkd_table2", include_str!("../../../experiments/frkd_table2.toml")),
    ("frkd_gamma", include_str!("../../../experiments/frkd_gamma.toml")),
    ("mksmt_cub", include_str!("../../../experiments/mksmt_cub.toml")),
    ("mksmt_nabirds", include_str!("../../../experiments/mksmt_nabirds.toml")),
    ("mksmt_dogs", include_str!("../../../experiments/mksmt_dogs.toml")),
    ("mksmt_ablation", include_str!("../../../experiments/mksmt_ablation.toml")),
    ("quickstart", include_str!("../../../experiments/quickstart.toml")),
];

/// Where an experiment stands.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Name that commands take.
    pub(crate) name: String,
    /// Its file; none for those of the program.
    pub(crate) path: Option<PathBuf>,
}

/// All experiments that can be named, those of ./experiments first.
pub(crate) fn all() -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for entry in std::fs::read_dir("experiments").into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let toml = path.extension().is_some_and(|e| e == "toml");
        // The published numbers lie beside the experiments and are none.
        if toml && name != "published_tables" {
            found.push(Found { name, path: Some(path) });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    for (name, _) in BUILTIN {
        if !found.iter().any(|f| f.name == *name) {
            found.push(Found { name: (*name).to_string(), path: None });
        }
    }
    found
}

/// Loads an experiment by path or name and lays `--set` on top.
pub(crate) fn load(name: &str, sets: &[String]) -> Result<Experiment, CliError> {
    let mut experiment = open(name)?;
    for set in sets {
        experiment.set(set).prepared()?;
    }
    Ok(experiment)
}

/// The text of an experiment of the program.
fn builtin(name: &str) -> stillhouse_core::Result<String> {
    let found = BUILTIN.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_string());
    found.ok_or_else(|| stillhouse_core::Error::incompatible(name, "is no experiment of this program"))
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
            let origin = format!("experiments/{name}.toml (of this program)");
            Experiment::parse_beside(&builtin(name)?, &origin, name, &builtin).prepared()
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
    fn experiments_of_the_program_can_be_read() {
        for (name, _) in BUILTIN {
            assert_eq!(load(name, &[]).unwrap().name(), *name);
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
    fn unknown_names_have_a_neighbor() {
        let error = load("tabel3", &[]).unwrap_err();
        assert_eq!(error.code, 2);
        assert!(error.source.to_string().contains("did you mean `table3`"), "{}", error.source);
    }
}
