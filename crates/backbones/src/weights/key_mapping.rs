//! Parameter names of other collections, mapped to timm's.
//!
//! The naming scheme of a file is the one that maps most of its tensors to parameters of the model. The
//! Hub's models without a head have no prefix (`resnet.`).

use std::borrow::Cow;

/// A tensor of a file in timm's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renamed {
    /// timm's name.
    pub(crate) name: String,
    /// Index of the part along the first dimension, of queries, keys and values.
    pub(crate) part: Option<usize>,
}

impl Renamed {
    fn whole(name: impl ToString) -> Option<Self> {
        Some(Self { name: name.to_string(), part: None })
    }
}

/// Parameter names of a collection.
pub(crate) struct NamingScheme {
    /// Name of the collection.
    pub(crate) name: &'static str,
    /// Maps a tensor name to timm's; `None` if the name is not of this scheme.
    pub(crate) rename: fn(&str) -> Option<Renamed>,
    /// Added to each running variance, for schemes whose epsilon is not 1e-5, to compute the same
    /// function.
    pub(crate) variance: f64,
}

const fn scheme(name: &'static str, rename: fn(&str) -> Option<Renamed>) -> NamingScheme {
    NamingScheme { name, rename, variance: 0.0 }
}

/// All naming schemes, timm's first.
pub(crate) const SCHEMES: &[NamingScheme] = &[
    scheme("timm", |name| Renamed::whole(name)),
    scheme("Swin Transformers of its authors and of timm before 0.9", swin_authors),
    scheme("torchvision's VGG", torchvision_vgg),
    scheme("torchvision's MobileNetV2", torchvision_mobilenet),
    scheme("torchvision's Swin Transformer", torchvision_swin),
    scheme("Hugging Face's ResNet", hub_resnet),
    NamingScheme { name: "Hugging Face's MobileNetV2", rename: hub_mobilenet, variance: 1e-3 - 1e-5 },
    scheme("Hugging Face's Swin Transformer", hub_swin),
];

/// Returns whether a tensor is not a parameter: counters and tables that the model computes.
pub(crate) fn is_derived(name: &str) -> bool {
    ["num_batches_tracked", "relative_position_index", "attn_mask"].iter().any(|end| name.ends_with(end))
}

/// Components that wrappers add to names, wherever they wrap a layer: `torch.compile`, FSDP, activation
/// checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Removes the components of wrappers from a name.
pub(crate) fn without_wrappers(name: &str) -> Cow<'_, str> {
    let is_wrapper = |part: &&str| WRAPPERS.contains(part);
    match name.split('.').any(|part| is_wrapper(&part)) {
        true => name.split('.').filter(|part| !is_wrapper(part)).collect::<Vec<_>>().join(".").into(),
        false => name.into(),
    }
}

/// Splits `prefix<number>.rest` into the number and the rest.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// Patch merging is at the end of a stage; the classifier is `head`.
fn swin_authors(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("head.").filter(|rest| !rest.starts_with("fc.")) {
        return Renamed::whole(format!("head.fc.{rest}"));
    }
    match numbered(name, "layers.") {
        Some((stage, rest)) if rest.starts_with("downsample.") => {
            Renamed::whole(format!("layers.{}.{rest}", stage + 1))
        }
        _ => Renamed::whole(name),
    }
}

/// The large layers are linear, not convolutions.
fn torchvision_vgg(name: &str) -> Option<Renamed> {
    let Some((index, rest)) = numbered(name, "classifier.") else {
        return numbered(name, "features.").and_then(|_| Renamed::whole(name));
    };
    let to = match index {
        0 => "pre_logits.fc1",
        3 => "pre_logits.fc2",
        6 => "head.fc",
        _ => return None,
    };
    Renamed::whole(format!("{to}.{rest}"))
}

/// Returns timm's name of the inverted residual block `i`, from 0.
fn mobilenet_block(i: usize) -> Option<String> {
    let mut left = i;
    for (group, count) in [1, 2, 3, 4, 3, 3, 1].into_iter().enumerate() {
        if left < count {
            return Some(format!("blocks.{group}.{left}"));
        }
        left -= count;
    }
    None
}

