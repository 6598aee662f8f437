//! `stillhouse submit`: runs the cells of an experiment as cluster jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use stillhouse_runs::Role;
use stillhouse_trainer::Plan;

use crate::commands::{common, table};
use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{experiments, output};

const EXAMPLES: &str = "\
Examples:
  stillhouse submit slurm table3 --profile reduced --max-tasks 8
  stillhouse submit slurm table3 --profile paper --sbatch=--partition=gpu --sbatch=--time=24:00:00
  stillhouse submit slurm table3 --dry-run          write the scripts without submitting

Submits one job array for the teachers, one for the students of each teacher, which depends on it, and a
final job that writes table and page. All machines must share the folder of runs. Finished cells are
skipped; submit again after a failure to resume the rest.";

/// Run the cells of an experiment on a cluster
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    /// Submit Slurm job arrays
    Slurm(Slurm),
}

/// Submit an experiment to Slurm
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Slurm {
    /// Experiment name or file
    experiment: String,
    /// Profile of the experiment [default: quick]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Override a setting, for example train.epochs=3
    #[arg(long, value_name = "A.B=VALUE")]
    set: Vec<String>,
    /// Folder of runs, shared by all machines [env: STILLHOUSE_RUNS] [default: runs]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Maximum number of concurrent tasks per array
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    max_tasks: u16,
    /// Cores (and threads) per task
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    cpus: u16,
    /// Additional sbatch option, for example --sbatch=--partition=gpu
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// Wait for the last job
    #[arg(long)]
    wait: bool,
    /// Write the scripts without submitting
    #[arg(long)]
    dry_run: bool,
    /// Print the jobs as JSON
    #[arg(long)]
    json: bool,
}

/// Cells with a common dependency, numbered as in `--cell`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Array {
    /// `teachers`, or `students-of-3`, or `students`.
    name: String,
    cells: Vec<usize>,
    /// Number of the cell that they need: a teacher, or a teacher's pretraining.
    after: Option<usize>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    let Args::Slurm(args) = args;
    let experiment = experiments::load(&args.experiment, &args.set)?;
    let profile = common::profile(&experiment, args.profile.as_deref())?;
    let context = common::context(&Paths::new(args.runs.as_deref()), Default::default());
    let plan = common::planned(&experiment, profile.as_deref(), &context)?;
    // The last job renders the table from this specification.
    let published = experiments::published(&experiment, experiments::path(&args.experiment).as_deref())?;
    let writer = table::TableWriter::new(&experiment, published, &plan, &context, &args.set, threads)?;
    writer.write(&plan.folder)?;
    let arrays = job_arrays(&plan);
    if arrays.is_empty() {
        output::status("all cells are already finished");
        return Ok(ExitStatus::Success);
    }
    let scripts = plan.folder.join("slurm");
    let scripts = std::path::absolute(&scripts).map_err(stillhouse_core::Error::io(&scripts))?;
    let command = task_command(args, profile.as_deref(), &plan)?;
    for array in &arrays {
        let text = script(args, array, &command, &scripts)?;
        stillhouse_core::fs::write_atomic(&scripts.join(format!("{}.sh", array.name)), text.as_bytes())?;
    }
    let last = report_script(args, &plan, &scripts)?;
    stillhouse_core::fs::write_atomic(&scripts.join("report.sh"), last.as_bytes())?;
    if args.dry_run {
        output::print(&scripts.display().to_string());
        return Ok(ExitStatus::Success);
    }
    submit(args, &plan, &arrays, &scripts)
}

/// Groups the remaining cells by what they train and the cell that they need.
fn job_arrays(plan: &Plan) -> Vec<Array> {
    let left = |i: &usize| plan.cells[*i].is_runnable() && !plan.cells[*i].is_finished();
    let mut arrays = Vec::new();
    for (role, name) in
        [(Role::Pretraining, "pretraining"), (Role::Teacher, "teachers"), (Role::Student, "students")]
    {
        let mut by_need: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for i in (0..plan.cells.len()).filter(left).filter(|i| plan.cells[*i].role == role) {
            by_need.entry(plan.cells[i].needs.filter(left)).or_default().push(i + 1);
        }
        arrays.extend(by_need.into_iter().map(|(after, cells)| {
            let after = after.map(|needed| needed + 1);
            let name = after.map_or(name.to_string(), |needed| format!("{name}-of-{needed}"));
            Array { name, cells, after }
        }));
    }
    arrays
}

/// Returns the shell command of a task; `$CELL` is the number of its cell.
fn task_command(args: &Slurm, profile: Option<&str>, plan: &Plan) -> Result<String, CliError> {
    let program = std::env::current_exe()
        .map_err(|e| CliError::failed(format!("cannot find the path of this program: {e}")))?;
    let mut words = vec![program.display().to_string(), "reproduce".into(), args.experiment.clone()];
    words.extend(profile.into_iter().flat_map(|p| ["--profile".to_string(), p.to_string()]));
    words.extend(args.set.iter().flat_map(|s| ["--set".to_string(), s.clone()]));
    words.extend(args.runs.iter().flat_map(|r| ["--runs".to_string(), r.display().to_string()]));
    words.extend(["--threads".to_string(), args.cpus.to_string()]);
    let words: Vec<String> = words.iter().map(|w| shell_quote(w)).collect();
    Ok(format!("{} --cell \"$CELL/{}\"", words.join(" "), plan.cells.len()))
}

