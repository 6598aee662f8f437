//! Results tables: a row per method, a column per dataset and training ratio, a table per student, next to
//! the published numbers.

mod render;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillhouse_core::fs;
use stillhouse_metrics::intervals::wilson95;
use stillhouse_metrics::seeds::SeedSummary;
use stillhouse_runs::RunDir;

use self::render::cell_name;
pub(crate) use self::render::{SIGNIFICANCE_NOTE, open_cells};
use crate::caption::Caption;
use crate::exit_accuracy::{self, ExitAccuracy};
use crate::networks::{self, NetworkRow};
use crate::per_class_iou::{self, PerClassIou};
use crate::published::{ComparedValue, PublishedTable, RunValues};
use crate::significance::{BaselineTest, Comparison, SeedScore, compare_with_baseline, compare_with_best};
use crate::{Error, Measure, Record, Result, RunStatus};

/// The student alone.
pub(crate) const BASELINE: &str = "baseline";
/// The student alone with plain shuffling: reported below the table.
pub const BASELINE_PLAIN: &str = "baseline_plain";

/// A run of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Registry id of the method, `baseline` or `baseline_plain`.
    pub method: String,
    /// Registry id of the student, or of its backbone.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: u64,
    /// Seed.
    pub seed: u64,
    /// Its run folder, which need not exist.
    pub folder: PathBuf,
}

/// All seeds of a method, a student, a dataset and a ratio. These are the fields of `table.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableCell {
    /// Registry id of the method.
    pub method: String,
    /// Registry id of the student.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: u64,
    /// Status of its runs.
    pub state: RunStatus,
    /// Mean accuracy or mean IoU of the finished seeds in percent.
    pub mean: Option<f64>,
    /// Standard deviation (n - 1) in percentage points; none for a single seed.
    pub std: Option<f64>,
    /// 95 % confidence interval of the mean in percent: Student's t over the seeds; for a single seed,
    /// Wilson's score interval over the test images.
    pub interval: Option<[f64; 2]>,
    /// The published number in percent.
    pub published: Option<f64>,
    /// Finished seeds.
    pub n: usize,
    /// Test images classified correctly, by seed; empty for label masks.
    pub correct: Vec<u64>,
    /// Test images, by seed.
    pub total: Vec<u64>,
    /// The measured number in percent, by seed.
    pub values: Vec<f64>,
    /// IoU of each class in percent, mean over the seeds; none if a seed has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub class_iou: Vec<Option<f64>>,
}

/// A finished teacher, as the runs of its students describe it.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub struct Teacher {
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent.
    pub ratio: u64,
    /// Seed.
    pub seed: u64,
    /// Registry id of the network.
    pub model: String,
    /// Initial weights: `scratch`, or the name of pretrained weights.
    pub init: String,
    /// Its folder below the folder of teachers.
    pub cell: String,
    /// Test images classified correctly; none for label masks.
    pub correct: Option<u64>,
    /// Test images.
    pub total: u64,
    /// Accuracy or mean IoU in percent.
    pub percent: f64,
}

impl Teacher {
    /// The quantity that `percent` measures.
    pub(crate) fn measure(&self) -> Measure {
        if self.correct.is_some() { Measure::Accuracy } else { Measure::MeanIou }
    }
}

/// The whole table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultsTable {
    /// Data, recipe and machine.
    pub caption: String,
    /// The measured quantity.
    pub measure: Measure,
    /// The cells, row by row; `baseline_plain` comes last.
    pub cells: Vec<TableCell>,
    /// Every method compared with the best other one on the same images.
    pub tests: Vec<Comparison>,
    /// Every method compared with the student alone on the same images.
    pub baseline_tests: Vec<BaselineTest>,
    /// Every published number of this table, with the measured one.
    pub published: Vec<ComparedValue>,
    /// IoU of each class, for label masks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_class: Vec<PerClassIou>,
    /// Size and speed of the networks.
    pub networks: Vec<NetworkRow>,
    /// Accuracy at every exit and on other views, if they were tested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<ExitAccuracy>,
    /// The finished teachers.
    #[serde(skip)]
    pub teachers: Vec<Teacher>,
    #[serde(skip)]
    title: String,
    #[serde(skip)]
    teacher_network: String,
    #[serde(skip)]
    known: Vec<String>,
    #[serde(skip)]
    notes: Vec<String>,
}

/// The runs that a table is made from.
#[derive(Debug, Clone, Copy)]
pub struct TableRuns<'a> {
    /// The planned runs, finished or not.
    pub planned: &'a [Planned],
    /// The finished runs.
    pub finished: &'a [(Planned, Record)],
    /// The run folders of their teachers.
    pub teachers: &'a [Record],
    /// Methods that are not in the registry: their rows have no results.
    pub unknown_methods: &'a [String],
}

