//! Distillation methods as the trainer sees them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use stillhouse_ops::{ParamBuilder, ParamStore};

use crate::data::{Target, Task};
use crate::model::Features;
use crate::{Result, Rng};

/// Taps that a method reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequiredFeatures {
    /// Of the student.
    pub student: Vec<String>,
    /// Of the teacher; empty means that no teacher runs.
    pub teacher: Vec<String>,
}

/// What a method may know when its connectors are made. FeatureShapes are without the batch:
/// `[C, H, W]` or `[D]`.
#[derive(Debug, Clone, Default)]
pub struct FeatureShapes {
    /// Of the taps that it needs of the student.
    pub student: BTreeMap<String, Vec<usize>>,
    /// Of the taps that it needs of the teacher.
    pub teacher: BTreeMap<String, Vec<usize>>,
    /// What the labels are: classes or masks.
    pub task: Task,
    /// Classes of the dataset.
    pub classes: usize,
    /// Images of the smallest batch of an epoch, which may be the uneven last one.
    pub batch: usize,
    /// Training images.
    pub samples: usize,
}

/// What a method sees of one training step.
#[derive(Debug)]
pub struct LossContext<'a> {
    /// The student's taps, with gradients.
    pub student: &'a Features,
    /// The teacher's taps, without gradients.
    pub teacher: &'a Features,
    /// Labels, on the device of the taps.
    pub target: &'a Target,
    /// The same in the host's memory, for methods that count with them: to read `target` back would
    /// wait for a card.
    pub on_host: &'a Target,
    /// The batch's images `[B, 3, H, W]` as the student saw them.
    pub images: &'a Tensor,
    /// Dataset indices of the samples.
    pub ids: &'a [u64],
    /// Values that replace a method's own random draws, by name; empty in training. Tests compare
    /// methods that draw (negatives, mixing factors) with stored numbers through them.
    pub given: &'a Features,
    /// Epochs done, with fraction.
    pub epoch: f64,
    /// Steps done.
    pub step: u64,
    /// Whether batch norms of connectors use batch statistics.
    pub train: bool,
    /// Random numbers of the method; address them by `step`.
    pub rng: Rng,
}

/// One scalar of the loss: the total is the sum of `weight * value`.
#[derive(Debug, Clone)]
pub struct Term {
    /// Name in logs.
    pub name: String,
    /// Scalar.
    pub value: Tensor,
    /// Its weight.
    pub weight: f64,
}

impl Term {
    /// A named, weighted scalar.
    pub fn new(name: impl ToString, value: Tensor, weight: f64) -> Self {
        Self { name: name.to_string(), value, weight }
    }
}

/// Where the parameters of a method's adversary stand: below this name. No other parameter of a
/// method may.
pub const ADVERSARY: &str = "d";

/// A distillation method: says what it needs, makes its connectors, gives its terms.
pub trait Distiller: Send {
    /// Registry name.
    fn name(&self) -> &str;
    /// Taps that it reads.
    fn required_features(&self) -> RequiredFeatures;
    /// Makes connectors below the builder, or says in words why the two networks do not fit.
    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()>;
    /// The weighted terms of one step.
    fn terms(&self, step: &LossContext) -> Result<Vec<Term>>;
    /// The terms of an adversary that is trained against the student (a discriminator): they move
    /// only the parameters below [`ADVERSARY`] in the method's builder, after the
    /// student's update, and the terms of [`Distiller::terms`] move all but those. No gradient of
    /// them may reach the student: its taps enter detached.
    fn adversary_terms(&self, _step: &LossContext) -> Result<Vec<Term>> {
        Ok(Vec::new())
    }
    /// Moves state that is not trained by gradients (memory banks), after the optimizer's update.
    fn after_step(&mut self, _step: &LossContext, _params: &ParamStore) -> Result<()> {
        Ok(())
    }
    /// Names and values of the weights in force, for logs and reports.
    fn term_weights(&self) -> Vec<(String, f64)>;
}

/// Makes a method from the hyper-parameters that differ from its defaults.
pub type DistillerBuild = fn(&toml::Table) -> Result<Box<dyn Distiller>>;
