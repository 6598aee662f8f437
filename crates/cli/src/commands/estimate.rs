//! What a plan will take, in time and on disk, before it is run.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_trainer::{Cell, CellConfig, CellResult, Context, NetworkConfig, Plan, Role};

use crate::commands::common;
use crate::output;
use crate::paths::free_bytes;

/// Runs that take longer are announced.
const LONG: f64 = 600.0;
/// Multiply-accumulates that one thread makes in a second of training, measured on a Xeon with each
/// instruction set; a finished run of the plan corrects it.
const SPEED: [(&str, f64); 3] = [("scalar", 1e9), ("avx2", 1.2e10), ("avx512", 2e10)];

/// What is left of a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cost {
    /// Seconds, roughly.
    pub(crate) seconds: f64,
    /// Bytes that stay, and the checkpoints of one run.
    pub(crate) bytes: u64,
    /// Runs that are left.
    pub(crate) runs: usize,
}

/// Says what a plan will take, if it is long or the disk too small for it.
pub(crate) fn announce(plan: &Plan, context: &Context, threads: usize) {
    let Ok(cost) = cost(plan, context, threads) else {
        // What is wrong will be said by the run itself.
        return;
    };
    let free = free_bytes(&plan.folder);
    if cost.seconds > LONG {
        output::status(&format!(
            "about {} and {} of disk are expected for {} runs on this machine; Ctrl-C stops them, and the same \
             command goes on",
            output::duration(cost.seconds),
            output::size(cost.bytes),
            cost.runs
        ));
    }
    if let Some(free) = free.filter(|free| *free < cost.bytes) {
        output::status(&format!(
            "warning: about {} of disk are needed below {}, {} are free",
            output::size(cost.bytes),
            plan.folder.display(),
            output::size(free)
        ));
    }
}

/// Estimates what is left of a plan.
pub(crate) fn cost(
    plan: &Plan,
    context: &Context,
    threads: usize,
) -> Result<Cost, stillhouse_trainer::Error> {
    let mut networks = Networks { context, known: BTreeMap::new() };
    let mut images: BTreeMap<String, u64> = BTreeMap::new();
    let (mut cost, mut checkpoints) = (Cost::default(), 0);
    let (mut left, mut done, mut spent) = (0.0, 0.0, 0.0);
    for cell in &plan.cells {
        let Some(config) = &cell.config else { continue };
        let count = match images.get(&cell.dataset) {
            Some(count) => *count,
            None => {
                let count = common::open(context, config)?.len() as u64;
                images.insert(cell.dataset.clone(), count);
                count
            }
        };
        let work = networks.work(cell, config, plan, count)?;
        if cell.is_done() {
            if let Ok(result) = CellResult::read(&cell.folder.join("result.json")) {
                done += work;
                spent += result.seconds.train + result.seconds.test;
            }
            continue;
        }
        let parameters = networks.get(&config.student, config.data.size())?.1;
        left += work;
        cost.runs += 1;
        cost.bytes += 4 * parameters + 64 * 1024;
        // Weights and momentum, the newest two and the one being written.
        checkpoints = checkpoints.max(3 * 8 * parameters);
    }
    cost.bytes += checkpoints;
    let isa = stillhouse_ops::isa().to_string();
    let thread = SPEED.iter().find(|(name, _)| *name == isa).map_or(1e9, |(_, speed)| *speed);
    let speed = if spent > 10.0 { done / spent } else { thread * threads as f64 };
    cost.seconds = left / speed;
    Ok(cost)
}

/// Multiply-accumulates of one image and parameters, by network and size.
struct Networks<'a> {
    context: &'a Context,
    known: BTreeMap<String, (f64, u64)>,
}

impl Networks<'_> {
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

    /// Multiply-accumulates of a whole run: three for each of the student's forward pass in every step
    /// of training, four where inner values are computed twice, one for the teacher's, one for each view
    /// of a test image.
    fn work(
        &mut self,
        cell: &Cell,
        config: &CellConfig,
        plan: &Plan,
        images: u64,
    ) -> Result<f64, stillhouse_core::Error> {
        let size = config.data.size();
        let student = self.get(&config.student, size)?.0;
        let teacher = match cell.teacher.and_then(|t| plan.cells[t].config.as_ref()) {
            Some(teacher) if cell.role == Role::Student => self.get(&teacher.student, size)?.0,
            _ => 0.0,
        };
        // Official splits train on about half or more: an estimate.
        let ratio = if config.data.ratio == 0 { 0.6 } else { f64::from(config.data.ratio) / 100.0 };
        let (train, test) = match config.data.per_class {
            // Of some 20 classes: an estimate; sets of masks have no classes of images.
            Some([train, test]) => {
                let of_all = |each: usize| (20 * each as u64).min(images) as f64;
                (of_all(train), of_all(test))
            }
            None => (images as f64 * ratio, images as f64 * (1.0 - ratio)),
        };
        let passes = if config.train.checkpointing { 4.0 } else { 3.0 };
        let steps = config.train.step.len().max(1) as f64;
        let views = 1.0 + config.eval.views.len() as f64;
        let train = config.train.epochs as f64 * train * (steps * passes * student + teacher);
        Ok(train + test * views * student)
    }
}
