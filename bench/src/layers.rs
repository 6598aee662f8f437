//! Where a step's time goes, layer by layer: `make bench ARGS="--layers resnet50-train-224"`.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;

use crate::cases::{Case, Work};
use crate::steps::{CaseModel, images};

/// Prints what each kind of work takes in a step of this case, with its share of the rate of a large
/// matrix product that was measured in between.
pub(crate) fn print(case: &Case, rounds: usize) -> anyhow::Result<()> {
    let net = CaseModel::new(case.network, toml::Table::new()).build(1)?;
    let mode = match case.work {
        Work::Train => Mode::Train,
        Work::Frozen => Mode::Inference,
        _ => anyhow::bail!("{}: only training steps and frozen networks are told by layers", case.name),
    };
    let mut tape = Tape::new(&net.params, mode)?;
    let images = images(case.batch, case.size)?;
    let mut rates = vec![matrix_rate()?];
    for round in 0..rounds + 1 {
        if round == 1 {
            tape.measure(true);
        }
        tape.begin(Rng::new(0), 0);
        let logits = net.model.forward(&images, &mut tape)?.logits()?.clone();
        if mode == Mode::Train {
            tape.backward(&logits.sqr()?.mean_all()?)?;
        }
        rates.push(matrix_rate()?);
    }
    rates.sort_by(f64::total_cmp);
    let rate = *rates.get(rates.len() / 2).context("nothing was measured")?;
    let mut spent = tape.spent();
    spent.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    println!("{}: {rounds} steps; a product of 1024 x 1024 matrices: {rate:.0} GFLOP/s", case.what());
    println!("{:>9} {:>6} {:>10} {:>6}  work", "ms/step", "calls", "GFLOP/s", "share");
    for line in spent {
        let rounds = rounds.max(1);
        let (ms, calls) = (1e3 * line.seconds / rounds as f64, line.calls / rounds);
        let (speed, share) = match line.macs {
            0 => (String::new(), String::new()),
            macs => {
                let speed = 2e-9 * macs as f64 / line.seconds;
                (format!("{speed:.0}"), format!("{:.0} %", 100.0 * speed / rate))
            }
        };
        println!("{ms:9.2} {calls:6} {speed:>10} {share:>6}  {}", line.work);
    }
    Ok(())
}

/// GFLOP/s of candle's product of two large matrices on the same threads.
fn matrix_rate() -> anyhow::Result<f64> {
    let a = Tensor::ones((1024, 1024), DType::F32, &Device::Cpu)?;
    let started = std::time::Instant::now();
    let product = a.matmul(&a)?;
    let seconds = started.elapsed().as_secs_f64();
    anyhow::ensure!(product.get(0)?.get(0)?.to_scalar::<f32>()? == 1024.0, "a product is wrong");
    Ok(2e-9 * 1024f64.powi(3) / seconds)
}
