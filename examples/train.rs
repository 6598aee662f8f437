//! Trains a teacher, freezes it and distills it into a smaller student, with the library crates alone.
//!
//! ```text
//! cargo run --release -p stillhouse-examples --example train
//! ```
//!
//! Expected output, in about 20 seconds on two CPU cores (chance is 4.8 %):
//!
//! ```text
//! teacher: epoch 1: loss 3.027, training accuracy 10.0 %
//! ...
//! teacher: epoch 6: loss 2.260, training accuracy 30.6 %
//! student: epoch 1: loss 3.222, training accuracy 5.3 %
//! ...
//! student: epoch 6: loss 1.151, training accuracy 20.9 %
//! test accuracy of the student: 20.2 %
//! ```

use std::error::Error;

use candle_core::{D, DType, Device};
use stillhouse_core::data::{BatchSource, LoaderSpec, Sampler, SplitSpec, Task};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::registry::DatasetRequest;
use stillhouse_core::{ParamStore, Rng, Tape};
use stillhouse_ops::Mode;
use stillhouse_ops::optim::{Optimizer, Sgd};
use stillhouse_trainer::{
    InputInfo, MethodSpec, Network, Precision, StepInfo, Teacher, TrainStep, TrainStepBuilder,
};
use toml::Table;

const BATCH: usize = 32;
const EPOCHS: u64 = 6;

fn main() -> Result<(), Box<dyn Error>> {
    // 21 classes of synthetic land-use scenes.
    let name = "scenes".to_string();
    let request = DatasetRequest { name, roots: Vec::new(), path: None, options: Table::new() };
    let dataset = (stillhouse_datasets::registry().get("scenes")?.build)(&request)?;
    let split = SplitSpec { ratio: 0.8, mode: Default::default(), seed: 0, per_class: Some([16, 8]) };
    let split = stillhouse_datasets::split(dataset.as_ref(), &split)?;
    let input = InputInfo {
        task: Task::Classification,
        size: (32, 32),
        smallest_batch: BATCH,
        samples: split.train.len(),
    };
    let resize: Table = toml::from_str("op = 'resize'\nwidth = 32\nheight = 32")?;
    let loader = |indices, sampler| {
        let transforms = vec![resize.clone()];
        let rng = Rng::new(0).stream("loader");
        let spec = LoaderSpec { indices, sampler, transforms, rng, cache_bytes: 64 << 20 };
        stillhouse_datasets::loader(dataset.clone(), &spec)
    };
    let mut train_images = loader(split.train, Sampler::Shuffle { batch: BATCH, drop_last: true })?;
    let mut test_images = loader(split.test, Sampler::Sequential { batch: BATCH })?;

    let mut teacher =
        TrainStepBuilder::new(network("cifar_resnet8x4", 1)?, Optimizer::Sgd(Sgd::new(0.9, false)));
    teacher.methods = vec![method("ce", Table::new())?];
    let teacher = fit("teacher", teacher.build(&input)?, train_images.as_mut())?.into_student();

    let student = network("cifar_resnet20", 2)?;
    let mut student = TrainStepBuilder::new(student, Optimizer::Sgd(Sgd::new(0.9, false)));
    student.teacher = Some(Teacher::new(teacher, Precision::F32)?);
    student.methods =
        vec![method("ce", toml::toml! { weight = 0.1 })?, method("kd", toml::toml! { temperature = 4.0 })?];
    let student = fit("student", student.build(&input)?, train_images.as_mut())?.into_student();
    println!("test accuracy of the student: {:.1} %", 100.0 * accuracy(&student, test_images.as_mut())?);
    Ok(())
}

/// Builds a network with random weights.
fn network(name: &str, seed: u64) -> Result<Network, Box<dyn Error>> {
    let params = ParamStore::new(DType::F32, &Device::Cpu)?;
    let spec = ModelSpec { name: name.into(), classes: 21, variant: Table::new() };
    let entry = *stillhouse_backbones::registry().get(name)?;
    let model = (entry.build)(&spec, &params.builder(Rng::new(seed)))?;
    Ok(Network { model, params })
}

/// Builds a distillation method; `options` overrides its defaults.
fn method(name: &str, options: Table) -> Result<MethodSpec, Box<dyn Error>> {
    Ok(MethodSpec::new((stillhouse_losses::registry().get(name)?.build)(&options)?))
}

/// Trains for some epochs and prints the mean loss and the training accuracy of each.
fn fit(name: &str, mut step: TrainStep, loader: &mut dyn BatchSource) -> Result<TrainStep, Box<dyn Error>> {
    let steps_per_epoch = loader.batches_per_epoch();
    for epoch in 0..EPOCHS {
        let mut number = epoch * steps_per_epoch;
        while let Some(batch) = loader.next_batch()? {
            step.train_batch(&batch, StepInfo { step: number, steps_per_epoch, lr: 0.05 })?;
            number += 1;
        }
        let metrics = step.take_metrics(true)?;
        let loss = metrics.iter().map(|m| m.loss).sum::<f64>() / metrics.len() as f64;
        let correct: u64 = metrics.iter().filter_map(|m| m.correct).sum();
        let images: u64 = metrics.iter().map(|m| m.images).sum();
        let accuracy = 100.0 * correct as f64 / images as f64;
        println!("{name}: epoch {}: loss {loss:.3}, training accuracy {accuracy:.1} %", epoch + 1);
    }
    Ok(step)
}

/// Returns the fraction of images that a network classifies correctly.
fn accuracy(network: &Network, loader: &mut dyn BatchSource) -> Result<f64, Box<dyn Error>> {
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    let (mut correct, mut total) = (0.0, 0);
    while let Some(batch) = loader.next_batch()? {
        tape.begin(Rng::new(0), 0);
        let predicted = network.model.forward(&batch.images, &mut tape)?.logits()?.argmax(D::Minus1)?;
        let hits = predicted.eq(batch.labels.classes("accuracy")?)?;
        correct += f64::from(hits.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?);
        total += batch.ids.len();
    }
    Ok(correct / total as f64)
}
