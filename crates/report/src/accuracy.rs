//! Tables of accuracy: a row for each method, a column for each dataset and training ratio, a grid for
//! each student; beside them the numbers of Tables 3, 5 and 6 of the class-centric paper.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stillhouse_core::files;
use stillhouse_metrics::seeds::Summary;

use crate::published::Published;
use crate::run::{self, RunResult, State};
use crate::text::{Align, Grid, wrap};
use crate::{Error, Result};

/// A printed table of accuracies.
#[derive(Debug, Clone, Copy)]
struct Printed {
    /// Id among the published ones.
    id: &'static str,
    /// Its methods in the order of print.
    methods: &'static [&'static str],
}

const ALL: &[&str] =
    &["baseline", "kd", "dkd", "nst", "vid", "kdsvd", "reviewkd", "rkd", "sp", "class_centre"];

const PRINTED: &[Printed] = &[
    Printed { id: "p1.t3", methods: ALL },
    Printed { id: "p1.t5", methods: ALL },
    Printed { id: "p1.t6", methods: &["baseline", "nst", "nst_all", "class_centre"] },
];

/// Registry id of every method and its name in print.
const METHODS: [(&str, &str); 11] = [
    ("baseline", "Baseline"),
    ("kd", "KD"),
    ("dkd", "DKD"),
    ("nst", "NST"),
    ("nst_all", "NST_all"),
    ("vid", "VID"),
    ("kdsvd", "KDSVD"),
    ("reviewkd", "ReviewKD"),
    ("rkd", "RKD"),
    ("sp", "SP"),
    ("class_centre", "Ours"),
];

/// The student alone with plain shuffling: stands below the table.
pub const BELOW: &str = "baseline_plain";

/// Registry id of the students and their names in print.
const STUDENTS: [(&str, &str); 2] = [("resnet18", "ResNet18"), ("mobilenetv2_100", "MobileNetV2")];

/// Registry id of the datasets of Table 5 and their names in print.
const DATASETS: [(&str, &str); 3] = [("rsc11", "RSC11"), ("rsscn7", "RSSCN7"), ("aid", "AID")];

fn title<'a>(names: &[(&'a str, &'a str)], id: &str) -> Option<&'a str> {
    names.iter().find(|(known, _)| *known == id).map(|(_, title)| *title)
}

/// One printed table and its numbers.
#[derive(Debug, Clone)]
pub struct Beside {
    table: Printed,
    numbers: Published,
}

impl Beside {
    /// The printed accuracies of this id (`p1.t3`, `p1.t5`, `p1.t6`); none if it has no such table.
    pub fn of(id: &str) -> Result<Option<Self>> {
        let Some(table) = PRINTED.iter().find(|t| t.id == id) else { return Ok(None) };
        Ok(Some(Self { table: *table, numbers: Published::builtin()? }))
    }

    /// The printed accuracy of a method in percent.
    fn number(&self, method: &str, student: &str, dataset: &str, ratio: u64) -> Option<f64> {
        let name = title(&METHODS, method)?;
        if self.table.id == "p1.t3" {
            let column = format!("ResNet50-{}@{ratio}", title(&STUDENTS, student)?);
            return self.numbers.cell(self.table.id, name, &column)?.value;
        }
        let name = if method == "baseline" { "Student" } else { name };
        let row = self.row(dataset)?;
        (student == "resnet18").then(|| self.numbers.cell(self.table.id, row, name)?.value)?
    }

    /// The printed accuracy of the teacher in percent.
    pub fn teacher(&self, dataset: &str) -> Option<f64> {
        self.numbers.cell(self.table.id, self.row(dataset)?, "Teacher")?.value
    }

    fn row(&self, dataset: &str) -> Option<&'static str> {
        if self.table.id == "p1.t6" { Some("overall accuracy") } else { title(&DATASETS, dataset) }
    }
}

