//! One training step at a time, on a network of two linear stages with an exit after each.

use candle_core::{DType, Device, Tensor};
use stillhouse_core::ParamBuilder;
use stillhouse_core::data::{Batch, Labels};
use stillhouse_core::distiller::{Distiller, FeatureShapes, LossContext, RequiredFeatures, Term};
use stillhouse_core::model::{FeatureInfo, Features, Model};
use stillhouse_ops::optim::Optimizer;
use stillhouse_ops::{Init, Linear, Mode, ParamStore};

use super::*;
use crate::config::TrainConfig;
use crate::readings::Told;
use crate::{CellConfig, steps};

const CLASSES: usize = 3;
const SIZE: usize = 4;

struct Two {
    taps: Vec<FeatureInfo>,
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
            taps: names.map(|name| FeatureInfo::vector(name, CLASSES)).to_vec(),
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
        &self.taps
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

/// The mean square of the logits at a tap.
struct Small(&'static str);

impl Distiller for Small {
    fn name(&self) -> &str {
        "small"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.0.into()], teacher: Vec::new() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, _params: &ParamBuilder) -> stillhouse_core::Result<()> {
        Ok(())
    }
    fn terms(&self, step: &LossContext) -> stillhouse_core::Result<Vec<Term>> {
        let logits = step.student.get(self.0)?;
        Ok(vec![Term::new("small", (logits - 1.0)?.sqr()?.mean_all()?, 1.0)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("small".into(), 1.0)]
    }
}

const ADAMW: &str = "{ kind = 'adamw', lr = 0.1, weight_decay = 0.5 }";

fn learner(optimizer: &str, more: &str) -> Learner {
    let text = format!(
        r#"
        data = {{ dataset = "x", ratio = 80, image_size = {SIZE}, train_transforms = [], test_transforms = [] }}
        student = {{ model = "two" }}
        loss = [{{ method = "small", step = 1 }}, {{ method = "small", step = 2 }}]
        [train]
        epochs = 1
        sampler = {{ kind = "shuffle", batch = 6 }}
        optimizer = {optimizer}
        schedule = {{ kind = "constant" }}
        step = [{{ exit = 3, moves = ["s3.*", "out3.*"] }}, {{}}]
        {more}
        "#
    );
    let config: CellConfig = stillhouse_core::config::parse(&text, "test").unwrap();
    config.check("test").unwrap();
    let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
    let model = Box::new(Two::new(&params.builder(Rng::new(3))).unwrap());
    let method = |step: usize, tap| Method {
        distiller: Box::new(Small(tap)),
        step,
        label: format!("step{}-small", step + 1),
        prefix: format!("step{}-", step + 1),
        course: Course { warmup: 0.0, decay: None, epochs: 1 },
        rng: Rng::new(0),
    };
    let methods = vec![method(0, "exit3.logits"), method(1, "exit4.logits")];
    let plans = steps::plans("test", &config, &methods, model.as_ref()).unwrap();
    let groups = Groups::new(&config.train);
    steps::check_moves("test", &plans, &params, &groups).unwrap();
    let TrainConfig { optimizer, clip_norm, micro_batch, .. } = &config.train;
    Learner {
        tape: Tape::new(&params, Mode::Train).unwrap(),
        student: Network { model, params },
        teacher: None,
        methods,
        plans,
        groups,
        connectors: Vec::new(),
        rule: optimizer.rule(),
        average: None,
        clip_norm: *clip_norm,
        micro_batch: *micro_batch,
        rng: Rng::new(1),
        readings: Readings::new(None, &Device::Cpu),
    }
}

/// What a batch tells.
fn learn(learner: &mut Learner, batch: &Batch) -> Told {
    learner.learn(batch, AT, &BTreeSet::new()).unwrap();
    learner.readings.told(false).unwrap().remove(0)
}

fn batch(images: usize) -> Batch {
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let values: Vec<f32> = (0..images * 3 * SIZE * SIZE).map(value).collect();
    let images_of = Tensor::from_vec(values, (images, 3, SIZE, SIZE), &Device::Cpu).unwrap();
    let labels: Vec<u32> = (0..images).map(|i| (i % CLASSES) as u32).collect();
    let labels = Labels::Classes(Tensor::new(labels, &Device::Cpu).unwrap());
    Batch { images: images_of, labels, ids: (0..images as u64).collect() }
}

const AT: Moment = Moment { step: 0, per_epoch: 10, lr: 0.1 };

/// Every value of the parameters and of the optimizer, bit by bit.
fn bits(learner: &Learner) -> BTreeMap<String, Vec<u32>> {
    let Optimizer::Adam(rule) = &learner.rule else { panic!("AdamW was asked for") };
    let params = &learner.student.params;
    let all = params.export_all().unwrap().into_iter().chain(rule.state(params).unwrap());
    let bits = |t: Tensor| {
        let values = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    all.map(|(name, t)| (name, bits(t))).collect()
}

#[test]
fn the_first_step_moves_nothing_outside_of_its_group() {
    let mut learner = learner(ADAMW, "");
    let batch = batch(6);
    for _ in 0..2 {
        let told = learn(&mut learner, &batch);
        let names: Vec<&str> = told.terms.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["step1-small", "step2-small"]);
        assert!(told.right.is_some(), "the last step has the logits");
    }
    let before = bits(&learner);
    // Weights, biases, and of each the count, the mean and the mean of squares.
    assert_eq!(before.len(), 8 + 3 * 8);
    let parts = learner.parts(&batch, AT).unwrap();
    learner.step(0, &parts, AT, false, &BTreeSet::new()).unwrap();
    for (name, now) in bits(&learner) {
        let inside = name.starts_with("s3.") || name.starts_with("out3.");
        assert_eq!(now != before[&name], inside, "{name}");
    }
    learner.step(1, &parts, AT, true, &BTreeSet::new()).unwrap();
    let deep = bits(&learner);
    assert!(["s4.weight", "out4.weight", "s3.weight"].iter().all(|name| deep[*name] != before[*name]));
}

#[test]
fn parts_of_a_batch_add_up_to_it() {
    let batch = batch(6);
    let after = |more: &str| {
        // A step of AdamW hardly depends on how large a gradient is.
        let mut learner = learner("{ kind = 'sgd', lr = 0.1, momentum = 0.9 }", more);
        let told = learn(&mut learner, &batch);
        let values = learner.student.params.export_all().unwrap().into_iter();
        let values = values.flat_map(|(_, t)| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        (told.total, told.right, values.collect::<Vec<f32>>())
    };
    let whole = after("");
    for (part, same) in [(6, true), (9, true), (2, false), (4, false)] {
        let (total, right, values) = after(&format!("micro_batch = {part}"));
        assert_eq!(right, whole.1);
        assert!((total - whole.0).abs() < 1e-6, "{part}: {total} {}", whole.0);
        let far = values.iter().zip(&whole.2).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(if same { far == 0.0 } else { far < 1e-4 }, "parts of {part}: {far}");
    }
}
