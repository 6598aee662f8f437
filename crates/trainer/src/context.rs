//! Environment and observers of runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use stillhouse_core::registry::Registries;
use stillhouse_runs::EpochLog;

use crate::{Cell, FeatureCache, Outcome};

/// Environment of runs: registries, folders, device and the stop flag.
#[derive(Clone)]
pub struct Context {
    /// Datasets, networks, methods and metrics.
    pub registries: Registries,
    /// Search path of datasets.
    pub data_roots: Vec<PathBuf>,
    /// Search path of pretrained weights.
    pub weight_roots: Vec<PathBuf>,
    /// Returns whether an error means that a dataset or weights are missing rather than invalid: then `a|b`
    /// falls back to `b`.
    pub missing: fn(&stillhouse_core::Error) -> bool,
    /// Folder of all runs.
    pub runs: PathBuf,
    /// Device of the networks.
    pub device: Device,
    /// Numeric precision of student and teacher, in training and testing.
    pub precision: stillhouse_ops::Precision,
    /// Steps whose metrics are read from the device together. `None`: 1 on the CPU, more on a GPU. Changes no
    /// number; errors are reported up to so many steps late, and never saved.
    pub buffered_steps: Option<u64>,
    /// Revision of the program, processor, threads and more, for `result.json`.
    pub environment: BTreeMap<String, String>,
    /// Features of frozen teachers, shared by the runs of this process.
    pub teacher_features: FeatureCache,
    /// Stop flag, set by Ctrl-C: a run writes a checkpoint at its next step and returns
    /// [`crate::Error::Interrupted`].
    pub stop: Arc<AtomicBool>,
}

impl Context {
    /// Registries and the folder of runs, on the CPU, with empty search paths.
    pub fn new(registries: Registries, runs: impl Into<PathBuf>) -> Self {
        Self {
            registries,
            data_roots: Vec::new(),
            weight_roots: Vec::new(),
            missing: |_| false,
            runs: runs.into(),
            device: Device::Cpu,
            precision: stillhouse_ops::Precision::Full,
            buffered_steps: None,
            environment: BTreeMap::new(),
            teacher_features: FeatureCache::default(),
            stop: Arc::default(),
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Describes the device, with its precision unless it is f32.
    pub(crate) fn device_label(&self) -> String {
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

/// Receives the progress of runs. All methods are optional.
pub trait Observer {
    /// A cell starts, or resumes after `done` of `total` steps.
    fn cell_started(&mut self, _cell: &Cell, _done: u64, _total: u64) {}
    /// A step ends: `done` of `total`, its loss and learning rate.
    fn step(&mut self, _cell: &Cell, _done: u64, _total: u64, _loss: f64, _lr: f64) {}
    /// An epoch is logged.
    fn epoch(&mut self, _cell: &Cell, _line: &EpochLog) {}
    /// A test has processed `done` of `total` images.
    fn testing(&mut self, _cell: &Cell, _done: u64, _total: u64) {}
    /// A notice for the user: a skipped checkpoint, newly initialized parameters.
    fn message(&mut self, _cell: &Cell, _text: &str) {}
    /// A cell ends, or was finished before.
    fn cell_finished(&mut self, _cell: &Cell, _outcome: &Outcome) {}
}

/// Ignores all events.
impl Observer for () {}
