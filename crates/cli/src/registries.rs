//! The only place that names all concrete parts.

use stillhouse_core::Error as CoreError;
use stillhouse_core::registry::Registries;

/// Datasets, networks, methods and metrics of this program.
pub(crate) fn registries() -> Registries {
    Registries {
        datasets: stillhouse_datasets::registry(),
        models: stillhouse_backbones::registry(),
        losses: stillhouse_losses::registry(),
        metrics: stillhouse_metrics::registry(),
        split: stillhouse_datasets::split,
        loader: stillhouse_datasets::loader,
        weights: stillhouse_backbones::weights,
        load_weights: stillhouse_backbones::load_weights,
    }
}

/// Whether an error only says that data or weights are not there.
pub(crate) fn is_missing(error: &CoreError) -> bool {
    let CoreError::Other(inner) = error else { return false };
    matches!(
        inner.downcast_ref::<stillhouse_datasets::Error>(),
        Some(stillhouse_datasets::Error::MissingDataset { .. })
    ) || matches!(
        inner.downcast_ref::<stillhouse_backbones::Error>(),
        Some(stillhouse_backbones::Error::NoFile { .. })
    )
}
