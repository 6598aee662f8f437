//! What the commands that run or plan experiments share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use stillhouse_core::data::Dataset;
use stillhouse_core::registry::DatasetRequest;
use stillhouse_trainer::{CellConfig, Context, Experiment, Plan, plan};

use crate::error::{CliError, Prepared};
use crate::paths::Paths;
use crate::{device, registries, system_info};

/// Where runs take place.
pub(crate) fn context(places: &Paths, stop: Arc<AtomicBool>) -> Context {
    let mut context = Context::new(registries::registries(), places.runs.clone());
    context.data_roots.clone_from(&places.data);
    context.weight_roots.clone_from(&places.weights);
    context.missing = registries::is_missing;
    context.stop = stop;
    context.environment = system_info::collect();
    context.device = device::device();
    context.precision = device::precision();
    context
}

/// Plans a profile; what is missing or wrong is the person's to mend.
pub(crate) fn planned(
    experiment: &Experiment,
    profile: Option<&str>,
    context: &Context,
) -> Result<Plan, CliError> {
    plan(experiment, profile, context).prepared()
}

/// The profile to take: the one that was named, or `smoke`, or the only one.
pub(crate) fn profile(experiment: &Experiment, named: Option<&str>) -> Result<Option<String>, CliError> {
    let known = experiment.profiles();
    match (named, known.as_slice()) {
        (Some(name), _) => Ok(Some(name.to_string())),
        (None, []) => Ok(None),
        (None, [only]) => Ok(Some(only.clone())),
        (None, names) if names.iter().any(|n| n == "smoke") => Ok(Some("smoke".to_string())),
        (None, names) => {
            Err(CliError::usage(format!("which profile? {} has: {}", experiment.name(), names.join(", ")))
                .hint("name it: --profile NAME"))
        }
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