/// What stands above the table. Every field is printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caption {
    /// The experiment's title.
    pub title: String,
    /// `smoke`, `reduced` or `paper`; anything but `paper` is labelled as not the paper's.
    pub profile: String,
    /// The data: "UC Merced Land Use, 2100 images".
    pub data: String,
    /// Whether the images are made by the program, in place of real ones.
    pub embedded: bool,
    /// Side of the input in pixels.
    pub resolution: String,
    /// Epochs, batches and learning rates in words.
    pub schedule: String,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Device in words.
    pub device: String,
    /// How batches are drawn.
    pub sampler: String,
    /// Whether the teacher began from weights or from scratch.
    pub teacher: String,
    /// Whether the student began from weights or from scratch.
    pub student: String,
    /// Settings that were changed from the command line.
    pub changed: Vec<String>,
}

impl Caption {
    /// The caption as one paragraph.
    pub fn text(&self) -> String {
        let label = match self.profile.as_str() {
            // An experiment without profiles has nothing that it could be taken for.
            "default" => String::new(),
            "paper" if self.changed.is_empty() => String::new(),
            "paper" => "CHANGED SETTINGS, not the paper's. ".to_string(),
            "smoke" => {
                "SMOKE RUN: it shows that the path works, not what the methods are worth. ".to_string()
            }
            "reduced" => "REDUCED RUN, not the paper's setting. ".to_string(),
            other => format!("PROFILE {other}, not the paper's setting. "),
        };
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let mut text = format!(
            "{}. {label}Profile: {}. Data: {}. Resolution: {} px. \
             Schedule: {}. Seeds: {}. Device: {}. Sampler: {}. Teacher: {}. Students: {}.",
            self.title.trim_end_matches('.'),
            self.profile,
            self.data,
            self.resolution,
            self.schedule,
            seeds.join(", "),
            self.device,
            self.sampler,
            self.teacher,
            self.student
        );
        if !self.changed.is_empty() {
            text.push_str(&format!(" Changed: {}.", self.changed.join(", ")));
        }
        text
    }
}

