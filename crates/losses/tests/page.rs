//! `docs/methods.md` is made from the rows, and stale if a row has changed.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use stillhouse_core::distiller::DistillerBuild;
use stillhouse_core::registry::Entry;
use stillhouse_losses::{Card, ENTRIES, card};

const COMMAND: &str = "UPDATE_DOCS=1 cargo test --locked -p stillhouse-losses --test page";

fn list(words: &[String]) -> String {
    if words.is_empty() {
        "none".into()
    } else {
        words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")
    }
}

fn terms(card: &Card) -> String {
    let term = |(name, weight): &(String, f64)| format!("`{name}` {weight}");
    card.terms.iter().map(term).collect::<Vec<_>>().join(", ")
}

fn section(row: &Entry<DistillerBuild>, card: &Card) -> String {
    let mut text = format!("\n## {}\n\n{}; {}.\n\n", row.name, row.summary, row.source.trim_end_matches('.'));
    let taps = if card.student == card.teacher {
        format!("of both {}", list(&card.student))
    } else {
        format!("of the student {}, of the teacher {}", list(&card.student), list(&card.teacher))
    };
    let _ = writeln!(text, "- labels: {}", card.labels);
    let _ = writeln!(text, "- taps: {taps}");
    let _ = writeln!(text, "- terms and their weights: {}", terms(card));
    if !card.connectors.is_empty() {
        let millions = card.parameters as f64 / 1e6;
        let _ = writeln!(text, "- trained connectors: {} ({millions:.2} M values)", list(&card.connectors));
    }
    if !card.state.is_empty() {
        let _ = writeln!(text, "- state in checkpoints: {}", list(&card.state));
    }
    let _ = write!(text, "\n```toml\n{}\n```\n", (row.defaults)().trim_end());
    text
}

fn page() -> String {
    let cards: Vec<_> = ENTRIES.iter().map(|row| (row, card(row).unwrap())).collect();
    let mut text = format!(
        "# Methods\n\nMade from the rows of `crates/losses`; `{COMMAND}` makes it again.\n\nTaps, terms and weights \
         are those of the defaults; connectors are counted between ResNet50 as teacher and ResNet18 as student. The \
         cross entropy with the labels, `ce`, is added with weight 1 unless an experiment says otherwise. Below the \
         table each method has its defaults with their sources. How a method is written as a loss of an experiment is \
         told in [configuration.md](configuration.md), its equation in its file, and `stillhouse explain NAME` says \
         what stands here.\n\n| method | paper | taps of the student | taps of the teacher | connectors | terms and \
         weights |\n| :-- | :-- | :-- | :-- | :-- | :-- |\n"
    );
    for (row, card) in &cards {
        let _ = writeln!(
            text,
            "| `{0}` | {1} | {2} | {3} | {4} | {5} |",
            row.name,
            row.source,
            list(&card.student),
            list(&card.teacher),
            list(&card.connectors),
            terms(card)
        );
    }
    for (row, card) in &cards {
        text.push_str(&section(row, card));
    }
    text
}

#[test]
fn the_page_of_methods_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/methods.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let line = page.lines().zip(found.lines().chain(std::iter::repeat(""))).find(|(new, old)| new != old);
    assert!(found == page, "docs/methods.md is stale, first at {line:?}; make it again with\n  {COMMAND}");
}

/// Each row tells its paper, and a source for each of its keys.
#[test]
fn nothing_is_left_out() {
    for row in ENTRIES {
        assert!(row.source.chars().any(|c| c.is_ascii_digit()), "{}: no year in `{}`", row.name, row.source);
        let card = card(row).unwrap();
        for (name, weight) in &card.terms {
            assert!(weight.is_finite() && *weight >= 0.0, "{}: `{name}` {weight}", row.name);
        }
    }
}
