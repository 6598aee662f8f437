//! Loads a trained student and classifies an image.
//!
//! ```text
//! cargo run --release -p stillhouse-cli -- train quickstart --output runs/first \
//!     --set student.model=resnet18 --set train.epochs=20
//! cargo run --release -p stillhouse-examples --example use_student -- runs/first [IMAGE]
//! ```
//!
//! The training takes a minute on two CPU cores. Without an image file, the example classifies a synthetic
//! scene. Expected output:
//!
//! ```text
//! sparseresidential 27.6 %
//! mediumresidential 23.6 %
//! runway 10.1 %
//! ```

use std::error::Error;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use stillhouse_backbones::weights::load_weights;
use stillhouse_core::model::ModelSpec;
use stillhouse_core::registry::DatasetRequest;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_datasets::transforms::{Filter, normalize, resize};
use stillhouse_datasets::{ImageBuffer, decode};
use stillhouse_ops::Mode;
use stillhouse_runs::RunDir;
use stillhouse_trainer::RunInfo;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let run = RunDir::new(args.next().ok_or("expected a run folder, such as runs/first")?);
    let image = match args.next() {
        Some(file) => decode::read_image(Path::new(&file), None)?,
        None => scene()?,
    };

    // config.toml names the model, its variant and the classes.
    let info: RunInfo = run.info()?;
    let student = info.run.student;
    let spec = ModelSpec { name: student.model, classes: info.classes.len(), variant: student.variant };
    let params = ParamStore::new(DType::F32, &Device::Cpu)?;
    let entry = *stillhouse_backbones::registry().get(&spec.name)?;
    let model = (entry.build)(&spec, &params.builder(Rng::new(0)))?;
    load_weights(&run.student_path(), &params, &model.head(), &LoadOptions::default())?;

    // The test transforms of the quickstart: resize and normalize.
    let size = info.run.data.image_size;
    let image = resize(&ImageBuffer::from(image), size, size, Filter::default());
    let pixels = normalize(&image, &info.run.data.mean, &info.run.data.std);
    let images = Tensor::from_vec(pixels, (1, 3, size, size), &Device::Cpu)?;

    let mut tape = Tape::new(&params, Mode::Inference)?;
    tape.begin(Rng::new(0), 0);
    let features = model.forward(&images, &mut tape)?;
    let probabilities =
        candle_nn::ops::softmax(features.logits()?, D::Minus1)?.squeeze(0)?.to_vec1::<f32>()?;
    let mut classes: Vec<_> = info.classes.iter().zip(probabilities).collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (class, probability) in classes.into_iter().take(3) {
        println!("{class} {:.1} %", 100.0 * probability);
    }
    Ok(())
}

/// Returns an image of the quickstart's dataset.
fn scene() -> Result<stillhouse_core::data::Image, Box<dyn Error>> {
    let name = "scenes".to_string();
    let request = DatasetRequest { name, roots: Vec::new(), path: None, options: toml::Table::new() };
    let dataset = (stillhouse_datasets::registry().get("scenes")?.build)(&request)?;
    Ok(dataset.sample(0)?.image)
}
