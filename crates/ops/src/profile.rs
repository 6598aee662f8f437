//! Timing of operations.

use std::collections::BTreeMap;
use std::time::Instant;

/// Accumulated time of one kind of work while [`Tape::set_profiling`](crate::Tape::set_profiling) was on.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTiming {
    /// Layer, map size and kind of work.
    pub name: String,
    /// Number of calls.
    pub calls: usize,
    /// Total wall-clock time.
    pub seconds: f64,
    /// Total multiply-accumulates of a direct computation; 0 if not applicable.
    pub macs: u64,
}

/// Accumulated timings by name, if profiling is on.
#[derive(Debug, Default)]
pub(crate) struct Profile(Option<BTreeMap<String, LayerTiming>>);

impl Profile {
    /// Starts from zero, or stops.
    pub(crate) fn set(&mut self, on: bool) {
        self.0 = on.then(BTreeMap::new);
    }

    pub(crate) fn timings(&self) -> Vec<LayerTiming> {
        self.0.iter().flat_map(|all| all.values().cloned()).collect()
    }

    pub(crate) fn start(&self) -> Option<Instant> {
        self.0.is_some().then(Instant::now)
    }

    /// Accumulates the time since [`Profile::start`].
    pub(crate) fn stop(&mut self, started: Option<Instant>, name: impl FnOnce() -> String, macs: u64) {
        if let (Some(all), Some(started)) = (&mut self.0, started) {
            let seconds = started.elapsed().as_secs_f64();
            let name = name();
            let timing =
                all.entry(name.clone()).or_insert(LayerTiming { name, calls: 0, seconds: 0.0, macs: 0 });
            timing.calls += 1;
            timing.seconds += seconds;
            timing.macs += macs;
        }
    }
}
