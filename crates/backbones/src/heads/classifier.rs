//! Classifier: a backbone, global average pooling and one linear layer.

use candle_core::Tensor;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelSpec};
use stillhouse_core::{ParamBuilder, Result, Tape};
use stillhouse_ops::{ConvBnAct, LayerNorm, Linear};

use crate::backbone::{ALL_STAGES, Backbone};
use crate::check_classes;

/// Layer between the last feature map and the pooling.
#[derive(Debug)]
pub(crate) enum Neck {
    /// No layer.
    None,
    /// A 1x1 convolution.
    Conv(ConvBnAct),
    /// Layer norm over the channels.
    Norm(LayerNorm),
}

/// A classifier. Its features are those of the backbone, `pooled`, which is also the `embedding`, and
/// `logits`.
#[derive(Debug)]
pub(crate) struct Classifier {
    name: String,
    features: Vec<FeatureInfo>,
    classes: usize,
    backbone: Box<dyn Backbone>,
    neck: Neck,
    fc: Linear,
    head: Vec<String>,
}

impl Classifier {
    /// Builds a classifier on a backbone. `head` builds, from the channels of the last map, the neck, the
    /// length of the pooled vector and the linear layer, whose name under `p` is `fc`.
    ///
    /// # Errors
    /// No classes, or the errors of backbone and head.
    pub(crate) fn new(
        request: &ModelSpec,
        p: &ParamBuilder,
        backbone: fn(&ModelSpec, &ParamBuilder) -> Result<Box<dyn Backbone>>,
        fc: &str,
        head: impl FnOnce(usize) -> Result<(Neck, usize, Linear)>,
    ) -> Result<Self> {
        check_classes(request)?;
        let backbone = backbone(request, p)?;
        let mut features = backbone.features().to_vec();
        let (neck, pooled, linear) = head(features.last().map_or(0, |t| t.channels))?;
        features.push(FeatureInfo::vector("pooled", pooled));
        features.push(FeatureInfo::vector("embedding", pooled));
        features.push(FeatureInfo::vector("logits", request.classes));
        let head = ["weight", "bias"].map(|part| p.full(&format!("{fc}.{part}"))).to_vec();
        let name = request.name.clone();
        Ok(Self { name, features, classes: request.classes, backbone, neck, fc: linear, head })
    }
}

impl Model for Classifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let mut x = self.backbone.forward(images, ALL_STAGES, tape, &mut |_, _| ())?;
        match &self.neck {
            Neck::None => {}
            Neck::Conv(conv) => x = conv.forward(&x, tape)?,
            Neck::Norm(norm) => x = norm.forward(&x, tape)?,
        }
        let pooled = tape.global_avg_pool(&x)?; // [B, D]
        tape.mark_feature("pooled", &pooled)?;
        tape.mark_feature("embedding", &pooled)?;
        let logits = self.fc.forward(&pooled, tape)?; // [B, classes]
        tape.mark_feature("logits", &logits)?;
        Ok(tape.outputs()?.into_iter().collect())
    }

    fn head(&self) -> Vec<String> {
        self.head.clone()
    }
}
