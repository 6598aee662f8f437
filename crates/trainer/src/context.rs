//! Where a run takes place and who watches it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use stillhouse_core::registry::Registries;

use stillhouse_runs::EpochLog;

use crate::{Cell, Outcome};

/// Where runs take place: the registries, the folders, the device, and the wish to stop.
#[derive(Clone)]
pub struct Context {
    /// The concrete datasets, networks, methods and metrics.
    pub registries: Registries,
    /// Folders that may hold datasets, in order.
    pub data_roots: Vec<PathBuf>,
    /// Folders that may hold pretrained weights, in order.
    pub weight_roots: Vec<PathBuf>,
    /// Whether an error of a part says that a dataset or weights are not there, rather than broken:
    /// then `ucm|scenes` goes on to the next name.
    pub missing: fn(&stillhouse_core::Error) -> bool,
    /// The folder of all runs.
    pub runs: PathBuf,
    /// Where the networks run.
    pub device: Device,
    /// What they compute in there, student and teacher, in training and in tests.
    pub precision: stillhouse_ops::Precision,
    /// Steps whose logged and checked values are read together; at 1 each value is read where it is
    /// made. Without a number that is so on the CPU, and a card is not waited for in every step. It
    /// changes no number; what is not finite is told that much later, and never written.
    pub read_together: Option<u64>,
    /// Revision of the program, processor, threads and the like, for `result.json`.
    pub environment: BTreeMap<String, String>,
    /// Set it (as Ctrl-C does), and a run writes a checkpoint at its next step and returns
    /// [`crate::Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
}

impl Context {
    /// Registries and runs folder, on the CPU, without data and weights folders.
    pub fn new(registries: Registries, runs: impl Into<PathBuf>) -> Self {
        Self {
            registries,
            data_roots: Vec::new(),
            weight_roots: Vec::new(),
            missing: |_| false,
            runs: runs.into(),
            device: Device::Cpu,
            precision: stillhouse_ops::Precision::Full,
            read_together: None,
            environment: BTreeMap::new(),
            stop: Arc::default(),
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The kind of device, and in what it computes if that is not plain f32.
    pub(crate) fn computes_on(&self) -> String {
        let device = match &self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        };
        match self.environment.get("precision") {
            Some(precision) => format!("{device}, {precision}"),
            None => device.to_string(),
        }
    }
}

/// Watches runs. Every method may be left out.
pub trait Observer {
    /// A cell begins, or goes on where it was stopped: `done` of `total` training steps.
    fn cell_started(&mut self, _cell: &Cell, _done: u64, _total: u64) {}
    /// A training step is over: `done` of `total`, the weighted loss, the learning rate.
    fn step(&mut self, _cell: &Cell, _done: u64, _total: u64, _loss: f64, _lr: f64) {}
    /// An epoch is over and logged.
    fn epoch(&mut self, _cell: &Cell, _line: &EpochLog) {}
    /// A test goes on: `done` of `total` images.
    fn testing(&mut self, _cell: &Cell, _done: u64, _total: u64) {}
    /// Something a person should know: a checkpoint that was skipped, parameters that were not in
    /// the weights.
    fn message(&mut self, _cell: &Cell, _text: &str) {}
    /// A cell is over. Cells that were finished before are reported too.
    fn cell_finished(&mut self, _cell: &Cell, _outcome: &Outcome) {}
}

/// Nobody watches.
impl Observer for () {}
