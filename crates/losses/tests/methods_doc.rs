//! Generates `docs/methods.md` from the registry entries, and checks that it is up to date.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use stillhouse_core::distiller::DistillerBuild;
use stillhouse_core::registry::Entry;
use stillhouse_losses::{ENTRIES, MethodInfo, method_info};

const COMMAND: &str = "UPDATE_DOCS=1 cargo test --locked -p stillhouse-losses --test methods_doc";

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    }
}

fn terms(info: &MethodInfo) -> String {
    let term = |(name, weight): &(String, f64)| format!("`{name}` {weight}");
    info.terms.iter().map(term).collect::<Vec<_>>().join(", ")
}

fn section(entry: &Entry<DistillerBuild>, info: &MethodInfo) -> String {
    let source = entry.source.trim_end_matches('.');
    let mut text = format!("\n## {}\n\n{}; {source}.\n\n", entry.name, entry.summary);
    let features = if info.student == info.teacher {
        format!("{} of both", list(&info.student))
    } else {
        format!("{} of the student, {} of the teacher", list(&info.student), list(&info.teacher))
    };
    let _ = writeln!(text, "- labels: {}", info.labels);
    let _ = writeln!(text, "- features: {features}");
    let _ = writeln!(text, "- terms and weights: {}", terms(info));
    if !info.connectors.is_empty() {
        let millions = info.parameters as f64 / 1e6;
        let _ = writeln!(text, "- connectors: {} ({millions:.2} M parameters)", list(&info.connectors));
    }
    if !info.state.is_empty() {
        let _ = writeln!(text, "- state in checkpoints: {}", list(&info.state));
    }
    let _ = write!(text, "\n```toml\n{}\n```\n", (entry.defaults)().trim_end());
    text
}

fn page() -> String {
    let infos: Vec<_> = ENTRIES.iter().map(|entry| (entry, method_info(entry).unwrap())).collect();
    let mut text = format!(
        "# Methods\n\nGenerated from the registry entries of `crates/losses` by `{COMMAND}`.\n\nFeatures, terms and \
         weights are those of the defaults; connectors are for ResNet50 as teacher and ResNet18 as student. The cross \
         entropy with the labels, `ce`, is added with weight 1 unless an experiment sets another weight. After the \
         table, each method is listed with its defaults and their sources. [configuration.md](configuration.md) \
         describes losses in experiments. The equation of a method is in its source file, and `stillhouse explain \
         NAME` prints its entry of this page.\n\n| method | paper | features of the student | features of the teacher \
         | connectors | terms and weights |\n| :-- | :-- | :-- | :-- | :-- | :-- |\n"
    );
    for (entry, info) in &infos {
        let _ = writeln!(
            text,
            "| `{0}` | {1} | {2} | {3} | {4} | {5} |",
            entry.name,
            entry.source,
            list(&info.student),
            list(&info.teacher),
            list(&info.connectors),
            terms(info)
        );
    }
    for (entry, info) in &infos {
        text.push_str(&section(entry, info));
    }
    text
}

#[test]
fn methods_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/methods.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let line = page.lines().zip(found.lines().chain(std::iter::repeat(""))).find(|(new, old)| new != old);
    assert!(found == page, "docs/methods.md is stale, first at {line:?}; update it with\n  {COMMAND}");
}

#[test]
fn entries_have_a_year_and_valid_weights() {
    for entry in ENTRIES {
        let has_year = entry.source.chars().any(|c| c.is_ascii_digit());
        assert!(has_year, "{}: no year in `{}`", entry.name, entry.source);
        for (name, weight) in &method_info(entry).unwrap().terms {
            assert!(weight.is_finite() && *weight >= 0.0, "{}: `{name}` {weight}", entry.name);
        }
    }
}
