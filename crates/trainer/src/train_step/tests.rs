//! Phases and micro-batches on a network of two linear stages with an exit after each.

use candle_core::{DType, Device, Tensor};
use stillhouse_core::ParamBuilder;
use stillhouse_core::data::{Batch, Labels, Task};
use stillhouse_core::distiller::{Distiller, FeatureShapes, LossContext, RequiredFeatures, Term};
use stillhouse_core::model::{FeatureInfo, Features, Model};
use stillhouse_ops::optim::Optimizer;
use stillhouse_ops::{Init, Linear, ParamStore};

use super::*;
use crate::CellConfig;
use crate::experiment::TrainConfig;

const CLASSES: usize = 3;
const SIZE: usize = 4;

struct Two {
    features: Vec<FeatureInfo>,
    stages: [Linear; 2],
    outs: [Linear; 2],
}

impl Two {
    fn new(p: &ParamBuilder) -> stillhouse_core::Result<Self> {
        let linear = |inputs: usize, outputs, name: &str| {
            let init = Init::fan_in_uniform(inputs);
            Linear::new(inputs, outputs, name, init, Some(init), p)
        };
        let names = ["exit3.logits", "exit4.logits", "logits"];
        Ok(Self {
            features: names.map(|name| FeatureInfo::vector(name, CLASSES)).to_vec(),
            stages: [linear(3, 8, "s3")?, linear(8, 8, "s4")?],
            outs: [linear(8, CLASSES, "out3")?, linear(8, CLASSES, "out4")?],
        })
    }
}

impl Model for Two {
    fn name(&self) -> &str {
        "two"
    }
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }
    fn classes(&self) -> usize {
        CLASSES
    }
    fn forward(&self, images: &Tensor, tape: &mut Tape) -> stillhouse_core::Result<Features> {
        let mut x = tape.input(images)?;
        let deep = tape.selects("exit4.logits") || tape.selects("logits");
        for i in 0..1 + usize::from(deep) {
            x = self.stages[i].forward(&x, tape)?;
            x = tape.gelu(&x)?;
            let logits = tape.global_avg_pool(&x)?;
            let logits = self.outs[i].forward(&logits, tape)?;
            tape.mark_feature(&format!("exit{}.logits", i + 3), &logits)?;
            if i == 1 {
                tape.mark_feature("logits", &logits)?;
            }
        }
        Ok(tape.outputs()?.into_iter().collect())
    }
    fn head(&self) -> Vec<String> {
        Vec::new()
    }
    fn macs(&self, _height: usize, _width: usize) -> stillhouse_core::Result<u64> {
        Ok(0)
    }
}

