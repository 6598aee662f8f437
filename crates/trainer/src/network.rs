//! A network and its parameters.

use std::path::Path;

use stillhouse_core::model::{Model, ModelSpec};
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_runs::{RunDir, TEACHERS_DIR};

use crate::experiment::NetworkConfig;
use crate::{Context, Error, Result, RunInfo};

/// A network and its parameters.
pub struct Network {
    /// The network.
    pub model: Box<dyn Model>,
    /// Weights and buffers.
    pub params: ParamStore,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("model", &self.model.name()).finish_non_exhaustive()
    }
}

impl Network {
    /// Builds a network with initial values drawn from `rng`.
    pub fn new(context: &Context, config: &NetworkConfig, classes: usize, rng: Rng) -> Result<Self> {
        let entry = context.registries.models.get(&config.model)?;
        let params =
            ParamStore::new(candle_core::DType::F32, &context.device)?.with_precision(context.precision)?;
        let name = config.model.clone();
        let spec = ModelSpec { name, classes, variant: config.variant.clone() };
        let model = (entry.build)(&spec, &params.builder(rng))?;
        Ok(Self { model, params })
    }

    /// Loads the pretrained weights of the configuration, if there are any; returns notes for the log.
    /// Without `replace_head` they must have the head too.
    pub(crate) fn load_pretrained(
        &self,
        context: &Context,
        config: &NetworkConfig,
        replace_head: bool,
    ) -> Result<Vec<String>> {
        if let Some(run) = &config.pretraining {
            let folder = context.runs.join(TEACHERS_DIR).join(run);
            let path = RunDir::new(&folder).student_path();
            if !RunDir::new(&folder).is_finished() {
                return Err(Error::folder(folder, "the pretraining is not finished: run its cell first"));
            }
            let options = LoadOptions { key: None, replace_head };
            return Ok((context.registries.load_weights)(&path, &self.params, &self.model.head(), &options)?);
        }
        let Some(sha256) = &config.weights_sha256 else { return Ok(Vec::new()) };
        let weights = (context.registries.weights)(
            &config.model,
            &config.variant,
            &config.init,
            &context.weight_roots,
        )?;
        if weights.sha256 != *sha256 {
            let reason = format!("the weights changed: expected SHA-256 {sha256}, found {}", weights.sha256);
            return Err(Error::folder(weights.path, reason));
        }
        let head = self.model.head();
        let options = LoadOptions { key: weights.key.as_deref(), replace_head };
        Ok((context.registries.load_weights)(&weights.path, &self.params, &head, &options)?)
    }

    /// Loads all trained weights of a run.
    pub(crate) fn load(&self, context: &Context, path: &Path) -> Result<()> {
        let options = LoadOptions::default();
        (context.registries.load_weights)(path, &self.params, &self.model.head(), &options)?;
        Ok(())
    }
}

/// Opens a finished run folder: its `config.toml`, and its network with the trained weights.
pub fn open_run(folder: &Path, context: &Context) -> Result<(RunInfo, Network)> {
    let run = RunDir::new(folder);
    let info: RunInfo = run.info()?;
    if !run.student_path().is_file() {
        return Err(Error::folder(folder, "the run is not finished: no student.safetensors"));
    }
    let network = Network::new(context, &info.run.student, info.classes.len(), Rng::new(0))?;
    network.load(context, &run.student_path())?;
    Ok((info, network))
}
