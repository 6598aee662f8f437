//! The only module that names all concrete components.

use std::path::PathBuf;

use stillhouse_core::Error as CoreError;
use stillhouse_core::registry::{DatasetBuild, Registries, Registry};

use crate::paths::Paths;

/// Returns the models, methods and metrics of this program, its datasets and those that manifests in
/// the data roots describe.
pub(crate) fn registries() -> Registries {
    Registries {
        datasets: datasets_in(&Paths::new(None).data),
        models: stillhouse_backbones::registry(),
        losses: stillhouse_losses::registry(),
        metrics: stillhouse_metrics::registry(),
        split: stillhouse_datasets::split,
        loader: stillhouse_datasets::loader,
        weights: stillhouse_backbones::weights::find_weights,
        load_weights: stillhouse_backbones::weights::load_weights,
    }
}

/// Returns the datasets of this program and of the manifests in these folders.
pub(crate) fn datasets_in(roots: &[PathBuf]) -> Registry<DatasetBuild> {
    stillhouse_datasets::registry_in(roots)
}

/// Returns whether an error reports missing data or weights.
pub(crate) fn is_missing(error: &CoreError) -> bool {
    let CoreError::Other(inner) = error else { return false };
    matches!(
        inner.downcast_ref::<stillhouse_datasets::Error>(),
        Some(stillhouse_datasets::Error::MissingDataset { .. })
    ) || matches!(
        inner.downcast_ref::<stillhouse_backbones::Error>(),
        // A misspelled name suggests the right one.
        Some(
            stillhouse_backbones::Error::NotFound { .. }
                | stillhouse_backbones::Error::UnknownWeights { suggest: None, .. }
        )
    )
}
