//! Names of other collections, brought to timm's.
//!
//! A form is a way to name the parameters of one family. Which one a file has is found by trying:
//! the form that names most of a network's parameters is the file's.

/// What a tensor of a file is in timm's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renamed {
    /// timm's name.
    pub(crate) name: String,
    /// Which of three equal parts along the first dimension it is (queries, keys, values).
    pub(crate) part: Option<usize>,
}

impl Renamed {
    fn whole(name: impl ToString) -> Option<Self> {
        Some(Self { name: name.to_string(), part: None })
    }
}

/// A way to name parameters.
pub(crate) struct Form {
    /// Whose names they are.
    pub(crate) name: &'static str,
    /// timm's name of a tensor; none for one that is not of this form.
    pub(crate) rename: fn(&str) -> Option<Renamed>,
    /// Added to every running variance: what the form's epsilon has more than 1e-5, so that the
    /// evaluation stays the same.
    pub(crate) variance: f64,
}

const fn form(name: &'static str, rename: fn(&str) -> Option<Renamed>) -> Form {
    Form { name, rename, variance: 0.0 }
}

/// All forms; timm's own first.
pub(crate) const FORMS: &[Form] = &[
    form("timm", |name| Renamed::whole(name)),
    form("Swin Transformers of its authors and of timm before 0.9", swin_authors),
    form("torchvision's VGG", torchvision_vgg),
    form("torchvision's MobileNetV2", torchvision_mobilenet),
    form("torchvision's Swin Transformer", torchvision_swin),
    form("Hugging Face's ResNet", hub_resnet),
    Form { name: "Hugging Face's MobileNetV2", rename: hub_mobilenet, variance: 1e-3 - 1e-5 },
    form("Hugging Face's Swin Transformer", hub_swin),
];

/// Tensors that are no parameters: counters, and tables that a network computes by itself.
pub(crate) fn is_derived(name: &str) -> bool {
    ["num_batches_tracked", "relative_position_index", "attn_mask"].iter().any(|end| name.ends_with(end))
}

/// `prefix<number>.rest`: the number and the rest.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// Patch merging stands at the end of a stage, the classifier is `head`.
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

/// The large layers are linear.
fn torchvision_vgg(name: &str) -> Option<Renamed> {
    let Some((place, rest)) = numbered(name, "classifier.") else {
        return numbered(name, "features.").and_then(|_| Renamed::whole(name));
    };
    let to = match place {
        0 => "pre_logits.fc1",
        3 => "pre_logits.fc2",
        6 => "head.fc",
        _ => return None,
    };
    Renamed::whole(format!("{to}.{rest}"))
}

/// timm's place of the inverted residual block `i`, from 0.
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
    let (place, rest) = numbered(name, "features.")?;
    let layer = |rest: &str, names: &[(&str, &str)]| {
        names.iter().find_map(|(from, to)| {
            let rest = rest.strip_prefix(from)?.strip_prefix('.')?;
            Some(format!("{to}.{rest}"))
        })
    };
    match place {
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
            let block = mobilenet_block(place - 1)?;
            Renamed::whole(format!("{block}.{}", layer(rest.strip_prefix("conv.")?, &names)?))
        }
    }
}

