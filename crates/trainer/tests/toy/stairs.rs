//! A network with an exit after each of two stages, a loss at any exit, and one that panics.

use std::cell::Cell;

use candle_core::Tensor;
use stillhouse_core::distiller::*;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelSpec};
use stillhouse_core::{ParamBuilder, Result, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, Linear};

/// Two stages and two exits.
struct Stairs {
    features: Vec<FeatureInfo>,
    classes: usize,
    stages: [ConvBnAct; 2],
    outs: [Linear; 2],
}

pub(super) fn net(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    let classes = request.classes;
    let stage = |i: usize, inputs: usize, outputs: usize| {
        let (spec, init) =
            (ConvSpec::new(inputs, outputs, 3), Init::kaiming_fan_out(&[outputs, inputs, 3, 3]));
        ConvBnAct::new(spec, "conv", "bn", Activation::Relu, init, &p.pp(format!("s{i}")))
    };
    let out = |i: usize, inputs: usize| {
        let init = Init::fan_in_uniform(inputs);
        Linear::new(inputs, classes, &format!("out{i}"), init, Some(init), p)
    };
    let names = ["exit1.logits", "exit2.logits", "logits"].map(|name| FeatureInfo::vector(name, classes));
    let features = std::iter::once(FeatureInfo::vector("pooled", 6)).chain(names).collect();
    Ok(Box::new(Stairs {
        features,
        classes,
        stages: [stage(1, 3, 5)?, stage(2, 5, 6)?],
        outs: [out(1, 5)?, out(2, 6)?],
    }))
}

impl Model for Stairs {
    fn name(&self) -> &str {
        "stairs"
    }
    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let mut x = tape.input(images)?;
        let deep = ["pooled", "exit2.logits", "logits"].iter().any(|name| tape.selects(name));
        for (i, (stage, out)) in self.stages.iter().zip(&self.outs).take(1 + usize::from(deep)).enumerate() {
            x = stage.forward(&x, tape)?;
            let y = tape.global_avg_pool(&x)?;
            let y = tape.dropout(&y, 0.2)?;
            let logits = out.forward(&y, tape)?;
            tape.mark_feature(&format!("exit{}.logits", i + 1), &logits)?;
            if i == 1 {
                tape.mark_feature("pooled", &y)?;
                tape.mark_feature("logits", &logits)?;
            }
        }
        Ok(tape.outputs()?.into_iter().collect())
    }
    fn head(&self) -> Vec<String> {
        Vec::new()
    }
    fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok((height * width) as u64)
    }
}

/// Cross-entropy at a feature.
pub(super) struct AtExit(pub(super) String);

impl Distiller for AtExit {
    fn name(&self) -> &str {
        "at_exit"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec![self.0.clone()], teacher: Vec::new() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        let logits: Features =
            [("logits".to_string(), context.student.get(&self.0)?.clone())].into_iter().collect();
        let value = super::cross_entropy(&LossContext { student: &logits, ..*context })?;
        Ok(vec![Term::new("ce_exit", value, 1.0)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("ce_exit".into(), 1.0)]
    }
}

thread_local! {
    static FUSE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes the loss `fuse` panic once at a step (from 0) of a run on this thread.
pub fn kill_at(step: u64) {
    FUSE.set(Some(step));
}

/// Panics at the step of [`kill_at`].
pub(super) struct Fuse;

impl Distiller for Fuse {
    fn name(&self) -> &str {
        "fuse"
    }
    fn required_features(&self) -> RequiredFeatures {
        RequiredFeatures { student: vec!["logits".into()], teacher: Vec::new() }
    }
    fn connect(&mut self, _shapes: &FeatureShapes, _params: &ParamBuilder) -> Result<()> {
        Ok(())
    }
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>> {
        if FUSE.get() == Some(context.step) {
            FUSE.set(None);
            panic!("killed in the middle of a batch");
        }
        Ok(vec![Term::new("fuse", (context.student.logits()?.mean_all()? * 0.0)?, 1.0)])
    }
    fn term_weights(&self) -> Vec<(String, f64)> {
        vec![("fuse".into(), 1.0)]
    }
}
