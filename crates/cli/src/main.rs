//! The stillhouse binary: knowledge distillation from the command line.

mod commands;
mod device;
mod error;
mod experiments;
mod output;
mod paths;
mod progress;
mod registries;
mod signals;
mod system_info;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use stillhouse_trainer::{DeviceArg, PrecisionArg};

use crate::error::{CliError, ExitStatus, Outcome};

const EXAMPLES: &str = "\
Examples:
  stillhouse doctor                             check this machine and the search paths
  stillhouse list                               methods, models, datasets, metrics, experiments
  stillhouse explain class_centric              a method, its defaults and their sources
  stillhouse distill my/images --output out     distill a small model for your own images
  stillhouse reproduce table3                   Table 3 of the class-centric paper, in minutes
  stillhouse report runs/table3/quick           rebuild its table and page from the run folders
  stillhouse runs ls                            list runs and their status
  stillhouse train my.toml --output runs/mine   one run; the same command resumes it
  stillhouse predict runs/mine image.jpg        classes with probabilities

Environment:
  STILLHOUSE_DATA      folder of datasets (then ./datasets)
  STILLHOUSE_WEIGHTS   folder of pretrained weights (then ./weights, then the Hugging Face cache)
  STILLHOUSE_RUNS      folder of runs (default ./runs)
  STILLHOUSE_THREADS   number of threads (as --threads)
  STILLHOUSE_ISA       instruction set: scalar, avx2, avx512
  STILLHOUSE_WINOGRAD  0 disables Winograd convolutions
  HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE   Hugging Face settings of `data fetch` and `weights fetch`
  NO_COLOR             disables color

Exit codes: 0 success; 1 findings or a failed run; 2 usage or configuration error; 130 interrupted.";

/// Knowledge distillation: train small models with large ones as teachers.
#[derive(Debug, Parser)]
#[command(name = "stillhouse", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of all commands.
#[derive(Debug, clap::Args)]
struct Global {
    /// Device
    #[arg(long, global = true, value_enum, default_value_t = DeviceArg::Cpu)]
    device: DeviceArg,
    /// Numeric precision
    #[arg(long, global = true, value_enum, default_value_t = PrecisionArg::F32)]
    precision: PrecisionArg,
    /// Number of threads; results do not depend on it [env: STILLHOUSE_THREADS]
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
    output::install_panic_hook();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let help = matches!(
                e.kind(),
                ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            let written = e.print().and_then(|()| std::io::stdout().flush());
            return ExitCode::from(match written {
                _ if !help || e.exit_code() != 0 => 2,
                Ok(()) => 0,
                Err(error) => output::write_failed(&error),
            });
        }
    };
    output::init_logging();
    match run(cli) {
        Ok(ExitStatus::Success) => ExitCode::SUCCESS,
        Ok(ExitStatus::Failure) => ExitCode::from(1),
        Ok(ExitStatus::Interrupted) => ExitCode::from(130),
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(error.code)
        }
    }
}

fn run(cli: Cli) -> Outcome {
    device::select(cli.global.device, cli.global.precision)?;
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

/// Initializes the thread pool from `--threads`, `STILLHOUSE_THREADS` or the number of cores.
fn set_threads(flag: Option<usize>) -> Result<usize, CliError> {
    let (requested, origin) = match (flag, std::env::var("STILLHOUSE_THREADS")) {
        (Some(n), _) => (Some(n), "--threads"),
        (None, Ok(text)) if !text.trim().is_empty() => {
            let n = text.trim().parse().map_err(|_| {
                CliError::usage(format!("STILLHOUSE_THREADS is `{text}`, expected a number of threads"))
            })?;
            (Some(n), "STILLHOUSE_THREADS")
        }
        _ => (None, ""),
    };
    // More threads than cores only cost time; a few are let through for tests.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = cores.max(16) * 2;
    if let Some(n) = requested
        && !(1..=most).contains(&n)
    {
        let expected = format!("{origin} is {n}: expected 1 to {most} (this machine has {cores} cores)");
        return Err(CliError::usage(expected));
    }
    stillhouse_ops::init_thread_pool(requested)
        .map_err(|e| CliError::failed(format!("cannot start the thread pool: {e}")))?;
    Ok(rayon::current_num_threads())
}
