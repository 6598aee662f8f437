//! Papers and their printed numbers: `paper.toml`.

mod run_values;
mod selector;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillhouse_core::{config, suggest};

use crate::text_table::{Align, TextTable};
use crate::{Error, Result};

pub(crate) use run_values::{RunValues, setting, test_accuracy};
use selector::TEACHER;
pub use selector::{Quantity, Reduce, Selector};

/// A paper and all numbers that it prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Title.
    pub title: String,
    /// Short name.
    pub short: String,
    /// Authors.
    pub authors: String,
    /// Journal, volume, pages.
    pub venue: String,
    /// Year.
    pub year: u32,
    /// DOI, if it has one.
    pub doi: Option<String>,
    /// Which parts of its text are known.
    pub text: String,
    /// Its tables, and one for the numbers of its running text.
    #[serde(rename = "table")]
    pub tables: Vec<PaperTable>,
}

/// A table of a paper.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperTable {
    /// Id within the paper, for example `t3`.
    pub id: String,
    /// Title.
    pub title: String,
    /// Remark on the printed table.
    pub note: Option<String>,
    /// The table's dataset. A dataset that the paper has no numbers for is compared with this one.
    pub dataset: Option<String>,
    /// Findings about the printed numbers, shown below them.
    #[serde(default)]
    pub known: Vec<String>,
    /// Its numbers.
    #[serde(default)]
    pub values: Vec<PublishedValue>,
}

/// One printed number.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedValue {
    /// Row as printed.
    pub row: String,
    /// Column.
    pub column: String,
    /// Spelling.
    pub printed: String,
    /// The number; absent if none is printed.
    pub value: Option<f64>,
    /// Upper end of a printed range.
    pub value_max: Option<f64>,
    /// Unit, for example `%`.
    #[serde(default)]
    pub unit: String,
    /// Where it is printed.
    pub source: Source,
    /// Number of correct images behind the percentage, if the size of the test set is known.
    pub count: Option<u64>,
    /// Test images.
    pub of: Option<u64>,
    /// Whether a count of `of` images rounds to the printed number.
    #[serde(default = "yes")]
    pub fits: bool,
    /// Table that it is shown with, if not its own.
    pub shown_with: Option<String>,
    /// Remark.
    pub note: Option<String>,
    /// The measured number that it is compared with; absent if nothing measures it.
    pub measured: Option<Selector>,
}

/// Where a number is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A table in the text.
    Table,
    /// Running text.
    Text,
    /// The abstract.
    Abstract,
    /// The abstract's page of the publisher or of an index.
    AbstractPage,
    /// The publisher's page of a table.
    TablePage,
    /// Arithmetic on printed numbers.
    Derived,
}

fn yes() -> bool {
    true
}

/// `[published]` of an experiment: what its results are compared with, and what its page plots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedSection {
    /// The paper: the name of its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper: Option<String>,
    /// Id of the paper's table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The paper's file, if it is not the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Methods whose features the page plots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Setting over which the page plots the scores: `loss.<method>.<key>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<String>,
}

impl Paper {
    /// Parses a `paper.toml`; `origin` appears in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let paper: Self = config::parse(text, origin)?;
        for table in &paper.tables {
            for value in &table.values {
                let at = format!("table `{}`, row `{}`, column `{}`", table.id, value.row, value.column);
                if let Some(table) = &value.shown_with {
                    paper
                        .published_table(table)
                        .map_err(|e| Error::unreadable(origin, format!("{at}: {e}")))?;
                }
                if let Some(problem) = value.measured.as_ref().and_then(Selector::problem) {
                    return Err(Error::unreadable(origin, format!("{at}: `measured`: {problem}")));
                }
            }
        }
        Ok(paper)
    }

    /// Reads a `paper.toml`.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(stillhouse_core::Error::io(path))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Returns a table with the numbers that are shown with it.
    pub fn published_table(&self, table: &str) -> Result<PublishedTable<'_>> {
        let found = self.tables.iter().find(|t| t.id == table);
        found.map(|table| PublishedTable { paper: self, table }).ok_or_else(|| {
            let ids = self.tables.iter().map(|t| t.id.as_str());
            let hint = suggest(table, ids).map(|id| format!("; did you mean `{id}`?")).unwrap_or_default();
            Error::unreadable(&self.title, format!("unknown table `{table}`{hint}"))
        })
    }
}

