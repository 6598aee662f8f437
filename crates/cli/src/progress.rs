//! Progress of runs on stderr: bars in a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stillhouse_runs::EpochLog;
use stillhouse_trainer::{Cell, Observer, Outcome, Plan};

use crate::output;

/// Interval of plain progress lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Units per cell on the overall bar.
const UNITS_PER_CELL: u64 = 1000;

/// Reports the progress of a plan's runs.
pub(crate) struct Progress<'a> {
    cells: u64,
    finished: u64,
    bars: Option<Bars>,
    timer: CellTimer,
    line: Instant,
    after_cell: Box<dyn FnMut() + 'a>,
}

struct Bars {
    overall: ProgressBar,
    cell: ProgressBar,
}

/// Estimates the remaining time of the current cell from its first step in this process.
struct CellTimer {
    started: Instant,
    first_step: u64,
}

impl CellTimer {
    fn remaining(&self, done: u64, total: u64) -> Option<f64> {
        let steps = done.saturating_sub(self.first_step);
        let elapsed = self.started.elapsed().as_secs_f64();
        (steps > 0).then(|| elapsed / steps as f64 * total.saturating_sub(done) as f64)
    }
}

impl<'a> Progress<'a> {
    /// Creates the progress of a plan; `after_cell` is called after each cell.
    pub(crate) fn new(plan: &Plan, after_cell: impl FnMut() + 'a) -> Self {
        let cells = plan.cells.iter().filter(|c| c.is_runnable()).count();
        let bars = std::io::stderr().is_terminal().then(|| Bars::new(cells as u64));
        let (now, cells) = (Instant::now(), cells as u64);
        let timer = CellTimer { started: now, first_step: 0 };
        Self { cells, finished: 0, bars, timer, line: now, after_cell: Box::new(after_cell) }
    }

    /// Removes the bars; call it before results are printed.
    pub(crate) fn clear(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.cell.finish_and_clear();
            bars.overall.finish_and_clear();
        }
    }

    fn print_line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.overall.suspend(|| output::status(text)),
            None => output::status(text),
        }
    }

    fn label(&self, cell: &Cell) -> String {
        format!("[{}/{}] {}", (self.finished + 1).min(self.cells), self.cells, cell.name)
    }
}

impl Bars {
    fn new(cells: u64) -> Self {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        let style = |template: &str| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ")
        };
        let overall = multi.add(ProgressBar::new(cells * UNITS_PER_CELL));
        overall.set_style(style("{prefix:<36!} [{bar:24}] {msg}, {eta} left"));
        overall.set_prefix("all runs");
        let cell = multi.add(ProgressBar::new(1));
        cell.set_style(style("{prefix:<36!} [{bar:24}] {msg}"));
        overall.enable_steady_tick(Duration::from_secs(1));
        Self { overall, cell }
    }
}

impl Observer for Progress<'_> {
    fn cell_started(&mut self, cell: &Cell, done: u64, total: u64) {
        self.timer = CellTimer { started: Instant::now(), first_step: done };
        let start =
            if done > 0 { format!("resuming at step {done} of {total}") } else { format!("{total} steps") };
        match &self.bars {
            Some(bars) => {
                bars.overall.set_message(format!("{} of {} runs", self.finished, self.cells));
                bars.cell.reset();
                bars.cell.set_length(total);
                bars.cell.set_position(done);
                bars.cell.set_prefix(cell.name.clone());
                bars.cell.set_message(start);
            }
            None => {
                self.line = Instant::now();
                output::status(&format!("{}: {start}", self.label(cell)));
            }
        }
    }

    fn step(&mut self, cell: &Cell, done: u64, total: u64, loss: f64, _lr: f64) {
        let left = self
            .timer
            .remaining(done, total)
            .map_or_else(String::new, |s| format!(", {} left", output::duration(s)));
        match &self.bars {
            Some(bars) => {
                bars.overall
                    .set_position(self.finished * UNITS_PER_CELL + done * UNITS_PER_CELL / total.max(1));
                bars.cell.set_position(done);
                bars.cell.set_message(format!("step {done}/{total}, loss {loss:.3}{left}"));
            }
            None if self.line.elapsed() >= LINE_INTERVAL => {
                self.line = Instant::now();
                output::status(&format!("{}: step {done}/{total}, loss {loss:.3}{left}", self.label(cell)));
            }
            None => {}
        }
    }

    fn epoch(&mut self, cell: &Cell, line: &EpochLog) {
        if self.bars.is_none() && self.line.elapsed() >= Duration::from_secs(2) {
            self.line = Instant::now();
            let train =
                line.train_accuracy.map(|a| format!(", train {:.1} %", 100.0 * a)).unwrap_or_default();
            let correct = line.test_correct.map(|r| format!(", {r} test images correct"));
            // Segmentation has no accuracy by image.
            let miou = || line.scores.get("miou").copied().flatten().map(|v| format!(", test mIoU {v:.4}"));
            let test = correct.or_else(miou).unwrap_or_default();
            let rate = line.images_per_second;
            let label = self.label(cell);
            output::status(&format!(
                "{label}: epoch {}, loss {:.3}{train}{test}, {rate:.0} images/s",
                line.epoch, line.loss
            ));
        }
    }

    fn testing(&mut self, _cell: &Cell, done: u64, total: u64) {
        if let Some(bars) = &self.bars {
            bars.cell.set_message(format!("testing {done}/{total}"));
        }
    }

    fn message(&mut self, cell: &Cell, text: &str) {
        self.print_line(&format!("{}: {text}", cell.name));
    }

    fn cell_finished(&mut self, cell: &Cell, outcome: &Outcome) {
        let label = self.label(cell);
        if !matches!(outcome, Outcome::UnknownMethod) {
            self.finished += 1;
        }
        match outcome {
            Outcome::Trained(result) => {
                let correct = result.correct.map_or_else(String::new, |r| {
                    format!(" {:.2} % ({r}/{}),", 100.0 * r as f64 / result.total.max(1) as f64, result.total)
                });
                let seconds = output::duration(result.seconds.train + result.seconds.test);
                self.print_line(&format!("{label}:{correct} {seconds}"));
            }
            Outcome::Failed(why) => self.print_line(&format!("{label}: failed: {why}")),
            // The table shows these.
            Outcome::Finished(_) | Outcome::UnknownMethod => {}
        }
        if let Some(bars) = &self.bars {
            bars.overall.set_position(self.finished * UNITS_PER_CELL);
            bars.overall.set_message(format!("{} of {} runs", self.finished, self.cells));
            if !matches!(outcome, Outcome::Trained(_)) {
                bars.overall.reset_eta();
            }
        }
        (self.after_cell)();
    }
}
