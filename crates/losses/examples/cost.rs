//! Cost of a method per step without the networks: `cargo run --release -p stillhouse-losses --example
//! cost -- [METHOD ...]`.
//!
//! Feature shapes are those of ResNet50 to ResNet18 for 64 images of 64 px. Terms, backward pass to the
//! features and `after_step` are timed separately, in milliseconds, as the minimum of five steps. On
//! Linux the last column is the mean CPU time of a step, which other programs disturb less.

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use stillhouse_core::data::{Labels, Target, Task};
use stillhouse_core::distiller::{FeatureShapes, LossContext};
use stillhouse_core::model::Features;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_losses::registry;

const BATCH: usize = 64;
const CLASSES: usize = 21;
const STEPS: u64 = 5;

/// Maps in a tape's layout: rows of channels, viewed as `[B, C, H, W]`.
fn features(channels: [usize; 4], name: &str, step: u64) -> Result<(Vec<Var>, Features), Box<dyn Error>> {
    let (mut leaves, mut features) = (Vec::new(), Features::default());
    let mut draw = Rng::new(1).stream(name).at(step, 0);
    let mut leaf = |shape: &[usize]| -> Result<Tensor, Box<dyn Error>> {
        let values = (0..shape.iter().product()).map(|_| draw.normal().max(0.0) as f32).collect();
        let var = Var::from_vec(values, shape, &Device::Cpu)?;
        leaves.push(var.clone());
        Ok(var.as_tensor().clone())
    };
    for (i, c) in channels.into_iter().enumerate() {
        let side = 16 >> i;
        let map = leaf(&[BATCH, side, side, c])?.permute((0, 3, 1, 2))?;
        features.insert(format!("F{}", i + 1), map);
    }
    features.insert("pooled", leaf(&[BATCH, channels[3]])?);
    features.insert("logits", leaf(&[BATCH, CLASSES])?);
    Ok((leaves, features))
}

/// CPU time of all threads in milliseconds, in ticks of 10.
fn cpu_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(10.0 * (fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    println!("{:14} {:>9} {:>9} {:>9} {:>9} {:>9}", "ms", "terms", "backward", "after", "all", "cpu");
    for entry in registry().entries() {
        if !names.is_empty() && !names.iter().any(|name| name == entry.name) {
            continue;
        }
        let mut method = (entry.build)(&toml::Table::new())?;
        let params = ParamStore::new(DType::F32, &Device::Cpu)?;
        let (mut best, mut cpu) = ([f64::INFINITY; 4], 0.0);
        for step in 0..STEPS {
            let (_, student) = features([64, 128, 256, 512], "student", step)?;
            let (_, teacher) = features([256, 512, 1024, 2048], "teacher", step)?;
            let teacher: Features = teacher.iter().map(|(n, t)| (n.to_string(), t.detach())).collect();
            if step == 0 {
                let shapes = FeatureShapes {
                    student: student.shapes(),
                    teacher: teacher.shapes(),
                    task: Task::Classification,
                    classes: CLASSES,
                    batch: BATCH,
                    samples: 1680,
                };
                if let Err(e) = method.connect(&shapes, &params.builder(Rng::new(0))) {
                    println!("{:14} {e}", entry.name);
                    break;
                }
            }
            // Eight classes with eight images each.
            let classes: Vec<u32> = (0..BATCH as u32).map(|i| i / 8).collect();
            let target = Target::on_cpu(Labels::Classes(Tensor::new(classes, &Device::Cpu)?));
            let ids: Vec<u64> = (0..BATCH as u64).map(|i| (step * 64 + i) % 1680).collect();
            let context = LossContext { ids: &ids, step, ..LossContext::new(&student, &teacher, &target) };
            let (clock, before) = (Instant::now(), cpu_time().unwrap_or(f64::NAN));
            let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            for term in method.terms(&context)? {
                total = (total + (term.value * term.weight)?)?;
            }
            let terms = clock.elapsed().as_secs_f64();
            total.backward()?;
            let backward = clock.elapsed().as_secs_f64();
            method.after_step(&context, &params)?;
            let all = clock.elapsed().as_secs_f64();
            let times = [terms, backward - terms, all - backward, all];
            cpu += (cpu_time().unwrap_or(f64::NAN) - before) / STEPS as f64;
            for (best, time) in best.iter_mut().zip(times) {
                *best = best.min(time * 1e3);
            }
        }
        if best[3].is_finite() {
            let [terms, backward, after, all] = best;
            println!("{:14} {terms:9.1} {backward:9.1} {after:9.1} {all:9.1} {cpu:9.1}", entry.name);
        }
    }
    Ok(())
}
