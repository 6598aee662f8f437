//! The words of a table of accuracies: for terminals and as Markdown.

use super::{AccuracyTable, BELOW, Cell, Column, distinct, part_words};
use crate::beside::{Line, STUDENTS, title};
use crate::compare::Comparison;
use crate::text::{Align, Grid, wrap};
use crate::{Measure, RunStatus, exits, facts, networks};

impl AccuracyTable {
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
        if !self.exits.is_empty() {
            text.push_str(&format!("\n{}", exits::grid(&self.exits).terminal()));
        }
        if !self.networks.is_empty() {
            text.push_str(&format!("\n{}", networks::grid(&self.networks).terminal()));
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
        for table in &self.by_class {
            let place =
                format!("{}, {} {}", self.heading(&table.student), table.dataset, part_words(table.ratio));
            text.push_str(&format!("\n## IoU by class, %: {place}\n\n{}", table.grid().markdown()));
        }
        if !self.exits.is_empty() {
            let grid = exits::grid(&self.exits).markdown();
            text.push_str(&format!("\n## Exits and views\n\n{grid}\n{}\n", exits::BELOW));
        }
        if !self.networks.is_empty() {
            let grid = networks::grid(&self.networks).markdown();
            text.push_str(&format!("\n## Size and speed\n\n{grid}\n{}\n", networks::BELOW));
        }
        if !self.published.is_empty() {
            let grid = lines_grid(&self.published).markdown();
            text.push_str(&format!("\n## Printed numbers and ours\n\n{grid}"));
        }
        if !self.facts.is_empty() {
            text.push_str(&format!(
                "\nWhat is known about the printed numbers:\n\n{}",
                facts::list(self.facts)
            ));
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
        let some =
            |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}"));
        for test in &self.tests {
            grid.row([
                network_title(&test.student).to_string(),
                format!("{} {}", test.dataset, part_words(test.ratio)),
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
            let same =
                |o: &&Comparison| (&o.student, &o.dataset, o.ratio) == (&t.student, &t.dataset, t.ratio);
            // The leading one is the only one that is ahead of its best other; of equal ones the first.
            self.tests.iter().filter(same).max_by(|a, b| a.difference.total_cmp(&b.difference)) == Some(*t)
        });
        let words: Vec<String> = leads
            .map(|t| {
                let over = t.p.map_or_else(String::new, |p| format!(", paired t over the seeds p = {p:.3}"));
                let (method, other) = (&t.method, &t.other);
                let lead = if t.difference > 0.0 {
                    format!("{method} is {:+.2} points from {other}", t.difference)
                } else {
                    format!("{method} and {other} are level")
                };
                let column = format!("{} {} {}", t.student, t.dataset, part_words(t.ratio));
                format!("{column}: {lead} ({}{over})", by_seed(t))
            })
            .collect();
        if words.is_empty() { Vec::new() } else { vec![format!("Ahead: {}.", words.join("; "))] }
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
            widths.push((self.counts(), Align::Right));
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

    /// The head of the column of counts.
    fn counts(&self) -> &'static str {
        match self.measure {
            Measure::Accuracy => "correct/total",
            Measure::MeanIou => "images",
        }
    }

    /// `80 %`, with the dataset where there are several.
    fn head(&self, column: &Column) -> String {
        let part = part_words(column.ratio);
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
            match self.measure {
                Measure::Accuracy => {
                    "Ours: mean over n seeds (± standard deviation, n - 1); correct/total are sums over the \
                     seeds. Paper: single printed numbers."
                }
                Measure::MeanIou => {
                    "Ours: mean IoU in percent, from one confusion matrix over all pixels of the test images, \
                     classes in neither truth nor prediction left out; mean over n seeds (± standard \
                     deviation, n - 1), images are sums over the seeds. Paper: single printed numbers."
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
                format!("{}: {}", place(c, None), counts.join(" "))
            })
            .collect();
        if !several.is_empty() {
            let what = match self.measure {
                Measure::Accuracy => "Correct of all test images",
                Measure::MeanIou => "Mean IoU",
            };
            lines.push(format!("{what}, by seed: {}.", several.join("; ")));
        }
        let count = |state| self.cells.iter().filter(|c| c.state == state).count();
        let open: Vec<String> =
            [RunStatus::Pending, RunStatus::Running, RunStatus::Failed, RunStatus::UnknownMethod]
                .into_iter()
                .filter(|s| count(*s) > 0)
                .map(|s| format!("{} {s}", count(s)))
                .collect();
        lines.push(match open.is_empty() {
            true => format!("All {} cells are done.", self.cells.len()),
            false => format!("{} cells done, {}.", count(RunStatus::Done), open.join(", ")),
        });
        lines.extend(self.notes.iter().cloned());
        lines
    }
}

fn columns_of(cell: &Cell) -> [String; 4] {
    let ours = match (cell.mean, cell.std) {
        (Some(mean), Some(std)) => format!("{mean:.2} ± {std:.2}"),
        (Some(mean), None) => format!("{mean:.2}"),
        (None, _) => cell.state.to_string(),
    };
    let open = if cell.n > 0 && cell.state != RunStatus::Done {
        format!(" ({})", cell.state)
    } else {
        String::new()
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
    let paper = cell.published.map_or_else(|| "-".to_string(), |v| format!("{v:.2}"));
    [ours + &open, counts, n, paper]
}

pub(super) fn place(cell: &Cell, seed: Option<u64>) -> String {
    let seed = seed.map_or_else(String::new, |s| format!(" seed {s}"));
    format!("{} {} {} {}{seed}", cell.method, cell.student, cell.dataset, part_words(cell.ratio))
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
        let digits = match line.unit.as_str() {
            "%" | "points" | "M" => 2,
            "G" => 1,
            // A value of a setting is a fraction, a count is whole.
            _ => line.ours.map_or(0, |v| if v.fract() == 0.0 { 0 } else { 3 }),
        };
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
    let others = [
        ("resnet50", "ResNet50"),
        ("vgg16", "VGG16"),
        ("deeplabv3plus_resnet50", "DeepLabV3+ ResNet50"),
        ("deeplabv3plus_resnet101", "DeepLabV3+ ResNet101"),
    ];
    title(&STUDENTS, id).or_else(|| title(&others, id)).unwrap_or(id)
}
