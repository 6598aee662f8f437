//! The stillhouse binary: knowledge distillation from the command line.

mod commands;
mod device;
mod environment;
mod experiments;
mod interrupt;
mod places;
mod problem;
mod progress;
mod registries;
mod talk;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::problem::{Ended, Outcome, Problem};

const EXAMPLES: &str = "\
Examples:
  stillhouse doctor                             what this machine has, where things are looked for
  stillhouse list                               methods, networks, datasets, metrics, experiments
  stillhouse explain class_centric               a method, its defaults and their sources
  stillhouse distill my/images --output out     own images: a small network with the help of a large one
  stillhouse reproduce table3                   Table 3 of the class-centric paper, in minutes
  stillhouse report runs/table3/smoke           its table and page again, from the run folders
  stillhouse runs ls                            all runs and where they stand
  stillhouse train my.toml --output runs/mine   one run; start it again to go on with it
  stillhouse predict runs/mine image.jpg        classes with probabilities

Environment:
  STILLHOUSE_DATA      folder of datasets (then ./datasets)
  HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE   of the hub, for `data fetch` and `weights fetch`
  STILLHOUSE_WEIGHTS   folder of pretrained weights (then ./weights, then the cache of the hub)
  STILLHOUSE_RUNS      folder of runs (default ./runs)
  STILLHOUSE_THREADS   threads (as --threads)
  STILLHOUSE_WINOGRAD  0: no Winograd convolutions
  STILLHOUSE_ISA       instruction set: scalar, avx2, avx512
  NO_COLOR             no color

Exit codes: 0 done; 1 findings or a failed run; 2 usage or configuration; 130 interrupted.";

/// Knowledge distillation: train small networks with the help of large ones.
#[derive(Debug, Parser)]
#[command(name = "stillhouse", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
struct Global {
    /// Where to compute
    #[arg(long, global = true, value_enum, default_value_t = device::Choice::Cpu)]
    device: device::Choice,
    /// What networks compute in
    #[arg(long, global = true, value_enum, default_value_t = device::Precision::F32)]
    precision: device::Precision,
    /// Threads; the numbers do not depend on it [env: STILLHOUSE_THREADS]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(commands::train::Args),
    Eval(commands::eval::Args),
    Predict(commands::predict::Args),
    Distill(commands::distill::Args),
    Reproduce(commands::reproduce::Args),
    Report(commands::report::Args),
    #[command(subcommand)]
    Submit(commands::submit::Args),
    #[command(subcommand)]
    Runs(commands::runs::Args),
    List(commands::list::Args),
    Explain(commands::explain::Args),
    #[command(subcommand)]
    Data(commands::data::Args),
    #[command(subcommand)]
    Weights(commands::weights::Args),
    Doctor(commands::doctor::Args),
    Completions(commands::completions::Args),
}

fn main() -> ExitCode {
    stillhouse_ops::disable_trim();
    talk::set_panic_message();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let help = matches!(
                e.kind(),
                ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            // A closed pipe is the reader's choice.
            let _ = e.print();
            return ExitCode::from(if help && e.exit_code() == 0 { 0 } else { 2 });
        }
    };
    talk::start_log();
    match run(cli) {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::Findings) => ExitCode::from(1),
        Ok(Ended::Interrupted) => ExitCode::from(130),
        Err(problem) => {
            talk::print_problem(&problem);
            ExitCode::from(problem.code)
        }
    }
}

fn run(cli: Cli) -> Outcome {
    device::choose(cli.global.device, cli.global.precision)?;
    let threads = set_threads(cli.global.threads)?;
    match cli.command {
        Command::Train(args) => commands::train::run(&args, threads),
        Command::Eval(args) => commands::eval::run(&args, threads),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Reproduce(args) => commands::reproduce::run(&args, threads),
        Command::Distill(args) => commands::distill::run(&args, threads),
        Command::Submit(args) => commands::submit::run(&args, threads),
        Command::Report(args) => commands::report::run(&args),
        Command::Runs(args) => commands::runs::run(&args),
        Command::List(args) => commands::list::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Data(args) => commands::data::run(&args),
        Command::Weights(args) => commands::weights::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args, threads),
        Command::Completions(args) => commands::completions::run(&args),
    }
}

/// Sets the threads of all parallel loops: flag first, then environment, then all of the machine.
fn set_threads(flag: Option<usize>) -> Result<usize, Problem> {
    let (wanted, from) = match (flag, std::env::var("STILLHOUSE_THREADS")) {
        (Some(n), _) => (Some(n), "--threads"),
        (None, Ok(text)) if !text.trim().is_empty() => {
            let n = text.trim().parse().map_err(|_| {
                Problem::usage(format!("STILLHOUSE_THREADS is `{text}`, expected a number from 1 to 1024"))
            })?;
            (Some(n), "STILLHOUSE_THREADS")
        }
        _ => (None, ""),
    };
    if let Some(n) = wanted
        && !(1..=1024).contains(&n)
    {
        return Err(Problem::usage(format!("{from} is {n}, expected 1 to 1024")));
    }
    stillhouse_ops::init_thread_pool(wanted)
        .map_err(|e| Problem::failed(format!("threads cannot be started: {e}")))?;
    Ok(rayon::current_num_threads())
}
