//! Times training steps of stillhouse and PyTorch, interleaved in one run: `make bench`.
//!
//! Each side is a worker process that lives through all rounds, so that other load on the machine affects
//! both alike.

mod cases;
mod device;
mod exits;
mod layers;
mod loader;
mod methods;
mod steps;
mod summary;
mod worker;

use std::path::PathBuf;

use clap::Parser;
use stillhouse_trainer::{DeviceArg, PrecisionArg, open_device};

use cases::{CASES, Case, GPU_CASES, Work};
use summary::{CaseResult, median};
use worker::{Worker, clock};

/// Time training steps of stillhouse and PyTorch
#[derive(Debug, Parser)]
struct Args {
    /// Run only cases whose name has this prefix
    #[arg(long)]
    case: Option<String>,
    /// Rounds; each runs some steps of every worker
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Device of both sides; the GPU has its own cases
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    device: DeviceArg,
    /// Numeric precision of stillhouse on the GPU
    #[arg(long, value_enum, default_value_t = PrecisionArg::Bf16)]
    precision: PrecisionArg,
    /// Numeric precision of PyTorch on the GPU; bf16 uses autocast
    #[arg(long, value_enum, default_value_t = PrecisionArg::Bf16)]
    torch_precision: PrecisionArg,
    /// Steps per round on the GPU, queued before synchronizing
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// CPU thread counts; wall-clock time with 2 or more, CPU time with 1
    #[arg(long, value_delimiter = ',', default_values_t = [2, 1])]
    threads: Vec<usize>,
    /// Python with torch and torchvision [default: STILLHOUSE_PYTHON]; without one, only stillhouse is timed
    #[arg(long)]
    python: Option<PathBuf>,
    /// Output file
    #[arg(long, default_value = "target/bench/summary.json")]
    output: PathBuf,
    /// Print a per-layer profile of a case
    #[arg(long, value_name = "CASE")]
    layers: Option<String>,
    /// List the cases
    #[arg(long)]
    list: bool,
    /// Run as a worker: read step counts from stdin
    #[arg(long, hide = true)]
    worker: Option<String>,
}

fn main() -> anyhow::Result<()> {
    // As the `stillhouse` binary does.
    stillhouse_ops::disable_trim();
    stillhouse_ops::init_thread_pool(None)?;
    let mut args = Args::parse();
    args.python = args.python.or_else(|| std::env::var_os("STILLHOUSE_PYTHON").map(PathBuf::from));
    let on_gpu = args.device == DeviceArg::Cuda;
    if let Some(name) = &args.worker {
        if on_gpu {
            device::select_gpu(args.precision)?;
        }
        if name.starts_with(methods::PREFIX) {
            return worker::serve(|| steps::build_train_step(&methods::step_spec(name)?));
        }
        let case = cases::find(name)?;
        return worker::serve(|| steps::build_step(case));
    }
    let cases = if on_gpu { GPU_CASES } else { CASES };
    let prefix = args.case.as_deref().unwrap_or_default();
    anyhow::ensure!(
        !on_gpu || args.layers.is_none() && !prefix.starts_with(methods::PREFIX),
        "--layers and CASE=methods run on the CPU only; omit `--device cuda`"
    );
    if let Some(name) = &args.layers {
        return layers::print(cases::find(name)?, args.rounds);
    }
    if args.list {
        cases.iter().for_each(|case| println!("{:30} {}", case.name, case.description()));
        if on_gpu {
            return Ok(());
        }
        let compared = "compared with ce and kd; runs only with CASE=methods";
        methods::names().iter().for_each(|name| println!("{name:30} {compared}"));
        return Ok(());
    }
    if prefix.starts_with(methods::PREFIX) {
        return methods::measure(&args);
    }
    let selected: Vec<&Case> = cases.iter().filter(|case| case.name.starts_with(prefix)).collect();
    anyhow::ensure!(!selected.is_empty(), "unknown case prefix `{prefix}`; --list prints all cases");
    if on_gpu {
        // Checked once, before spawning workers. The device is dropped: the GPU is the workers' alone.
        open_device(DeviceArg::Cuda, args.precision).map(|_| ())?;
        args.threads = vec![std::thread::available_parallelism().map_or(1, usize::from)];
    }
    if args.python.is_none() {
        eprintln!("warning: STILLHOUSE_PYTHON is not set, PyTorch is not timed (see bench/README.md)");
    }
    let (selected, skipped): (Vec<&Case>, Vec<&Case>) = selected
        .into_iter()
        .partition(|case| case.work != Work::Load || loader::image_dir(case).is_ok_and(|d| d.is_dir()));
    for case in skipped {
        let reason =
            loader::image_dir(case).map_or_else(|e| e.to_string(), |d| format!("no folder {}", d.display()));
        eprintln!("warning: {} skipped: {reason} (bench/make_images.py makes the images)", case.name);
    }
    let mut results = summary::read(&args.output);
    summary::print_header();
    for case in selected {
        for &threads in &args.threads {
            let result = measure(case, threads, &args)?;
            println!("{result}");
            let key = |r: &CaseResult| (r.case.clone(), r.threads, r.device.clone());
            results.retain(|r| key(r) != key(&result));
            results.push(result);
            summary::write(&args.output, &results)?;
        }
        if args.threads.len() > 1
            && let Some(scaling) = summary::scaling(&results, case.name)
        {
            println!("{scaling}");
        }
    }
    Ok(())
}

