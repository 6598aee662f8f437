//! Worker processes that run steps on request.
//!
//! A worker reads step counts from stdin, one per line, and answers each with a line `wall seconds, CPU
//! seconds, peak memory in KiB, memory of the loaded libraries in KiB`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::{DType, Tensor};
use stillhouse_trainer::PrecisionArg;

use crate::cases::{Case, Work};
use crate::device;

/// Returns the clock for a thread count: CPU time with one thread, which other programs do not disturb.
pub(crate) fn clock(threads: usize) -> &'static str {
    if threads == 1 { "cpu" } else { "wall" }
}

/// Pause before the steps of a worker: OpenMP threads of the previous one keep spinning on their cores for
/// 0.2 s after a step.
const PAUSE: Duration = Duration::from_millis(400);

/// Time of some steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elapsed {
    wall: f64,
    cpu: f64,
}

impl Elapsed {
    /// Milliseconds by the clock `wall` or `cpu`.
    pub(crate) fn ms(self, clock: &str) -> f64 {
        1e3 * if clock == "cpu" { self.cpu } else { self.wall }
    }
}

/// Memory of a worker in MiB: of the GPU if it runs there, of the process otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) peak: f64,
    /// After loading the libraries, before building anything.
    pub(crate) libraries: f64,
}

/// Handle of a worker process; dropping it kills the process.
pub(crate) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    memory: Memory,
    name: String,
}

impl Worker {
    /// Spawns this program with a case, on the GPU if `gpu` has a precision.
    pub(crate) fn spawn_ours(case: &str, threads: usize, gpu: Option<PrecisionArg>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--worker", case]).env("RAYON_NUM_THREADS", threads.to_string());
        if let Some(precision) = gpu {
            command.args(["--device", "cuda", "--precision", precision.name()]);
        }
        Self::spawn(command, "stillhouse")
    }

    /// Spawns `bench/torch_step.py`, on the GPU if `gpu` has a precision.
    pub(crate) fn spawn_torch(
        python: &Path,
        case: &Case,
        threads: usize,
        layout: &str,
        gpu: Option<PrecisionArg>,
    ) -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/torch_step.py");
        let work = match case.work {
            Work::Train => "train",
            Work::Frozen => "frozen",
            Work::Distill(method) => method,
            Work::TwoPhases => "mksmt",
            Work::Load => "load",
        };
        let mut command = Command::new(python);
        command
            .args([script, case.network, work, layout])
            .args([case.batch, case.size, threads].map(|n| n.to_string()))
            .env("OMP_NUM_THREADS", threads.to_string());
        if let Some(precision) = gpu {
            command.args(["cuda", precision.name()]);
        }
        Self::spawn(command, &format!("PyTorch ({layout})"))
    }

    fn spawn(mut command: Command, name: &str) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {name} worker: {command:?}"))?;
        let stdin = child.stdin.take().context("the worker has no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("the worker has no stdout")?);
        Ok(Self { child, stdin, stdout, memory: Memory { peak: 0.0, libraries: 0.0 }, name: name.into() })
    }

    /// Runs `count` steps after [`PAUSE`].
    pub(crate) fn run_steps(&mut self, count: usize) -> anyhow::Result<Elapsed> {
        std::thread::sleep(PAUSE);
        writeln!(self.stdin, "{count}")?;
        self.stdin.flush()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let values: Vec<f64> = line.split_whitespace().filter_map(|v| v.parse().ok()).collect();
        let [wall, cpu, peak, libraries] = values[..] else {
            anyhow::bail!("the {} worker exited early; its error is printed above", self.name);
        };
        self.memory = Memory { peak: peak / 1024.0, libraries: libraries / 1024.0 };
        Ok(Elapsed { wall, cpu })
    }

    /// Memory as of the last step.
    pub(crate) fn memory(&self) -> Memory {
        self.memory
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a field of `/proc/self/status` in KiB; zero where there is none.
fn proc_status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().find_map(|v| v.parse().ok()).unwrap_or(0.0)
}

/// Returns the CPU seconds of this process, including threads that have ended; NaN on Windows.
#[cfg(not(unix))]
fn cpu_seconds() -> f64 {
    f64::NAN
}

/// Returns the CPU seconds of this process, including threads that have ended.
#[cfg(unix)]
fn cpu_seconds() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 * 1e-9)
}

/// A repeatable step that returns a scalar, such as its loss.
pub(crate) type StepFn = Box<dyn FnMut() -> anyhow::Result<Tensor>>;

/// Serves step counts from stdin until it closes. All steps of a count are queued before synchronizing with
/// the GPU.
pub(crate) fn serve(build: impl FnOnce() -> anyhow::Result<StepFn>) -> anyhow::Result<()> {
    let libraries = if device::gpu_memory_used().is_some() { 0.0 } else { proc_status("VmRSS:") };
    let (mut step, mut gpu_peak) = (build()?, 0f64);
    for line in std::io::stdin().lock().lines() {
        let count: usize = line?.trim().parse()?;
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(step()?);
        }
        // Read before synchronizing, which lets the allocator return free memory.
        gpu_peak = gpu_peak.max(device::gpu_memory_used().unwrap_or_default());
        device::device().synchronize()?;
        let elapsed = Elapsed { wall: wall.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu };
        for value in values {
            let value = value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            anyhow::ensure!(
                value.is_finite(),
                "invalid result of a step: expected a finite number, found {value}"
            );
        }
        let peak = if device::gpu_memory_used().is_some() { gpu_peak } else { proc_status("VmHWM:") };
        println!("{} {} {peak} {libraries}", elapsed.wall, elapsed.cpu);
    }
    Ok(())
}
