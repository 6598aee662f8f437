//! Epochs and size of the images that fit into a time: a few steps are measured, the rest is chosen.

use std::path::Path;

use stillhouse_trainer::{Context, EpochLog, Experiment, Role, plan, run_plan};

use crate::commands::distill::Recipe;
use crate::error::{CliError, Prepared};
use crate::output;

/// Sizes that are tried, the largest first.
const SIZES: [u64; 5] = [224, 160, 128, 96, 64];
/// Size at which steps are measured.
const MEASURED: u64 = 96;
/// A smaller size is taken before the student gets fewer epochs than this; more than the most are
/// not taken.
const EPOCHS: [u64; 2] = [30, 120];
/// Part of the time that is planned with: tests, figures and a busy machine take the rest.
const PLANNED: f64 = 0.75;

/// Reads `45s`, `30m`, `2h`; a bare number is minutes.
pub(crate) fn time(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no time, expected for example 45s, 30m or 2h");
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
        return Err(format!("`{text}` is no time to plan with, expected at least 10s"));
    }
    Ok(number * seconds)
}

/// Seconds that one image of one epoch takes, by run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Pace {
    /// The teacher's fine-tuning; 0 where a finished run teaches.
    teacher: f64,
    /// All students together: alone and with help.
    students: f64,
}

/// Measures a few steps and sets the recipe's epochs and size; says what it chose and why.
pub(crate) fn choose(recipe: &mut Recipe, seconds: f64, context: &Context) -> Result<(), CliError> {
    output::status(&format!("measuring a few steps at {MEASURED} px"));
    let begun = std::time::Instant::now();
    let pace = measure(recipe, context)?;
    let spent = begun.elapsed().as_secs_f64();
    let images = recipe.count as f64 * f64::from(recipe.ratio) / 100.0;
    let left = (seconds * PLANNED - spent).max(1.0);
    let (size, epochs) = fit(pace, images, left);
    (recipe.size, recipe.epochs) = (size, epochs);
    let expected = spent + images * cost(pace, size, epochs);
    output::status(&format!(
        "budget {}: chose {} epochs for the student, {} for the teacher, images of {} px; expected {} \
         (measured {:.1} ms an image for the teacher, {:.1} ms for the students at {MEASURED} px)",
        output::duration(seconds),
        epochs,
        if recipe.given_teacher() { 0 } else { recipe.teacher_epochs() },
        size,
        output::duration(expected),
        1e3 * pace.teacher,
        1e3 * pace.students
    ));
    if expected > seconds {
        output::status(
            "warning: even the least, one epoch at the smallest size, is expected to take longer than that",
        );
    }
    Ok(())
}

/// Seconds for one training image over all epochs.
fn cost(pace: Pace, size: u64, epochs: u64) -> f64 {
    let area = (size as f64 / MEASURED as f64).powi(2);
    area * (pace.teacher * epochs.div_ceil(2) as f64 + pace.students * epochs as f64)
}

/// The largest size at which the student gets enough epochs, or else the smallest; and the epochs that fit.
fn fit(pace: Pace, images: f64, seconds: f64) -> (u64, u64) {
    let epochs = |size: u64| {
        let fits = |e: &u64| images * cost(pace, size, *e) <= seconds;
        (1..=EPOCHS[1]).rev().find(fits).unwrap_or(1)
    };
    let enough = SIZES.into_iter().find(|size| epochs(*size) >= EPOCHS[0]);
    let size = enough.unwrap_or(SIZES[SIZES.len() - 1]);
    (size, epochs(size))
}

/// Trains teacher and students for a moment in a folder that is removed afterwards.
fn measure(recipe: &Recipe, context: &Context) -> Result<Pace, CliError> {
    let folder = context.runs.join(".measure");
    let [classes, each] = recipe.batch();
    // Two batches an epoch; the second epoch counts, the first one takes memory and fills caches.
    let images = (2 * classes * each).div_ceil(recipe.classes);
    let tiny = Recipe {
        epochs: 2,
        size: MEASURED,
        per_class: Some([images, 1]),
        seed: recipe.seed,
        ..recipe.clone()
    };
    let mut experiment =
        Experiment::parse(&tiny.text(), "the steps that are measured", "measure").prepared()?;
    experiment.set("eval.every_epochs=0").prepared()?;
    if !tiny.given_teacher() {
        experiment.set("teacher.train.epochs=2").prepared()?;
    }
    let context = Context { runs: folder.clone(), ..context.clone() };
    let plan = plan(&experiment, None, &context).prepared()?;
    let outcomes = run_plan(&plan, &context, &mut ());
    let paces: Vec<(Role, Option<f64>)> = plan.cells.iter().map(|c| (c.role, pace(&c.folder))).collect();
    let removed = std::fs::remove_dir_all(&folder);
    for outcome in outcomes? {
        if let stillhouse_trainer::Outcome::Failed(why) = outcome {
            return Err(CliError::failed(why));
        }
    }
    removed.map_err(stillhouse_core::Error::io(&folder))?;
    let sum = |role: Role| paces.iter().filter(|(r, _)| *r == role).filter_map(|(_, p)| *p).sum();
    Ok(Pace { teacher: sum(Role::Teacher), students: sum(Role::Student) })
}

/// Seconds an image in the last epoch of a log.
fn pace(folder: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).ok()?;
    let line: EpochLog = serde_json::from_str(text.lines().last()?).ok()?;
    (line.images_per_second > 0.0).then(|| 1.0 / line.images_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(
            (time("30m"), time("2h"), time("45s"), time("10")),
            (Ok(1800.0), Ok(7200.0), Ok(45.0), Ok(600.0))
        );
        for wrong in ["", "soon", "3d", "-5m", "1s", "NaNm", "infh"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn size_comes_before_epochs() {
        let pace = Pace { teacher: 0.01, students: 0.02 };
        // At 96 px an epoch of 1000 images costs 25 s: 5 s of the teacher's half, 20 s of the students.
        let (size, epochs) = fit(pace, 1000.0, 25.0 * 30.0);
        assert_eq!((size, epochs), (96, 30));
        let (size, epochs) = fit(pace, 1000.0, 1e9);
        assert_eq!((size, epochs), (224, 120));
        let (size, epochs) = fit(pace, 1000.0, 1.0);
        assert_eq!((size, epochs), (64, 1), "the least, however long it takes");
        let (size, epochs) = fit(pace, 1000.0, 100.0);
        assert!(size == 64 && epochs < 30 && 1000.0 * cost(pace, size, epochs) <= 100.0);
    }
}
