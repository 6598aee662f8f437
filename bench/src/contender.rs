//! A process that runs steps when it is told to.
//!
//! It reads a count a line and answers `wall seconds, CPU seconds, peak memory in KiB, memory of the
//! libraries alone in KiB` for so many steps.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::{DType, Tensor};

use crate::cases::Case;
use crate::device::{self, Precision};

/// The clock that counts with so many threads: alone, what other programs take does not matter.
pub(crate) fn clock(threads: usize) -> &'static str {
    if threads == 1 { "cpu" } else { "wall" }
}

const PAUSE: Duration = Duration::from_millis(400);

/// What some steps took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    wall: f64,
    cpu: f64,
}

impl Took {
    /// Milliseconds by this clock.
    pub(crate) fn of(self, clock: &str) -> f64 {
        1e3 * if clock == "cpu" { self.cpu } else { self.wall }
    }
}

/// Memory of a contender in MiB: of its process, or of the card where it computes there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// The most that it ever held.
    pub(crate) peak: f64,
    /// What it held before it made anything.
    pub(crate) libraries: f64,
}

/// The other end of a contender.
pub(crate) struct Contender {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    memory: Memory,
    name: String,
}

impl Contender {
    /// This program with the case of this name, on a card if a precision of one is given.
    pub(crate) fn ours(case: &str, threads: usize, card: Option<Precision>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--serve", case]).env("RAYON_NUM_THREADS", threads.to_string());
        if let Some(precision) = card {
            command.args(["--device", "cuda", "--precision", precision.name()]);
        }
        Self::start(command, "ours")
    }

    /// `bench/torch_step.py`, on a card if a precision of one is given.
    pub(crate) fn torch(
        python: &Path,
        case: &Case,
        threads: usize,
        layout: &str,
        card: Option<Precision>,
    ) -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/torch_step.py");
        let work = match case.work {
            crate::cases::Work::Train => "train",
            crate::cases::Work::Frozen => "frozen",
            crate::cases::Work::Distil(method) => method,
            crate::cases::Work::TwoSteps => "mksmt",
            crate::cases::Work::Load => "load",
        };
        let mut command = Command::new(python);
        command
            .args([script, case.network, work, layout])
            .args([case.batch, case.size, threads].map(|n| n.to_string()))
            .env("OMP_NUM_THREADS", threads.to_string());
        if let Some(precision) = card {
            command.args(["cuda", precision.name()]);
        }
        Self::start(command, &format!("PyTorch ({layout})"))
    }

    fn start(mut command: Command, name: &str) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: {command:?} does not start"))?;
        let to = child.stdin.take().context("no standard input")?;
        let from = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, to, from, memory: Memory { peak: 0.0, libraries: 0.0 }, name: name.into() })
    }

    /// Runs so many steps, after a pause for the threads of the contender before: OpenMP's go on to spin
    /// on their cores for a fifth of a second when their work is done.
    pub(crate) fn steps(&mut self, count: usize) -> anyhow::Result<Took> {
        std::thread::sleep(PAUSE);
        writeln!(self.to, "{count}")?;
        self.to.flush()?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let values: Vec<f64> = line.split_whitespace().filter_map(|v| v.parse().ok()).collect();
        let [wall, cpu, peak, libraries] = values[..] else {
            anyhow::bail!("{} stopped (its words are above)", self.name);
        };
        self.memory = Memory { peak: peak / 1024.0, libraries: libraries / 1024.0 };
        Ok(Took { wall, cpu })
    }

    /// Memory up to the last step.
    pub(crate) fn memory(&self) -> Memory {
        self.memory
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of `/proc/self/status` in KiB; zero where there is none.
fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().find_map(|v| v.parse().ok()).unwrap_or(0.0)
}

/// CPU seconds of this process: of all threads, those that have ended too.
fn cpu_seconds() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 * 1e-9)
}

/// A step that can be run again and again.
pub(crate) type Run = Box<dyn FnMut() -> anyhow::Result<Tensor>>;

/// Runs steps as told through the standard input; each gives a scalar, its loss or the like. A card is
/// waited for when all are queued.
pub(crate) fn serve(make: impl FnOnce() -> anyhow::Result<Run>) -> anyhow::Result<()> {
    let libraries = if device::taken().is_some() { 0.0 } else { status("VmRSS:") };
    let (mut step, mut most) = (make()?, 0f64);
    for line in std::io::stdin().lock().lines() {
        let count: usize = line?.trim().parse()?;
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(step()?);
        }
        // Before it waits: a card gives back what is free when it is waited for.
        most = most.max(device::taken().unwrap_or_default());
        device::device().synchronize()?;
        let took = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        for value in values {
            let value = value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            anyhow::ensure!(value.is_finite(), "the step gives {value}");
        }
        let peak = if device::taken().is_some() { most } else { status("VmHWM:") };
        println!("{} {} {peak} {libraries}", took.0, took.1);
    }
    Ok(())
}
