//! Tables of accuracy: a row for each method, a column for each dataset and training ratio, a grid for
//! each student; beside them the printed numbers.

mod print;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillhouse_metrics::seeds::SeedSummary;
use stillhouse_runs::RunDir;

pub(crate) use self::print::TESTS;
use self::print::place;
pub use self::print::{lines_grid, network_title};
use crate::beside::{Beside, Line, STUDENTS, Teacher};
use crate::by_class::ByClass;
use crate::caption::Caption;
use crate::compare::{Comparison, Seed, against_best};
use crate::exits::ExitRow;
use crate::networks::NetworkRow;
use crate::{Error, Measure, Result, RunStatus, facts};

/// The student alone with plain shuffling: stands below the table.
pub const BELOW: &str = "baseline_plain";

/// A run that the table is to count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Registry id of the method, `baseline` or `baseline_plain`.
    pub method: String,
    /// Registry id of the student, or of the network on which it stands.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training part in percent.
    pub ratio: u64,
    /// Seed.
    pub seed: u64,
    /// Its run folder, which need not exist.
    pub folder: PathBuf,
}

/// One cell: all seeds of a method, a student, a dataset and a ratio. These are the fields of `table.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// Registry id of the method.
    pub method: String,
    /// Registry id of the student.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training part in percent.
    pub ratio: u64,
    /// Where it stands.
    pub state: RunStatus,
    /// Mean accuracy, or mean IoU, of the finished seeds in percent.
    pub mean: Option<f64>,
    /// Standard deviation (n - 1) in percentage points; none for a single seed.
    pub std: Option<f64>,
    /// The printed number in percent.
    pub published: Option<f64>,
    /// Finished seeds.
    pub n: usize,
    /// Test images classified correctly, by seed; empty for label masks.
    pub correct: Vec<u64>,
    /// Test images, by seed.
    pub total: Vec<u64>,
    /// The figure in percent, by seed.
    pub values: Vec<f64>,
    /// IoU of each class in percent, mean over the seeds; none where a seed has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub class_iou: Vec<Option<f64>>,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccuracyTable {
    /// What was run on what.
    pub caption: String,
    /// What the figures are.
    pub measure: Measure,
    /// The cells, row by row; `baseline_plain` comes last.
    pub cells: Vec<Cell>,
    /// Every method beside the best other one on the same images.
    pub tests: Vec<Comparison>,
    /// Every printed number that belongs to this table, beside ours.
    pub published: Vec<Line>,
    /// IoU of each class, where label masks are counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_class: Vec<ByClass>,
    /// Size and speed of the networks.
    pub networks: Vec<NetworkRow>,
    /// Accuracies at every exit and on other views, where they were tested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<ExitRow>,
    /// The finished teachers.
    #[serde(skip)]
    pub teachers: Vec<Teacher>,
    #[serde(skip)]
    title: String,
    #[serde(skip)]
    above: String,
    #[serde(skip)]
    facts: &'static [&'static str],
    #[serde(skip)]
    notes: Vec<String>,
}

