//! Trainable networks with named taps, and their weights.
//!
//! A network is one file that reads like its paper: it says which layers there are, in timm's
//! names, and where the taps sit. Backward passes are the tape's business. A new network is one
//! file, one `mod` line and one line in the list of families below.
//!
//! - [`registry`]: the rows by which the rest of the workspace reaches the networks.
//! - [`weights`], [`load_weights`], [`save`]: pretrained files, checked before they are believed.
//! - [`export`], [`onnx`]: a trained network for other programs.
//! - [`count`]: parameters, multiply-accumulates, and the FLOPs of the paper's table.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod backbone;
pub mod cifar_resnet;
mod classifier;
mod count;
pub mod deeplabv3plus;
mod dilate;
mod error;
pub mod exits;
mod export;
mod load;
pub mod mobilenetv2;
mod names;
pub mod onnx;
mod protobuf;
pub mod resnet;
mod save;
pub mod swin;
#[cfg(feature = "transformers")]
mod transformers;
pub mod vgg;
mod weights;
pub mod weights_file;

pub use count::{Counts, count};
pub use error::Error;
pub use export::{Card, export};
pub use load::{Fit, fit, load_weights};
pub use save::{Precision, save, save_as};
pub use weights::{Hub, Manifest, manifests, weights};

use backbone::Backbone;
use count::Work;
use stillhouse_core::model::{ModelBuild, ModelSpec};
use stillhouse_core::registry::{Entry, Registry};
use stillhouse_core::{Error as CoreError, ParamBuilder, Result};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init};

/// The sizes of one architecture.
struct Family {
    /// A row for each size.
    rows: &'static [Entry<ModelBuild>],
    /// Builds a size and counts one forward pass of one image, `(height, width)`.
    work: fn(&ModelSpec, &ParamBuilder, (usize, usize)) -> Result<Work>,
    /// Builds a size without its head, for networks that put another on it.
    body: Option<BuildBody>,
    /// Whether nothing but the last layer learns.
    frozen: bool,
}

type BuildBody = fn(&ModelSpec, &ParamBuilder) -> Result<Box<dyn Backbone>>;

/// Every architecture, in the order of listing.
const FAMILIES: &[Family] = &[
    Family { rows: resnet::ENTRIES, work: resnet::work, body: Some(resnet::body), frozen: false },
    Family {
        rows: mobilenetv2::ENTRIES,
        work: mobilenetv2::work,
        body: Some(mobilenetv2::body),
        frozen: false,
    },
    Family { rows: vgg::ENTRIES, work: vgg::work, body: Some(vgg::body), frozen: false },
    Family {
        rows: cifar_resnet::ENTRIES,
        work: cifar_resnet::work,
        body: Some(cifar_resnet::body),
        frozen: false,
    },
    Family { rows: swin::ENTRIES, work: swin::work, body: Some(swin::body), frozen: false },
    Family { rows: exits::ENTRIES, work: exits::work, body: None, frozen: false },
    Family { rows: deeplabv3plus::ENTRIES, work: deeplabv3plus::work, body: None, frozen: false },
    #[cfg(feature = "transformers")]
    transformers::family(transformers::CONVNEXT),
    #[cfg(feature = "transformers")]
    transformers::family(transformers::EFFICIENTNET),
    #[cfg(feature = "transformers")]
    transformers::family(transformers::VIT),
    #[cfg(feature = "transformers")]
    transformers::family(transformers::DINOV2),
];

/// All networks of this crate by name.
///
/// ```
/// let registry = stillhouse_backbones::registry();
/// assert!(registry.get("resnet50").is_ok());
/// let e = registry.get("resnet5").err().map(|e| e.to_string()).unwrap_or_default();
/// assert!(e.contains("did you mean `resnet50`"));
/// ```
pub fn registry() -> Registry<ModelBuild> {
    let rows: Vec<_> = FAMILIES.iter().flat_map(|family| family.rows).copied().collect();
    Registry::new("backbone", &rows)
}

/// Whether nothing of a network but its last layer learns: candle's own, behind the feature
/// `transformers`.
///
/// ```
/// assert!(!stillhouse_backbones::is_frozen("resnet18"));
/// ```
pub fn is_frozen(name: &str) -> bool {
    FAMILIES.iter().any(|family| family.frozen && family.rows.iter().any(|row| row.name == name))
}

/// Side of the square images that a network is made for, in pixels. Swin Transformers can run on no
/// other without `img_size`.
///
/// ```
/// assert_eq!(stillhouse_backbones::usual_size("resnet18"), 224);
/// assert_eq!(stillhouse_backbones::usual_size("swin_base_patch4_window12_384"), 384);
/// ```
pub fn usual_size(name: &str) -> usize {
    match name {
        "mksmt" => 384,
        _ if name.ends_with("_384") => 384,
        _ if name.starts_with("cifar_") => 32,
        _ if name.ends_with("_dinov2") => 518,
        _ => 224,
    }
}

/// A convolution without bias, batch norm and activation, He-normal over its outputs (He et al.
/// 2015) as torchvision initializes it.
fn conv(spec: ConvSpec, conv: &str, bn: &str, act: Activation, p: &ParamBuilder) -> Result<ConvBnAct> {
    let init = Init::kaiming_fan_out(&[spec.outputs, spec.inputs / spec.groups, spec.kernel, spec.kernel]);
    Ok(ConvBnAct::new(spec, conv, bn, act, init, p)?)
}

/// The variant of a network that has none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoVariant {}

/// A head needs classes.
fn check_classes(request: &ModelSpec) -> Result<()> {
    if request.classes == 0 {
        return Err(CoreError::incompatible(&request.name, "needs at least one class, got 0"));
    }
    Ok(())
}
