//! Time budgets: their notation, and the epochs of an experiment that fit into one.

use stillhouse_runs::{Role, RunDir};
use stillhouse_trainer::{Cell, Context, Experiment, Plan, plan, run_cell};

use crate::commands::estimate::{self, Estimate};
use crate::error::{CliError, Prepared};
use crate::output;

/// Fraction of a budget that is planned; figures and a busy machine take the rest.
const PLANNED_FRACTION: f64 = 0.8;
/// Attempts to fit the epochs: tests do not shrink with them.
const ATTEMPTS: usize = 8;

/// Parses `45s`, `30m` or `2h` into seconds; a bare number is minutes.
pub(crate) fn parse_duration(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is not a duration: expected for example 45s, 30m or 2h");
    let (number, unit) = match text.char_indices().find(|(_, c)| c.is_ascii_alphabetic()) {
        Some((at, _)) => text.split_at(at),
        None => (text, "m"),
    };
    let seconds = match unit {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    if !(number.is_finite() && number * seconds >= 10.0 && number * seconds <= 1e8) {
        return Err(format!("`{text}` is too short: expected at least 10s"));
    }
    Ok(number * seconds)
}

/// Lowers the epochs of an experiment so that its plan ends within `seconds`; returns the settings that were
/// added. A few steps of one run are measured, in a folder that is removed. The settings are kept in the folder
/// of the table, so that the same command resumes with the same epochs.
pub(crate) fn fit(
    experiment: &mut Experiment,
    profile: Option<&str>,
    seconds: f64,
    context: &Context,
    threads: usize,
) -> Result<Vec<String>, CliError> {
    let full = plan(experiment, profile, context).prepared()?;
    let path = full.folder.join(format!("budget-{seconds}s.txt"));
    let settings: Vec<String> = match std::fs::read_to_string(&path) {
        Ok(text) => text.lines().map(str::to_string).collect(),
        Err(_) => {
            let settings = choose(experiment, profile, seconds, &full, context, threads)?;
            std::fs::create_dir_all(&full.folder).map_err(stillhouse_core::Error::io(&full.folder))?;
            stillhouse_core::fs::write_atomic(&path, settings.join("\n").as_bytes())?;
            settings
        }
    };
    for setting in &settings {
        experiment.set(setting).prepared()?;
    }
    Ok(settings)
}

fn choose(
    experiment: &Experiment,
    profile: Option<&str>,
    seconds: f64,
    full: &Plan,
    context: &Context,
    threads: usize,
) -> Result<Vec<String>, CliError> {
    output::status("budget: measuring a few steps");
    let speed = measure(full, context)?;
    let planned = seconds * PLANNED_FRACTION;
    let (mut factor, mut settings, mut expected) = (1.0, Vec::new(), Estimate::default());
    for _ in 0..ATTEMPTS {
        let mut fitted = experiment.clone();
        settings = scaled_epochs(full, factor);
        settings.iter().try_for_each(|setting| fitted.set(setting)).prepared()?;
        let plan = plan(&fitted, profile, context).prepared()?;
        expected = estimate::estimate_plan(&plan, context, threads, Some(speed)).prepared()?;
        if expected.seconds <= planned {
            break;
        }
        factor *= (planned / expected.seconds).min(0.95);
    }
    let expected = output::duration(expected.seconds);
    output::status(&format!("budget {}: {}; expected time {expected}", output::duration(seconds), {
        if settings.is_empty() { "all epochs fit".to_string() } else { settings.join(", ") }
    }));
    Ok(settings)
}

/// Returns settings with a fraction of the epochs of each role, at least 1; none for the whole.
fn scaled_epochs(plan: &Plan, factor: f64) -> Vec<String> {
    if factor >= 1.0 {
        return Vec::new();
    }
    let keys = [
        (Role::Pretraining, "teacher.pretrain.train.epochs"),
        (Role::Teacher, "teacher.train.epochs"),
        (Role::Student, "train.epochs"),
    ];
    let setting = |(role, key): (Role, &str)| {
        let own = plan.cells.iter().filter(|cell| cell.role == role).filter_map(|cell| cell.config.as_ref());
        let most = own.map(|config| config.train.epochs).max().filter(|epochs| *epochs > 0)?;
        Some(format!("{key}={}", ((most as f64 * factor) as u64).max(1)))
    };
    keys.into_iter().filter_map(setting).collect()
}

/// Trains the first student that needs no other run for two epochs of a few images; returns the
/// multiply-accumulates per second of the second epoch.
fn measure(full: &Plan, context: &Context) -> Result<f64, CliError> {
    let folder = context.runs.join(".measure");
    let Some(cell) = full.cells.iter().find(|cell| cell.needs.is_none() && cell.config.is_some()) else {
        return Err(CliError::usage("--budget needs a run that depends on no other one"));
    };
    let mut cell = Cell { folder: folder.clone(), ..cell.clone() };
    let Some(config) = &mut cell.config else { return Err(CliError::failed("a run without settings")) };
    (config.train.epochs, config.eval.every_epochs, config.eval.views) = (2, 0, Vec::new());
    config.data.per_class = Some([4, 1]);
    let macs = estimate::step_macs(config, context).prepared()?;
    let measured = run_cell(&cell, context, &mut ());
    let pace =
        RunDir::new(&folder).log().ok().and_then(|mut log| log.pop()).map(|line| line.images_per_second);
    let removed = std::fs::remove_dir_all(&folder);
    measured.prepared()?;
    removed.map_err(stillhouse_core::Error::io(&folder))?;
    match pace.filter(|pace| *pace > 0.0) {
        Some(pace) => Ok(pace * macs),
        None => Err(CliError::failed("the measured steps took no time; choose the epochs with --set")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_durations() {
        assert_eq!(
            (parse_duration("30m"), parse_duration("2h"), parse_duration("45s"), parse_duration("10")),
            (Ok(1800.0), Ok(7200.0), Ok(45.0), Ok(600.0))
        );
        for wrong in ["", "soon", "3d", "-5m", "1s", "NaNm", "infh"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
