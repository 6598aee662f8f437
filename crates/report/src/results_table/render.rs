//! Text of a results table: for terminals and as Markdown.

use super::{BASELINE_PLAIN, Column, ResultsTable, TableCell, distinct, ratio_text};
use crate::published::comparison_table;
use crate::significance::Comparison;
use crate::summary::FIGURE_NOTE;
use crate::text_table::{Align, TextTable, optional, wrap};
use crate::{Measure, RunStatus, exit_accuracy, networks};

/// Note on the significance tests.
pub(crate) const SIGNIFICANCE_NOTE: &str = "Best other: the highest mean among the other methods of the column, \
    including baseline but not baseline_plain. McNemar: exact, two-sided, on the same test images. Paired t: over the \
    seeds that both have. These p-values are not corrected for the number of comparisons.";

impl ResultsTable {
    /// Formats the table for a terminal of this width.
    pub fn terminal(&self, width: usize) -> String {
        let width = width.clamp(40, 110);
        let mut text = wrap(&self.caption, width);
        text.push('\n');
        for (student, table, notes) in self.by_student() {
            text.push_str(&format!("\n{}\n\n{}", self.heading(student), table.terminal()));
            for line in notes {
                text.push_str(&wrap(&line, width));
                text.push('\n');
            }
        }
        if !self.exits.is_empty() {
            text.push_str(&format!("\n{}", exit_accuracy::text_table(&self.exits).terminal()));
        }
        if !self.networks.is_empty() {
            text.push_str(&format!("\n{}", networks::text_table(&self.networks).terminal()));
        }
        for line in self.foot() {
            text.push_str(&format!("\n{}\n", wrap(&line, width)));
        }
        text.push_str(&self.answers(width));
        text.trim_end().to_string() + "\n"
    }

