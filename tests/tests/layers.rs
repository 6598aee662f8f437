//! Layering: which crate of the workspace may depend on which.

use std::collections::BTreeMap;
use std::process::Command;

use stillhouse_tests::root;

/// Allowed dependencies inside the workspace; ARCHITECTURE.md has the same table.
const ALLOWED: &[(&str, &[&str])] = &[
    ("stillhouse-ops", &[]),
    ("stillhouse-core", &["stillhouse-ops"]),
    ("stillhouse-jpeg", &[]),
    ("stillhouse-datasets", &["stillhouse-core", "stillhouse-jpeg"]),
    ("stillhouse-backbones", &["stillhouse-core", "stillhouse-ops"]),
    ("stillhouse-losses", &["stillhouse-core", "stillhouse-ops"]),
    ("stillhouse-metrics", &["stillhouse-core"]),
    ("stillhouse-runs", &["stillhouse-core"]),
    ("stillhouse-trainer", &["stillhouse-core", "stillhouse-ops", "stillhouse-runs"]),
    ("stillhouse-report", &["stillhouse-core", "stillhouse-metrics", "stillhouse-runs"]),
    (
        "stillhouse-cli",
        &[
            "stillhouse-core",
            "stillhouse-ops",
            "stillhouse-datasets",
            "stillhouse-backbones",
            "stillhouse-losses",
            "stillhouse-metrics",
            "stillhouse-runs",
            "stillhouse-trainer",
            "stillhouse-report",
        ],
    ),
    ("stillhouse-testkit", &[]),
    ("stillhouse-tests", &["stillhouse-testkit"]),
    (
        "stillhouse-examples",
        &[
            "stillhouse-core",
            "stillhouse-ops",
            "stillhouse-datasets",
            "stillhouse-backbones",
            "stillhouse-losses",
            "stillhouse-metrics",
            "stillhouse-runs",
            "stillhouse-trainer",
        ],
    ),
    (
        "stillhouse-bench",
        &[
            "stillhouse-core",
            "stillhouse-ops",
            "stillhouse-datasets",
            "stillhouse-backbones",
            "stillhouse-losses",
            "stillhouse-trainer",
        ],
    ),
];

#[test]
fn crate_dependencies_follow_the_layer_table() {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rule: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut seen = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        seen.push(name);
        let allowed = rule.get(name).unwrap_or_else(|| panic!("`{name}` is missing from the layer table"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            if !on.starts_with("stillhouse-") {
                continue;
            }
            let ok = match dependency["kind"].as_str() {
                Some("dev") => on == "stillhouse-testkit",
                _ => allowed.contains(&on),
            };
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            assert!(ok, "`{name}` may not have `{on}` as a {kind} dependency; allowed: {allowed:?}");
        }
    }
    for (name, _) in ALLOWED {
        assert!(seen.contains(name), "`{name}` is in the layer table but not in the workspace");
    }
}

/// Concrete components meet in one file of the binary.
#[test]
fn only_registries_rs_names_concrete_components() {
    let mut found = Vec::new();
    for file in rust_files(&root().join("crates/cli/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("stillhouse_losses::registry") || text.contains("stillhouse_datasets::registry") {
            found.push(file.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(found, ["registries.rs"]);
}

fn rust_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