/// Mean squared distance of some logits from 1.
struct MeanSquare(&'static str);

impl Distiller for MeanSquare {
    fn name(&self) -> &str {
        "small"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.0.into()], teacher: Vec::new() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, _params: &ParamBuilder) -> stillhouse_core::Result<()> {
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> stillhouse_core::Result<Vec<Term>> {
        let logits = context.student.get(self.0)?;
        Ok(vec![Term::new("small", (logits - 1.0)?.sqr()?.mean_all()?, 1.0)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("small".into(), 1.0)]
    }
}

const ADAMW: &str = "{ kind = 'adamw', lr = 0.1, weight_decay = 0.5 }";

fn train_step(optimizer: &str, more: &str) -> TrainStep {
    let text = format!(
        r#"
        data = {{ dataset = "x", ratio = 80, image_size = {SIZE}, train_transforms = [], test_transforms = [] }}
        student = {{ model = "two" }}
        loss = [{{ method = "small", phase = 1 }}, {{ method = "small", phase = 2 }}]
        [train]
        epochs = 1
        sampler = {{ kind = "shuffle", batch = 6 }}
        optimizer = {optimizer}
        schedule = {{ kind = "constant" }}
        phase = [{{ exit = 3, trainable = ["s3.*", "out3.*"] }}, {{}}]
        {more}
        "#
    );
    let config: CellConfig = stillhouse_core::config::parse(&text, "test").unwrap();
    config.check("test").unwrap();
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let model = Box::new(Two::new(&params.builder(Rng::new(3))).unwrap());
    let method = |phase, feature| MethodSpec { phase, ..MethodSpec::new(Box::new(MeanSquare(feature))) };
    let TrainConfig { optimizer, clip_norm, micro_batch, phase, .. } = &config.train;
    let builder = TrainStepBuilder {
        methods: vec![method(0, "exit3.logits"), method(1, "exit4.logits")],
        param_groups: ParamGroups::from_config(&config.train),
        phases: phase.clone(),
        clip_norm: *clip_norm,
        micro_batch: *micro_batch,
        ..TrainStepBuilder::new(Network { model, params }, optimizer.build())
    };
    let input = InputInfo { task: Task::Classification, size: (SIZE, SIZE), smallest_batch: 6, samples: 6 };
    builder.build(&input).unwrap()
}

/// Trains on a batch and returns its metrics.
fn train(step: &mut TrainStep, batch: &Batch) -> StepMetrics {
    step.train_batch(batch, AT).unwrap();
    step.take_metrics(false).unwrap().remove(0)
}

fn batch(images: usize) -> Batch {
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let values: Vec<f32> = (0..images * 3 * SIZE * SIZE).map(value).collect();
    let images_of = Tensor::from_vec(values, (images, 3, SIZE, SIZE), &Device::Cpu).unwrap();
    let labels: Vec<u32> = (0..images).map(|i| (i % CLASSES) as u32).collect();
    let labels = Labels::Classes(Tensor::new(labels, &Device::Cpu).unwrap());
    Batch { images: images_of, labels, ids: (0..images as u64).collect(), views: Vec::new() }
}

const AT: StepInfo = StepInfo { step: 0, steps_per_epoch: 10, lr: 0.1 };

/// Returns the bits of all parameters and of the optimizer state.
fn bits(step: &TrainStep) -> BTreeMap<String, Vec<u32>> {
    let Optimizer::Adam(adam) = &step.optimizer else { panic!("expected AdamW") };
    let params = &step.student.params;
    let all = params.export_all().unwrap().into_iter().chain(adam.state(params).unwrap());
    let bits = |t: Tensor| {
        let values = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    all.map(|(name, t)| (name, bits(t))).collect()
}

#[test]
fn the_first_phase_updates_its_trainable_parameters_only() {
    let mut step = train_step(ADAMW, "");
    let batch = batch(6);
    for _ in 0..2 {
        let metrics = train(&mut step, &batch);
        let names: Vec<&str> = metrics.terms.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["phase1-small", "phase2-small"]);
        assert!(metrics.correct.is_some(), "the last phase has the logits");
    }
    let before = bits(&step);
    // Weights and biases, and for each the step count and both moments.
    assert_eq!(before.len(), 8 + 3 * 8);
    let micro_batches = step.micro_batches(&batch, AT).unwrap();
    step.run_phase(0, &micro_batches, AT, false).unwrap();
    for (name, now) in bits(&step) {
        let trainable = name.starts_with("s3.") || name.starts_with("out3.");
        assert_eq!(now != before[&name], trainable, "{name}");
    }
    step.run_phase(1, &micro_batches, AT, true).unwrap();
    let after = bits(&step);
    assert!(["s4.weight", "out4.weight", "s3.weight"].iter().all(|name| after[*name] != before[*name]));
}

#[test]
fn micro_batches_accumulate_to_the_batch() {
    let batch = batch(6);
    let after = |more: &str| {
        // A step of AdamW hardly depends on the magnitude of a gradient.
        let mut step = train_step("{ kind = 'sgd', lr = 0.1, momentum = 0.9 }", more);
        let metrics = train(&mut step, &batch);
        let values = step.student.params.export_all().unwrap().into_iter();
        let values = values.flat_map(|(_, t)| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        (metrics.loss, metrics.correct, values.collect::<Vec<f32>>())
    };
    let whole = after("");
    for (size, same) in [(6, true), (9, true), (2, false), (4, false)] {
        let (loss, correct, values) = after(&format!("micro_batch = {size}"));
        assert_eq!(correct, whole.1);
        assert!((loss - whole.0).abs() < 1e-6, "{size}: {loss} {}", whole.0);
        let max = values.iter().zip(&whole.2).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(if same { max == 0.0 } else { max < 1e-4 }, "micro-batches of {size}: {max}");
    }
}
