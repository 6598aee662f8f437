//! The answer of a results table: which methods are better than the student alone, and by how much.

use crate::charts::Axis;
use crate::results_table::{BASELINE, BASELINE_PLAIN, ratio_text};
use crate::significance::BaselineTest;
use crate::{ResultsTable, TableCell};

/// Significance level of the corrected p-values.
const ALPHA: f64 = 0.05;

/// Explanation of the figure.
pub(crate) const FIGURE_NOTE: &str = "Lines: 95 % confidence intervals, over the seeds or, for a single seed, over \
    the test images (Wilson). *: differs from the student alone, p < 0.05: McNemar's exact test on the same images, \
    corrected by Holm's method for the methods of the column. An interval may overlap the baseline's and still differ: \
    the test compares image by image.";

/// Width of the terminal's figure in characters.
const PLOT: usize = 44;

/// One student on one dataset with one training ratio.
pub(crate) struct ColumnSummary<'a> {
    pub(crate) title: String,
    /// Mean score of the finished teachers in percent.
    pub(crate) teacher: Option<f64>,
    pub(crate) baseline: Option<f64>,
    pub(crate) rows: Vec<Row<'a>>,
}

/// One method of a column.
pub(crate) struct Row<'a> {
    pub(crate) method: &'a str,
    pub(crate) mean: f64,
    pub(crate) interval: Option<[f64; 2]>,
    test: Option<&'a BaselineTest>,
}

impl Row<'_> {
    /// Whether it differs from the student alone beyond chance.
    pub(crate) fn is_significant(&self) -> bool {
        self.test.and_then(|t| t.p_holm).is_some_and(|p| p < ALPHA)
    }
}

impl ResultsTable {
    /// Returns one summary per student and column with a finished cell, larger training ratios first.
    pub(crate) fn column_summaries(&self) -> Vec<ColumnSummary<'_>> {
        let key = |c: &'_ TableCell| (c.student.clone(), c.dataset.clone(), c.ratio);
        let mut keys = Vec::new();
        for cell in self.cells.iter().filter(|c| c.mean.is_some()) {
            if !keys.contains(&key(cell)) {
                keys.push(key(cell));
            }
        }
        // Students keep the order of the table; the row-wise order of the cells alternates between them.
        let students = crate::results_table::distinct(self.cells.iter().map(|c| c.student.as_str()));
        keys.sort_by_key(|(student, ..)| students.iter().position(|s| s == student));
        keys.into_iter()
            .map(|(student, dataset, ratio)| self.column_summary(&student, &dataset, ratio))
            .collect()
    }

    fn column_summary(&self, student: &str, dataset: &str, ratio: u64) -> ColumnSummary<'_> {
        let here = |c: &&TableCell| c.student == student && c.dataset == dataset && c.ratio == ratio;
        let test = |method: &str| {
            let same = |t: &&BaselineTest| (&*t.student, &*t.dataset, t.ratio) == (student, dataset, ratio);
            self.baseline_tests.iter().filter(same).find(|t| t.method == method)
        };
        let rows: Vec<Row> = self
            .cells
            .iter()
            .filter(here)
            .filter(|c| c.method != BASELINE_PLAIN)
            .filter_map(|c| {
                Some(Row { method: &c.method, mean: c.mean?, interval: c.interval, test: test(&c.method) })
            })
            .collect();
        let teachers = self.teachers.iter().filter(|t| t.dataset == dataset && t.ratio == ratio);
        let teachers: Vec<f64> = teachers.map(|t| t.percent).collect();
        let comma = if ratio == 0 { "," } else { "" };
        ColumnSummary {
            title: format!("{student}, {dataset}{comma} {}", ratio_text(ratio)),
            teacher: (!teachers.is_empty()).then(|| teachers.iter().sum::<f64>() / teachers.len() as f64),
            baseline: rows.iter().find(|r| r.method == BASELINE).map(|r| r.mean),
            rows,
        }
    }
}

impl ColumnSummary<'_> {
    /// `resnet18, roses 80 %: 7 of 9 methods are above the student alone (58.81 %), 4 of them significantly; the best
    /// is kd with 66.19 % (+7.38). The teacher has 84.52 %.`
    pub(crate) fn sentence(&self) -> String {
        let methods: Vec<&Row> = self.rows.iter().filter(|r| r.method != BASELINE).collect();
        let teacher = self.teacher.map_or_else(String::new, |t| format!(" The teacher has {t:.2} %."));
        // The first of a tie counts.
        let best = methods.iter().rev().max_by(|a, b| a.mean.total_cmp(&b.mean));
        let (Some(best), Some(baseline)) = (best, self.baseline) else {
            let rows = self.rows.iter().map(|r| format!("{} {:.2} %", r.method, r.mean));
            return format!("{}: {}.{teacher}", self.title, rows.collect::<Vec<_>>().join(", "));
        };
        let above = methods.iter().filter(|r| r.mean > baseline);
        let certain = above.clone().filter(|r| r.is_significant()).count();
        let certain = match (certain, methods.iter().any(|r| r.test.is_some_and(|t| t.p.is_some()))) {
            (_, false) => "which a single seed cannot test".to_string(),
            (0, _) => "none of them significantly".to_string(),
            (n, _) => format!("{n} of them significantly"),
        };
        format!(
            "{}: {} of {} methods are above the student alone ({baseline:.2} %), {certain}; the best is {} with {:.2} % \
             ({:+.2}).{teacher}",
            self.title,
            above.count(),
            methods.len(),
            best.method,
            best.mean,
            best.mean - baseline
        )
    }

    /// The range of all values of the figure.
    pub(crate) fn axis(&self) -> Axis {
        let intervals = self.rows.iter().flat_map(|r| r.interval.unwrap_or([r.mean; 2]));
        Axis::from_values(intervals.chain(self.teacher), 5)
    }

    /// Draws the figure in characters: a row per method, the student alone as a vertical line.
    pub(crate) fn text_figure(&self) -> String {
        let axis = self.axis();
        let column = |value: f64| axis.position(value, 0.0, (PLOT - 1) as f64).round() as usize;
        let width =
            self.rows.iter().map(|r| r.method.chars().count()).max().unwrap_or(0).max("teacher".len());
        let mut text = String::new();
        let mut line = |name: &str, value: f64, interval: Option<[f64; 2]>, mark: &str| {
            let mut plot = vec![' '; PLOT];
            if let Some(baseline) = self.baseline {
                plot[column(baseline)] = ':';
            }
            if let Some([low, high]) = interval.map(|ends| ends.map(column)) {
                plot[low..=high].fill('-');
                (plot[low], plot[high]) = ('|', '|');
            }
            plot[column(value)] = 'o';
            let plot: String = plot.into_iter().collect();
            text.push_str(&format!("{name:width$} {value:6.2}{mark} {}\n", plot.trim_end()));
        };
        if let Some(teacher) = self.teacher {
            line("teacher", teacher, None, " ");
        }
        for row in &self.rows {
            line(row.method, row.mean, row.interval, if row.is_significant() { "*" } else { " " });
        }
        let mut ticks = String::new();
        for tick in &axis.ticks {
            let label = format!("{tick}");
            let at = width + 9 + column(*tick).saturating_sub(label.len() / 2);
            ticks.push_str(&" ".repeat(at.saturating_sub(ticks.chars().count())));
            ticks.push_str(&label);
        }
        format!("{text}{ticks} %\n")
    }
}
