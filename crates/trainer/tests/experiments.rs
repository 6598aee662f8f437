//! The experiments of the repository can be read, in every profile.

use std::path::{Path, PathBuf};

use stillhouse_trainer::Experiment;

/// TOML files of a folder and of its subfolders.
fn toml_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            toml_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
}

#[test]
fn reads_every_experiment_of_the_repository() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let mut files = Vec::new();
    toml_files(&folder, &mut files);
    let mut names = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        // Papers, measured tables and tables that run nothing are not experiments with runs.
        let runs = !toml::from_str::<toml::Table>(&text).unwrap().contains_key("kind");
        if runs && !path.starts_with(folder.join("results")) && !path.ends_with("paper.toml") {
            let experiment = Experiment::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            names.push((experiment.name().to_string(), experiment.profiles()));
        }
    }
    assert!(names.iter().any(|(name, profiles)| name == "table3" && profiles.len() == 3), "{names:?}");
}