/// Quotes a word for the shell.
fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Renders the header of a script.
fn script_header(args: &Slurm, name: &str, scripts: &Path, array: Option<usize>) -> Result<String, CliError> {
    let here = std::env::current_dir()
        .map_err(|e| CliError::failed(format!("cannot find the current folder: {e}")))?;
    let mut text = format!(
        "#!/bin/bash\n#SBATCH --job-name=stillhouse-{name}\n#SBATCH --chdir={}\n#SBATCH --cpus-per-task={}\n\
         #SBATCH --requeue\n#SBATCH --open-mode=append\n",
        here.display(),
        args.cpus
    );
    let log = if array.is_some() { "%x-%a.log" } else { "%x.log" };
    text.push_str(&format!("#SBATCH --output={}/{log}\n", scripts.display()));
    if let Some(tasks) = array {
        text.push_str(&format!("#SBATCH --array=1-{tasks}%{}\n", args.max_tasks));
    }
    for option in &args.sbatch {
        if option.contains('\n') {
            return Err(CliError::usage("invalid sbatch option: line breaks are not allowed"));
        }
        text.push_str(&format!("#SBATCH {option}\n"));
    }
    Ok(text)
}

fn script(args: &Slurm, array: &Array, command: &str, scripts: &Path) -> Result<String, CliError> {
    let cells: Vec<String> = array.cells.iter().map(usize::to_string).collect();
    Ok(format!(
        "{}\n# Cells of this array, as `stillhouse reproduce --plan` numbers them.\nCELLS=({})\n\
         CELL=${{CELLS[$((SLURM_ARRAY_TASK_ID - 1))]}}\nexec {command}\n",
        script_header(args, &array.name, scripts, Some(array.cells.len()))?,
        cells.join(" ")
    ))
}

fn report_script(args: &Slurm, plan: &Plan, scripts: &Path) -> Result<String, CliError> {
    let program = std::env::current_exe()
        .map_err(|e| CliError::failed(format!("cannot find the path of this program: {e}")))?;
    let words = [program.display().to_string(), "report".into(), plan.folder.display().to_string()];
    let words: Vec<String> = words.iter().map(|w| shell_quote(w)).collect();
    Ok(format!("{}\nexec {}\n", script_header(args, "report", scripts, None)?, words.join(" ")))
}

fn submit(args: &Slurm, plan: &Plan, arrays: &[Array], scripts: &Path) -> Outcome {
    let mut jobs: Vec<(String, String)> = Vec::new();
    for array in arrays {
        let mut options = Vec::new();
        if let Some(needed) = array.after {
            // It is one task of an earlier array.
            let task = |array: &Array| array.cells.iter().position(|cell| *cell == needed);
            let found = arrays.iter().zip(&jobs).find_map(|(array, (_, job))| Some((task(array)?, job)));
            let Some((task, job)) = found else {
                return Err(CliError::failed(format!("cell {needed} was not submitted")));
            };
            options.push(format!("--dependency=afterok:{job}_{}", task + 1));
            // Otherwise students of a failed teacher would wait forever.
            options.push("--kill-on-invalid-dep=yes".to_string());
        }
        let job = sbatch(&options, &scripts.join(format!("{}.sh", array.name)))?;
        output::status(&format!("job {job}: {}, {} cells", array.name, array.cells.len()));
        jobs.push((array.name.clone(), job));
    }
    let ids: Vec<&str> = jobs.iter().map(|(_, job)| job.as_str()).collect();
    let mut options = vec![format!("--dependency=afterany:{}", ids.join(":"))];
    if args.wait {
        options.push("--wait".to_string());
    }
    let job = sbatch(&options, &scripts.join("report.sh"))?;
    jobs.push(("report".to_string(), job));
    if args.json {
        let jobs: BTreeMap<_, _> = jobs.into_iter().collect();
        output::print_json(&json!({"scripts": scripts, "folder": plan.folder, "jobs": jobs}));
    } else {
        output::print(&format!(
            "table and page will be in {}; logs in {}",
            plan.folder.display(),
            scripts.display()
        ));
    }
    if !args.wait {
        return Ok(ExitStatus::Success);
    }
    // All jobs have ended: report unfinished cells.
    let open = plan.cells.iter().filter(|c| c.is_runnable() && !c.is_finished());
    let open: Vec<&str> = open.map(|c| c.name.as_str()).collect();
    if open.is_empty() {
        return Ok(ExitStatus::Success);
    }
    output::status(&format!("unfinished cells: {}; the same command submits them again", open.join(", ")));
    Ok(ExitStatus::Failure)
}

/// Submits a script; returns the job id.
fn sbatch(options: &[String], script: &Path) -> Result<String, CliError> {
    let output =
        Command::new("sbatch").arg("--parsable").args(options).arg(script).output().map_err(|e| {
            CliError::failed(format!("sbatch: {e}")).hint("run this on a Slurm login node, or use --dry-run")
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `--parsable` prints the id, and the cluster name after a semicolon. With `--wait` the exit code is
    // that of the job, so it says nothing about the submission.
    let job = text.trim().split(';').next().unwrap_or_default().to_string();
    if job.is_empty() || !job.chars().all(|c| c.is_ascii_digit()) {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(CliError::failed(format!("sbatch refused {}: {}", script.display(), why.trim())));
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_shell_words() {
        assert_eq!(shell_quote("runs/a-b.toml"), "runs/a-b.toml");
        assert_eq!(shell_quote("matrix.seed=[0, 1]"), "'matrix.seed=[0, 1]'");
        assert_eq!(shell_quote("it's"), "'it'\\''s'");
        assert_eq!(shell_quote(""), "''");
    }
}
