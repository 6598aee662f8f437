//! One self-contained HTML page of a table: measured and published numbers, significance tests, training curves,
//! confusion matrices, bar charts by class, settings. It needs no network and no script.

mod answer;
mod plots;
mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::{Deserialize, Serialize};
use stillhouse_runs::TEACHERS_DIR;

use crate::charts::{Group, scatter};
use crate::results_table::{BASELINE, BASELINE_PLAIN, ratio_text};
use crate::text_table::{Align, TextTable};
use crate::{FinishedRuns, Planned, Record, Result, ResultsTable, TableSpec};

const STYLE: &str = include_str!("style.css");

/// The contents of a page.
#[derive(Debug)]
pub struct Page<'a> {
    /// The table's specification.
    pub spec: &'a TableSpec,
    /// The table.
    pub table: &'a ResultsTable,
    /// The finished runs and their teachers.
    pub finished: &'a FinishedRuns,
    /// Embeddings of features, one per network.
    pub embeddings: &'a [Embedding],
    /// Sample images.
    pub samples: &'a Samples,
    /// Version and revision of the program that writes the page.
    pub program: &'a str,
}

/// Features of one network, embedded in the plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Name of the network.
    pub title: String,
    /// The points of each class.
    pub groups: Vec<Group>,
}

/// Sample images of the dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// Explanation above the images.
    pub text: String,
    /// Colors (`#rrggbb`) and names of classes.
    pub legend: Vec<(String, String)>,
    /// The images.
    pub all: Vec<Sample>,
}

/// One sample image.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// True and predicted class.
    pub title: String,
    /// Names and PNG files.
    pub pictures: Vec<(String, Vec<u8>)>,
}

/// Reads the teachers of runs: their folders are in `teachers/` next to the experiments.
pub fn teachers(runs: &[(Planned, Record)]) -> Result<Vec<Record>> {
    let mut found: BTreeMap<String, Record> = BTreeMap::new();
    for (_, record) in runs {
        let Some(teacher) = &record.result.summary.teacher else { continue };
        if found.contains_key(&teacher.cell) || teacher.cell.contains(['/', '\\']) || teacher.cell == ".." {
            continue;
        }
        // A run that uses a finished run as its teacher names its folder.
        let given = record.info.get("teacher.run").and_then(|run| run.as_str()).map(PathBuf::from);
        let folders = record.dir.path().ancestors().map(|a| a.join(TEACHERS_DIR).join(&teacher.cell));
        for folder in given.into_iter().chain(folders) {
            if let Some(record) = Record::read(&folder)? {
                found.insert(teacher.cell.clone(), record);
                break;
            }
        }
    }
    Ok(found.into_values().collect())
}