    /// Formats the table as a Markdown page.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", self.title, self.caption);
        for summary in self.column_summaries() {
            text.push_str(&format!("\n{}\n", summary.sentence().replace('_', "\\_")));
        }
        for (student, table, notes) in self.by_student() {
            text.push_str(&format!("\n## {}\n\n{}", self.heading(student), table.markdown()));
            for line in notes {
                text.push_str(&format!("\n{line}\n"));
            }
        }
        for line in self.foot() {
            text.push_str(&format!("\n{line}\n"));
        }
        if !self.tests.is_empty() {
            let table = self.significance_table().markdown();
            text.push_str(&format!(
                "\n## Each method against the best other\n\n{table}\n{SIGNIFICANCE_NOTE}\n"
            ));
        }
        for table in &self.by_class {
            let heading = self.heading(&table.student);
            let (dataset, ratio) = (&table.dataset, ratio_text(table.ratio));
            let classes = table.text_table().markdown();
            text.push_str(&format!("\n## IoU by class, %: {heading}, {dataset} {ratio}\n\n{classes}"));
        }
        if !self.exits.is_empty() {
            let table = exit_accuracy::text_table(&self.exits).markdown();
            text.push_str(&format!("\n## Exits and views\n\n{table}\n{}\n", exit_accuracy::NOTE));
        }
        if !self.networks.is_empty() {
            let table = networks::text_table(&self.networks).markdown();
            text.push_str(&format!("\n## Size and speed\n\n{table}\n{}\n", networks::NOTE));
        }
        if !self.published.is_empty() {
            let table = comparison_table(&self.published).markdown();
            text.push_str(&format!("\n## Published and measured numbers\n\n{table}"));
        }
        if !self.known.is_empty() {
            let list: String = self.known.iter().map(|f| format!("- {f}\n")).collect();
            text.push_str(&format!("\nNotes on the published numbers:\n\n{list}"));
        }
        text
    }

    /// Heading of a student's table: `resnet50 -> resnet18`.
    pub fn heading(&self, student: &str) -> String {
        match self.teacher_network.as_str() {
            "" => student.to_string(),
            teacher => format!("{teacher} -> {student}"),
        }
    }

    /// Title of the experiment.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Findings about the published numbers.
    pub fn known(&self) -> &[String] {
        &self.known
    }

    /// The significance tests: one row per method, student and column.
    pub fn significance_table(&self) -> TextTable {
        let mut table = TextTable::new(&[
            ("student", Align::Left),
            ("data", Align::Left),
            ("method", Align::Left),
            ("best other", Align::Left),
            ("points", Align::Right),
            ("images that only one classifies correctly, McNemar p, by seed", Align::Left),
            ("paired t", Align::Right),
            ("p", Align::Right),
        ]);
        for test in &self.tests {
            table.push([
                test.student.clone(),
                format!("{} {}", test.dataset, ratio_text(test.ratio)),
                test.method.clone(),
                test.other.clone(),
                format!("{:+.2}", test.difference),
                by_seed(test),
                optional(test.t, 2),
                optional(test.p, 4),
            ]);
        }
        table
    }

    /// The answer of each column: a sentence and a figure in characters.
    fn answers(&self, width: usize) -> String {
        let summaries = self.column_summaries();
        let figures =
            summaries.iter().map(|s| format!("\n{}\n\n{}", wrap(&s.sentence(), width), s.text_figure()));
        let figures: String = figures.collect();
        if figures.is_empty() { figures } else { format!("{figures}\n{}\n", wrap(FIGURE_NOTE, width)) }
    }

    /// One table per student, with the notes below it.
    fn by_student(&self) -> Vec<(&str, TextTable, Vec<String>)> {
        let students = distinct(self.cells.iter().map(|c| c.student.as_str()));
        students.into_iter().map(|id| (id, self.text_table(id), self.plain_baseline(id))).collect()
    }

    fn text_table(&self, student: &str) -> TextTable {
        let cells: Vec<&TableCell> =
            self.cells.iter().filter(|c| c.student == student && c.method != BASELINE_PLAIN).collect();
        let columns = distinct(cells.iter().map(|c| Column { dataset: c.dataset.clone(), ratio: c.ratio }));
        let heads: Vec<String> = columns.iter().map(|c| format!("{}: measured", self.head(c))).collect();
        let mut widths = vec![("method", Align::Left)];
        for head in &heads {
            widths.push((head, Align::Right));
            widths.push((self.count_head(), Align::Right));
            widths.push(("n", Align::Right));
            widths.push(("published", Align::Right));
        }
        let mut table = TextTable::new(&widths);
        for method in distinct(cells.iter().map(|c| c.method.clone())) {
            let mut row = vec![method.clone()];
            for column in &columns {
                let here = |c: &&&TableCell| c.dataset == column.dataset && c.ratio == column.ratio;
                match cells.iter().filter(here).find(|c| c.method == method) {
                    Some(cell) => row.extend(cell_columns(cell)),
                    None => row.extend(["not planned", "", "", ""].map(String::from)),
                }
            }
            table.push(row);
        }
        table
    }

    /// Head of the column of counts.
    fn count_head(&self) -> &'static str {
        match self.measure {
            Measure::Accuracy => "correct/total",
            Measure::MeanIou => "images",
        }
    }

    /// `80 %`, with the dataset if there are several.
    fn head(&self, column: &Column) -> String {
        let ratio = ratio_text(column.ratio);
        match self.cells.iter().any(|c| c.dataset != column.dataset) {
            true => format!("{} {ratio}", column.dataset),
            false => ratio,
        }
    }

    /// The results of `baseline_plain`, as a sentence.
    fn plain_baseline(&self, student: &str) -> Vec<String> {
        let plain: Vec<String> = self
            .cells
            .iter()
            .filter(|c| c.student == student && c.method == BASELINE_PLAIN)
            .map(|c| {
                let [measured, counts, n, _] = cell_columns(c);
                let of = if counts.is_empty() { String::new() } else { format!(" ({counts}, n = {n})") };
                let column = Column { dataset: c.dataset.clone(), ratio: c.ratio };
                format!("{}: {measured}{of}", self.head(&column))
            })
            .collect();
        if plain.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "Baseline with plain shuffling instead of class-balanced batches: {}.",
            plain.join("; ")
        )]
    }

    fn foot(&self) -> Vec<String> {
        let mut lines = vec![
            match self.measure {
                Measure::Accuracy => {
                    "Measured: mean over n seeds (± standard deviation, n - 1); correct/total are summed over the \
                     seeds. Published: single printed numbers."
                }
                Measure::MeanIou => {
                    "Measured: mean IoU in percent, from one confusion matrix over all pixels of the test images, \
                     without classes absent from truth and prediction; mean over n seeds (± standard deviation, \
                     n - 1); images are summed over the seeds. Published: single printed numbers."
                }
            }
            .to_string(),
        ];
        let several: Vec<String> = self
            .cells
            .iter()
            .filter(|c| c.n > 1)
            .map(|c| {
                let counts: Vec<String> = match self.measure {
                    Measure::Accuracy => {
                        c.correct.iter().zip(&c.total).map(|(r, t)| format!("{r}/{t}")).collect()
                    }
                    Measure::MeanIou => c.values.iter().map(|v| format!("{v:.2}")).collect(),
                };
                format!("{}: {}", cell_name(&c.method, &c.student, &c.dataset, c.ratio), counts.join(" "))
            })
            .collect();
        if !several.is_empty() {
            let what = match self.measure {
                Measure::Accuracy => "Correct of all test images",
                Measure::MeanIou => "Mean IoU",
            };
            lines.push(format!("{what}, by seed: {}.", several.join("; ")));
        }
        let open = open_cells(self);
        lines.push(match open.is_empty() {
            true => format!("All {} cells are done.", self.cells.len()),
            false => {
                let done = self.cells.iter().filter(|c| c.state == RunStatus::Done).count();
                format!("{done} cells done, {}.", open.join(", "))
            }
        });
        lines.extend(self.notes.iter().cloned());
        lines
    }
}

