//! `stillhouse data`.

mod check;
pub(crate) mod fetch;
mod split;
mod stats;

use std::path::PathBuf;
use std::sync::Arc;

use stillhouse_core::data::Dataset;
use stillhouse_core::registry::DatasetRequest;

use crate::error::{CliError, Outcome, Prepared};
use crate::paths::Paths;
use crate::registries;

/// Check, describe, split and download datasets
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    Check(check::Args),
    Stats(stats::Args),
    Split(split::Args),
    Fetch(fetch::Args),
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match args {
        Args::Check(args) => check::run(args),
        Args::Stats(args) => stats::run(args),
        Args::Split(args) => split::run(args),
        Args::Fetch(args) => fetch::run(args),
    }
}

/// Dataset and its location.
#[derive(Debug, clap::Args)]
struct DatasetArgs {
    /// Dataset (`stillhouse list datasets`)
    name: String,
    /// Data root, instead of STILLHOUSE_DATA and ./datasets
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The dataset's own folder; for `folder`, the folder of the class folders, masks or lists
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Set an option of the dataset, such as 'classes=["water", "land"]' (`stillhouse explain NAME`)
    #[arg(long, value_name = "OPTION=VALUE")]
    set: Vec<String>,
}

impl DatasetArgs {
    fn request(&self) -> Result<DatasetRequest, CliError> {
        let roots = data_roots(self.root.as_ref());
        // Reports an unknown name with a suggestion.
        registries::datasets_in(&roots).get(&self.name)?;
        let mut options = toml::Table::new();
        for assignment in &self.set {
            stillhouse_core::config::set(&mut options, assignment)?;
        }
        Ok(DatasetRequest {
            name: self.name.clone(),
            roots,
            // `folder` has no layout of its own: its root is its path.
            path: self.path.clone().or_else(|| self.root.clone().filter(|_| self.name == "folder")),
            options,
        })
    }

    fn open(&self) -> Result<Arc<dyn Dataset>, CliError> {
        let request = self.request()?;
        (registries::datasets_in(&request.roots).get(&self.name)?.build)(&request).prepared()
    }
}

/// Returns the given data root, or those of the environment.
fn data_roots(root: Option<&PathBuf>) -> Vec<PathBuf> {
    root.map_or_else(|| Paths::new(None).data, |root| vec![root.clone()])
}