/// A table of a paper with the numbers of the running text that are shown with it.
#[derive(Debug, Clone, Copy)]
pub struct PublishedTable<'a> {
    paper: &'a Paper,
    table: &'a PaperTable,
}

impl<'a> PublishedTable<'a> {
    /// Findings about the printed numbers.
    pub fn known(&self) -> &'a [String] {
        &self.table.known
    }

    /// Its numbers, each with the id of its table.
    pub fn values(&self) -> impl Iterator<Item = (&'a str, &'a PublishedValue)> + use<'a> {
        let id = self.table.id.as_str();
        let all = self.paper.tables.iter().flat_map(|t| t.values.iter().map(|v| (t.id.as_str(), v)));
        all.filter(move |(table, value)| value.shown_with.as_deref().unwrap_or(table) == id)
    }

    /// Numbers of the whole paper, those of this table first.
    fn all_values(&self) -> impl Iterator<Item = &'a PublishedValue> + use<'a> {
        let paper = self.paper;
        self.values().map(|(_, v)| v).chain(paper.tables.iter().flat_map(|t| &t.values))
    }

    /// Methods with a printed score of their own, in the order of print.
    pub fn methods(&self) -> Vec<&'a str> {
        let mut methods = Vec::new();
        for selector in self.values().filter_map(|(_, v)| v.measured.as_ref()) {
            if let (Some(method), None) = (&selector.method, selector.operand())
                && !methods.contains(&method.as_str())
            {
                methods.push(method.as_str());
            }
        }
        methods
    }

    /// Returns the printed score of a cell in percent, at an early exit or of the network's own output.
    pub(crate) fn score(
        &self,
        method: &str,
        student: &str,
        (dataset, ratio): (&str, u64),
        exit: Option<&str>,
    ) -> Option<f64> {
        let dataset = self.dataset(dataset);
        self.plain_score(|s| s.exit.as_deref() == exit && s.selects(method, student, dataset, ratio))
    }

    /// Returns the printed score of the teacher in percent.
    pub(crate) fn teacher(&self, dataset: &str, ratio: u64) -> Option<f64> {
        let dataset = self.dataset(dataset);
        self.plain_score(|s| s.method.as_deref() == Some(TEACHER) && s.selects_data(dataset, ratio))
    }

    /// The first selected score that is printed as it is, of the quantity that this table prints.
    fn plain_score(&self, selected: impl Fn(&Selector) -> bool) -> Option<f64> {
        let plain = |v: &'a PublishedValue| v.measured.as_ref().filter(|s| s.is_plain_score());
        let quantity = self.values().find_map(|(_, v)| plain(v)?.quantity);
        let matches = |s: &Selector| (quantity.is_none() || s.quantity == quantity) && selected(s);
        self.all_values().find(|v| plain(v).is_some_and(matches))?.value
    }

    /// The dataset whose printed numbers a dataset is compared with.
    fn dataset<'b>(&self, dataset: &'b str) -> &'b str
    where
        'a: 'b,
    {
        let of = |v: &'a PublishedValue| v.measured.as_ref()?.dataset.as_deref();
        match &self.table.dataset {
            Some(own) if !self.all_values().filter_map(of).any(|known| known == dataset) => own,
            _ => dataset,
        }
    }

    /// Returns every number next to the measured one that `value` returns.
    pub(crate) fn compare(&self, value: &dyn Fn(&Selector) -> Option<f64>) -> Vec<ComparedValue> {
        let compared = |(table, v): (&str, &PublishedValue)| {
            // A ratio has no unit to scale.
            let scale = match v.unit.as_str() {
                "M" => 1e6,
                "G" => 1e9,
                _ => 1.0,
            };
            ComparedValue {
                table: table.to_string(),
                row: v.row.clone(),
                column: v.column.clone(),
                published: v.printed.clone(),
                unit: v.unit.clone(),
                note: v.note.clone(),
                measured: v.measured.as_ref().and_then(|s| s.evaluate(value)).map(|v| v / scale),
            }
        };
        self.values().map(compared).collect()
    }
}

/// A printed number and the measured one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedValue {
    /// Id of its table.
    pub table: String,
    /// Row as printed.
    pub row: String,
    /// Column.
    pub column: String,
    /// Spelling in print.
    pub published: String,
    /// Unit of both.
    pub unit: String,
    /// Remark on the printed number.
    pub note: Option<String>,
    /// The measured number; none until it is measured.
    pub measured: Option<f64>,
}

