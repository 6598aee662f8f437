//! Prints the cost of a model and the shapes of its features.
//!
//! ```text
//! cargo run --release -p stillhouse-backbones --example features -- mobilenetv2_100 [FILE.safetensors]
//! ```

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use stillhouse_backbones::weights::load_weights;
use stillhouse_backbones::{count, registry};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Result, Rng, Tape};
use stillhouse_ops::Mode;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "resnet18".into());
    let spec = ModelSpec { name, classes: 1000, ..Default::default() };

    let params = ParamStore::new(DType::F32, &Device::Cpu)?;
    let registry = registry();
    let entry = registry.get(&spec.name)?;
    let model = (entry.build)(&spec, &params.builder(Rng::new(0)))?;
    if let Some(file) = args.next() {
        load_weights(Path::new(&file), &params, &model.head(), &LoadOptions::default())?;
    }
    let counts = count(&spec, 224, 224)?;
    println!("{}: {}", entry.name, entry.summary);
    println!("{} parameters, {} multiply-accumulates at 224 x 224", counts.parameters, counts.macs);

    let mut tape = Tape::new(&params, Mode::Eval)?;
    tape.select_features(&["F1", "F2", "F3", "F4", "embedding", "logits"]);
    tape.begin(Rng::new(0), 0);
    let images = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
    for (feature, shape) in model.forward(&images, &mut tape)?.shapes() {
        println!("{feature}: {shape:?}");
    }
    Ok(())
}
