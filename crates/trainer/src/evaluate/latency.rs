//! Inference speed of a trained network.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use stillhouse_core::Rng;
use stillhouse_core::data::Task;
use stillhouse_ops::{Mode, Tape};
use stillhouse_runs::Speed;

use crate::{Context, Network, Result};

/// Images per batch of the throughput.
const BATCH: usize = 32;
/// Passes whose median counts.
const PASSES: usize = 7;
/// Seconds after which no further pass starts.
const MAX_SECONDS: f64 = 1.0;

/// Measures a network on images `[3, size, size]`. `None` for label masks, whose batches of 32 may exceed the
/// memory.
pub(crate) fn measure_speed(
    network: &Network,
    size: usize,
    task: Task,
    context: &Context,
) -> Result<Option<Speed>> {
    if task != Task::Classification {
        return Ok(None);
    }
    let single = median_seconds(network, 1, size, context)?;
    let batch = median_seconds(network, BATCH, size, context)?;
    Ok(Some(Speed { latency_ms: 1e3 * single, images_per_second: BATCH as f64 / batch }))
}

/// Returns the median time of a forward pass.
fn median_seconds(network: &Network, batch: usize, size: usize, context: &Context) -> Result<f64> {
    let images = (Tensor::ones((batch, 3, size, size), DType::F32, &context.device)? * 0.5)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&["logits"]);
    let mut times = Vec::new();
    let started = Instant::now();
    // The first pass folds batch norms and allocates memory: it does not count.
    for pass in 0..=PASSES {
        let start = Instant::now();
        tape.begin(Rng::new(0), 0);
        // The transfer to the host waits for a GPU.
        network.model.forward(&images, &mut tape)?.logits()?.to_device(&Device::Cpu)?;
        if pass > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
        if pass > 0 && started.elapsed().as_secs_f64() > MAX_SECONDS {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
