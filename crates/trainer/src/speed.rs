//! How fast a trained network classifies.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::Task;
use stillhouse_ops::{Mode, Tape};
use stillhouse_runs::Speed;

use crate::{Context, Network, Result};

/// Images of a batch whose time is taken.
const BATCH: usize = 32;
/// Passes of which the median counts, and the seconds after which no more are begun.
const PASSES: usize = 7;
const SECONDS: f64 = 1.0;

/// Measures a network on images `[3, size, size]`; nothing for label masks, whose batches of 32 may be
/// too large for the machine.
pub(crate) fn speed(network: &Network, size: usize, task: Task, context: &Context) -> Result<Option<Speed>> {
    if task != Task::Classification {
        return Ok(None);
    }
    let one = seconds(network, 1, size, context)?;
    let batch = seconds(network, BATCH, size, context)?;
    Ok(Some(Speed { latency_ms: 1e3 * one, images_per_second: BATCH as f64 / batch }))
}

/// The median time of a pass.
fn seconds(network: &Network, batch: usize, size: usize, context: &Context) -> Result<f64> {
    let images = (Tensor::ones((batch, 3, size, size), DType::F32, &context.device)? * 0.5)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&["logits"]);
    let mut times = Vec::new();
    let begun = Instant::now();
    // The first pass folds batch norms and takes memory: it is not counted.
    for pass in 0..=PASSES {
        let start = Instant::now();
        tape.begin(Rng::new(0), 0);
        // On the host: a card has then done its work.
        network.model.forward(&images, &mut tape)?.logits()?.to_device(&Device::Cpu)?;
        if pass > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
        if pass > 0 && begun.elapsed().as_secs_f64() > SECONDS {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