/// Minimum duration of a worker's steps in a round, in milliseconds.
const MIN_ROUND_MS: f64 = 400.0;
/// Maximum number of steps in a round on the CPU.
const MAX_STEPS: usize = 10;

/// Runs all rounds of one case.
fn measure(case: &Case, threads: usize, args: &Args) -> anyhow::Result<CaseResult> {
    let on_gpu = args.device == DeviceArg::Cuda;
    let precisions = [args.precision, args.torch_precision].map(|p| on_gpu.then_some(p));
    let mut ours = Worker::spawn_ours(case.name, threads, precisions[0])?;
    // The warm-up fills buffers, starts threads and selects algorithms. On a GPU it comes before PyTorch
    // starts, so that all GPU memory used until then is ours.
    ours.run_steps(3)?;
    let memory = ours.memory();
    let mut torch_workers = Vec::new();
    if let Some(python) = &args.python {
        let layouts: &[&str] = match case.work {
            Work::Load => &["contiguous"], // reads files: no layout to choose
            _ if on_gpu => &["channels_last"],
            _ => &["contiguous", "channels_last"],
        };
        for layout in layouts.iter().copied() {
            let mut torch = Worker::spawn_torch(python, case, threads, layout, precisions[1])?;
            torch.run_steps(3)?;
            torch_workers.push((layout, torch));
        }
    }
    let (clock, steps) = if on_gpu {
        ("wall", args.steps.max(1))
    } else {
        // Several short steps per round: the first after a pause runs on cold caches and sleeping cores.
        let one = ours.run_steps(1)?.ms("wall").max(1.0);
        (clock(threads), ((MIN_ROUND_MS / one).ceil() as usize).clamp(1, MAX_STEPS))
    };
    let (mut our_times, mut torch_times) = (Vec::new(), vec![Vec::new(); torch_workers.len()]);
    for _ in 0..args.rounds {
        our_times.push(ours.run_steps(steps)?.ms(clock) / steps as f64);
        for ((_, torch), times) in torch_workers.iter_mut().zip(&mut torch_times) {
            times.push(torch.run_steps(steps)?.ms(clock) / steps as f64);
        }
    }
    let best =
        (0..torch_workers.len()).min_by(|a, b| median(&torch_times[*a]).total_cmp(&median(&torch_times[*b])));
    let torch = best.map(|i| (torch_workers[i].0, &torch_times[i][..]));
    let memory = if on_gpu { memory } else { ours.memory() };
    let device = match on_gpu {
        true => format!("cuda, {}, {}", args.precision.name(), args.torch_precision.name()),
        false => "cpu".into(),
    };
    let memory = (memory, best.map(|i| torch_workers[i].1.memory()));
    Ok(CaseResult::new(case, (&device, threads, clock), &our_times, torch, memory))
}
