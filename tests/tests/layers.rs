//! The layer rule: which crate of the workspace may know which.

use std::collections::BTreeMap;
use std::process::Command;

use stillhouse_tests::root;

/// Crates and the crates of the workspace that they may use. ARCHITECTURE.md has the same table.
const RULE: &[(&str, &[&str])] = &[
    ("stillhouse-ops", &[]),
    ("stillhouse-core", &["stillhouse-ops"]),
    ("stillhouse-datasets", &["stillhouse-core"]),
    ("stillhouse-backbones", &["stillhouse-core", "stillhouse-ops"]),
    ("stillhouse-losses", &["stillhouse-core", "stillhouse-ops"]),
    ("stillhouse-metrics", &["stillhouse-core"]),
    ("stillhouse-trainer", &["stillhouse-core", "stillhouse-ops"]),
    ("stillhouse-report", &["stillhouse-core", "stillhouse-metrics"]),
    (
        "stillhouse-cli",
        &[
            "stillhouse-core",
            "stillhouse-ops",
            "stillhouse-datasets",
            "stillhouse-backbones",
            "stillhouse-losses",
            "stillhouse-metrics",
            "stillhouse-trainer",
            "stillhouse-report",
        ],
    ),
    ("stillhouse-testkit", &[]),
    ("stillhouse-tests", &[]),
    (
        "stillhouse-bench",
        &[
            "stillhouse-core",
            "stillhouse-ops",
            "stillhouse-datasets",
            "stillhouse-backbones",
            "stillhouse-losses",
        ],
    ),
];

#[test]
fn arrows_point_as_the_table_says() {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rule: BTreeMap<&str, &[&str]> = RULE.iter().copied().collect();
    let mut seen = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        seen.push(name);
        let allowed = rule.get(name).unwrap_or_else(|| panic!("`{name}` has no row in the layer rule"));
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
    for (name, _) in RULE {
        assert!(seen.contains(name), "`{name}` is in the rule and not in the workspace");
    }
}

/// Concrete parts meet in one file of the binary.
#[test]
fn only_parts_rs_names_all_parts() {
    let mut found = Vec::new();
    for file in rust_files(&root().join("crates/cli/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("stillhouse_losses::registry") || text.contains("stillhouse_datasets::registry") {
            found.push(file.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(found, ["parts.rs"]);
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