fn torchvision_mobilenet(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("classifier.1.") {
        return Renamed::whole(format!("classifier.{rest}"));
    }
    let (index, rest) = numbered(name, "features.")?;
    let layer = |rest: &str, names: &[(&str, &str)]| {
        names.iter().find_map(|(from, to)| {
            let rest = rest.strip_prefix(from)?.strip_prefix('.')?;
            Some(format!("{to}.{rest}"))
        })
    };
    match index {
        0 => Renamed::whole(layer(rest, &[("0", "conv_stem"), ("1", "bn1")])?),
        18 => Renamed::whole(layer(rest, &[("0", "conv_head"), ("1", "bn2")])?),
        1 => {
            let names = [("0.0", "conv_dw"), ("0.1", "bn1"), ("1", "conv_pw"), ("2", "bn2")];
            Renamed::whole(format!("blocks.0.0.{}", layer(rest.strip_prefix("conv.")?, &names)?))
        }
        _ => {
            let names = [
                ("0.0", "conv_pw"),
                ("0.1", "bn1"),
                ("1.0", "conv_dw"),
                ("1.1", "bn2"),
                ("2", "conv_pwl"),
                ("3", "bn3"),
            ];
            let block = mobilenet_block(index - 1)?;
            Renamed::whole(format!("{block}.{}", layer(rest.strip_prefix("conv.")?, &names)?))
        }
    }
}

/// Stages and patch mergings are numbered consecutively.
fn torchvision_swin(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("head.") {
        return Renamed::whole(format!("head.fc.{rest}"));
    }
    if name.starts_with("norm.") {
        return Renamed::whole(name);
    }
    let (index, rest) = numbered(name, "features.")?;
    if index == 0 {
        let (layer, rest) = rest.split_once('.')?;
        return match layer {
            "0" => Renamed::whole(format!("patch_embed.proj.{rest}")),
            "2" => Renamed::whole(format!("patch_embed.norm.{rest}")),
            _ => None,
        };
    }
    let stage = index / 2;
    if index % 2 == 0 {
        return Renamed::whole(format!("layers.{stage}.downsample.{rest}"));
    }
    let (block, rest) = rest.split_once('.')?;
    let rest = match rest.split_once("mlp.") {
        Some(("", mlp)) => match mlp.split_once('.')? {
            ("0", rest) => format!("mlp.fc1.{rest}"),
            ("3", rest) => format!("mlp.fc2.{rest}"),
            _ => return None,
        },
        _ => rest.to_string(),
    };
    Renamed::whole(format!("layers.{stage}.blocks.{block}.{rest}"))
}

fn hub_resnet(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("classifier.1.") {
        return Renamed::whole(format!("fc.{rest}"));
    }
    let conv_or_norm = |rest: &str, conv: &str, norm: &str| {
        let conv = rest.strip_prefix("convolution.").map(|rest| format!("{conv}.{rest}"));
        conv.or_else(|| Some(format!("{norm}.{}", rest.strip_prefix("normalization.")?)))
    };
    let inner = name.strip_prefix("resnet.").unwrap_or(name);
    if let Some(rest) = inner.strip_prefix("embedder.embedder.") {
        return Renamed::whole(conv_or_norm(rest, "conv1", "bn1")?);
    }
    let (stage, rest) = numbered(inner, "encoder.stages.")?;
    let (block, rest) = numbered(rest, "layers.")?;
    let layer = match rest.strip_prefix("shortcut.") {
        Some(rest) => conv_or_norm(rest, "downsample.0", "downsample.1")?,
        None => {
            let (index, rest) = numbered(rest, "layer.")?;
            conv_or_norm(rest, &format!("conv{}", index + 1), &format!("bn{}", index + 1))?
        }
    };
    Renamed::whole(format!("layer{}.{block}.{layer}", stage + 1))
}

fn hub_mobilenet(name: &str) -> Option<Renamed> {
    if name.starts_with("classifier.") {
        return Renamed::whole(name);
    }
    let inner = name.strip_prefix("mobilenet_v2.").unwrap_or(name);
    let layer = |rest: &str, names: &[(&str, &str, &str)]| {
        names.iter().find_map(|(from, conv, norm)| {
            let rest = rest.strip_prefix(from)?;
            let conv = rest.strip_prefix(".convolution.").map(|rest| format!("{conv}.{rest}"));
            conv.or_else(|| Some(format!("{norm}.{}", rest.strip_prefix(".normalization.")?)))
        })
    };
    if inner.starts_with("conv_1x1.") {
        return Renamed::whole(layer(inner, &[("conv_1x1", "conv_head", "bn2")])?);
    }
    if let Some(rest) = inner.strip_prefix("conv_stem.") {
        let names = [
            ("first_conv", "conv_stem", "bn1"),
            ("conv_3x3", "blocks.0.0.conv_dw", "blocks.0.0.bn1"),
            ("reduce_1x1", "blocks.0.0.conv_pw", "blocks.0.0.bn2"),
        ];
        return Renamed::whole(layer(rest, &names)?);
    }
    let (index, rest) = numbered(inner, "layer.")?;
    let names =
        [("expand_1x1", "conv_pw", "bn1"), ("conv_3x3", "conv_dw", "bn2"), ("reduce_1x1", "conv_pwl", "bn3")];
    Renamed::whole(format!("{}.{}", mobilenet_block(index + 1)?, layer(rest, &names)?))
}