/// A run that the table is to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Registry id of the method, `baseline` or `baseline_plain`.
    pub method: String,
    /// Registry id of the student.
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
    pub state: State,
    /// Mean accuracy of the finished seeds in percent.
    pub mean: Option<f64>,
    /// Standard deviation (n - 1) in percentage points; none for a single seed.
    pub std: Option<f64>,
    /// The printed number in percent.
    pub published: Option<f64>,
    /// Finished seeds.
    pub n: usize,
    /// Test images classified rightly, by seed.
    pub right: Vec<u64>,
    /// Test images, by seed.
    pub tested: Vec<u64>,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccuracyTable {
    /// What was run on what.
    pub caption: String,
    /// The cells, row by row; `baseline_plain` comes last.
    pub cells: Vec<Cell>,
    #[serde(skip)]
    title: String,
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
        let mut methods: Vec<&str> = published.map_or(&[][..], |p| p.table.methods).to_vec();
        for run in planned {
            if !methods.contains(&run.method.as_str()) && run.method != BELOW {
                methods.push(&run.method);
            }
        }
        methods.push(BELOW);
        let (students, columns) = axes(planned);
        let title = caption.title.clone();
        let mut table = Self { caption: caption.text(), cells: Vec::new(), title, notes: Vec::new() };
        for method in methods {
            for student in &students {
                for column in &columns {
                    let runs: Vec<&Planned> = planned
                        .iter()
                        .filter(|r| r.method == method && r.student == *student && Column::of(r) == *column)
                        .collect();
                    let exists = method == "baseline" || method == BELOW || built(method);
                    if !runs.is_empty() || !exists {
                        let cell = cell(method, student, column, exists, &runs, published)?;
                        table.note_failures(&cell, &runs);
                        table.cells.push(cell);
                    }
                }
            }
        }
        Ok(table)
    }

    /// Adds a line below the table.
    pub fn note(&mut self, line: Option<String>) {
        self.notes.extend(line);
    }

    fn note_failures(&mut self, cell: &Cell, runs: &[&Planned]) {
        for run in runs {
            if run::state(&run.folder) == State::Failed {
                let why = std::fs::read_to_string(run.folder.join(run::FAILURE)).unwrap_or_default();
                self.notes.push(format!("{} failed: {}", place(cell, Some(run.seed)), why.trim()));
            }
        }
    }

    /// Whether any cell failed.
    pub fn failed(&self) -> bool {
        self.cells.iter().any(|c| c.state == State::Failed)
    }

    /// The table for a terminal of that many columns.
    pub fn terminal(&self, width: usize) -> String {
        let mut text = wrap(&self.caption, width.clamp(40, 110));
        text.push('\n');
        for (student, grid, below) in self.grids() {
            text.push_str(&format!("\nResNet50 -> {student}\n\n{}", grid.terminal()));
            for line in below {
                text.push_str(&wrap(&line, width.clamp(40, 110)));
                text.push('\n');
            }
        }
        for line in self.foot() {
            text.push_str(&format!("\n{}\n", wrap(&line, width.clamp(40, 110))));
        }
        text.trim_end().to_string() + "\n"
    }

    /// The table as a Markdown page.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", self.title, self.caption);
        for (student, grid, below) in self.grids() {
            text.push_str(&format!("\n## ResNet50 -> {student}\n\n{}", grid.markdown()));
            for line in below {
                text.push_str(&format!("\n{line}\n"));
            }
        }
        for line in self.foot() {
            text.push_str(&format!("\n{line}\n"));
        }
        text
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
        files::write_atomic(&folder.join("table.md"), self.markdown().as_bytes())?;
        files::write_atomic(&folder.join("table.json"), self.json()?.as_bytes())?;
        Ok(())
    }

    /// One grid for each student, with the lines that stand below it.
    fn grids(&self) -> Vec<(&str, Grid, Vec<String>)> {
        let mut ids: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !ids.contains(&cell.student.as_str()) {
                ids.push(&cell.student);
            }
        }
        ids.into_iter().map(|id| (student_title(id), self.grid(id), self.below(id))).collect()
    }

    fn grid(&self, student: &str) -> Grid {
        let cells: Vec<&Cell> =
            self.cells.iter().filter(|c| c.student == student && c.method != BELOW).collect();
        let columns = distinct(cells.iter().map(|c| Column { dataset: c.dataset.clone(), ratio: c.ratio }));
        let heads: Vec<String> = columns.iter().map(|c| format!("{}: ours", self.head(c))).collect();
        let mut widths = vec![("method", Align::Left)];
        for head in &heads {
            widths.push((head, Align::Right));
            widths.push(("right/tested", Align::Right));
            widths.push(("n", Align::Right));
            widths.push(("paper", Align::Right));
        }
        let mut grid = Grid::new(&widths);
        for method in distinct(cells.iter().map(|c| c.method.clone())) {
            let mut row = vec![method.clone()];
            for column in &columns {
                let here = |c: &&&Cell| c.dataset == column.dataset && c.ratio == column.ratio;
                match cells.iter().filter(here).find(|c| c.method == method) {
                    Some(cell) => row.extend(columns_of(cell)),
                    None => row.extend(["not planned", "", "", ""].map(String::from)),
                }
            }
            grid.row(row);
        }
        grid
    }

    /// `80 %`, with the dataset where there are several.
    fn head(&self, column: &Column) -> String {
        let part =
            if column.ratio == 0 { "official split".to_string() } else { format!("{} %", column.ratio) };
        match self.cells.iter().any(|c| c.dataset != column.dataset) {
            true => format!("{} {part}", column.dataset),
            false => part,
        }
    }

    fn below(&self, student: &str) -> Vec<String> {
        let plain: Vec<String> = self
            .cells
            .iter()
            .filter(|c| c.student == student && c.method == BELOW)
            .map(|c| {
                let [ours, counts, n, _] = columns_of(c);
                let of = if counts.is_empty() { String::new() } else { format!(" ({counts}, n = {n})") };
                let column = Column { dataset: c.dataset.clone(), ratio: c.ratio };
                format!("{}: {ours}{of}", self.head(&column))
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
            "Ours: mean over n seeds (± standard deviation, n - 1); right/tested are sums over the seeds. Paper: \
             single printed numbers."
                .to_string(),
        ];
        let several: Vec<String> = self
            .cells
            .iter()
            .filter(|c| c.n > 1)
            .map(|c| {
                let counts: Vec<String> =
                    c.right.iter().zip(&c.tested).map(|(r, t)| format!("{r}/{t}")).collect();
                format!("{}: {}", place(c, None), counts.join(" "))
            })
            .collect();
        if !several.is_empty() {
            lines.push(format!("Images right of images tested, by seed: {}.", several.join("; ")));
        }
        let count = |state| self.cells.iter().filter(|c| c.state == state).count();
        let open: Vec<String> = [State::Pending, State::Running, State::Failed, State::NotBuilt]
            .into_iter()
            .filter(|s| count(*s) > 0)
            .map(|s| format!("{} {s}", count(s)))
            .collect();
        lines.push(match open.is_empty() {
            true => format!("All {} cells are done.", self.cells.len()),
            false => format!("{} cells done, {}.", count(State::Done), open.join(", ")),
        });
        lines.extend(self.notes.iter().cloned());
        lines
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

fn cell(
    method: &str,
    student: &str,
    column: &Column,
    exists: bool,
    runs: &[&Planned],
    published: Option<&Beside>,
) -> Result<Cell> {
    let (mut results, mut percents) = (Vec::new(), Vec::new());
    let mut states = Vec::new();
    for run in runs {
        states.push(run::state(&run.folder));
        if let Some(result) = RunResult::read(&run.folder)? {
            let (Some(right), Some(percent)) = (result.right, result.percent()) else {
                let path = run.folder.display().to_string();
                let message = "a run on label masks has no accuracy of images, which this table shows";
                return Err(Error::Unreadable { path, message: message.into() });
            };
            results.push((right, result.tested));
            percents.push(percent);
        }
    }
    let summary = Summary::of(&percents);
    let defined = |value: f64| value.is_finite().then_some(value);
    Ok(Cell {
        method: method.to_string(),
        student: student.to_string(),
        dataset: column.dataset.clone(),
        ratio: column.ratio,
        state: if exists { together(&states) } else { State::NotBuilt },
        mean: defined(summary.mean),
        std: defined(summary.std),
        published: published.and_then(|p| p.number(method, student, &column.dataset, column.ratio)),
        n: results.len(),
        right: results.iter().map(|(right, _)| *right).collect(),
        tested: results.iter().map(|(_, tested)| *tested).collect(),
    })
}

/// Failed beats running beats pending beats done.
fn together(states: &[State]) -> State {
    [State::Failed, State::Running, State::Pending]
        .into_iter()
        .find(|s| states.contains(s))
        .unwrap_or(if states.is_empty() { State::Pending } else { State::Done })
}

fn columns_of(cell: &Cell) -> [String; 4] {
    let ours = match (cell.mean, cell.std) {
        (Some(mean), Some(std)) => format!("{mean:.2} ± {std:.2}"),
        (Some(mean), None) => format!("{mean:.2}"),
        (None, _) => cell.state.to_string(),
    };
    let open =
        if cell.n > 0 && cell.state != State::Done { format!(" ({})", cell.state) } else { String::new() };
    let (counts, n) = match cell.n {
        0 => (String::new(), String::new()),
        n => {
            let (right, tested) = (cell.right.iter().sum::<u64>(), cell.tested.iter().sum::<u64>());
            (format!("{right}/{tested}"), n.to_string())
        }
    };
    let paper = cell.published.map_or_else(|| "-".to_string(), |v| format!("{v:.2}"));
    [ours + &open, counts, n, paper]
}

fn place(cell: &Cell, seed: Option<u64>) -> String {
    let seed = seed.map_or_else(String::new, |s| format!(" seed {s}"));
    format!("{} {} {} {} %{seed}", cell.method, cell.student, cell.dataset, cell.ratio)
}

fn student_title(id: &str) -> &str {
    STUDENTS.iter().find(|(s, _)| *s == id).map_or(id, |(_, title)| title)
}