impl ResultsTable {
    /// Builds the table of runs, next to the published numbers.
    pub fn new(
        caption: &Caption,
        runs: TableRuns<'_>,
        published: Option<&PublishedTable<'_>>,
    ) -> Result<Self> {
        let TableRuns { planned, finished, .. } = runs;
        let methods = distinct(planned.iter().map(|r| r.method.as_str()));
        let (own, plain): (Vec<&str>, Vec<&str>) = methods.into_iter().partition(|m| *m != BASELINE_PLAIN);
        let students = distinct(planned.iter().map(|r| r.student.as_str()));
        let columns = columns(planned);
        let mut cells = Vec::new();
        let mut seeds: Vec<(&str, &str, &Column, Vec<SeedScore>)> = Vec::new();
        for method in own.into_iter().chain(plain) {
            for student in &students {
                for column in &columns {
                    let of_cell =
                        |r: &Planned| r.method == method && r.student == *student && Column::of(r) == *column;
                    let planned: Vec<&Planned> = planned.iter().filter(|r| of_cell(r)).collect();
                    if planned.is_empty() {
                        continue;
                    }
                    let done: Vec<_> = finished.iter().filter(|(r, _)| of_cell(r)).collect();
                    let known = !runs.unknown_methods.iter().any(|m| m == method);
                    cells.push(cell(&planned, &done, known, published)?);
                    let scores = done.iter().map(|(r, record)| seed_score(r, record));
                    seeds.push((method, student, column, scores.collect::<Result<_>>()?));
                }
            }
        }
        let (mut tests, mut baseline_tests) = (Vec::new(), Vec::new());
        for student in &students {
            for column in &columns {
                let here =
                    seeds.iter().filter(|(m, s, c, _)| s == student && *c == column && *m != BASELINE_PLAIN);
                let here: Vec<_> = here.map(|(m, _, _, seeds)| ((*m).to_string(), seeds.clone())).collect();
                tests.extend(compare_with_best(&here, student, &column.dataset, column.ratio));
                baseline_tests.extend(compare_with_baseline(&here, student, &column.dataset, column.ratio));
            }
        }
        let teachers = teachers(finished);
        let values = RunValues { runs: finished, teachers: &teachers, teacher_runs: runs.teachers };
        let mut table = Self {
            caption: caption.text(),
            measure: finished.first().map(|(_, r)| r.result.measure()).unwrap_or_default(),
            tests,
            baseline_tests,
            published: published.map_or_else(Vec::new, |p| p.compare(&|selector| values.value(selector))),
            by_class: per_class_iou::tables(&cells, finished),
            networks: networks::rows(finished, runs.teachers),
            exits: exit_accuracy::rows(finished, published),
            teachers,
            title: caption.title.clone(),
            teacher_network: caption.teacher_network.clone(),
            known: published.map_or_else(Vec::new, |p| p.known().to_vec()),
            notes: failures(planned),
            cells,
        };
        if let Some(note) = table.teachers_note(published) {
            table.notes.push(note);
        }
        Ok(table)
    }

    /// The scores of the finished teachers, as a note.
    fn teachers_note(&self, published: Option<&PublishedTable<'_>>) -> Option<String> {
        let several = self.cells.iter().any(|c| c.dataset != self.cells[0].dataset);
        let notes = self.teachers.iter().map(|t| {
            let dataset = if several { format!("{} ", t.dataset) } else { String::new() };
            let published = published.and_then(|p| p.teacher(&t.dataset, t.ratio));
            let published = published.map_or_else(String::new, |v| format!(", published {v:.2}"));
            let counts = t
                .correct
                .map_or_else(|| format!("{} images", t.total), |correct| format!("{correct}/{}", t.total));
            let ratio = ratio_text(t.ratio);
            format!("{dataset}{ratio} seed {}: {:.2} ({counts}{published})", t.seed, t.percent)
        });
        let notes: Vec<String> = notes.collect();
        (!notes.is_empty()).then(|| format!("Teachers: {}.", notes.join("; ")))
    }

    /// Returns whether any cell failed.
    pub fn has_failures(&self) -> bool {
        self.cells.iter().any(|c| c.state == RunStatus::Failed)
    }

    /// Formats the table as JSON.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::unreadable("table.json", e))?;
        Ok(text + "\n")
    }

    /// Writes `table.md` and `table.json` atomically.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::write_atomic(&folder.join("table.md"), self.markdown().as_bytes())?;
        fs::write_atomic(&folder.join("table.json"), self.json()?.as_bytes())?;
        Ok(())
    }
}

/// A dataset and a training ratio.
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