/// Numbers of cells that are not done, by status: `3 pending`.
pub(crate) fn open_cells(table: &ResultsTable) -> Vec<String> {
    let states = [RunStatus::Pending, RunStatus::Running, RunStatus::Failed, RunStatus::UnknownMethod];
    let count = |state| table.cells.iter().filter(|c| c.state == state).count();
    states.into_iter().filter(|s| count(*s) > 0).map(|s| format!("{} {s}", count(s))).collect()
}

fn cell_columns(cell: &TableCell) -> [String; 4] {
    let measured = match (cell.mean, cell.std) {
        (Some(mean), Some(std)) => format!("{mean:.2} ± {std:.2}"),
        (Some(mean), None) => format!("{mean:.2}"),
        (None, _) => cell.state.to_string(),
    };
    let open = match cell.state {
        RunStatus::Done => String::new(),
        state if cell.n > 0 => format!(" ({state})"),
        _ => String::new(),
    };
    let (counts, n) = match cell.n {
        0 => (String::new(), String::new()),
        n => {
            let (correct, total) = (cell.correct.iter().sum::<u64>(), cell.total.iter().sum::<u64>());
            let counts =
                if cell.correct.is_empty() { total.to_string() } else { format!("{correct}/{total}") };
            (counts, n.to_string())
        }
    };
    [measured + &open, counts, n, optional(cell.published, 2)]
}

/// `kd resnet18 roses 80 %`.
pub(super) fn cell_name(method: &str, student: &str, dataset: &str, ratio: u64) -> String {
    format!("{method} {student} {dataset} {}", ratio_text(ratio))
}

/// `seed 0: 12 against 7, p = 0.36`.
fn by_seed(test: &Comparison) -> String {
    let seeds = test
        .seeds
        .iter()
        .map(|s| format!("seed {}: {} against {}, p = {:.3}", s.seed, s.only_method, s.only_other, s.p));
    let seeds: Vec<String> = seeds.collect();
    if seeds.is_empty() { "images not paired".to_string() } else { seeds.join("; ") }
}
