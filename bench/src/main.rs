//! Times steps of stillhouse and of PyTorch in turn, in one run: `make bench`.
//!
//! Every contender is a process of its own that stays alive and runs steps when it is told to, so
//! that the rounds interleave and whatever else the machine does falls on all alike.

mod cases;
mod contender;
mod device;
mod exits;
mod layers;
mod load;
mod methods;
mod steps;
mod summary;

use std::path::PathBuf;

use clap::Parser;

use cases::{CARD_CASES, CASES, Case, Work};
use contender::{Contender, clock};
use device::{Choice, Precision};
use summary::{Line, median};

/// Time our steps and PyTorch's side by side
#[derive(Debug, Parser)]
struct Args {
    /// Only cases whose name begins so (all of them without)
    #[arg(long)]
    case: Option<String>,
    /// Rounds; some steps of every contender in each
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Where both sides compute; a card has cases of its own
    #[arg(long, value_enum, default_value_t = Choice::Cpu)]
    device: Choice,
    /// How our side multiplies on a card
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    precision: Precision,
    /// How PyTorch multiplies on a card; bf16 is autocast
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    torch_precision: Precision,
    /// Steps that a card is given before it is waited for, in each round
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Threads: wall clock counts with 2 and more, CPU time with 1; not on a card
    #[arg(long, value_delimiter = ',', default_values_t = [2, 1])]
    threads: Vec<usize>,
    /// Python with torch and torchvision (else STILLHOUSE_PYTHON); without one only we are timed
    #[arg(long)]
    python: Option<PathBuf>,
    /// Where the summary is written
    #[arg(long, default_value = "target/bench/summary.json")]
    output: PathBuf,
    /// Print where the time of a step of this case goes, layer by layer
    #[arg(long, value_name = "CASE")]
    layers: Option<String>,
    /// List the cases
    #[arg(long)]
    list: bool,
    /// Run as a contender: steps of this case, told through the standard input
    #[arg(long, hide = true)]
    serve: Option<String>,
}

fn main() -> anyhow::Result<()> {
    // As the binary of the command line does.
    stillhouse_ops::disable_trim();
    stillhouse_ops::init_thread_pool(None)?;
    let mut args = Args::parse();
    args.python = args.python.or_else(|| std::env::var_os("STILLHOUSE_PYTHON").map(PathBuf::from));
    let on_card = args.device == Choice::Cuda;
    if let Some(name) = &args.serve {
        if on_card {
            device::open_card(args.precision)?;
        }
        if name.starts_with(methods::PREFIX) {
            return contender::serve(|| steps::train(methods::setting(name)?));
        }
        let case = cases::find(name)?;
        return contender::serve(|| steps::make(case));
    }
    let cases = if on_card { CARD_CASES } else { CASES };
    let wanted = args.case.as_deref().unwrap_or_default();
    anyhow::ensure!(
        !on_card || args.layers.is_none() && !wanted.starts_with(methods::PREFIX),
        "--layers and CASE=methods are of the processor; leave `--device cuda` out"
    );
    if let Some(name) = &args.layers {
        return layers::print(cases::find(name)?, args.rounds);
    }
    if args.list {
        cases.iter().for_each(|case| println!("{:28} {}", case.name, case.what()));
        if on_card {
            return Ok(());
        }
        let beside = "beside cross-entropy alone and kd, only where it is asked for";
        methods::names().iter().for_each(|name| println!("{name:28} {beside}"));
        return Ok(());
    }
    if wanted.starts_with(methods::PREFIX) {
        return methods::measure(&args);
    }
    let chosen: Vec<&Case> = cases.iter().filter(|case| case.name.starts_with(wanted)).collect();
    anyhow::ensure!(!chosen.is_empty(), "no case begins with `{wanted}`; --list shows them");
    if on_card {
        // What is missing is told once, before any contender starts. The card is theirs alone.
        device::card().map(|_| ())?;
        args.threads = vec![std::thread::available_parallelism().map_or(1, usize::from)];
    }
    if args.python.is_none() {
        eprintln!("no STILLHOUSE_PYTHON: PyTorch is not timed (bench/README.md tells how to get one)");
    }
    let (chosen, unread): (Vec<&Case>, Vec<&Case>) = chosen
        .into_iter()
        .partition(|case| case.work != Work::Load || load::folder(case).is_ok_and(|f| f.is_dir()));
    for case in unread {
        let why = load::folder(case).map_or_else(|e| e.to_string(), |f| format!("no {}", f.display()));
        eprintln!("{why}: {} is left out (bench/README.md tells how to make the images)", case.name);
    }
    let mut lines = summary::read(&args.output);
    summary::head();
    for case in chosen {
        for &threads in &args.threads {
            let line = measure(case, threads, &args)?;
            println!("{line}");
            let key = |l: &Line| (l.case.clone(), l.threads, l.device.clone());
            lines.retain(|l| key(l) != key(&line));
            lines.push(line);
            summary::write(&args.output, &lines)?;
        }
        if args.threads.len() > 1
            && let Some(scaling) = summary::scaling(&lines, case.name)
        {
            println!("{scaling}");
        }
    }
    Ok(())
}

/// Milliseconds of our steps in a round, and the most steps: all contenders run as many.
const ENOUGH_MS: f64 = 400.0;
const MOST_STEPS: usize = 10;

/// All rounds of one case.
fn measure(case: &Case, threads: usize, args: &Args) -> anyhow::Result<Line> {
    let on_card = args.device == Choice::Cuda;
    let precisions = [args.precision, args.torch_precision].map(|p| on_card.then_some(p));
    let mut ours = Contender::ours(case.name, threads, precisions[0])?;
    // Warm up: buffers are made, threads started, algorithms chosen. On a card it comes before the
    // others start: what is taken of the card then is ours.
    ours.steps(3)?;
    let memory = ours.memory();
    let mut theirs = Vec::new();
    if let Some(python) = &args.python {
        let layouts: &[&str] = match case.work {
            Work::Load => &["contiguous"], // files have no layout
            _ if on_card => &["channels_last"],
            _ => &["contiguous", "channels_last"],
        };
        for layout in layouts.iter().copied() {
            let mut torch = Contender::torch(python, case, threads, layout, precisions[1])?;
            torch.steps(3)?;
            theirs.push((layout, torch));
        }
    }
    let (clock, steps) = if on_card {
        ("wall", args.steps.max(1))
    } else {
        // A short step right after a pause is one of cold caches and sleeping cores.
        let one = ours.steps(1)?.of("wall").max(1.0);
        (clock(threads), ((ENOUGH_MS / one).ceil() as usize).clamp(1, MOST_STEPS))
    };
    let (mut mine, mut other) = (Vec::new(), vec![Vec::new(); theirs.len()]);
    for _ in 0..args.rounds {
        mine.push(ours.steps(steps)?.of(clock) / steps as f64);
        for ((_, torch), times) in theirs.iter_mut().zip(&mut other) {
            times.push(torch.steps(steps)?.of(clock) / steps as f64);
        }
    }
    let best = (0..theirs.len()).min_by(|a, b| median(&other[*a]).total_cmp(&median(&other[*b])));
    let torch = best.map(|i| (theirs[i].0, &other[i][..]));
    let memory = if on_card { memory } else { ours.memory() };
    let device = match on_card {
        true => format!("cuda, {}, {}", args.precision.name(), args.torch_precision.name()),
        false => "cpu".into(),
    };
    let memory = (memory, best.map(|i| theirs[i].1.memory()));
    Ok(Line::new(case, (&device, threads, clock), &mine, torch, memory))
}
