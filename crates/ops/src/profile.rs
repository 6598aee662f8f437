//! Per-layer timing of a tape.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::tape::Tape;

/// Accumulated time of one kind of work while [`Tape::set_profiling`] was on.
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

/// Accumulated timings by name.
pub(crate) type LayerTimings = BTreeMap<String, LayerTiming>;

impl Tape {
    /// Starts profiling from zero, or stops it.
    pub fn set_profiling(&mut self, on: bool) {
        self.timings = on.then(BTreeMap::new);
    }

    /// Returns the timings accumulated since [`Tape::set_profiling`].
    pub fn layer_timings(&self) -> Vec<LayerTiming> {
        self.timings.iter().flat_map(|all| all.values().cloned()).collect()
    }

    pub(crate) fn start_timer(&self) -> Option<Instant> {
        self.timings.is_some().then(Instant::now)
    }

    /// Accumulates the time since [`Tape::start_timer`].
    pub(crate) fn stop_timer(&mut self, started: Option<Instant>, name: impl FnOnce() -> String, macs: u64) {
        if let (Some(all), Some(started)) = (&mut self.timings, started) {
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
