//! What is timed.

use anyhow::Context;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Cross-entropy, backward, SGD.
    Train,
    /// A frozen network, forward only.
    Frozen,
    /// A frozen ResNet50, or DeepLabV3+ on it, teaches by this method of the registry, with
    /// cross-entropy.
    Distil(&'static str),
    /// MKSMT's two training steps of a batch on the network with two exits.
    TwoSteps,
    /// JPEG files to batches: decoded, cut at random, resized, mirrored, normalized. `network` is
    /// the folder of the files, named by their size.
    Load,
}

/// One step on images of one size.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) network: &'static str,
    pub(crate) work: Work,
    pub(crate) batch: usize,
    pub(crate) size: usize,
}

const fn case(name: &'static str, network: &'static str, work: Work, batch: usize, size: usize) -> Case {
    Case { name, network, work, batch, size }
}

/// All cases, in the order of the table.
pub(crate) const CASES: &[Case] = &[
    case("resnet18-train-64", "resnet18", Work::Train, 16, 64),
    case("resnet18-train-224", "resnet18", Work::Train, 8, 224),
    case("mobilenetv2-train-64", "mobilenetv2_100", Work::Train, 16, 64),
    case("mobilenetv2-train-224", "mobilenetv2_100", Work::Train, 8, 224),
    case("resnet50-train-64", "resnet50", Work::Train, 16, 64),
    case("resnet50-train-224", "resnet50", Work::Train, 8, 224),
    case("vgg16-train-64", "vgg16", Work::Train, 8, 64),
    case("vgg16-train-224", "vgg16", Work::Train, 2, 224),
    case("swin-train-224", "swin_tiny_patch4_window7_224", Work::Train, 2, 224),
    case("mksmt-train-224", "swin_tiny_patch4_window7_224", Work::TwoSteps, 8, 224),
    case("deeplab-train-256", "deeplabv3plus", Work::Train, 2, 256),
    case("resnet50-frozen-224", "resnet50", Work::Frozen, 8, 224),
    case("resnet18-frozen-224", "resnet18", Work::Frozen, 8, 224),
    case("mobilenetv2-frozen-224", "mobilenetv2_100", Work::Frozen, 8, 224),
    case("kd-resnet18-64", "resnet18", Work::Distil("kd"), 16, 64),
    case("kd-resnet18-224", "resnet18", Work::Distil("kd"), 8, 224),
    case("center-resnet18-64", "resnet18", Work::Distil("class_centric"), 16, 64),
    case("center-resnet18-224", "resnet18", Work::Distil("class_centric"), 8, 224),
    case("kd-mobilenetv2-64", "mobilenetv2_100", Work::Distil("kd"), 16, 64),
    case("center-mobilenetv2-64", "mobilenetv2_100", Work::Distil("class_centric"), 16, 64),
    case("cd-deeplab-256", "deeplabv3plus", Work::Distil("cd"), 4, 256),
    case("loader-256x256", "256x256", Work::Load, 32, 224),
    case("loader-500x375", "500x375", Work::Load, 32, 224),
];

/// All cases of a card.
pub(crate) const CARD_CASES: &[Case] = &[
    case("resnet18-train-224-b64", "resnet18", Work::Train, 64, 224),
    case("resnet18-train-224-b256", "resnet18", Work::Train, 256, 224),
    case("resnet50-train-224-b64", "resnet50", Work::Train, 64, 224),
    case("resnet50-train-224-b256", "resnet50", Work::Train, 256, 224),
    case("mobilenetv2-train-224-b64", "mobilenetv2_100", Work::Train, 64, 224),
    case("mobilenetv2-train-224-b256", "mobilenetv2_100", Work::Train, 256, 224),
    case("vgg16-train-224-b64", "vgg16", Work::Train, 64, 224),
    case("vgg16-train-224-b256", "vgg16", Work::Train, 256, 224),
    case("resnet50-frozen-224-b64", "resnet50", Work::Frozen, 64, 224),
    case("resnet50-frozen-224-b256", "resnet50", Work::Frozen, 256, 224),
    case("kd-resnet18-224-b64", "resnet18", Work::Distil("kd"), 64, 224),
    case("kd-resnet18-224-b256", "resnet18", Work::Distil("kd"), 256, 224),
    case("center-resnet18-224-b64", "resnet18", Work::Distil("class_centric"), 64, 224),
    case("center-resnet18-224-b256", "resnet18", Work::Distil("class_centric"), 256, 224),
];

/// The case of this name, of the processor or of a card.
pub(crate) fn find(name: &str) -> anyhow::Result<&'static Case> {
    let all = CASES.iter().chain(CARD_CASES);
    all.into_iter().find(|case| case.name == name).with_context(|| format!("no case `{name}`"))
}

impl Case {
    /// Whether every pixel has a class.
    pub(crate) fn is_dense(&self) -> bool {
        self.network == "deeplabv3plus"
    }

    /// In words.
    pub(crate) fn what(&self) -> String {
        let work = match self.work {
            Work::Train => "training step".to_string(),
            Work::Frozen => "frozen, forward only".to_string(),
            Work::Distil(method) if self.is_dense() => {
                format!("on ResNet18, the same on ResNet50, frozen, teaches by {method}")
            }
            Work::Distil(method) => format!("frozen ResNet50 teaches by {method}"),
            Work::TwoSteps => "with two exits, MKSMT's two training steps".to_string(),
            Work::Load => format!("JPEG files to {} batches", crate::load::BATCHES),
        };
        format!("{} {work}, batch {} at {} px", self.network, self.batch, self.size)
    }
}
