//! Builds a network, prints what it costs and what its taps give.
//!
//! ```text
//! cargo run --release -p stillhouse-backbones --example features -- mobilenetv2_100 [FILE.safetensors]
//! ```

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::{count, load_weights, registry};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::{ParamStore, Result, Rng, Tape};
use stillhouse_ops::Mode;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "resnet18".into());
    let request = ModelSpec { name, classes: 1000, ..Default::default() };

    let params = ParamStore::new(DType::F32, &Device::Cpu)?;
    let registry = registry();
    let row = registry.get(&request.name)?;
    let network = (row.build)(&request, &params.builder(Rng::new(0)))?;
    if let Some(file) = args.next() {
        load_weights(Path::new(&file), &params, &network.head(), false)?;
    }
    let costs = count(&request, 224, 224)?;
    println!("{}: {}", row.name, row.summary);
    println!("{} parameters, {} multiply-accumulates at 224 x 224", costs.parameters, costs.macs);

    let mut tape = Tape::new(&params, Mode::Eval)?;
    tape.select_features(&["F1", "F2", "F3", "F4", "embedding", "logits"]);
    tape.begin(Rng::new(0), 0);
    let images = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
    for (tap, shape) in network.forward(&images, &mut tape)?.shapes() {
        println!("{tap}: {shape:?}");
    }
    Ok(())
}
