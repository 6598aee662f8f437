//! Epochs and image size for a time budget, from a few measured steps.

use std::path::Path;

use stillhouse_runs::{Role, RunDir};
use stillhouse_trainer::{Context, Experiment, plan, run_plan};

use super::recipe::Recipe;
use crate::error::{CliError, Prepared};
use crate::output;

/// Candidate image sizes, largest first.
const SIZES: [u64; 5] = [224, 160, 128, 96, 64];
/// Image size of the measured steps.
const MEASURED_SIZE: u64 = 96;
/// Epochs of the student below which a smaller image size is preferred.
const PREFERRED_EPOCHS: u64 = 30;
/// Maximum number of epochs of the student.
const MAX_EPOCHS: u64 = 120;
/// Fraction of the budget that is planned; evaluation, figures and a busy machine take the rest.
const PLANNED_FRACTION: f64 = 0.75;

/// Seconds per image and epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Pace {
    /// Fine-tuning of the teacher; 0 for a finished run.
    teacher: f64,
    /// All students: with the teacher and without.
    students: f64,
}

/// Measures a few steps, sets epochs and image size of the recipe and reports them.
pub(crate) fn apply(recipe: &mut Recipe, seconds: f64, context: &Context) -> Result<(), CliError> {
    output::status(&format!("measuring a few steps at {MEASURED_SIZE} px"));
    let begun = std::time::Instant::now();
    let pace = measure(recipe, context)?;
    let spent = begun.elapsed().as_secs_f64();
    let images = recipe.train_images as f64;
    let left = (seconds * PLANNED_FRACTION - spent).max(1.0);
    let (size, epochs) = fit(pace, images, left);
    (recipe.size, recipe.epochs) = (size, epochs);
    let expected = spent + images * seconds_per_image(pace, size, epochs);
    output::status(&format!(
        "budget {}: {} epochs for the student, {} for the teacher, {} px images; expected time {} \
         (measured {:.1} ms per image for the teacher, {:.1} ms for the students at {MEASURED_SIZE} px)",
        output::duration(seconds),
        epochs,
        if recipe.teacher.is_trained_here() { recipe.teacher_epochs() } else { 0 },
        size,
        output::duration(expected),
        1e3 * pace.teacher,
        1e3 * pace.students
    ));
    if expected > seconds {
        output::status("warning: one epoch at the smallest image size is expected to exceed the budget");
    }
    Ok(())
}

/// Returns the seconds for one training image over all epochs.
fn seconds_per_image(pace: Pace, size: u64, epochs: u64) -> f64 {
    let area = (size as f64 / MEASURED_SIZE as f64).powi(2);
    area * (pace.teacher * epochs.div_ceil(2) as f64 + pace.students * epochs as f64)
}

/// Returns the largest image size that leaves the preferred epochs (or the smallest), and the epochs.
fn fit(pace: Pace, images: f64, seconds: f64) -> (u64, u64) {
    let epochs = |size: u64| {
        let fits = |e: &u64| images * seconds_per_image(pace, size, *e) <= seconds;
        (1..=MAX_EPOCHS).rev().find(fits).unwrap_or(1)
    };
    let enough = SIZES.into_iter().find(|size| epochs(*size) >= PREFERRED_EPOCHS);
    let size = enough.unwrap_or(SIZES[SIZES.len() - 1]);
    (size, epochs(size))
}

/// Trains teacher and students for two short epochs in a folder that is removed afterwards.
fn measure(recipe: &Recipe, context: &Context) -> Result<Pace, CliError> {
    let folder = context.runs.join(".measure");
    let [classes, each] = recipe.batch();
    // Two batches per epoch. Only the second epoch counts: the first allocates memory and fills caches.
    let images = (2 * classes * each).div_ceil(recipe.classes);
    let tiny = Recipe {
        epochs: 2,
        size: MEASURED_SIZE,
        per_class: Some([images, 1]),
        seed: recipe.seed,
        ..recipe.clone()
    };
    let mut experiment = Experiment::parse(&tiny.to_toml(), "budget measurement", "measure").prepared()?;
    experiment.set("eval.every_epochs=0").prepared()?;
    if tiny.teacher.is_trained_here() {
        experiment.set("teacher.train.epochs=2").prepared()?;
    }
    let context = Context { runs: folder.clone(), ..context.clone() };
    let plan = plan(&experiment, None, &context).prepared()?;
    let outcomes = run_plan(&plan, &context, &mut ());
    let paces: Vec<(Role, Option<f64>)> = plan.cells.iter().map(|c| (c.role, read_pace(&c.folder))).collect();
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

/// Returns the seconds per image in the last epoch of a log.
fn read_pace(folder: &Path) -> Option<f64> {
    let line = RunDir::new(folder).log().ok()?.pop()?;
    (line.images_per_second > 0.0).then(|| 1.0 / line.images_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefers_larger_images_to_more_epochs() {
        let pace = Pace { teacher: 0.01, students: 0.02 };
        // At 96 px an epoch of 1000 images costs 25 s: 5 s of the teacher's half, 20 s of the students.
        let (size, epochs) = fit(pace, 1000.0, 25.0 * 30.0);
        assert_eq!((size, epochs), (96, 30));
        let (size, epochs) = fit(pace, 1000.0, 1e9);
        assert_eq!((size, epochs), (224, 120));
        let (size, epochs) = fit(pace, 1000.0, 1.0);
        assert_eq!((size, epochs), (64, 1), "the minimum, even if it exceeds the budget");
        let (size, epochs) = fit(pace, 1000.0, 100.0);
        assert!(size == 64 && epochs < 30 && 1000.0 * seconds_per_image(pace, size, epochs) <= 100.0);
    }
}
