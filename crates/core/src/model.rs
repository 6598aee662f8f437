//! Models and their features.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use stillhouse_ops::trace::Trace;
use stillhouse_ops::{ParamBuilder, ParamStore, Tape};

use crate::{Error, Result};

/// Description of a feature, an intermediate or final output of a model: `F1`..`F4`, `pooled`,
/// `embedding`, `logits`, `exit3.logits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureInfo {
    /// Name.
    pub name: String,
    /// Channels of a feature map, or length of a vector.
    pub channels: usize,
    /// Input pixels per pixel of a feature map; 0 for vectors.
    pub stride: usize,
}

impl FeatureInfo {
    /// Describes a feature map `[B, channels, H / stride, W / stride]`.
    pub fn map(name: impl ToString, channels: usize, stride: usize) -> Self {
        Self { name: name.to_string(), channels, stride }
    }

    /// Describes a vector `[B, channels]`.
    pub fn vector(name: impl ToString, channels: usize) -> Self {
        Self { name: name.to_string(), channels, stride: 0 }
    }
}

/// Tensors by feature name: maps `[B, C, H, W]`, vectors `[B, D]`.
#[derive(Debug, Clone, Default)]
pub struct Features(BTreeMap<String, Tensor>);

impl Features {
    /// Returns the tensor of a feature.
    ///
    /// # Errors
    /// [`Error::UnknownFeature`].
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).ok_or_else(|| Error::UnknownFeature {
            name: name.to_string(),
            known: self.0.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Returns the output of the head.
    pub fn logits(&self) -> Result<&Tensor> {
        self.get("logits")
    }

    /// Adds or replaces a feature.
    pub fn insert(&mut self, name: impl ToString, value: Tensor) {
        self.0.insert(name.to_string(), value);
    }

    /// Iterates over all features in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// Returns the shapes without the batch axis: `[C, H, W]` or `[D]`.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.0.iter().map(|(n, t)| (n.clone(), t.dims()[1..].to_vec())).collect()
    }
}

impl FromIterator<(String, Tensor)> for Features {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(features: I) -> Self {
        Self(features.into_iter().collect())
    }
}

/// A trainable model with named features.
///
/// `forward` runs the layers on the tape, marks features with [`Tape::mark_feature`] and returns
/// `tape.outputs()` as [`Features`]. Only features selected on the tape are kept.
pub trait Model: Send + Sync {
    /// Registry name.
    fn name(&self) -> &str;
    /// All features of the model.
    fn features(&self) -> &[FeatureInfo];
    /// Number of classes of the head.
    fn classes(&self) -> usize;
    /// Runs the model on images `[B, 3, H, W]`.
    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features>;
    /// Names of the head's parameters, whose shape depends on the number of classes.
    fn head(&self) -> Vec<String>;
    /// Multiply-accumulates (MACs) of convolutions and linear layers for one image.
    ///
    /// # Errors
    /// An image size that the model does not support.
    fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok(trace(self, &ParamStore::meta(), (height, width), None)?.cost().macs)
    }
}

/// Traces a model on one image of `(height, width)`: operations and shapes, without values. `features` are
/// the outputs, by default the logits of all exits.
///
/// # Errors
/// An unknown feature, or an image size that the model does not support.
pub fn trace<M: Model + ?Sized>(
    model: &M,
    params: &ParamStore,
    (height, width): (usize, usize),
    features: Option<&[&str]>,
) -> Result<Trace> {
    if height == 0 || width == 0 {
        return Err(Error::incompatible(model.name(), format!("empty image: {height} x {width}")));
    }
    let mut tape = Tape::trace(params);
    match features {
        Some(features) => tape.select_features(features),
        None => {
            let names = model.features().iter().map(|feature| &feature.name);
            let is_logits = |name: &&String| *name == "logits" || name.ends_with(".logits");
            tape.select_features(&names.filter(is_logits).collect::<Vec<_>>());
        }
    }
    model.forward(&Tensor::zeros((1, 3, height, width), DType::F32, &Device::Cpu)?, &mut tape)?;
    Ok(tape.take_trace().unwrap_or_default())
}

/// Input of a model's constructor.
#[derive(Debug, Clone, Default)]
pub struct ModelSpec {
    /// Registry name, for families with several sizes.
    pub name: String,
    /// Number of classes of the head.
    pub classes: usize,
    /// Architecture variant, from the weights' manifest and the experiment: `stride_in_1x1`, `padding`,
    /// `output_stride`, ... Unknown keys are an error.
    pub variant: toml::Table,
}

/// Builds a model with its parameters under the builder's prefix.
pub type ModelBuild = fn(&ModelSpec, &ParamBuilder) -> Result<Box<dyn Model>>;
