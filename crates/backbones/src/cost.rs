//! Parameters, multiply-accumulates and activation memory of registered models.

use stillhouse_core::model::{ModelSpec, trace};
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_ops::op::Cost;

/// Counts the cost of a registered model for one image of `height` x `width`, with the logits of all its
/// exits.
///
/// ```
/// use stillhouse_core::model::ModelSpec;
/// let request = ModelSpec { name: "resnet18".into(), classes: 21, ..Default::default() };
/// let cost = stillhouse_backbones::count(&request, 224, 224)?;
/// assert_eq!(cost.parameters, 11_187_285);
/// assert_eq!(cost.macs, 1_813_572_096);
/// # Ok::<(), stillhouse_core::Error>(())
/// ```
///
/// # Errors
/// An unknown name, an invalid variant, or an empty image.
pub fn count(request: &ModelSpec, height: usize, width: usize) -> Result<Cost> {
    let entry = *crate::registry().get(&request.name)?;
    let params = ParamStore::meta();
    let model = (entry.build)(request, &params.builder(Rng::new(0)))?;
    Ok(trace(model.as_ref(), &params, (height, width), None)?.cost())
}

/// Returns the FLOPs by the convention of Table 4 of the class-centric paper (Liu et al. 2023): `8 * (MACs +
/// 2 * batch-norm outputs)` at 224 x 224. The convention is inferred; it reproduces all digits of the three
/// published values.
pub fn table4_flops(cost: &Cost) -> u64 {
    8 * (cost.macs + 2 * cost.batch_norm_outputs)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use stillhouse_core::Tape;

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
            assert!((table4_flops(&counts) as f64 - flops).abs() < 0.5e6, "{name}");
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
