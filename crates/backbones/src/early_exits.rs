//! Models with early exits, for self-distillation.
//!
//! `mksmt`: *paper* Yu, Wei, Tang, Qian, "Multi-Stage Training with Multi-Level Knowledge
//! Self-Distillation for Fine-Grained Image Recognition", Journal of Computer Research and
//! Development 60(8), 2023, DOI 10.7544/issn1000-1239.202330262: two exits, at the third and the
//! fourth stage. The paper's output-processing module (OPM) maps a stage of any width to a vector of
//! length K, followed by the output layer. The figure of the module is not available, so several forms
//! (`Opm`) are offered. `logits` are those of the fourth stage, which the paper uses for inference. With
//! `at = [2, 3]` there is an exit at the second stage too, for the paper's training in three phases.
//!
//! `exits`: early exits at any stages of a backbone, and one at the last: *paper* Zhang et al., "Be
//! Your Own Teacher", ICCV 2019, DOI 10.1109/ICCV.2019.00381. An exit of kind `linear` is global average
//! pooling and a linear layer; `conv` first reduces the map to the size and channels of the last stage
//! by 3x3 convolutions of stride 2 with batch norm and ReLU; `opm` is MKSMT's module.
//!
//! *Features*: the backbone's (`F1`..); for an exit at `F<i>`, `exit<i>.feat`, the vector before its
//! output layer, and `exit<i>.logits`; `embedding` and `logits` of the last exit.
//!
//! *Names*: timm's below `backbone.`; `opm<i>.norm`, `opm<i>.fc`, `opm<i>.bn`, `out<i>`; for convolutions
//! `exit<i>.conv<j>` and `exit<i>.bn<j>`.

use candle_core::Tensor;
use serde::Deserialize;
use stillhouse_core::config::from_table;
use stillhouse_core::model::{FeatureInfo, Features, Model, ModelBuild, ModelSpec};
use stillhouse_core::registry::Entry;
use stillhouse_core::{Error, ParamBuilder, Result, Tape};
use stillhouse_ops::{Activation, ConvBnAct, ConvSpec, Init, LayerNorm, Linear, Node};

use crate::backbone::{Backbone, build_backbone, split_variant};
use crate::{check_classes, conv};

/// Both entries.
pub(crate) const ENTRIES: &[Entry<ModelBuild>] = &[
    Entry {
        name: "mksmt",
        summary: "a backbone with an exit at its third and one at its fourth stage",
        source: "Yu et al. 2023, Multi-Stage Training with Multi-Level Knowledge Self-Distillation, section 2",
        defaults: mksmt_defaults,
        build,
    },
    Entry {
        name: "exits",
        summary: "a backbone with an exit at its last stage and early ones at any others",
        source: "Zhang et al. 2019, Be Your Own Teacher, section 3",
        defaults: exits_defaults,
        build,
    },
];

fn mksmt_defaults() -> String {
    "backbone = \"swin_large_patch4_window12_384\"  # Yu et al. 2023, section 3\n\
     k = 896  # ours: meets the paper's 1.1 % more parameters\n\
     at = [3]  # Yu et al. 2023: early exits; [2, 3] for three phases\n\
     opm = \"ln_pool_linear_gelu\"  # ours, the paper's figure is not available; \"ln_pool_linear_bn_elu\", \"ln_pool_linear\"\n"
        .into()
}

fn exits_defaults() -> String {
    "backbone = \"resnet18\"  # Zhang et al. 2019\n\
     at = [1, 2, 3]  # Zhang et al. 2019: after every stage\n\
     kind = \"conv\"  # Zhang et al. 2019: convolutions to the size of the last stage; \"linear\", \"opm\"\n\
     k = 256  # ours: length of the vectors of \"opm\"\n\
     opm = \"ln_pool_linear_gelu\"  # ours, for the kind \"opm\"; \"ln_pool_linear_bn_elu\", \"ln_pool_linear\"\n"
        .into()
}

fn build(request: &ModelSpec, p: &ParamBuilder) -> Result<Box<dyn Model>> {
    Ok(Box::new(EarlyExits::new(request, p)?))
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Linear,
    Conv,
    Opm,
}

/// Forms of MKSMT's output-processing module: layer norm over the channels, global average pooling, a
/// linear layer, and an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum Opm {
    /// GELU.
    #[default]
    #[serde(rename = "ln_pool_linear_gelu")]
    Gelu,
    /// Batch norm over K and ELU.
    #[serde(rename = "ln_pool_linear_bn_elu")]
    BnElu,
    /// No activation.
    #[serde(rename = "ln_pool_linear")]
    Linear,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    #[serde(default)]
    backbone: Option<String>,
    #[serde(default)]
    at: Option<Vec<usize>>,
    #[serde(default)]
    kind: Option<Kind>,
    #[serde(default)]
    k: Option<usize>,
    #[serde(default)]
    opm: Option<Opm>,
}

