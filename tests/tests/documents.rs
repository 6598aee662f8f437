//! Documentation: files, links and make targets that it names exist.

use std::fs;
use std::path::{Path, PathBuf};

use stillhouse_tests::root;

fn pages() -> Vec<(PathBuf, String)> {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    for entry in fs::read_dir(root().join("docs")).unwrap().flatten() {
        pages.push(entry.path());
    }
    let pages = pages.into_iter().filter(|p| p.extension().is_some_and(|e| e == "md"));
    pages.map(|p| (p.clone(), fs::read_to_string(&p).unwrap())).collect()
}

/// Text in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn paths_and_links_in_docs_exist() {
    for (page, text) in pages() {
        for word in quoted(&text) {
            let folder =
                ["crates/", "docs/", "experiments/", "tests/tests/"].iter().any(|f| word.starts_with(f));
            // Skip placeholders, patterns and commands.
            if folder && !word.contains(['*', ' ', '<']) && !word.contains("/my_") {
                let exists = root().join(word).exists();
                assert!(exists, "{}: `{word}` does not exist", page.display());
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            // An anchor alone stays on the page.
            let link = link.split('#').next().unwrap_or_default();
            if !link.is_empty() && !link.starts_with("http") {
                let path = page.parent().unwrap_or(Path::new(".")).join(link);
                assert!(path.exists(), "{}: broken link {link}", page.display());
            }
        }
    }
}

#[test]
fn make_targets_in_docs_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    for (page, text) in pages() {
        for word in quoted(&text).chain(text.lines()) {
            let Some(rest) = word.strip_prefix("make ") else { continue };
            let target = rest.split_whitespace().next().unwrap_or_default();
            assert!(
                makefile.contains(&format!("\n{target}:")),
                "{}: unknown make target {target}",
                page.display()
            );
        }
    }
}

#[test]
fn architecture_lists_every_crate() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().join("Cargo.toml").is_file() {
            assert!(map.contains(&format!("| `crates/{name}` |")), "ARCHITECTURE.md has no row for {name}");
        }
    }
}

#[test]
fn contributing_steps_are_numbered_in_order() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let mut expected = 1;
    for line in text.lines() {
        let number = line.split_once(". ").and_then(|(n, _)| n.parse::<u32>().ok());
        match number {
            Some(n) => {
                assert_eq!(n, expected, "{line}");
                expected += 1;
            }
            // A heading or a paragraph ends a list.
            None if !line.is_empty() && !line.starts_with(' ') => expected = 1,
            None => {}
        }
    }
}
