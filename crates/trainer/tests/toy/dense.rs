//! Components with label masks: striped fields, and a network whose logits are maps of half the size.

use super::*;

/// Returns the labels of the pixels of an image; the first is ignored.
fn labels(id: usize) -> Vec<u32> {
    let stripe = |i: usize| ((i % SIZE / 2 + id) % CLASSES) as u32;
    (0..SIZE * SIZE).map(|i| if i == 0 { 255 } else { stripe(i) }).collect()
}

/// Returns the values `[3, SIZE, SIZE]` of an image and the labels of its pixels.
pub fn picture(id: usize, mut noise: impl FnMut() -> f64) -> (Vec<f32>, Vec<u32>) {
    let labels = labels(id);
    let value = |channel: u32, label: u32| if channel == label { 1.0 } else { -1.0 };
    let pairs = (0..3).flat_map(|c| labels.iter().map(move |l| (c, *l)));
    let values = pairs.map(|(c, l)| (value(c, l) + noise()) as f32).collect();
    (values, labels)
}

/// Convolution of stride 2, batch norm, ReLU, 1x1 convolution to the classes.
struct DenseNet {
    name: String,
    classes: usize,
    features: Vec<FeatureInfo>,
    body: ConvBnAct,
    head: ConvBnAct,
}

pub fn net(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    let width = if request.name == "dense_big" { 12 } else { 6 };
    let init = Init::kaiming_fan_out(&[width, 3, 3, 3]);
    let spec = ConvSpec::new(3, width, 3).stride(2);
    let body = ConvBnAct::new(spec, "conv1", "bn1", Activation::Relu, init, p)?;
    let spec = ConvSpec::new(width, request.classes, 1);
    let head = ConvBnAct::without_bn(spec, "head", true, Activation::None, Init::fan_in_uniform(width), p)?;
    let features = vec![FeatureInfo::map("logits", request.classes, 2)];
    Ok(Box::new(DenseNet { name: request.name.clone(), classes: request.classes, features, body, head }))
}

impl Model for DenseNet {
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
        let x = tape.input(images)?;
        let x = self.body.forward(&x, tape)?;
        let x = self.head.forward(&x, tape)?;
        tape.mark_feature("logits", &x)?;
        Ok(tape.outputs()?.into_iter().collect())
    }
    fn head(&self) -> Vec<String> {
        vec!["head.weight".into(), "head.bias".into()]
    }
    fn macs(&self, height: usize, width: usize) -> Result<u64> {
        Ok((height * width * 27) as u64)
    }
}

/// Cross-entropy of the labeled pixels at the size of the masks.
pub fn cross_entropy(logits: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (_, h, w) = mask.dims3()?;
    let logits = stillhouse_ops::graph::resize_bilinear(logits, (h, w), false)?;
    let rows = logits.permute((0, 2, 3, 1))?.reshape(((), CLASSES))?;
    let log = (&rows - rows.exp()?.sum_keepdim(1)?.log()?.broadcast_as(rows.shape())?)?;
    let labels = mask.flatten_all()?;
    let counts = labels.ne(255u32)?;
    let own = log.gather(&counts.where_cond(&labels, &labels.zeros_like()?)?.unsqueeze(1)?, 1)?;
    let counts = counts.to_dtype(log.dtype())?;
    Ok((own.squeeze(1)?.mul(&counts)?.sum_all()?.neg()? / counts.sum_all()?)?)
}

/// Accuracy of the labeled pixels.
#[derive(Default)]
pub struct Pixels {
    correct: u64,
    total: u64,
}

impl Metric for Pixels {
    fn name(&self) -> &str {
        "pixels"
    }
    fn supports(&self, task: Task) -> bool {
        task == Task::Segmentation
    }
    fn update(&mut self, logits: &Tensor, labels: &Labels) -> Result<()> {
        let mask = labels.mask("pixels")?;
        let predicted = logits.argmax(1)?;
        assert_eq!(predicted.dims(), mask.dims(), "logits at the size of the masks");
        let predicted = predicted.flatten_all()?.to_vec1::<u32>()?;
        for (predicted, label) in predicted.iter().zip(mask.flatten_all()?.to_vec1::<u32>()?) {
            self.correct += u64::from(*predicted == label);
            self.total += u64::from(label != 255);
        }
        Ok(())
    }
    fn merge(&mut self, _other: &dyn Metric) -> Result<()> {
        Ok(())
    }
    fn scores(&self) -> Vec<Score> {
        vec![Score { name: "pixels".into(), value: self.correct as f64 / self.total as f64 }]
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