const KEYS: [&str; 5] = ["backbone", "at", "kind", "k", "opm"];

/// Layers of an exit before its output layer.
#[derive(Debug)]
enum Module {
    /// Global average pooling.
    Mean,
    /// Convolutions of stride 2, then global average pooling.
    Convs(Vec<ConvBnAct>),
    /// Layer norm, global average pooling, linear layer, and the activation of the form.
    Opm(Opm, LayerNorm, Linear),
}

/// One exit.
#[derive(Debug)]
struct Exit {
    /// Index of its stage, from 0.
    stage: usize,
    feat: String,
    logits: String,
    module: Module,
    out: Linear,
}

impl Exit {
    /// Returns the vector before the output layer, and the logits.
    fn forward(&self, x: &Node, tape: &mut Tape) -> Result<(Node, Node)> {
        let feat = match &self.module {
            Module::Mean => tape.global_avg_pool(x)?,
            Module::Convs(convs) => {
                let mut x = x.clone();
                for conv in convs {
                    x = conv.forward(&x, tape)?;
                }
                tape.global_avg_pool(&x)?
            }
            Module::Opm(form, norm, fc) => {
                let x = norm.forward(x, tape)?;
                let x = tape.global_avg_pool(&x)?;
                let x = fc.forward(&x, tape)?;
                match form {
                    Opm::Gelu => tape.gelu(&x)?,
                    Opm::BnElu => tape.elu(&x)?,
                    Opm::Linear => x,
                }
            }
        };
        tape.mark_feature(&self.feat, &feat)?;
        let logits = self.out.forward(&feat, tape)?;
        tape.mark_feature(&self.logits, &logits)?;
        Ok((feat, logits))
    }
}

/// A backbone with exits. The last exit is at the last stage.
#[derive(Debug)]
pub struct EarlyExits {
    name: String,
    features: Vec<FeatureInfo>,
    classes: usize,
    backbone: Box<dyn Backbone>,
    exits: Vec<Exit>,
    head: Vec<String>,
}

impl EarlyExits {
    /// Builds the model with its parameters under the prefix of `p`.
    ///
    /// # Errors
    /// An invalid variant (a stage that the backbone does not have), no classes, or duplicate parameter
    /// names.
    pub fn new(request: &ModelSpec, p: &ParamBuilder) -> Result<Self> {
        let name = request.name.clone();
        check_classes(request)?;
        let (own, inner) = split_variant(&request.variant, &KEYS);
        let Variant { backbone, at, kind, k, opm } = from_table(&own, &format!("variant of {name}"))?;
        let mksmt = name == "mksmt";
        if mksmt && kind.is_some() {
            return Err(Error::incompatible(
                &name,
                "unexpected key `kind`: its exits are always of the kind \"opm\"; use the model `exits`",
            ));
        }
        let default = if mksmt { "swin_large_patch4_window12_384" } else { "resnet18" };
        let kind = kind.unwrap_or(if mksmt { Kind::Opm } else { Kind::Conv });
        let k = k.unwrap_or(if mksmt { 896 } else { 256 });
        if k == 0 {
            return Err(Error::incompatible(&name, "invalid k: expected at least 1, found 0"));
        }
        let form = opm.unwrap_or_default();
        if kind != Kind::Opm && form != Opm::default() {
            return Err(Error::incompatible(&name, "unexpected key `opm`: it requires kind = \"opm\""));
        }
        let backbone_name = backbone.unwrap_or_else(|| default.to_string());
        let inner = ModelSpec { name: backbone_name, classes: request.classes, variant: inner };
        let backbone = build_backbone(&inner, &p.pp("backbone"))?;
        let stages = backbone.stages();
        let mut at = at.unwrap_or_else(|| if mksmt { vec![3] } else { (1..stages.len()).collect() });
        let too_deep = at.iter().find(|i| **i == 0 || **i >= stages.len());
        if mksmt && stages.len() != 4 || too_deep.is_some() || !at.is_sorted_by(|a, b| a < b) {
            let found = format!(
                "invalid `at`: expected stages 1 to {} of {} in ascending order, found {at:?}",
                stages.len().saturating_sub(1),
                inner.name
            );
            return Err(Error::incompatible(&name, found));
        }
        at.push(stages.len());
        let mut features = backbone.features().to_vec();
        let mut exits = Vec::new();
        for i in at {
            let exit = exit((kind, form, k), i, &stages, request.classes, p)?;
            features.push(FeatureInfo::vector(&exit.feat, exit.out.inputs()));
            features.push(FeatureInfo::vector(&exit.logits, request.classes));
            exits.push(exit);
        }
        if let Some(last) = exits.last() {
            features.push(FeatureInfo::vector("embedding", last.out.inputs()));
        }
        features.push(FeatureInfo::vector("logits", request.classes));
        let outs = exits.iter().map(|e| format!("out{}", e.stage + 1));
        let head =
            outs.flat_map(|o| [p.full(&format!("{o}.weight")), p.full(&format!("{o}.bias"))]).collect();
        Ok(Self { name, features, classes: request.classes, backbone, exits, head })
    }
}

