//! Per-layer profile of a step: `make bench ARGS="--layers resnet50-train-224"`.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;

use crate::cases::{Case, Work};
use crate::steps::{CaseModel, images};

/// Prints time per kind of layer, and its share of the FLOP rate of a large matrix product measured between
/// the steps.
pub(crate) fn print(case: &Case, rounds: usize) -> anyhow::Result<()> {
    let net = CaseModel::new(case.network, toml::Table::new()).build(1)?;
    let mode = match case.work {
        Work::Train => Mode::Train,
        Work::Frozen => Mode::Inference,
        _ => anyhow::bail!("unsupported case for --layers: {}: expected a train or frozen case", case.name),
    };
    let mut tape = Tape::new(&net.params, mode)?;
    let images = images(case.batch, case.size)?;
    let mut rates = vec![matmul_gflops()?];
    for round in 0..rounds + 1 {
        if round == 1 {
            tape.set_profiling(true);
        }
        tape.begin(Rng::new(0), 0);
        let logits = net.model.forward(&images, &mut tape)?.logits()?.clone();
        if mode == Mode::Train {
            tape.backward(&logits.sqr()?.mean_all()?)?;
        }
        rates.push(matmul_gflops()?);
    }
    rates.sort_by(f64::total_cmp);
    let rate = *rates.get(rates.len() / 2).context("no rate was measured")?;
    let mut layers = tape.layer_timings();
    layers.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    println!("{}: {rounds} steps; 1024 x 1024 matrix product: {rate:.0} GFLOP/s", case.description());
    println!("{:>9} {:>6} {:>10} {:>6}  layer", "ms/step", "calls", "GFLOP/s", "share");
    for layer in layers {
        let rounds = rounds.max(1);
        let (ms, calls) = (1e3 * layer.seconds / rounds as f64, layer.calls / rounds);
        let (speed, share) = match layer.macs {
            0 => (String::new(), String::new()),
            macs => {
                let speed = 2e-9 * macs as f64 / layer.seconds;
                (format!("{speed:.0}"), format!("{:.0} %", 100.0 * speed / rate))
            }
        };
        println!("{ms:9.2} {calls:6} {speed:>10} {share:>6}  {}", layer.name);
    }
    Ok(())
}

/// GFLOP/s of candle's product of two large matrices on the same threads.
fn matmul_gflops() -> anyhow::Result<f64> {
    let a = Tensor::ones((1024, 1024), DType::F32, &Device::Cpu)?;
    let started = std::time::Instant::now();
    let product = a.matmul(&a)?;
    let seconds = started.elapsed().as_secs_f64();
    anyhow::ensure!(product.get(0)?.get(0)?.to_scalar::<f32>()? == 1024.0, "wrong matrix product");
    Ok(2e-9 * 1024f64.powi(3) / seconds)
}
