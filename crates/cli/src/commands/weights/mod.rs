//! `stillhouse weights`.

mod check;
mod diff;
mod export;
mod fetch;
mod import;

use std::path::Path;

use stillhouse_backbones::weights::{WeightsFile, compare_weights};
use stillhouse_core::model::{Model, ModelSpec};
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng};

pub(crate) use export::onnx_of_run;

use crate::error::{CliError, Outcome};
use crate::registries;

/// Manage weights
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    Fetch(fetch::Args),
    Check(check::Args),
    Import(import::Args),
    Export(export::Args),
    Diff(diff::Args),
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match args {
        Args::Fetch(args) => fetch::run(args),
        Args::Check(args) => check::run(args),
        Args::Import(args) => import::run(args),
        Args::Export(args) => export::run(args),
        Args::Diff(args) => diff::run(args),
    }
}

/// The model of a weights file.
#[derive(Debug, Clone, clap::Args)]
struct ModelArgs {
    /// Model (`stillhouse list models`)
    #[arg(long, visible_alias = "model", value_name = "NAME")]
    arch: Option<String>,
    /// Architecture variant, such as output_stride=16
    #[arg(long, value_name = "KEY=VALUE")]
    variant: Vec<String>,
    /// Number of classes of the head [default: that of the file]
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// State dict in the file, such as state_dict_ema [default: the only one that fits]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

impl ModelArgs {
    /// Returns the model, with the number of classes of the file unless `--classes` is given.
    fn spec(&self, file: &WeightsFile) -> Result<ModelSpec, CliError> {
        let Some(arch) = &self.arch else {
            return Err(CliError::usage("missing model").hint("name it, as in --arch resnet18"));
        };
        registries::registries().models.get(arch)?;
        let mut variant = toml::Table::new();
        for setting in &self.variant {
            // A value that is not TOML is a string without quotes.
            let (key, text) = setting.split_once('=').unwrap_or((setting, ""));
            let parsed = toml::from_str::<toml::Table>(&format!("value = {text}"));
            let value = parsed.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| text.into());
            variant.insert(key.trim().to_string(), value);
        }
        let mut spec = ModelSpec { name: arch.clone(), classes: self.classes.unwrap_or(1000), variant };
        if self.classes.is_none() {
            let params = ParamStore::meta();
            let model = build(&spec, &params)?;
            let report = compare_weights(file, &params, &model.head(), &self.options(false))?;
            spec.classes = report.classes.unwrap_or(spec.classes);
        }
        Ok(spec)
    }

    fn options(&self, replace_head: bool) -> LoadOptions<'_> {
        LoadOptions { key: self.key.as_deref(), replace_head }
    }
}

/// Builds a model.
fn build(spec: &ModelSpec, params: &ParamStore) -> Result<Box<dyn Model>, CliError> {
    Ok((registries::registries().models.get(&spec.name)?.build)(spec, &params.builder(Rng::new(0)))?)
}

/// Rejects an output path that exists, except for an empty folder.
fn require_new(path: &Path) -> Result<(), CliError> {
    let exists = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    };
    if exists {
        return Err(CliError::usage(format!("output already exists: {}", path.display()))
            .hint("choose another path, or remove it"));
    }
    Ok(())
}