impl AccuracyTable {
    /// Reads the runs' folders. With `published` the rows of the paper are there, each with its
    /// printed number; `built` tells whether a method exists in this program, and rows of methods
    /// that do not are in the table as not built. Other rows that were not planned are left out.
    pub fn collect(
        caption: &Caption,
        planned: &[Planned],
        built: impl Fn(&str) -> bool,
        published: Option<&Beside>,
    ) -> Result<Self> {
        let mut methods: Vec<&str> = published.map_or(&[][..], Beside::methods).to_vec();
        for run in planned {
            if !methods.contains(&run.method.as_str()) && run.method != BELOW {
                methods.push(&run.method);
            }
        }
        methods.push(BELOW);
        let (students, columns) = axes(planned);
        let mut table = Self {
            caption: caption.text(),
            measure: Measure::default(),
            cells: Vec::new(),
            tests: Vec::new(),
            published: Vec::new(),
            by_class: Vec::new(),
            networks: Vec::new(),
            exits: Vec::new(),
            teachers: Vec::new(),
            title: caption.title.clone(),
            above: caption.teacher_network.clone(),
            facts: published.map_or(&[], |p| facts::of(p.id())),
            notes: Vec::new(),
        };
        let mut seeds: Vec<(&str, &str, &Column, Vec<Seed>)> = Vec::new();
        for method in methods {
            for student in &students {
                for column in &columns {
                    let runs: Vec<&Planned> = planned
                        .iter()
                        .filter(|r| r.method == method && r.student == *student && Column::of(r) == *column)
                        .collect();
                    let exists = method == "baseline" || method == BELOW || built(method);
                    if !runs.is_empty() || !exists {
                        let finished = finished(&runs, &mut table.teachers)?;
                        let cell = cell(method, student, column, exists, &runs, &finished, published);
                        if let Some(first) = finished.first() {
                            table.measure = first.measure;
                        }
                        table.note_failures(&cell, &runs);
                        table.cells.push(cell);
                        let of_seeds = finished.into_iter().map(|f| f.seed).collect();
                        seeds.push((method, student, column, of_seeds));
                    }
                }
            }
        }
        for student in &students {
            for column in &columns {
                let here = seeds.iter().filter(|(m, s, c, _)| s == student && *c == column && *m != BELOW);
                let here: Vec<_> = here.map(|(m, _, _, seeds)| ((*m).to_string(), seeds.clone())).collect();
                table.tests.extend(against_best(&here, student, &column.dataset, column.ratio));
            }
        }
        table.teachers.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        table.teachers.dedup();
        if let Some(published) = published {
            table.published = published.lines(&table.cells, &table.teachers);
            let teachers = table.teachers_line(published);
            table.note(teachers);
        }
        Ok(table)
    }

    /// How good the finished teachers are.
    fn teachers_line(&self, published: &Beside) -> Option<String> {
        let several = self.cells.iter().any(|c| c.dataset != self.cells[0].dataset);
        let known = self.teachers.iter().map(|t| {
            let of = if several { format!("{} ", t.dataset) } else { String::new() };
            let paper = published.teacher(&t.dataset);
            let paper = paper.map_or_else(String::new, |v| format!(", paper {v:.2}"));
            let counts = t
                .correct
                .map_or_else(|| format!("{} images", t.total), |correct| format!("{correct}/{}", t.total));
            format!("{of}{} seed {}: {:.2} ({counts}{paper})", part_words(t.ratio), t.seed, t.percent)
        });
        let known: Vec<String> = known.collect();
        (!known.is_empty()).then(|| format!("Teachers: {}.", known.join("; ")))
    }

    /// Adds what is known about the numbers of a printed table.
    pub(crate) fn set_facts(&mut self, table: &str) {
        self.facts = facts::of(table);
    }

    /// Adds a line below the table.
    pub fn note(&mut self, line: Option<String>) {
        self.notes.extend(line);
    }

    fn note_failures(&mut self, cell: &Cell, runs: &[&Planned]) {
        for run in runs {
            let dir = RunDir::new(&run.folder);
            if dir.status() == RunStatus::Failed {
                let error = dir.failure().unwrap_or_default();
                self.notes.push(format!("{} failed: {error}", place(cell, Some(run.seed))));
            }
        }
    }

    /// Whether any cell failed.
    pub fn failed(&self) -> bool {
        self.cells.iter().any(|c| c.state == RunStatus::Failed)
    }

    /// The table as JSON.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| crate::Error::Unreadable {
            path: "table.json".to_string(),
            message: e.to_string(),
        })?;
        Ok(text + "\n")
    }

    /// Writes `table.md` and `table.json` into a folder; each is whole or not there.
    pub fn write(&self, folder: &Path) -> Result<()> {
        stillhouse_core::fs::write_atomic(&folder.join("table.md"), self.markdown().as_bytes())?;
        stillhouse_core::fs::write_atomic(&folder.join("table.json"), self.json()?.as_bytes())?;
        Ok(())
    }
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    dataset: String,
    ratio: u64,
}

impl Column {
    fn of(run: &Planned) -> Self {
        Self { dataset: run.dataset.clone(), ratio: run.ratio }
    }
}

