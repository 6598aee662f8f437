//! Helpers shared by the commands that plan or run experiments.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use stillhouse_core::data::Dataset;
use stillhouse_core::registry::DatasetRequest;
use stillhouse_trainer::{CellConfig, Context, Experiment, Plan, plan};

use crate::error::{CliError, ExitStatus, Prepared};
use crate::paths::Paths;
use crate::{device, output, registries, system_info};

/// Creates the context of runs: registries, search paths, device and precision.
pub(crate) fn context(paths: &Paths, stop: Arc<AtomicBool>) -> Context {
    let mut context = Context::new(registries::registries(), paths.runs.clone());
    context.data_roots.clone_from(&paths.data);
    context.weight_roots.clone_from(&paths.weights);
    context.missing = registries::is_missing;
    context.stop = stop;
    context.environment = system_info::collect();
    context.device = device::device();
    context.precision = device::precision();
    context
}

/// Plans a profile; every error is a usage error.
pub(crate) fn planned(
    experiment: &Experiment,
    profile: Option<&str>,
    context: &Context,
) -> Result<Plan, CliError> {
    plan(experiment, profile, context).prepared()
}

/// Reports that [`stillhouse_trainer::check_plan`] found no problem.
pub(crate) fn checked(plan: &Plan) -> ExitStatus {
    let cells = plan.cells.len();
    output::print(&format!(
        "ok: {cells} {} checked; nothing was run",
        if cells == 1 { "run" } else { "runs" }
    ));
    ExitStatus::Success
}

/// Selects the profile: the given one, the only one, or `quick`.
pub(crate) fn profile(experiment: &Experiment, named: Option<&str>) -> Result<Option<String>, CliError> {
    let known = experiment.profiles();
    match (named, known.as_slice()) {
        (Some(name), _) => Ok(Some(name.to_string())),
        (None, []) => Ok(None),
        (None, [only]) => Ok(Some(only.clone())),
        (None, names) if names.iter().any(|n| n == "quick") => Ok(Some("quick".to_string())),
        (None, names) => Err(CliError::usage(format!(
            "experiment `{}` needs a profile: {}",
            experiment.name(),
            names.join(", ")
        ))
        .hint("select one with --profile NAME")),
    }
}

/// Opens the dataset of a resolved configuration.
pub(crate) fn open(
    context: &Context,
    config: &CellConfig,
) -> Result<Arc<dyn Dataset>, stillhouse_core::Error> {
    let row = context.registries.datasets.get(&config.data.dataset)?;
    (row.build)(&DatasetRequest {
        name: config.data.dataset.clone(),
        roots: context.data_roots.clone(),
        path: config.data.path.clone(),
        options: config.data.options.clone(),
    })
}