/// Builds the exit at stage `i`, from 1. The last stage needs no convolutions.
fn exit(
    (kind, form, k): (Kind, Opm, usize),
    i: usize,
    stages: &[FeatureInfo],
    classes: usize,
    p: &ParamBuilder,
) -> Result<Exit> {
    let channels = stages[i - 1].channels;
    let (module, inputs) = match kind {
        Kind::Linear => (Module::Mean, channels),
        Kind::Conv if i == stages.len() => (Module::Mean, channels),
        Kind::Conv => {
            let (mut convs, mut inputs) = (Vec::new(), channels);
            let at = p.pp(format!("exit{i}"));
            for (j, pair) in stages[i - 1..].windows(2).enumerate() {
                let stride = pair[1].stride / pair[0].stride;
                let spec = ConvSpec::new(inputs, pair[1].channels, 3).stride(stride);
                convs.push(conv(
                    spec,
                    &format!("conv{}", j + 1),
                    &format!("bn{}", j + 1),
                    Activation::Relu,
                    &at,
                )?);
                inputs = pair[1].channels;
            }
            (Module::Convs(convs), inputs)
        }
        Kind::Opm => {
            let at = p.pp(format!("opm{i}"));
            let init = Init::fan_in_uniform(channels);
            let norm = LayerNorm::new(channels, "norm", &at)?;
            let fc = match form {
                Opm::BnElu => Linear::with_bn(channels, k, ("fc", "bn"), (init, init), &at)?,
                Opm::Gelu | Opm::Linear => Linear::new(channels, k, "fc", init, Some(init), &at)?,
            };
            (Module::Opm(form, norm, fc), k)
        }
    };
    let init = Init::fan_in_uniform(inputs);
    let out = Linear::new(inputs, classes, &format!("out{i}"), init, Some(init), p)?;
    let (feat, logits) = (format!("exit{i}.feat"), format!("exit{i}.logits"));
    Ok(Exit { stage: i - 1, feat, logits, module, out })
}

impl Model for EarlyExits {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> &[FeatureInfo] {
        &self.features
    }

    fn classes(&self) -> usize {
        self.classes
    }

    /// Stages and exits after the last selected feature do not run.
    fn forward(&self, images: &Tensor, tape: &mut Tape) -> Result<Features> {
        let deepest = |exit: &&Exit| tape.selects(&exit.feat) || tape.selects(&exit.logits);
        let mut depth = self.exits.iter().filter(deepest).map(|exit| exit.stage + 1).max().unwrap_or(0);
        for (i, stage) in self.backbone.stages().iter().enumerate() {
            let inside =
                |feature: &FeatureInfo| feature.name.starts_with(&stage.name) && tape.selects(&feature.name);
            if self.backbone.features().iter().any(inside) {
                depth = depth.max(i + 1);
            }
        }
        if tape.selects("logits") || tape.selects("embedding") {
            depth = usize::MAX;
        }
        let count = self.backbone.stages().len();
        let wanted =
            |exit: &&Exit| tape.selects(&exit.feat) || tape.selects(&exit.logits) || exit.stage + 1 == count;
        let exits: Vec<&Exit> = self.exits.iter().filter(wanted).collect();
        let mut maps = vec![None; count];
        self.backbone.forward(images, depth, tape, &mut |stage, map| {
            if exits.iter().any(|exit| exit.stage == stage) {
                maps[stage] = Some(map.clone());
            }
        })?;
        for exit in exits {
            if let Some(map) = &maps[exit.stage] {
                let (feat, logits) = exit.forward(map, tape)?;
                if exit.stage + 1 == count {
                    tape.mark_feature("embedding", &feat)?;
                    tape.mark_feature("logits", &logits)?;
                }
            }
        }
        Ok(tape.outputs()?.into_iter().collect())
    }

    fn head(&self) -> Vec<String> {
        self.head.clone()
    }
}
