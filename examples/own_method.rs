//! Adds a distillation method to the registry and trains with it, as an experiment file would.
//!
//! ```text
//! cargo run --release -p stillhouse-examples --example own_method
//! ```
//!
//! Expected output, in about 20 seconds on two CPU cores:
//!
//! ```text
//! epoch 1: loss 3.735, terms {"ce": 3.181, "mse": 5.541}
//! ...
//! epoch 6: loss 2.296, terms {"ce": 2.152, "mse": 1.439}
//! cifar_resnet8x4-scenes-80-s0: 62 of 168 test images correct
//! cifar_resnet20-80-logit_mse-s0: 54 of 168 test images correct
//! ```

use std::error::Error;

use serde::Deserialize;
use stillhouse_core::distiller::{
    Distiller, DistillerBuild, FeatureShapes, LossContext, RequiredFeatures, Term,
};
use stillhouse_core::registry::{Entry, Registries, Registry};
use stillhouse_core::{Error as CoreError, ParamBuilder, Result, config};
use stillhouse_runs::{EpochLog, Role};
use stillhouse_trainer::{Cell, Context, Experiment, Observer, plan, run_plan};

/// Registry entry of the method.
const ENTRY: Entry<DistillerBuild> = Entry {
    name: "logit_mse",
    summary: "mean squared difference of the logits",
    source: "Ba and Caruana 2014, arXiv 1312.6184, equation 1",
    defaults: || "weight = 1.0".into(),
    build: |settings| Ok(Box::new(LogitMse { config: config::from_table(settings, "logit_mse")? })),
};

/// Settings of the method; unknown keys are errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogitMseConfig {
    weight: f64,
}

impl Default for LogitMseConfig {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

struct LogitMse {
    config: LogitMseConfig,
}

impl Distiller for LogitMse {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures::both(&["logits"])
    }

    fn connect(&mut self, shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        let (student, teacher) = (&shapes.student["logits"], &shapes.teacher["logits"]);
        if student != teacher {
            let reason =
                format!("expected equal logits, found {student:?} (student) and {teacher:?} (teacher)");
            return Err(CoreError::incompatible(ENTRY.name, reason));
        }
        Ok(())
    }

    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let difference = (context.student.logits()? - context.teacher.logits()?)?; // [B, N]
        Ok(vec![Term::new("mse", difference.sqr()?.mean_all()?, self.config.weight)])
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("mse".into(), self.config.weight)]
    }
}

/// An experiment file; cross-entropy is added to the methods.
const EXPERIMENT: &str = r#"
[data]
dataset = "scenes"                 # synthetic, 21 classes
ratio = 80                         # percentage of training images
per_class = [16, 8]
image_size = 32
train_transforms = [{ op = "resize", width = 32, height = 32 }, { op = "hflip" }]
test_transforms = [{ op = "resize", width = 32, height = 32 }]

[teacher]
model = "cifar_resnet8x4"
[teacher.train]
epochs = 6
sampler = { kind = "shuffle", batch = 32 }
optimizer = { kind = "sgd", lr = 0.05, momentum = 0.9, weight_decay = 5e-4 }
schedule = { kind = "cosine", warmup_epochs = 1 }

[student]
model = "cifar_resnet20"
[[loss]]
method = "logit_mse"
weight = 0.1
[train]
epochs = 6
sampler = { kind = "shuffle", batch = 32 }
optimizer = { kind = "sgd", lr = 0.05, momentum = 0.9, weight_decay = 5e-4 }
schedule = { kind = "cosine", warmup_epochs = 1 }
"#;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let losses = stillhouse_losses::registry();
    let registries = Registries {
        datasets: stillhouse_datasets::registry(),
        models: stillhouse_backbones::registry(),
        losses: Registry::new("method", &[losses.entries(), &[ENTRY]].concat()),
        metrics: stillhouse_metrics::registry(),
        split: stillhouse_datasets::split,
        loader: stillhouse_datasets::loader,
        weights: stillhouse_backbones::weights::find_weights,
        load_weights: stillhouse_backbones::weights::load_weights,
    };
    let runs = tempfile::tempdir()?;
    let context = Context::new(registries, runs.path());
    let experiment = Experiment::parse(EXPERIMENT, "own_method.rs", "own_method")?;
    let plan = plan(&experiment, None, &context)?;
    for (cell, outcome) in plan.cells.iter().zip(run_plan(&plan, &context, &mut Printer)?) {
        let result = outcome.result().ok_or(format!("{}: {outcome:?}", cell.name))?;
        println!("{}: {} of {} test images correct", cell.name, result.correct.unwrap_or(0), result.total);
    }
    Ok(())
}

/// Prints the log of each epoch.
struct Printer;

impl Observer for Printer {
    fn epoch(&mut self, cell: &Cell, log: &EpochLog) {
        if cell.role == Role::Student {
            println!("epoch {}: loss {:.3}, terms {:.3?}", log.epoch, log.loss, log.terms);
        }
    }
}
