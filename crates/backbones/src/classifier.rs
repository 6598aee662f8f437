//! A body, the mean of its last map and one linear layer: what most networks are.

use candle_core::Tensor;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelSpec};
use stillhouse_core::{ParamBuilder, Result, Tape};
use stillhouse_ops::{ConvBnAct, LayerNorm, Linear};

use crate::backbone::{ALL, Backbone};
use crate::check_classes;
use crate::count::Work;

/// What stands between the last map and its mean.
#[derive(Debug)]
pub(crate) enum Neck {
    /// Nothing.
    None,
    /// A 1x1 convolution.
    Conv(ConvBnAct),
    /// Layer norm over the channels.
    Norm(LayerNorm),
}

/// A classifier: taps of the body, then `pooled`, which is also the `embedding`, and `logits`.
#[derive(Debug)]
pub(crate) struct Classifier {
    name: String,
    taps: Vec<FeatureInfo>,
    classes: usize,
    body: Box<dyn Backbone>,
    neck: Neck,
    fc: Linear,
    head: Vec<String>,
}

impl Classifier {
    /// The network that the request names. `rest` makes, from the channels of the last map, what
    /// stands before the mean, the length of the mean, and the linear layer; `fc` is the name of the
    /// latter below `p`.
    ///
    /// # Errors
    /// No classes, or what body and rest refuse.
    pub(crate) fn new(
        request: &ModelSpec,
        p: &ParamBuilder,
        body: fn(&ModelSpec, &ParamBuilder) -> Result<Box<dyn Backbone>>,
        fc: &str,
        rest: impl FnOnce(usize) -> Result<(Neck, usize, Linear)>,
    ) -> Result<Self> {
        check_classes(request)?;
        let body = body(request, p)?;
        let mut taps = body.features().to_vec();
        let (neck, pooled, linear) = rest(taps.last().map_or(0, |t| t.channels))?;
        taps.push(FeatureInfo::vector("pooled", pooled));
        taps.push(FeatureInfo::vector("embedding", pooled));
        taps.push(FeatureInfo::vector("logits", request.classes));
        let head = ["weight", "bias"].map(|part| p.full(&format!("{fc}.{part}"))).to_vec();
        let name = request.name.clone();
        Ok(Self { name, taps, classes: request.classes, body, neck, fc: linear, head })
    }

    /// Counts one forward pass of an image of that size.
    pub(crate) fn work(&self, size: (usize, usize)) -> Result<Work> {
        let mut work = Work::default();
        let sizes = self.body.work(size, ALL, &mut work)?;
        if let (Neck::Conv(conv), Some(size)) = (&self.neck, sizes.last()) {
            work.conv_bn(conv, *size)?;
        }
        work.linear(&self.fc);
        Ok(work)
    }
}

impl Model for Classifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.taps
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let mut x = self.body.forward(images, ALL, tape, &mut |_, _| ())?;
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

    fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok(self.work((height, width))?.macs)
    }
}