/// Datasets in the order of the plan, larger training ratios first.
fn columns(planned: &[Planned]) -> Vec<Column> {
    let mut columns = Vec::new();
    for dataset in distinct(planned.iter().map(|r| r.dataset.clone())) {
        let here = planned.iter().filter(|r| r.dataset == dataset);
        let mut ratios = distinct(here.map(|r| r.ratio));
        ratios.sort_unstable_by(|a, b| b.cmp(a));
        columns.extend(ratios.into_iter().map(|ratio| Column { dataset: dataset.clone(), ratio }));
    }
    columns
}

/// Each value once, in the order of first appearance.
pub(crate) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// `80 %`, or `official split`.
pub(crate) fn ratio_text(ratio: u64) -> String {
    if ratio == 0 { "official split".to_string() } else { format!("{ratio} %") }
}

fn seed_score(run: &Planned, record: &Record) -> Result<SeedScore> {
    let percent = record.result.percent().ok_or_else(|| {
        let message = "no mean IoU in the result of a run on label masks; add it with \
                       eval.metrics = [\"segmentation\"]";
        Error::unreadable(run.folder.display(), message)
    })?;
    let images = record.predictions.as_ref().map(|p| (p.indices.clone(), p.correct()));
    Ok(SeedScore { seed: run.seed, percent, images })
}

fn teachers(finished: &[(Planned, Record)]) -> Vec<Teacher> {
    let teacher = |(run, record): &(Planned, Record)| {
        let teacher = record.result.summary.teacher.clone()?;
        Some(Teacher {
            dataset: run.dataset.clone(),
            ratio: run.ratio,
            seed: run.seed,
            percent: teacher.percent()?,
            model: teacher.model,
            init: teacher.init,
            cell: teacher.cell,
            correct: teacher.correct,
            total: teacher.total,
        })
    };
    let mut teachers: Vec<Teacher> = finished.iter().filter_map(teacher).collect();
    teachers.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    teachers.dedup();
    teachers
}

fn cell(
    planned: &[&Planned],
    finished: &[&(Planned, Record)],
    known: bool,
    published: Option<&PublishedTable<'_>>,
) -> Result<TableCell> {
    let first = planned[0];
    let scores: Result<Vec<f64>> =
        finished.iter().map(|(run, record)| Ok(seed_score(run, record)?.percent)).collect();
    let values = scores?;
    let summary = SeedSummary::new(&values);
    let finite = |value: f64| value.is_finite().then_some(value);
    let published =
        published.and_then(|p| p.score(&first.method, &first.student, (&first.dataset, first.ratio), None));
    let correct: Vec<u64> = finished.iter().filter_map(|(_, r)| r.result.correct).collect();
    let total: Vec<u64> = finished.iter().map(|(_, r)| r.result.total).collect();
    let interval = match (&correct[..], &total[..]) {
        ([correct], [total]) => Some(wilson95(*correct, *total).map(|v| 100.0 * v)),
        _ => Some([summary.ci95_low, summary.ci95_high]),
    };
    Ok(TableCell {
        method: first.method.clone(),
        student: first.student.clone(),
        dataset: first.dataset.clone(),
        ratio: first.ratio,
        state: if known { common_status(planned) } else { RunStatus::UnknownMethod },
        mean: finite(summary.mean),
        std: finite(summary.std),
        interval: interval.filter(|[low, high]| low.is_finite() && high.is_finite()),
        published,
        n: finished.len(),
        correct,
        total,
        class_iou: mean_class_iou(finished),
        values,
    })
}

/// The mean IoU of each class over the seeds.
fn mean_class_iou(finished: &[&(Planned, Record)]) -> Vec<Option<f64>> {
    let by_seed: Vec<_> = finished.iter().map(|(_, record)| record.result.class_iou()).collect();
    let classes = by_seed.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |class: usize| -> Option<f64> {
        let values: Option<Vec<f64>> = by_seed.iter().map(|iou| iou[class]).collect();
        values.map(|v| v.iter().sum::<f64>() / v.len() as f64)
    };
    (0..classes).map(mean).collect()
}

/// The status of a cell: failed before running before pending before done.
fn common_status(planned: &[&Planned]) -> RunStatus {
    let states: Vec<RunStatus> = planned.iter().map(|run| RunDir::new(&run.folder).status()).collect();
    let open = [RunStatus::Failed, RunStatus::Running, RunStatus::Pending];
    open.into_iter().find(|s| states.contains(s)).unwrap_or(RunStatus::Done)
}

/// The errors of failed runs, as notes.
fn failures(planned: &[Planned]) -> Vec<String> {
    let failed = planned.iter().filter(|r| RunDir::new(&r.folder).status() == RunStatus::Failed);
    let note = |run: &Planned| {
        let error = RunDir::new(&run.folder).failure().unwrap_or_default();
        let name = cell_name(&run.method, &run.student, &run.dataset, run.ratio);
        format!("{name} seed {} failed: {error}", run.seed)
    };
    failed.map(note).collect()
}
