//! The experiments of the repository can be read, in every profile.

use std::path::Path;

use stillhouse_trainer::Experiment;

#[test]
fn every_experiment_of_the_repository_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // The published numbers lie beside the experiments and are none.
        if path.extension().is_some_and(|e| e == "toml") && !path.ends_with("published_tables.toml") {
            let experiment = Experiment::load(&path).unwrap_or_else(|e| panic!("{e}"));
            names.push((experiment.name().to_string(), experiment.profiles()));
        }
    }
    assert!(names.iter().any(|(name, profiles)| name == "table3" && profiles.len() == 3), "{names:?}");
}
