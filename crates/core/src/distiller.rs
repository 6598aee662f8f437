//! Distillation methods: required features, connectors and loss terms.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use candle_core::Tensor;
use stillhouse_ops::{ParamBuilder, ParamStore};

use crate::data::{Target, Task};
use crate::model::Features;
use crate::{Result, Rng};

/// Names of the features that a method reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequiredFeatures {
    /// Features of the student.
    pub student: Vec<String>,
    /// Features of the teacher; empty for methods without a teacher.
    pub teacher: Vec<String>,
}

impl RequiredFeatures {
    /// The same features of student and teacher.
    pub fn both<T: ToString>(features: &[T]) -> Self {
        let names: Vec<String> = features.iter().map(T::to_string).collect();
        Self { student: names.clone(), teacher: names }
    }
}

/// Input of [`Distiller::connect`]. Shapes are without the batch axis: `[C, H, W]` or `[D]`.
#[derive(Debug, Clone, Default)]
pub struct FeatureShapes {
    /// Shapes of the student's required features.
    pub student: BTreeMap<String, Vec<usize>>,
    /// Shapes of the teacher's required features.
    pub teacher: BTreeMap<String, Vec<usize>>,
    /// Kind of the labels.
    pub task: Task,
    /// Number of classes of the dataset.
    pub classes: usize,
    /// Number of images of the smallest batch of an epoch, which may be the uneven last one.
    pub batch: usize,
    /// Number of training images.
    pub samples: usize,
}

/// Input of a method in one training step.
///
/// [`LossContext::new`] fills in defaults; other fields follow by struct update syntax:
/// `LossContext { ids: &ids, ..LossContext::new(&student, &teacher, &target) }`.
#[derive(Debug)]
pub struct LossContext<'a> {
    /// Features of the student, with gradients.
    pub student: &'a Features,
    /// Features of the teacher, without gradients.
    pub teacher: &'a Features,
    /// Labels of the batch.
    pub target: &'a Target,
    /// Images `[B, 3, H, W]` as the student's input; `None` if no method reads them.
    pub images: Option<&'a Tensor>,
    /// Dataset indices of the samples.
    pub ids: &'a [u64],
    /// Values by name that replace a method's random draws (negatives, mixing factors). Empty in
    /// training; tests use them to compare such methods with stored values.
    pub overrides: &'a Features,
    /// Number of completed epochs, with fraction.
    pub epoch: f64,
    /// Number of completed optimizer steps.
    pub step: u64,
    /// Whether batch norms of connectors use batch statistics.
    pub train: bool,
    /// Random number stream of the method, addressed by `step`.
    pub rng: Rng,
}

static NO_OVERRIDES: LazyLock<Features> = LazyLock::new(Features::default);

impl<'a> LossContext<'a> {
    /// The first training step, without images, ids and overrides, and with the seed 0.
    pub fn new(student: &'a Features, teacher: &'a Features, target: &'a Target) -> Self {
        Self {
            student,
            teacher,
            target,
            images: None,
            ids: &[],
            overrides: &NO_OVERRIDES,
            epoch: 0.0,
            step: 0,
            train: true,
            rng: Rng::new(0),
        }
    }
}

/// One scalar of the loss. The total is the sum of `weight * value`.
#[derive(Debug, Clone)]
pub struct Term {
    /// Name in logs.
    pub name: String,
    /// Scalar.
    pub value: Tensor,
    /// Weight in the total.
    pub weight: f64,
}

impl Term {
    /// A named, weighted scalar.
    pub fn new(name: impl ToString, value: Tensor, weight: f64) -> Self {
        Self { name: name.to_string(), value, weight }
    }
}

/// Name prefix of the parameters of a method's adversary. No other parameter of a method has it.
pub const ADVERSARY: &str = "d";

/// A distillation method: required features, connectors and loss terms.
pub trait Distiller: Send {
    /// Registry name.
    fn name(&self) -> &str;
    /// Features that the method reads.
    fn required_features(&self) -> RequiredFeatures;
    /// Creates the connectors under the builder's prefix.
    ///
    /// # Errors
    /// If student, teacher and dataset are incompatible.
    fn connect(&mut self, shapes: &FeatureShapes, params: &ParamBuilder) -> Result<()>;
    /// Weighted terms of one training step.
    fn terms(&self, context: &LossContext) -> Result<Vec<Term>>;
    /// Weighted terms of an adversary (a discriminator), applied after the student's update. They
    /// train only the parameters under [`ADVERSARY`], and [`Distiller::terms`] all others. The
    /// student's features must be detached.
    fn adversary_terms(&self, _context: &LossContext) -> Result<Vec<Term>> {
        Ok(Vec::new())
    }
    /// Updates state that is not trained by gradients (memory banks), after the optimizer step.
    fn after_step(&mut self, _context: &LossContext, _params: &ParamStore) -> Result<()> {
        Ok(())
    }
    /// Names and weights of the terms, for logs and reports.
    fn term_weights(&self) -> Vec<(String, f64)>;
}

/// Builds a method from the settings that differ from its defaults.
pub type DistillerBuild = fn(&toml::Table) -> Result<Box<dyn Distiller>>;
