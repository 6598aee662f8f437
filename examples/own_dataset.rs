//! Adds a dataset to the registry and trains on it.
//!
//! ```text
//! cargo run --release -p stillhouse-examples --example own_dataset
//! ```
//!
//! Expected output, in about 5 seconds on two CPU cores:
//!
//! ```text
//! cifar_resnet20-75-baseline-s0: 60 of 60 test images correct
//! ```
//!
//! Folders of images need no code: use `dataset = "folder"`, or write a manifest (docs/datasets.md).

use std::error::Error;
use std::sync::Arc;

use stillhouse_core::data::{Dataset, DatasetInfo, Image, Label, Sample, Task};
use stillhouse_core::registry::{DatasetBuild, Entry, Registries, Registry};
use stillhouse_core::{Result, Rng};
use stillhouse_trainer::{Context, Experiment, plan, run_plan};

/// Registry entry of the dataset.
const ENTRY: Entry<DatasetBuild> = Entry {
    name: "shapes",
    summary: "discs, squares and crosses on noise",
    source: "generated",
    defaults: String::new,
    build: |request| {
        Ok(Arc::new(Shapes {
            info: DatasetInfo {
                name: request.name.clone(),
                title: format!("shapes (synthetic), {IMAGES} images"),
                classes: ["disc", "square", "cross"].map(String::from).to_vec(),
                task: Task::Classification,
                synthetic: true,
            },
        }))
    },
};

const IMAGES: usize = 240;
const SIZE: usize = 32;

struct Shapes {
    info: DatasetInfo,
}

impl Dataset for Shapes {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        IMAGES
    }

    fn key(&self, index: usize) -> String {
        format!("shape-{index}")
    }

    fn class(&self, index: usize) -> Option<u32> {
        Some((index % self.info.classes.len()) as u32)
    }

    // A dataset of files would decode its file here; the loader calls this from several threads.
    fn sample(&self, index: usize) -> Result<Sample> {
        let class = (index % self.info.classes.len()) as u32;
        let mut draw = Rng::new(0).stream("shapes").at(0, index as u64);
        let mut coordinate = || 10.0 + 12.0 * draw.uniform();
        let (x0, y0) = (coordinate(), coordinate());
        let mut pixels = Vec::with_capacity(SIZE * SIZE * 3);
        for (y, x) in (0..SIZE).flat_map(|y| (0..SIZE).map(move |x| (y as f64, x as f64))) {
            let (dx, dy) = ((x - x0).abs(), (y - y0).abs());
            let inside = match class {
                0 => dx.hypot(dy) < 8.0,
                1 => dx.max(dy) < 7.0,
                _ => dx.min(dy) < 2.5 && dx.max(dy) < 9.0,
            };
            let color = if inside { [150.0, 140.0, 130.0] } else { [90.0, 90.0, 100.0] };
            pixels.extend(color.map(|c| (c + 60.0 * (draw.uniform() - 0.5)) as u8));
        }
        let image = Image { width: SIZE, height: SIZE, pixels };
        Ok(Sample { id: index as u64, image, label: Label::Class(class) })
    }

    // Part of the run's hash: change it whenever the images change.
    fn fingerprint(&self) -> Result<String> {
        Ok("shapes-1".into())
    }
}

const EXPERIMENT: &str = r#"
[data]
dataset = "shapes"
ratio = 75                         # percentage of training images
image_size = 32
train_transforms = [{ op = "hflip" }, { op = "vflip" }]
test_transforms = []
[student]
model = "cifar_resnet20"
[train]
epochs = 12
sampler = { kind = "shuffle", batch = 32 }
optimizer = { kind = "sgd", lr = 0.05, momentum = 0.9, weight_decay = 5e-4 }
schedule = { kind = "cosine", warmup_epochs = 1 }
"#;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let datasets = stillhouse_datasets::registry();
    let registries = Registries {
        datasets: Registry::new("dataset", &[datasets.entries(), &[ENTRY]].concat()),
        models: stillhouse_backbones::registry(),
        losses: stillhouse_losses::registry(),
        metrics: stillhouse_metrics::registry(),
        split: stillhouse_datasets::split,
        loader: stillhouse_datasets::loader,
        weights: stillhouse_backbones::weights::find_weights,
        load_weights: stillhouse_backbones::weights::load_weights,
    };
    let runs = tempfile::tempdir()?;
    let context = Context::new(registries, runs.path());
    let experiment = Experiment::parse(EXPERIMENT, "own_dataset.rs", "own_dataset")?;
    let plan = plan(&experiment, None, &context)?;
    for (cell, outcome) in plan.cells.iter().zip(run_plan(&plan, &context, &mut ())?) {
        let result = outcome.result().ok_or(format!("{}: {outcome:?}", cell.name))?;
        println!("{}: {} of {} test images correct", cell.name, result.correct.unwrap_or(0), result.total);
    }
    Ok(())
}