/// Returns a text table of printed and measured numbers.
pub fn comparison_table(values: &[ComparedValue]) -> TextTable {
    let mut table = TextTable::new(&[
        ("table", Align::Left),
        ("row", Align::Left),
        ("column", Align::Left),
        ("published", Align::Right),
        ("measured", Align::Right),
        ("unit", Align::Left),
        ("note", Align::Left),
    ]);
    for value in values {
        let digits = match value.unit.as_str() {
            "%" | "points" | "M" | "G" => 2,
            // Settings are fractions, counts are whole.
            _ => value.measured.map_or(0, |v| if v.fract() == 0.0 { 0 } else { 3 }),
        };
        table.push([
            value.table.clone(),
            value.row.clone(),
            value.column.clone(),
            value.published.clone(),
            value.measured.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}")),
            value.unit.clone(),
            value.note.clone().unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
title = "A paper"
short = "A"
authors = "B. C."
venue = "D"
year = 2020
text = "all of it"

[[table]]
id = "t1"
title = "Accuracy"
dataset = "roses"
values = [
    { row = "KD", column = "roses", printed = "70.0", value = 70.0, unit = "%", source = "table", measured = { quantity = "accuracy", method = "kd", student = "small", dataset = "roses" } },
    { row = "KD", column = "tulips", printed = "60.0", value = 60.0, unit = "%", source = "table", measured = { quantity = "accuracy", method = "kd", student = "small", dataset = "tulips" } },
    { row = "teacher", column = "roses", printed = "80.0", value = 80.0, unit = "%", source = "table", measured = { quantity = "accuracy", method = "teacher", dataset = "roses" } },
]

[[table]]
id = "text"
title = "Numbers in the text"
values = [
    { row = "small", column = "parameters", printed = "1.5M", value = 1.5, unit = "M", source = "text", shown_with = "t1", measured = { quantity = "parameters", student = "small" } },
    { row = "KD at exit 2", column = "roses", printed = "65.0", value = 65.0, unit = "%", source = "text", shown_with = "t1", measured = { quantity = "accuracy", method = "kd", dataset = "roses", exit = "exit2" } },
]
"#;

    #[test]
    fn finds_printed_scores() {
        let paper = Paper::parse(TEXT, "paper.toml").unwrap();
        let table = paper.published_table("t1").unwrap();
        let score = |student: &str, dataset: &str| table.score("kd", student, (dataset, 80), None);
        assert_eq!((score("small", "roses"), score("small", "tulips")), (Some(70.0), Some(60.0)));
        assert_eq!(score("small", "unprinted"), Some(70.0), "compared with the table's dataset");
        assert_eq!(score("large", "roses"), None);
        assert_eq!(table.score("kd", "large", ("roses", 80), Some("exit2")), Some(65.0));
        assert_eq!((table.teacher("roses", 80), table.teacher("tulips", 80)), (Some(80.0), None));
        assert_eq!(table.methods(), ["kd", "teacher"]);
    }

    #[test]
    fn compares_in_the_printed_unit() {
        let paper = Paper::parse(TEXT, "paper.toml").unwrap();
        let compared = paper.published_table("t1").unwrap().compare(&|s| match s.quantity {
            Some(Quantity::Parameters) => Some(1_250_000.0),
            _ => None,
        });
        assert_eq!(compared.len(), 5);
        let measured: Vec<_> = compared.iter().map(|v| v.measured).collect();
        assert_eq!(measured, [None, None, None, Some(1.25), None]);
        let text = comparison_table(&compared).markdown();
        assert!(text.contains("| text | small | parameters | 1.5M | 1.25 | M |"), "{text}");
    }

    #[test]
    fn rejects_unknown_tables_and_incomplete_selectors() {
        let error = |text: &str| Paper::parse(text, "p/paper.toml").unwrap_err().to_string();
        let text = error(&TEXT.replace("shown_with = \"t1\"", "shown_with = \"t2\""));
        assert!(text.contains("p/paper.toml") && text.contains("unknown table `t2`"), "{text}");
        assert!(text.contains("did you mean `t1`"), "{text}");
        let text = error(&TEXT.replace("quantity = \"parameters\"", "quantity = \"class_iou\""));
        assert!(text.contains("row `small`") && text.contains("requires `class`"), "{text}");
    }
}
