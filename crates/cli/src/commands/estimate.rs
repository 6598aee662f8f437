//! Estimates of time and disk space of a plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use stillhouse_core::data::Dataset;
use stillhouse_core::model::ModelSpec;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_runs::{Role, RunDir};
use stillhouse_trainer::{Cell, CellConfig, Context, NetworkConfig, Plan};

use crate::commands::common;
use crate::output;
use crate::paths::free_bytes;

/// Plans that take longer, in seconds, are announced.
const ANNOUNCE_SECONDS: f64 = 600.0;
/// Multiply-accumulates per second and thread in training, measured on a Xeon with each instruction set;
/// finished runs of the plan replace it.
const MACS_PER_SECOND: [(&str, f64); 3] = [("scalar", 1e9), ("avx2", 1.2e10), ("avx512", 2e10)];

/// Remaining time and disk space of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Estimate {
    /// Approximate seconds.
    pub(crate) seconds: f64,
    /// Bytes of the results, and of the checkpoints of one run.
    pub(crate) bytes: u64,
    /// Remaining runs.
    pub(crate) runs: usize,
}

/// Announces a long plan, and warns if the disk is too small.
pub(crate) fn announce(plan: &Plan, context: &Context, threads: usize) {
    let Ok(estimate) = estimate_plan(plan, context, threads, None) else {
        // The run itself reports the error.
        return;
    };
    let free = free_bytes(&plan.folder);
    if estimate.seconds > ANNOUNCE_SECONDS {
        output::status(&format!(
            "estimated {} and {} of disk space for {} runs on this machine; Ctrl-C stops them, the same command \
             resumes",
            output::duration(estimate.seconds),
            output::size(estimate.bytes),
            estimate.runs
        ));
    }
    if let Some(free) = free.filter(|free| *free < estimate.bytes) {
        output::status(&format!(
            "warning: about {} of disk space needed in {}, {} free",
            output::size(estimate.bytes),
            plan.folder.display(),
            output::size(free)
        ));
    }
}

/// Returns the multiply-accumulates of training on one image: a forward pass, and a backward pass of twice its
/// cost.
pub(crate) fn step_macs(config: &CellConfig, context: &Context) -> Result<f64, stillhouse_trainer::Error> {
    let mut sizes = ModelSizes { context, known: BTreeMap::new() };
    Ok(3.0 * sizes.get(&config.student, config.data.size())?.0)
}

/// Estimates the remaining time and disk space of a plan, with a measured speed in multiply-accumulates per
/// second if there is one.
pub(crate) fn estimate_plan(
    plan: &Plan,
    context: &Context,
    threads: usize,
    measured: Option<f64>,
) -> Result<Estimate, stillhouse_trainer::Error> {
    let mut sizes = ModelSizes { context, known: BTreeMap::new() };
    let mut datasets: BTreeMap<String, Arc<dyn Dataset>> = BTreeMap::new();
    let mut images: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let (mut estimate, mut checkpoints) = (Estimate::default(), 0);
    let (mut left, mut done, mut spent) = (0.0, 0.0, 0.0);
    for cell in &plan.cells {
        let Some(config) = &cell.config else { continue };
        let set = format!("{} {:?} {}", cell.dataset, config.data.path, config.data.options);
        if !datasets.contains_key(&set) {
            datasets.insert(set.clone(), common::open(context, config)?);
        }
        // The seed moves images between the parts; their sizes stay.
        let key = format!("{set} {:?}", config.data.split_spec(0));
        let count = match images.get(&key) {
            Some(count) => *count,
            None => {
                let spec = config.data.split_spec(config.train.seed);
                let split = (context.registries.split)(datasets[&set].as_ref(), &spec)?;
                images.insert(key, [split.train.len(), split.test.len()]);
                [split.train.len(), split.test.len()]
            }
        };
        let work = sizes.run_macs(cell, config, plan, count)?;
        if cell.is_finished() {
            if let Ok(Some(result)) = RunDir::new(&cell.folder).result() {
                done += work;
                spent += result.seconds.train + result.seconds.test;
            }
            continue;
        }
        let parameters = sizes.get(&config.student, config.data.size())?.1;
        left += work;
        estimate.runs += 1;
        estimate.bytes += 4 * parameters + 64 * 1024;
        // Weights and momentum of the newest two checkpoints and the one being written.
        checkpoints = checkpoints.max(3 * 8 * parameters);
    }
    estimate.bytes += checkpoints;
    let isa = stillhouse_ops::isa().to_string();
    let thread = MACS_PER_SECOND.iter().find(|(name, _)| *name == isa).map_or(1e9, |(_, speed)| *speed);
    let guessed = if spent > 10.0 { done / spent } else { thread * threads as f64 };
    let speed = measured.unwrap_or(guessed);
    estimate.seconds = left / speed;
    Ok(estimate)
}

/// Multiply-accumulates per image and parameter counts, by model and size.
struct ModelSizes<'a> {
    context: &'a Context,
    known: BTreeMap<String, (f64, u64)>,
}

impl ModelSizes<'_> {
    fn get(
        &mut self,
        network: &NetworkConfig,
        (height, width): (usize, usize),
    ) -> Result<(f64, u64), stillhouse_core::Error> {
        let key = format!("{} {} {height}x{width}", network.model, network.variant);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let params = ParamStore::new(DType::F32, &Device::Cpu)?;
        let request =
            ModelSpec { name: network.model.clone(), classes: 21, variant: network.variant.clone() };
        let row = self.context.registries.models.get(&network.model)?;
        let built = (row.build)(&request, &params.builder(Rng::new(0)))?;
        let counted =
            (built.macs(height, width)? as f64, params.all().iter().map(|p| p.count() as u64).sum());
        self.known.insert(key, counted);
        Ok(counted)
    }

    /// Multiply-accumulates of a whole run. A training step costs three forward passes of the student
    /// (four with gradient checkpointing) and one of the teacher, a test image one per view. `train` and
    /// `test` count the images.
    fn run_macs(
        &mut self,
        cell: &Cell,
        config: &CellConfig,
        plan: &Plan,
        [train, test]: [usize; 2],
    ) -> Result<f64, stillhouse_core::Error> {
        let size = config.data.size();
        let student = self.get(&config.student, size)?.0;
        let teacher = match cell.needs.and_then(|t| plan.cells[t].config.as_ref()) {
            Some(teacher) if cell.role == Role::Student => self.get(&teacher.student, size)?.0,
            _ => 0.0,
        };
        let passes = if config.train.gradient_checkpointing { 4.0 } else { 3.0 };
        let steps = config.train.phase.len().max(1) as f64;
        let views = 1.0 + config.eval.views.len() as f64;
        let train = config.train.epochs as f64 * train as f64 * (steps * passes * student + teacher);
        Ok(train + test as f64 * views * student)
    }
}