fn hub_swin(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("classifier.") {
        return Renamed::whole(format!("head.fc.{rest}"));
    }
    let inner = name.strip_prefix("swin.").unwrap_or(name);
    for (from, to) in [
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("embeddings.norm.", "patch_embed.norm."),
        ("layernorm.", "norm."),
    ] {
        if let Some(rest) = inner.strip_prefix(from) {
            return Renamed::whole(format!("{to}{rest}"));
        }
    }
    let (stage, rest) = numbered(inner, "encoder.layers.")?;
    if rest.starts_with("downsample.") {
        return Renamed::whole(format!("layers.{}.{rest}", stage + 1));
    }
    let (block, rest) = numbered(rest, "blocks.")?;
    let at = format!("layers.{stage}.blocks.{block}");
    for (from, to, part) in [
        ("attention.self.query.", "attn.qkv.", Some(0)),
        ("attention.self.key.", "attn.qkv.", Some(1)),
        ("attention.self.value.", "attn.qkv.", Some(2)),
        ("attention.self.", "attn.", None),
        ("attention.output.dense.", "attn.proj.", None),
        ("layernorm_before.", "norm1.", None),
        ("layernorm_after.", "norm2.", None),
        ("intermediate.dense.", "mlp.fc1.", None),
        ("output.dense.", "mlp.fc2.", None),
    ] {
        if let Some(rest) = rest.strip_prefix(from) {
            return Some(Renamed { name: format!("{at}.{to}{rest}"), part });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One name of each kind; the tests with Python compare complete files.
    #[test]
    fn maps_names_of_each_scheme() {
        for (scheme, from, to) in [
            ("Swin Transformers of", "layers.0.downsample.norm.bias", "layers.1.downsample.norm.bias"),
            ("Swin Transformers of", "head.weight", "head.fc.weight"),
            ("torchvision's VGG", "classifier.3.bias", "pre_logits.fc2.bias"),
            ("torchvision's VGG", "features.28.weight", "features.28.weight"),
            ("torchvision's MobileNetV2", "features.1.conv.1.weight", "blocks.0.0.conv_pw.weight"),
            ("torchvision's MobileNetV2", "features.17.conv.3.bias", "blocks.6.0.bn3.bias"),
            ("torchvision's MobileNetV2", "features.18.1.running_var", "bn2.running_var"),
            ("torchvision's Swin", "features.5.3.mlp.3.bias", "layers.2.blocks.3.mlp.fc2.bias"),
            ("torchvision's Swin", "features.4.reduction.weight", "layers.2.downsample.reduction.weight"),
            ("Hugging Face's ResNet", "resnet.embedder.embedder.convolution.weight", "conv1.weight"),
            (
                "Hugging Face's ResNet",
                "resnet.encoder.stages.3.layers.0.shortcut.normalization.bias",
                "layer4.0.downsample.1.bias",
            ),
            (
                "Hugging Face's MobileNetV2",
                "mobilenet_v2.layer.15.reduce_1x1.normalization.weight",
                "blocks.6.0.bn3.weight",
            ),
            (
                "Hugging Face's Swin",
                "swin.encoder.layers.2.blocks.5.attention.self.relative_position_bias_table",
                "layers.2.blocks.5.attn.relative_position_bias_table",
            ),
        ] {
            let scheme = SCHEMES.iter().find(|s| s.name.starts_with(scheme)).unwrap();
            let renamed = (scheme.rename)(from).unwrap();
            assert_eq!((renamed.name.as_str(), renamed.part), (to, None), "{}: {from}", scheme.name);
        }
        let key = hub_swin("swin.encoder.layers.0.blocks.1.attention.self.key.bias").unwrap();
        assert_eq!((key.name.as_str(), key.part), ("layers.0.blocks.1.attn.qkv.bias", Some(1)));
        assert_eq!(torchvision_mobilenet("features.0"), None);
        assert_eq!(torchvision_mobilenet("features.19.conv.3.bias"), None);
        assert_eq!(hub_mobilenet("mobilenet_v2.layer.99.conv_3x3.convolution.weight"), None);
    }
}
