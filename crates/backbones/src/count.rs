//! Parameters, multiply-accumulates and activation memory.

use candle_core::{DType, Device, Tensor};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::{Error, ParamStore, Result, Rng, Tape};
use stillhouse_ops::{ConvBnAct, Linear};

use crate::FAMILIES;

/// Cost of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Multiply-accumulates (MACs) of convolutions and linear layers for one image.
    pub macs: u64,
    /// Multiply-accumulates of the products inside attention (queries with keys, weights with values)
    /// for one image, not included in `macs`.
    pub attention_macs: u64,
    /// Number of batch-norm outputs for one image.
    pub batch_norm_outputs: u64,
    /// Number of f32 activations kept for the backward pass of one image: the outputs of all layers and
    /// the inputs of batch norms.
    pub activations: u64,
}

impl Counts {
    /// Returns the FLOPs by the convention of Table 4 of the class-centric paper (Liu et al. 2023):
    /// `8 * (MACs + 2 * batch-norm outputs)` at 224 x 224. The convention is inferred; it reproduces all
    /// digits of the three published values.
    pub fn table4_flops(&self) -> u64 {
        8 * (self.macs + 2 * self.batch_norm_outputs)
    }
}

/// Counts the cost of a registered model for images of `height` x `width`.
///
/// ```
/// use stillhouse_core::model::ModelSpec;
/// let request = ModelSpec { name: "resnet18".into(), classes: 21, ..Default::default() };
/// let counts = stillhouse_backbones::count(&request, 224, 224)?;
/// assert_eq!(counts.parameters, 11_187_285);
/// assert_eq!(counts.macs, 1_813_572_096);
/// # Ok::<(), stillhouse_core::Error>(())
/// ```
///
/// # Errors
/// An unknown name, an invalid variant, or an empty image.
pub fn count(request: &ModelSpec, height: usize, width: usize) -> Result<Counts> {
    let entry = *crate::registry().get(&request.name)?;
    let params = ParamStore::meta();
    let builder = params.builder(Rng::new(0));
    let family = FAMILIES.iter().find(|f| f.entries.iter().any(|entry| entry.name == request.name));
    let work = match family {
        Some(family) => (family.work)(request, &builder, (height, width))?,
        None => return Err(Error::incompatible(&request.name, "no family has this entry")),
    };
    let whole = ParamStore::meta();
    let network = (entry.build)(request, &whole.builder(Rng::new(0)))?;
    let mut tape = Tape::trace(&whole);
    network.forward(&Tensor::zeros((1, 3, height, width), DType::F32, &Device::Cpu)?, &mut tape)?;
    let trace = tape.take_trace().unwrap_or_default();
    Ok(Counts {
        activations: trace.saved_values(),
        parameters: params.count_weights(),
        macs: work.macs,
        attention_macs: work.attention_macs,
        batch_norm_outputs: work.batch_norm_outputs,
    })
}

/// Accumulated cost of one forward pass.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) macs: u64,
    pub(crate) attention_macs: u64,
    pub(crate) batch_norm_outputs: u64,
}

impl Work {
    /// Rejects an empty image.
    pub(crate) fn check(&self, component: &str, (height, width): (usize, usize)) -> Result<()> {
        if height == 0 || width == 0 {
            return Err(Error::incompatible(component, format!("empty image: {height} x {width}")));
        }
        Ok(())
    }

    /// Adds a convolution on a map of `size`, and returns the size of its output.
    pub(crate) fn conv(&mut self, layer: &ConvBnAct, size: (usize, usize)) -> Result<(usize, usize)> {
        self.macs += layer.macs(size.0, size.1)?;
        Ok(layer.output_size(size.0, size.1)?)
    }

    /// Adds a convolution with batch norm on a map of `size`, and returns the size of its output.
    pub(crate) fn conv_bn(&mut self, layer: &ConvBnAct, size: (usize, usize)) -> Result<(usize, usize)> {
        let (height, width) = self.conv(layer, size)?;
        self.batch_norm_outputs += (layer.spec().outputs * height * width) as u64;
        Ok((height, width))
    }

    /// Adds a linear layer on every pixel of a map.
    pub(crate) fn linear_map(&mut self, layer: &Linear, (height, width): (usize, usize)) {
        self.macs += (height * width) as u64 * layer.macs();
    }

    /// Adds a linear layer on one vector.
    pub(crate) fn linear(&mut self, layer: &Linear) {
        self.macs += layer.macs();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table 4 of the class-centric paper: 23.55 M and 32.88 G, 11.19 M and 14.55 G, 2.25 M and
    /// 2.50 G, for 21 classes.
    #[test]
    fn reproduces_table_4() {
        for (name, parameters, macs, batch_norm_outputs, flops) in [
            ("resnet50", 23_551_061, 4.087e9, 11_113_984, 32.875e9),
            ("resnet18", 11_187_285, 1.814e9, 2_483_712, 14.548e9),
            ("mobilenetv2_100", 2_250_773, 0.2995e9, 6_678_112, 2.503e9),
        ] {
            let request = ModelSpec { name: name.into(), classes: 21, ..Default::default() };
            let counts = count(&request, 224, 224).unwrap();
            assert_eq!(counts.parameters, parameters, "{name}");
            assert_eq!(counts.batch_norm_outputs, batch_norm_outputs, "{name}");
            assert!((counts.macs as f64 - macs).abs() < 0.5e6, "{name}: {}", counts.macs);
            assert!((counts.table4_flops() as f64 - flops).abs() < 0.5e6, "{name}");
        }
    }

    /// The tape also holds padded copies and the like.
    #[test]
    fn estimates_the_memory_of_a_tape() {
        for name in ["resnet18", "mobilenetv2_050", "cifar_resnet20"] {
            let request = ModelSpec { name: name.into(), classes: 3, ..Default::default() };
            let params = ParamStore::new(DType::F32, &Device::Cpu).unwrap();
            let entry = *crate::registry().get(name).unwrap();
            let network = (entry.build)(&request, &params.builder(Rng::new(0))).unwrap();
            let mut tape = Tape::new(&params, stillhouse_ops::Mode::Train).unwrap();
            tape.set_winograd(false);
            tape.begin(Rng::new(0), 0);
            let images = Tensor::zeros((4, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
            let features = network.forward(&images, &mut tape).unwrap();
            let held = tape.memory_bytes() as f64;
            let estimate = 4.0 * 4.0 * count(&request, 64, 64).unwrap().activations as f64;
            assert!((0.8..1.3).contains(&(held / estimate)), "{name}: {held} held, {estimate} estimated");
            drop(features);
        }
    }

    #[test]
    fn rejects_unknown_models_and_empty_images() {
        let spec = |name: &str| ModelSpec { name: name.into(), classes: 2, ..Default::default() };
        assert!(count(&spec("resnet19"), 8, 8).unwrap_err().to_string().contains("resnet18"));
        assert!(count(&spec("resnet18"), 0, 8).unwrap_err().to_string().contains("0 x 8"));
        let none = ModelSpec { classes: 0, ..spec("resnet18") };
        assert!(count(&none, 8, 8).unwrap_err().to_string().contains("at least 1"));
    }
}
