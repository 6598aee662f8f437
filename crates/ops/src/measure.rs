//! What each layer's work takes on a tape, added up on demand.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::tape::Tape;

/// What one kind of work has taken, while [`Tape::measure`] was on.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTiming {
    /// Which layer, on maps of which size, and which part of its work.
    pub work: String,
    /// How often it ran.
    pub calls: usize,
    /// Wall clock of all calls together.
    pub seconds: f64,
    /// Multiply-accumulates of all calls together, by the plain sum; 0 where the work has none.
    pub macs: u64,
}

/// What was spent, by the name of the work.
pub(crate) type Totals = BTreeMap<String, LayerTiming>;

impl Tape {
    /// Starts to add up what each kind of work takes, from zero, or stops it.
    pub fn measure(&mut self, on: bool) {
        self.spent = on.then(BTreeMap::new);
    }

    /// What has been added up since [`Tape::measure`].
    pub fn spent(&self) -> Vec<LayerTiming> {
        self.spent.iter().flat_map(|all| all.values().cloned()).collect()
    }

    pub(crate) fn started(&self) -> Option<Instant> {
        self.spent.is_some().then(Instant::now)
    }

    /// Adds what was [`Tape::started`].
    pub(crate) fn ended(&mut self, started: Option<Instant>, work: impl FnOnce() -> String, macs: u64) {
        if let (Some(all), Some(started)) = (&mut self.spent, started) {
            let seconds = started.elapsed().as_secs_f64();
            let work = work();
            let spent =
                all.entry(work.clone()).or_insert(LayerTiming { work, calls: 0, seconds: 0.0, macs: 0 });
            spent.calls += 1;
            spent.seconds += seconds;
            spent.macs += macs;
        }
    }
}