/// Stages and patch mergings are numbered one after the other.
fn torchvision_swin(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("head.") {
        return Renamed::whole(format!("head.fc.{rest}"));
    }
    if name.starts_with("norm.") {
        return Renamed::whole(name);
    }
    let (place, rest) = numbered(name, "features.")?;
    if place == 0 {
        let (layer, rest) = rest.split_once('.')?;
        return match layer {
            "0" => Renamed::whole(format!("patch_embed.proj.{rest}")),
            "2" => Renamed::whole(format!("patch_embed.norm.{rest}")),
            _ => None,
        };
    }
    let stage = place / 2;
    if place % 2 == 0 {
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
    let below = name.strip_prefix("resnet.")?;
    if let Some(rest) = below.strip_prefix("embedder.embedder.") {
        return Renamed::whole(conv_or_norm(rest, "conv1", "bn1")?);
    }
    let (stage, rest) = numbered(below, "encoder.stages.")?;
    let (block, rest) = numbered(rest, "layers.")?;
    let layer = match rest.strip_prefix("shortcut.") {
        Some(rest) => conv_or_norm(rest, "downsample.0", "downsample.1")?,
        None => {
            let (place, rest) = numbered(rest, "layer.")?;
            conv_or_norm(rest, &format!("conv{}", place + 1), &format!("bn{}", place + 1))?
        }
    };
    Renamed::whole(format!("layer{}.{block}.{layer}", stage + 1))
}

fn hub_mobilenet(name: &str) -> Option<Renamed> {
    if name.starts_with("classifier.") {
        return Renamed::whole(name);
    }
    let below = name.strip_prefix("mobilenet_v2.")?;
    let layer = |rest: &str, names: &[(&str, &str, &str)]| {
        names.iter().find_map(|(from, conv, norm)| {
            let rest = rest.strip_prefix(from)?;
            let conv = rest.strip_prefix(".convolution.").map(|rest| format!("{conv}.{rest}"));
            conv.or_else(|| Some(format!("{norm}.{}", rest.strip_prefix(".normalization.")?)))
        })
    };
    if below.starts_with("conv_1x1.") {
        return Renamed::whole(layer(below, &[("conv_1x1", "conv_head", "bn2")])?);
    }
    if let Some(rest) = below.strip_prefix("conv_stem.") {
        let names = [
            ("first_conv", "conv_stem", "bn1"),
            ("conv_3x3", "blocks.0.0.conv_dw", "blocks.0.0.bn1"),
            ("reduce_1x1", "blocks.0.0.conv_pw", "blocks.0.0.bn2"),
        ];
        return Renamed::whole(layer(rest, &names)?);
    }
    let (place, rest) = numbered(below, "layer.")?;
    let names =
        [("expand_1x1", "conv_pw", "bn1"), ("conv_3x3", "conv_dw", "bn2"), ("reduce_1x1", "conv_pwl", "bn3")];
    Renamed::whole(format!("{}.{}", mobilenet_block(place + 1)?, layer(rest, &names)?))
}

fn hub_swin(name: &str) -> Option<Renamed> {
    if let Some(rest) = name.strip_prefix("classifier.") {
        return Renamed::whole(format!("head.fc.{rest}"));
    }
    let below = name.strip_prefix("swin.")?;
    for (from, to) in [
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("embeddings.norm.", "patch_embed.norm."),
        ("layernorm.", "norm."),
    ] {
        if let Some(rest) = below.strip_prefix(from) {
            return Renamed::whole(format!("{to}{rest}"));
        }
    }
    let (stage, rest) = numbered(below, "encoder.layers.")?;
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

    /// One name of each kind; whole lists of names are compared with those of the collections by the
    /// test that needs Python.
    #[test]
    fn names_of_each_form() {
        for (form, from, to) in [
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
            let form = FORMS.iter().find(|f| f.name.starts_with(form)).unwrap();
            let renamed = (form.rename)(from).unwrap();
            assert_eq!((renamed.name.as_str(), renamed.part), (to, None), "{}: {from}", form.name);
        }
        let key = hub_swin("swin.encoder.layers.0.blocks.1.attention.self.key.bias").unwrap();
        assert_eq!((key.name.as_str(), key.part), ("layers.0.blocks.1.attn.qkv.bias", Some(1)));
        assert_eq!(torchvision_mobilenet("features.0"), None);
        assert_eq!(torchvision_mobilenet("features.19.conv.3.bias"), None);
        assert_eq!(hub_mobilenet("mobilenet_v2.layer.99.conv_3x3.convolution.weight"), None);
    }
}