/// Students in the order of print, others behind; datasets in the order of the plan, the larger
/// training part first.
fn axes(planned: &[Planned]) -> (Vec<String>, Vec<Column>) {
    let known = STUDENTS.iter().map(|(id, _)| (*id).to_string());
    let known = known.filter(|id| planned.iter().any(|r| r.student == *id));
    let students = distinct(known.chain(planned.iter().map(|r| r.student.clone())));
    let mut columns = Vec::new();
    for dataset in distinct(planned.iter().map(|r| r.dataset.clone())) {
        let here = planned.iter().filter(|r| r.dataset == dataset);
        let mut ratios = distinct(here.map(|r| r.ratio));
        ratios.sort_unstable_by(|a, b| b.cmp(a));
        columns.extend(ratios.into_iter().map(|ratio| Column { dataset: dataset.clone(), ratio }));
    }
    (students, columns)
}

/// Each value once, in the order of its first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// `80 %`, or `official split`.
pub(crate) fn part_words(ratio: u64) -> String {
    if ratio == 0 { "official split".to_string() } else { format!("{ratio} %") }
}

/// A finished run of a cell.
struct Finished {
    measure: Measure,
    correct: Option<u64>,
    total: u64,
    class_iou: Vec<Option<f64>>,
    seed: Seed,
}

/// The finished ones of a cell's runs; their teachers are added to the list.
fn finished(runs: &[&Planned], teachers: &mut Vec<Teacher>) -> Result<Vec<Finished>> {
    let mut all = Vec::new();
    for run in runs {
        let dir = RunDir::new(&run.folder);
        let Some(result) = dir.result()? else { continue };
        let Some(percent) = result.percent() else {
            let path = run.folder.display().to_string();
            let message = "a run on label masks without a mean IoU, which this table shows; \
                           count it with eval.metrics = [\"segmentation\"]";
            return Err(Error::Unreadable { path, message: message.into() });
        };
        let images = dir.predictions()?.map(|p| (p.indices.clone(), p.correct()));
        let seed = Seed { seed: run.seed, percent, images };
        all.push(Finished {
            measure: result.measure(),
            correct: result.correct,
            total: result.total,
            class_iou: result.class_iou(),
            seed,
        });
        let teacher = result.summary.teacher;
        if let Some((teacher, percent)) = teacher.and_then(|t| Some((t.clone(), t.percent()?))) {
            teachers.push(Teacher {
                dataset: run.dataset.clone(),
                ratio: run.ratio,
                seed: run.seed,
                model: teacher.model,
                init: teacher.init,
                cell: teacher.cell,
                correct: teacher.correct,
                total: teacher.total,
                percent,
            });
        }
    }
    Ok(all)
}

fn cell(
    method: &str,
    student: &str,
    column: &Column,
    exists: bool,
    runs: &[&Planned],
    finished: &[Finished],
    published: Option<&Beside>,
) -> Cell {
    let states: Vec<RunStatus> = runs.iter().map(|run| RunDir::new(&run.folder).status()).collect();
    let percents: Vec<f64> = finished.iter().map(|f| f.seed.percent).collect();
    let summary = SeedSummary::new(&percents);
    let defined = |value: f64| value.is_finite().then_some(value);
    Cell {
        method: method.to_string(),
        student: student.to_string(),
        dataset: column.dataset.clone(),
        ratio: column.ratio,
        state: if exists { together(&states) } else { RunStatus::UnknownMethod },
        mean: defined(summary.mean),
        std: defined(summary.std),
        published: published.and_then(|p| p.number(method, student, &column.dataset, column.ratio)),
        n: finished.len(),
        correct: finished.iter().filter_map(|f| f.correct).collect(),
        total: finished.iter().map(|f| f.total).collect(),
        class_iou: mean_by_class(finished),
        values: percents,
    }
}

/// The mean over the seeds of each class's IoU.
fn mean_by_class(finished: &[Finished]) -> Vec<Option<f64>> {
    let classes = finished.iter().map(|f| f.class_iou.len()).min().unwrap_or(0);
    let mean = |class: usize| -> Option<f64> {
        let values: Option<Vec<f64>> = finished.iter().map(|f| f.class_iou[class]).collect();
        values.map(|v| v.iter().sum::<f64>() / v.len() as f64)
    };
    (0..classes).map(mean).collect()
}

/// Failed beats running beats pending beats done.
fn together(states: &[RunStatus]) -> RunStatus {
    [RunStatus::Failed, RunStatus::Running, RunStatus::Pending]
        .into_iter()
        .find(|s| states.contains(s))
        .unwrap_or(if states.is_empty() { RunStatus::Pending } else { RunStatus::Done })
}
