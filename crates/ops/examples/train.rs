//! Trains a small network to classify which half of an image is bright: `cargo run --release --example
//! train`.

use candle_core::{DType, Device, Tensor};
use stillhouse_ops::optim::{Hyper, Sgd};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear, Mode, ParamStore, Rng, Tape};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let params = ParamStore::new(DType::F32, &Device::Cpu)?;
    let p = params.builder(Rng::new(1));
    let spec = ConvSpec::new(3, 16, 3).stride(2);
    let conv = ConvBnAct::new(
        spec,
        "conv",
        "bn",
        Activation::Relu,
        Init::kaiming_fan_out(&spec.weight_shape()),
        &p,
    )?;
    let fc = Linear::new(16, 2, "fc", Init::fan_in_uniform(16), Some(Init::Constant(0.0)), &p)?;
    let (mut tape, mut sgd) = (Tape::new(&params, Mode::Train)?, Sgd::new(0.9, false));
    let data = Rng::new(2).stream("data");
    for step in 0..60 {
        let mut draw = data.at(step, 0);
        let labels: Vec<u32> = (0..16).map(|_| draw.below(2) as u32).collect();
        let pixels: Vec<f32> = (0..16 * 3 * 16 * 16)
            .map(|i| {
                let (left, label) = (i % 16 < 8, labels[i / (3 * 16 * 16)] == 1);
                (draw.uniform() + if left == label { 0.3 } else { 0.0 }) as f32
            })
            .collect();
        let images = Tensor::from_vec(pixels, (16, 3, 16, 16), &Device::Cpu)?;
        let labels = Tensor::new(labels, &Device::Cpu)?;

        tape.begin(Rng::new(3), step);
        let mut x = tape.input(&images)?;
        x = conv.forward(&x, &mut tape)?;
        x = tape.global_avg_pool(&x)?;
        x = fc.forward(&x, &mut tape)?;
        tape.mark_feature("logits", &x)?;
        let logits = tape.outputs()?.remove(0).1;
        let loss = candle_nn::loss::cross_entropy(&logits, &labels)?;
        if step % 10 == 0 {
            println!("step {step:2}  loss {:.4}", loss.to_scalar::<f32>()?);
        }
        let gradients = tape.backward(&loss)?;
        sgd.step(&params, &gradients, |_| Some(Hyper { lr: 0.1, weight_decay: 1e-4 }))?;
    }
    Ok(())
}