impl Page<'_> {
    /// Renders the page as HTML.
    pub fn html(&self) -> String {
        let title = self.table.title();
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    // An empty icon, so that no browser requests one from a server.
                    link rel="icon" href="data:,";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (title) }
                    @if let Some(label) = self.spec.caption.label() { p.label { (label) } }
                    (answer::answer(self.table))
                    (self.settings())
                    (tables::results(self))
                    (tables::exits(self))
                    (tables::significance(self))
                    (tables::published(self))
                    (plots::training_curves(self))
                    (plots::confusion_matrices(self))
                    (plots::by_class(self))
                    (plots::sweep(self))
                    (self.embeddings())
                    (self.sample_images())
                    (tables::networks(self))
                    (self.configurations())
                    (self.environment())
                }
            }
        };
        page.into_string()
    }

    /// Writes `report.html` atomically.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Ok(stillhouse_core::fs::write_atomic(&folder.join("report.html"), self.html().as_bytes())?)
    }

    fn settings(&self) -> Markup {
        let c = &self.spec.caption;
        let seeds: Vec<String> = c.seeds.iter().map(u64::to_string).collect();
        let rows = [
            ("Profile", c.profile.clone()),
            ("Data", c.data.clone()),
            ("Resolution", format!("{} px", c.resolution)),
            ("Tested", c.tested.clone()),
            ("Schedule", c.schedule.clone()),
            ("Seeds", seeds.join(", ")),
            ("Device", c.device.clone()),
            ("Sampler", c.sampler.clone()),
            ("Teacher", c.teacher.clone()),
            ("Students", c.student.clone()),
            ("Changed", c.changed.join(", ")),
        ];
        html! {
            dl {
                @for (name, value) in rows.iter().filter(|(_, v)| !v.is_empty()) { dt { (name) } dd { (value) } }
            }
        }
    }

    fn embeddings(&self) -> Markup {
        html! {
            @if !self.embeddings.is_empty() {
                h2 { "Pooled features" }
                p.soft {
                    "Exact t-SNE of the pooled features of the same test images. The axes and the distances between \
                     far points have no meaning."
                }
                div.figures {
                    @for embedding in self.embeddings { (scatter(&embedding.title, &embedding.groups)) }
                }
            }
        }
    }

    fn sample_images(&self) -> Markup {
        html! {
            @if !self.samples.all.is_empty() {
                h2 { "Samples" }
                p.soft { (self.samples.text) }
                @if !self.spec.caption.synthetic {
                    p.soft { "The images are from the dataset: share this page only if its license permits." }
                }
                @if !self.samples.legend.is_empty() {
                    ul.legend {
                        @for (color, name) in &self.samples.legend {
                            li { span.swatch style=(format!("background:{color}")) {} (name) }
                        }
                    }
                }
                // Up to two pictures share a row with other samples; more take the width of the page.
                div class=(if self.samples.all.iter().any(|s| s.pictures.len() > 2) { "samples rows" } else { "samples" }) {
                    @for sample in &self.samples.all {
                        figure {
                            @if sample.pictures.len() > 2 {
                                div.strip {
                                    @for (name, png) in &sample.pictures {
                                        div { img alt=(name) title=(name) src=(data_url(png)); small { (name) } }
                                    }
                                }
                            } @else {
                                @for (name, png) in &sample.pictures { img alt=(name) title=(name) src=(data_url(png)); }
                            }
                            figcaption { (sample.title) }
                        }
                    }
                }
            }
        }
    }

    fn configurations(&self) -> Markup {
        html! {
            h2 { "Resolved settings" }
            @for record in self.finished.teachers.iter().chain(self.finished.runs.iter().map(|(_, record)| record)) {
                details {
                    summary { (record.info.cell) " " span.soft { (record.info.hash) } }
                    pre { (record.config) }
                }
            }
        }
    }

    fn environment(&self) -> Markup {
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (_, record) in &self.finished.runs {
            let summary = &record.result.summary;
            let all = summary.environment.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            for (name, value) in all.chain([("version", summary.version.as_str())]) {
                let known = values.entry(name).or_default();
                if !known.contains(&value) {
                    known.push(value);
                }
            }
        }
        html! {
            h2 { "Environment of the runs" }
            dl {
                @for (name, values) in &values { dt { (name) } dd { (values.join("; ")) } }
                dt { "page written by" } dd { (self.program) }
            }
        }
    }

    /// Student, dataset and ratio of the finished cells, in the order of the table.
    fn columns(&self) -> Vec<(&str, &str, u64)> {
        let mut all = Vec::new();
        for cell in &self.table.cells {
            let column = (cell.student.as_str(), cell.dataset.as_str(), cell.ratio);
            if cell.n > 0 && !all.contains(&column) {
                all.push(column);
            }
        }
        all
    }

    /// Finished methods of a column, in the order of the table.
    fn methods(&self, (student, dataset, ratio): (&str, &str, u64)) -> Vec<&str> {
        let here = self.table.cells.iter().filter(|c| c.student == student && c.dataset == dataset);
        here.filter(|c| c.ratio == ratio && c.n > 0).map(|c| c.method.as_str()).collect()
    }

    /// Finished runs of a cell.
    fn runs_of(&self, (student, dataset, ratio): (&str, &str, u64), method: &str) -> Vec<&Record> {
        let here = self.finished.runs.iter().filter(|(p, _)| p.student == student && p.dataset == dataset);
        here.filter(|(p, _)| p.ratio == ratio && p.method == method).map(|(_, record)| record).collect()
    }

    /// `resnet50 -> resnet18, roses 80 %`.
    fn column_title(&self, (student, dataset, ratio): (&str, &str, u64)) -> String {
        format!("{}, {}", self.table.heading(student), Self::data_title(dataset, ratio))
    }

    /// `roses 80 %`.
    fn data_title(dataset: &str, ratio: u64) -> String {
        let comma = if ratio == 0 { "," } else { "" };
        format!("{dataset}{comma} {}", ratio_text(ratio))
    }

    /// The methods of a column that get a chart each: the baseline, the best one, and the last of the table, which
    /// is usually the paper's own.
    fn charted(&self, column: (&str, &str, u64)) -> Vec<&str> {
        let methods: Vec<&str> = self.methods(column).into_iter().filter(|m| *m != BASELINE_PLAIN).collect();
        let mean = |m: &&str| {
            let (student, dataset, ratio) = column;
            let here = self.table.cells.iter().filter(|c| c.student == student && c.dataset == dataset);
            here.filter(|c| c.ratio == ratio)
                .find(|c| c.method == **m)
                .and_then(|c| c.mean)
                .unwrap_or_default()
        };
        let leading = methods.iter().rev().copied().max_by(|a, b| mean(a).total_cmp(&mean(b)));
        // A table of few methods shows all.
        let all = methods.len() <= 4;
        methods
            .iter()
            .enumerate()
            .filter(|(i, m)| all || **m == BASELINE || Some(**m) == leading || i + 1 == methods.len())
            .map(|(_, m)| *m)
            .collect()
    }
}

/// Renders a text table as HTML.
fn html_table(table: &TextTable) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr {
                    @for (name, align) in table.columns() {
                        th.(if *align == Align::Left { "word" } else { "number" }) { (name) }
                    }
                } }
                tbody { @for row in table.rows() { tr {
                    @for (cell, (_, align)) in row.iter().zip(table.columns()) {
                        td.(match (align, cell.chars().count() > 24) {
                            (Align::Left, true) => "wrap",
                            (Align::Left, false) => "word",
                            _ => "number",
                        }) { (cell) }
                    }
                } } }
            }
        }
    }
}

/// Returns a PNG file as a data URL.
fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(png))
}

/// Encodes as base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| (w << 8) | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 4648, section 10.
    #[test]
    fn encodes_base64() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
