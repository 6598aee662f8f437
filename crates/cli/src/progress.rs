//! What a person sees while runs go on: bars on a terminal, plain lines elsewhere. All on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stillhouse_trainer::{Cell, EpochLog, Observer, Outcome, Plan};

use crate::output;

/// A plain line comes at least every so often.
const EVERY: Duration = Duration::from_secs(10);
/// Parts of a cell on the overall bar.
const PARTS: u64 = 1000;

/// Watches the runs of a plan.
pub(crate) struct Progress<'a> {
    cells: u64,
    finished: u64,
    bars: Option<Bars>,
    cell: Clock,
    line: Instant,
    after_cell: Box<dyn FnMut() + 'a>,
}

struct Bars {
    overall: ProgressBar,
    cell: ProgressBar,
}

/// Measures the cell under way, from where it began or went on.
struct Clock {
    begun: Instant,
    from: u64,
}

impl Clock {
    fn left(&self, done: u64, total: u64) -> Option<f64> {
        let made = done.saturating_sub(self.from);
        let spent = self.begun.elapsed().as_secs_f64();
        (made > 0).then(|| spent / made as f64 * total.saturating_sub(done) as f64)
    }
}

impl<'a> Progress<'a> {
    /// For the cells of a plan; `after_cell` is called when one has ended.
    pub(crate) fn new(plan: &Plan, after_cell: impl FnMut() + 'a) -> Self {
        let cells = plan.cells.iter().filter(|c| c.is_built()).count();
        let bars = std::io::stderr().is_terminal().then(|| Bars::new(cells as u64));
        let (now, cells) = (Instant::now(), cells as u64);
        let cell = Clock { begun: now, from: 0 };
        Self { cells, finished: 0, bars, cell, line: now, after_cell: Box::new(after_cell) }
    }

    /// Takes the bars away before results are printed.
    pub(crate) fn end(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.cell.finish_and_clear();
            bars.overall.finish_and_clear();
        }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.overall.suspend(|| output::status(text)),
            None => output::status(text),
        }
    }

    fn place(&self, cell: &Cell) -> String {
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
        let overall = multi.add(ProgressBar::new(cells * PARTS));
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
        self.cell = Clock { begun: Instant::now(), from: done };
        let goes_on =
            if done > 0 { format!("goes on after step {done} of {total}") } else { format!("{total} steps") };
        match &self.bars {
            Some(bars) => {
                bars.overall.set_message(format!("{} of {} runs", self.finished, self.cells));
                bars.cell.reset();
                bars.cell.set_length(total);
                bars.cell.set_position(done);
                bars.cell.set_prefix(cell.name.clone());
                bars.cell.set_message(goes_on);
            }
            None => {
                self.line = Instant::now();
                output::status(&format!("{}: {goes_on}", self.place(cell)));
            }
        }
    }

    fn step(&mut self, cell: &Cell, done: u64, total: u64, loss: f64, _lr: f64) {
        let left = self
            .cell
            .left(done, total)
            .map_or_else(String::new, |s| format!(", {} left", output::duration(s)));
        match &self.bars {
            Some(bars) => {
                bars.overall.set_position(self.finished * PARTS + done * PARTS / total.max(1));
                bars.cell.set_position(done);
                bars.cell.set_message(format!("step {done}/{total}, loss {loss:.3}{left}"));
            }
            None if self.line.elapsed() >= EVERY => {
                self.line = Instant::now();
                output::status(&format!("{}: step {done}/{total}, loss {loss:.3}{left}", self.place(cell)));
            }
            None => {}
        }
    }

    fn epoch(&mut self, cell: &Cell, line: &EpochLog) {
        if self.bars.is_none() && self.line.elapsed() >= Duration::from_secs(2) {
            self.line = Instant::now();
            let train =
                line.train_accuracy.map(|a| format!(", train {:.1} %", 100.0 * a)).unwrap_or_default();
            let right = line.test_right.map(|r| format!(", test {r} right"));
            // Label masks have no images that are right.
            let miou = || line.scores.get("miou").copied().flatten().map(|v| format!(", test mIoU {v:.4}"));
            let test = right.or_else(miou).unwrap_or_default();
            let rate = line.images_per_second;
            let place = self.place(cell);
            output::status(&format!(
                "{place}: epoch {}, loss {:.3}{train}{test}, {rate:.0} images/s",
                line.epoch, line.total
            ));
        }
    }

    fn testing(&mut self, _cell: &Cell, done: u64, total: u64) {
        if let Some(bars) = &self.bars {
            bars.cell.set_message(format!("testing {done}/{total}"));
        }
    }

    fn message(&mut self, cell: &Cell, text: &str) {
        self.say(&format!("{}: {text}", cell.name));
    }

    fn cell_finished(&mut self, cell: &Cell, outcome: &Outcome) {
        let place = self.place(cell);
        if !matches!(outcome, Outcome::NotBuilt) {
            self.finished += 1;
        }
        match outcome {
            Outcome::Trained(result) => {
                let right = result.right.map_or_else(String::new, |r| {
                    format!(
                        " {:.2} % ({r}/{}),",
                        100.0 * r as f64 / result.tested.max(1) as f64,
                        result.tested
                    )
                });
                let seconds = output::duration(result.seconds.train + result.seconds.test);
                self.say(&format!("{place}:{right} {seconds}"));
            }
            Outcome::Failed(why) => self.say(&format!("{place}: failed: {why}")),
            // Finished before, or not built: the table tells.
            Outcome::Finished(_) | Outcome::NotBuilt => {}
        }
        if let Some(bars) = &self.bars {
            bars.overall.set_position(self.finished * PARTS);
            bars.overall.set_message(format!("{} of {} runs", self.finished, self.cells));
            if !matches!(outcome, Outcome::Trained(_)) {
                bars.overall.reset_eta();
            }
        }
        (self.after_cell)();
    }
}
