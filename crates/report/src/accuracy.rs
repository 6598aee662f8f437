//! Tables of accuracy: a row for each method, a column for each dataset and training ratio, a grid for
//! each student; beside them the printed numbers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stillhouse_core::files;
use stillhouse_metrics::seeds::Summary;

use crate::beside::{Beside, Line, STUDENTS, Teacher, title};
use crate::caption::Caption;
use crate::compare::{Comparison, Seed, against_best};
use crate::record::Predictions;
use crate::run::{self, RunResult, State};
use crate::text::{Align, Grid, wrap};
use crate::{Error, Result, facts};

/// The student alone with plain shuffling: stands below the table.
pub const BELOW: &str = "baseline_plain";

/// A run that the table is to count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Every method beside the best other one on the same images.
    pub tests: Vec<Comparison>,
    /// Every printed number that belongs to this table, beside ours.
    pub published: Vec<Line>,
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
            cells: Vec::new(),
            tests: Vec::new(),
            published: Vec::new(),
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
        table.teachers.sort();
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
            let (percent, right, tested) = (t.percent(), t.right, t.tested);
            format!("{of}{} % seed {}: {percent:.2} ({right}/{tested}{paper})", t.ratio, t.seed)
        });
        let known: Vec<String> = known.collect();
        (!known.is_empty()).then(|| format!("Teachers: {}.", known.join("; ")))
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
            text.push_str(&format!("\n{}\n\n{}", self.heading(student), grid.terminal()));
            for line in below {
                text.push_str(&wrap(&line, width.clamp(40, 110)));
                text.push('\n');
            }
        }
        for line in self.leads().into_iter().chain(self.foot()) {
            text.push_str(&format!("\n{}\n", wrap(&line, width.clamp(40, 110))));
        }
        text.trim_end().to_string() + "\n"
    }

    /// The table as a Markdown page.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", self.title, self.caption);
        for (student, grid, below) in self.grids() {
            text.push_str(&format!("\n## {}\n\n{}", self.heading(student), grid.markdown()));
            for line in below {
                text.push_str(&format!("\n{line}\n"));
            }
        }
        for line in self.foot() {
            text.push_str(&format!("\n{line}\n"));
        }
        if !self.tests.is_empty() {
            let grid = self.tests_grid().markdown();
            text.push_str(&format!("\n## Each method against the best other\n\n{grid}\n{TESTS}\n"));
        }
        if !self.published.is_empty() {
            let grid = lines_grid(&self.published).markdown();
            text.push_str(&format!("\n## Printed numbers and ours\n\n{grid}"));
        }
        if !self.facts.is_empty() {
            text.push_str(&format!("\nWhat is known about the printed numbers:\n\n{}", facts::list(self.facts)));
        }
        text
    }

    /// `ResNet50 -> ResNet18`.
    pub fn heading(&self, student: &str) -> String {
        match self.above.as_str() {
            "" => network_title(student).to_string(),
            teacher => format!("{} -> {}", network_title(teacher), network_title(student)),
        }
    }

    /// The experiment's title.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What is known about the printed numbers.
    pub fn facts(&self) -> &'static [&'static str] {
        self.facts
    }

    /// The comparisons as a grid: one row for a method of a student and a column.
    pub fn tests_grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("student", Align::Left),
            ("data", Align::Left),
            ("method", Align::Left),
            ("best other", Align::Left),
            ("points", Align::Right),
            ("images that only one has right, McNemar p, by seed", Align::Left),
            ("paired t", Align::Right),
            ("p", Align::Right),
        ]);
        let some = |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}"));
        for test in &self.tests {
            grid.row([
                network_title(&test.student).to_string(),
                format!("{} {} %", test.dataset, test.ratio),
                test.method.clone(),
                test.other.clone(),
                format!("{:+.2}", test.difference),
                by_seed(test),
                some(test.t, 2),
                some(test.p, 4),
            ]);
        }
        grid
    }

    /// The leading method of each column beside the second one, in words.
    fn leads(&self) -> Vec<String> {
        let leads = self.tests.iter().filter(|t| {
            let same = |o: &&Comparison| {
                (&o.student, &o.dataset, o.ratio) == (&t.student, &t.dataset, t.ratio)
            };
            // The leading one is the only one that is ahead of its best other; of equal ones the first.
            self.tests.iter().filter(same).max_by(|a, b| a.difference.total_cmp(&b.difference)) == Some(*t)
        });
        let words: Vec<String> = leads
            .map(|t| {
                let over = t.p.map_or_else(String::new, |p| format!(", paired t over the seeds p = {p:.3}"));
                format!(
                    "{} {} {} %: {} is {:+.2} points from {} ({}{over})",
                    t.student, t.dataset, t.ratio, t.method, t.difference, t.other, by_seed(t)
                )
            })
            .collect();
        if words.is_empty() { Vec::new() } else { vec![format!("Ahead: {}.", words.join("; "))] }
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
        ids.into_iter().map(|id| (id, self.grid(id), self.below(id))).collect()
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

/// A finished run of a cell.
struct Finished {
    right: u64,
    tested: u64,
    seed: Seed,
}

/// The finished ones of a cell's runs; their teachers are added to the list.
fn finished(runs: &[&Planned], teachers: &mut Vec<Teacher>) -> Result<Vec<Finished>> {
    let mut all = Vec::new();
    for run in runs {
        let Some(result) = RunResult::read(&run.folder)? else { continue };
        let (Some(right), Some(percent)) = (result.right, result.percent()) else {
            let path = run.folder.display().to_string();
            let message = "a run on label masks has no accuracy of images, which this table shows";
            return Err(Error::Unreadable { path, message: message.into() });
        };
        let images = Predictions::read(&run.folder)?.map(|p| (p.indices.clone(), p.right()));
        let seed = Seed { seed: run.seed, percent, images };
        all.push(Finished { right, tested: result.tested, seed });
        let teacher = result.facts.and_then(|f| f.teacher);
        if let Some((teacher, right)) = teacher.and_then(|t| Some((t.clone(), t.right?))) {
            teachers.push(Teacher {
                dataset: run.dataset.clone(),
                ratio: run.ratio,
                seed: run.seed,
                backbone: teacher.backbone,
                init: teacher.init,
                cell: teacher.cell,
                right,
                tested: teacher.tested,
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
    let states: Vec<State> = runs.iter().map(|run| run::state(&run.folder)).collect();
    let percents: Vec<f64> = finished.iter().map(|f| f.seed.percent).collect();
    let summary = Summary::of(&percents);
    let defined = |value: f64| value.is_finite().then_some(value);
    Cell {
        method: method.to_string(),
        student: student.to_string(),
        dataset: column.dataset.clone(),
        ratio: column.ratio,
        state: if exists { together(&states) } else { State::NotBuilt },
        mean: defined(summary.mean),
        std: defined(summary.std),
        published: published.and_then(|p| p.number(method, student, &column.dataset, column.ratio)),
        n: finished.len(),
        right: finished.iter().map(|f| f.right).collect(),
        tested: finished.iter().map(|f| f.tested).collect(),
    }
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

/// What stands below the comparisons.
pub(crate) const TESTS: &str = "Best other: the highest mean among the other methods of the column, the baseline included, \
    baseline_plain not. McNemar: exact, two-sided, on the same test images. Paired t: over the seeds that both \
    have. No correction for the number of comparisons.";

/// `seed 0: 12 against 7, p = 0.36`.
fn by_seed(test: &Comparison) -> String {
    let seeds = test
        .seeds
        .iter()
        .map(|s| format!("seed {}: {} against {}, p = {:.3}", s.seed, s.only_method, s.only_other, s.p));
    let seeds: Vec<String> = seeds.collect();
    if seeds.is_empty() { "images not paired".to_string() } else { seeds.join("; ") }
}

/// Printed numbers beside ours as a grid.
pub fn lines_grid(lines: &[Line]) -> Grid {
    let mut grid = Grid::new(&[
        ("table", Align::Left),
        ("row", Align::Left),
        ("column", Align::Left),
        ("printed", Align::Right),
        ("ours", Align::Right),
        ("unit", Align::Left),
        ("known about it", Align::Left),
    ]);
    for line in lines {
        let digits = if line.unit == "%" || line.unit == "points" { 2 } else { 0 };
        grid.row([
            line.table.clone(),
            line.row.clone(),
            line.col.clone(),
            line.printed.clone(),
            line.ours.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}")),
            line.unit.clone(),
            line.note.clone().unwrap_or_default(),
        ]);
    }
    grid
}

/// A network's name in print.
pub fn network_title(id: &str) -> &str {
    let others = [("resnet50", "ResNet50"), ("vgg16", "VGG16")];
    title(&STUDENTS, id).or_else(|| title(&others, id)).unwrap_or(id)
}
