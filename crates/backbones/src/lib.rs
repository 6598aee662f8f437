//! Trainable models with named features, and their weights.
//!
//! A model is one file that reads like its paper: layers with timm's parameter names, and named
//! features. The tape provides the backward pass. A new model is one file, one `mod` line and one line
//! in `FAMILIES`.
//!
//! - [`registry`]: all models by name.
//! - [`weights`]: pretrained files, loading, saving, model cards and ONNX.
//! - [`count`]: parameters, multiply-accumulates, and the FLOPs of the class-centric paper.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod backbone;
pub mod cifar_resnet;
mod cost;
pub mod deeplabv3plus;
pub mod early_exits;
mod error;
mod heads;
pub mod mobilenetv2;
mod output_stride;
pub mod resnet;
pub mod swin;
#[cfg(feature = "transformers")]
mod transformers;
pub mod vgg;
pub mod weights;

pub use cost::{count, table4_flops};
pub use error::Error;

use backbone::Backbone;
use stillhouse_core::model::{ModelBuild, ModelSpec};
use stillhouse_core::registry::{Entry, Registry};
use stillhouse_core::{Error as CoreError, ParamBuilder, Result};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init};

/// All sizes of one architecture.
struct Family {
    /// An entry per size.
    entries: &'static [Entry<ModelBuild>],
    /// Builds a size without its head, for other heads.
    backbone: Option<BuildBackbone>,
    /// Whether only the last layer is trainable.
    frozen: bool,
}

type BuildBackbone = fn(&ModelSpec, &ParamBuilder) -> Result<Box<dyn Backbone>>;

/// All architectures, in listing order.
const FAMILIES: &[Family] = &[
    Family { entries: resnet::ENTRIES, backbone: Some(resnet::backbone), frozen: false },
    Family { entries: mobilenetv2::ENTRIES, backbone: Some(mobilenetv2::backbone), frozen: false },
    Family { entries: vgg::ENTRIES, backbone: Some(vgg::backbone), frozen: false },
    Family { entries: cifar_resnet::ENTRIES, backbone: Some(cifar_resnet::backbone), frozen: false },
    Family { entries: swin::ENTRIES, backbone: Some(swin::backbone), frozen: false },
    Family { entries: early_exits::ENTRIES, backbone: None, frozen: false },
    Family { entries: deeplabv3plus::ENTRIES, backbone: None, frozen: false },
    #[cfg(feature = "transformers")]
    transformers::family(transformers::CONVNEXT),
    #[cfg(feature = "transformers")]
    transformers::family(transformers::EFFICIENTNET),
    #[cfg(feature = "transformers")]
    transformers::family(transformers::VIT),
    #[cfg(feature = "transformers")]
    transformers::family(transformers::DINOV2),
];

/// Returns all models of this crate.
///
/// ```
/// let registry = stillhouse_backbones::registry();
/// assert!(registry.get("resnet50").is_ok());
/// let e = registry.get("resnet5").err().map(|e| e.to_string()).unwrap_or_default();
/// assert!(e.contains("did you mean `resnet50`"));
/// ```
pub fn registry() -> Registry<ModelBuild> {
    let entries: Vec<_> = FAMILIES.iter().flat_map(|family| family.entries).copied().collect();
    Registry::new("model", &entries)
}

/// Returns whether only the last layer of a model is trainable: the models of candle-transformers,
/// with the Cargo feature `transformers`.
///
/// ```
/// assert!(!stillhouse_backbones::is_frozen("resnet18"));
/// ```
pub fn is_frozen(name: &str) -> bool {
    FAMILIES.iter().any(|family| family.frozen && family.entries.iter().any(|entry| entry.name == name))
}

/// Returns the default image size of a model, in pixels. Swin Transformers require `img_size` for any
/// other size.
///
/// ```
/// assert_eq!(stillhouse_backbones::default_image_size("resnet18"), 224);
/// assert_eq!(stillhouse_backbones::default_image_size("swin_base_patch4_window12_384"), 384);
/// ```
pub fn default_image_size(name: &str) -> usize {
    match name {
        "mksmt" => 384,
        _ if name.ends_with("_384") => 384,
        _ if name.starts_with("cifar_") => 32,
        _ if name.ends_with("_dinov2") => 518,
        _ => 224,
    }
}

/// Builds a convolution without bias, batch norm and activation, initialized He-normal over the outputs
/// (He et al. 2015) as in torchvision.
fn conv(spec: ConvSpec, conv: &str, bn: &str, act: Activation, p: &ParamBuilder) -> Result<ConvBnAct> {
    let init = Init::kaiming_fan_out(&[spec.outputs, spec.inputs / spec.groups, spec.kernel, spec.kernel]);
    Ok(ConvBnAct::new(spec, conv, bn, act, init, p)?)
}

/// Variant of a model without options.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoVariant {}

/// Rejects a head without classes.
fn check_classes(request: &ModelSpec) -> Result<()> {
    if request.classes == 0 {
        return Err(CoreError::incompatible(
            &request.name,
            "invalid number of classes: expected at least 1, found 0",
        ));
    }
    Ok(())
}
