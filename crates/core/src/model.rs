//! Networks as the trainer and the methods see them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use stillhouse_ops::{ParamBuilder, Tape};

use crate::{Error, Result};

/// A feature that a network can give, by name: `F1`..`F4`, `pooled`, `embedding`, `logits`,
/// `exit3.logits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureInfo {
    /// Its name.
    pub name: String,
    /// Channels of a map, length of a vector.
    pub channels: usize,
    /// Input pixels per map pixel; 0 for vectors.
    pub stride: usize,
}

impl FeatureInfo {
    /// A map `[B, channels, H / stride, W / stride]`.
    pub fn map(name: impl ToString, channels: usize, stride: usize) -> Self {
        Self { name: name.to_string(), channels, stride }
    }

    /// A vector `[B, channels]`.
    pub fn vector(name: impl ToString, channels: usize) -> Self {
        Self { name: name.to_string(), channels, stride: 0 }
    }
}

/// Tensors by tap name: maps `[B, C, H, W]`, vectors `[B, D]`.
#[derive(Debug, Clone, Default)]
pub struct Features(BTreeMap<String, Tensor>);

impl Features {
    /// The tensor of a tap.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).ok_or_else(|| Error::UnknownFeature {
            name: name.to_string(),
            known: self.0.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The classifier's output.
    pub fn logits(&self) -> Result<&Tensor> {
        self.get("logits")
    }

    /// Adds or replaces a tap.
    pub fn insert(&mut self, name: impl ToString, value: Tensor) {
        self.0.insert(name.to_string(), value);
    }

    /// All taps in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// FeatureShapes without the batch: `[C, H, W]` or `[D]`.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.0.iter().map(|(n, t)| (n.clone(), t.dims()[1..].to_vec())).collect()
    }
}

impl FromIterator<(String, Tensor)> for Features {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(taps: I) -> Self {
        Self(taps.into_iter().collect())
    }
}

/// A trainable network with named taps.
///
/// `forward` runs the layers on the tape, marks its taps with [`Tape::mark_feature`] and returns
/// `tape.outputs()` as [`Features`]; a tap that nobody asked for is not kept.
pub trait Model: Send + Sync {
    /// Registry name.
    fn name(&self) -> &str;
    /// All taps it can give.
    fn features(&self) -> &[FeatureInfo];
    /// Classes of its head.
    fn classes(&self) -> usize;
    /// Runs it on `[B, 3, H, W]`.
    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features>;
    /// Names of the head's parameters, which another class count replaces.
    fn head(&self) -> Vec<String>;
    /// Multiply-accumulates of convolutions and linear layers for one image of that size.
    fn macs(&self, height: usize, width: usize) -> Result<u64>;
}

/// What is asked of a model's constructor.
#[derive(Debug, Clone, Default)]
pub struct ModelSpec {
    /// Registry name, for families with several sizes.
    pub name: String,
    /// Classes of the head.
    pub classes: usize,
    /// Architecture variant: `stride_in_1x1`, `padding`, `output_stride`; from the weight manifest
    /// and the experiment. Unknown keys are an error.
    pub variant: toml::Table,
}

/// Makes a network, its parameters below the builder.
pub type ModelBuild = fn(&ModelSpec, &ParamBuilder) -> Result<Box<dyn Model>>;
