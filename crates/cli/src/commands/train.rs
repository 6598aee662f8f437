//! `stillhouse train`: trains one cell and its teacher.

use std::path::PathBuf;

use serde_json::json;
use stillhouse_runs::Role;
use stillhouse_trainer::{Outcome as Run, Plan, check_plan, plan_single, run_cell};

use crate::commands::{common, estimate};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::{experiments, output, signals};

const EXAMPLES: &str = "\
Examples:
  stillhouse train my.toml --output runs/mine
  stillhouse train my.toml --output runs/mine                 resumes it, or reports that it is finished
  stillhouse train my.toml --output runs/mine --check         checks data, shapes and folders only
  stillhouse train my.toml --output runs/b --set train.epochs=3 --set data.ratio=60
  stillhouse train table3 --profile quick --output runs/one --set matrix.method='[\"kd\"]' \\
      --set matrix.student='[\"resnet18\"]' --set matrix.ratio='[80]' --set matrix.seed='[0]'

An interrupted run resumes when it is started again and ends with the same bytes. Its teacher, if it has
one, is trained first and stored in the folder of runs.";

/// Train one model, with its teacher
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Experiment file or name
    config: String,
    /// Run folder; a run with other settings or data is never overwritten
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Profile of the experiment
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Override a setting, for example train.epochs=3
    #[arg(long, value_name = "A.B=VALUE")]
    set: Vec<String>,
    /// Folder of runs, for the teacher [env: STILLHOUSE_RUNS] [default: runs]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Check everything that is known before training, and stop
    #[arg(long)]
    check: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    let experiment = experiments::load(&args.config, &args.set)?;
    let profile = common::profile(&experiment, args.profile.as_deref())?;
    let context = common::context(&Paths::new(args.runs.as_deref()), signals::stop_flag()?);
    let plan = plan_single(&experiment, profile.as_deref(), &args.output, &context).prepared()?;
    check_plan(&plan, &context).prepared()?;
    if args.check {
        return Ok(common::checked(&plan));
    }
    estimate::announce(&plan, &context, threads);
    let mut progress = Progress::new(&plan, || {});
    let outcome = train(&plan, &context, &mut progress);
    progress.clear();
    match outcome {
        Ok(run) => print_result(args, &run),
        Err(e) if e.is_interrupted() => {
            output::status(&e.to_string());
            Ok(ExitStatus::Interrupted)
        }
        Err(e) => Err(e.into()),
    }
}

/// Runs the cells in order; returns the outcome of the student.
fn train(
    plan: &Plan,
    context: &stillhouse_trainer::Context,
    progress: &mut Progress,
) -> stillhouse_trainer::Result<Run> {
    let mut student = Run::UnknownMethod;
    for cell in &plan.cells {
        let outcome = run_cell(cell, context, progress)?;
        stillhouse_trainer::Observer::cell_finished(progress, cell, &outcome);
        if cell.role == Role::Student {
            student = outcome;
        }
    }
    Ok(student)
}

fn print_result(args: &Args, run: &Run) -> Outcome {
    let Some(result) = run.result() else {
        return Err(CliError::usage("unknown method").hint("`stillhouse list losses` shows all methods"));
    };
    let student = args.output.join("student.safetensors");
    if args.json {
        output::print_json(&json!({"folder": args.output, "student": student, "result": result}));
        return Ok(ExitStatus::Success);
    }
    let before = if matches!(run, Run::Finished(_)) { "already finished: " } else { "" };
    let accuracy = result.correct.map_or_else(String::new, |correct| {
        let percent = 100.0 * correct as f64 / result.total.max(1) as f64;
        format!("{percent:.2} % test accuracy ({correct}/{})\n", result.total)
    });
    output::print(&format!("{before}{}\n{accuracy}{}", result.cell, student.display()));
    Ok(ExitStatus::Success)
}
