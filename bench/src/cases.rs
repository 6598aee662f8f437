//! Benchmark cases.

use anyhow::Context;

/// Work done by a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Cross-entropy, backward, SGD.
    Train,
    /// A frozen network, forward only.
    Frozen,
    /// Cross-entropy and this method of the registry, with a frozen teacher: ResNet50, or DeepLabV3+ on
    /// ResNet50.
    Distill(&'static str),
    /// MKSMT's two training phases of a batch, on the network with two exits.
    TwoPhases,
    /// JPEG files to batches: decoded, randomly cropped, resized, flipped, normalized. `network` is the
    /// folder of the files, named by their size.
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

/// CPU cases, in the order of the table.
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
    case("mksmt-train-224", "swin_tiny_patch4_window7_224", Work::TwoPhases, 8, 224),
    case("deeplab-train-256", "deeplabv3plus", Work::Train, 2, 256),
    case("resnet50-frozen-224", "resnet50", Work::Frozen, 8, 224),
    case("resnet18-frozen-224", "resnet18", Work::Frozen, 8, 224),
    case("mobilenetv2-frozen-224", "mobilenetv2_100", Work::Frozen, 8, 224),
    case("kd-resnet18-64", "resnet18", Work::Distill("kd"), 16, 64),
    case("kd-resnet18-224", "resnet18", Work::Distill("kd"), 8, 224),
    case("class_centric-resnet18-64", "resnet18", Work::Distill("class_centric"), 16, 64),
    case("class_centric-resnet18-224", "resnet18", Work::Distill("class_centric"), 8, 224),
    case("kd-mobilenetv2-64", "mobilenetv2_100", Work::Distill("kd"), 16, 64),
    case("class_centric-mobilenetv2-64", "mobilenetv2_100", Work::Distill("class_centric"), 16, 64),
    case("cd-deeplab-256", "deeplabv3plus", Work::Distill("cd"), 4, 256),
    case("loader-256x256", "256x256", Work::Load, 32, 224),
    case("loader-500x375", "500x375", Work::Load, 32, 224),
];

/// GPU cases.
pub(crate) const GPU_CASES: &[Case] = &[
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
    case("kd-resnet18-224-b64", "resnet18", Work::Distill("kd"), 64, 224),
    case("kd-resnet18-224-b256", "resnet18", Work::Distill("kd"), 256, 224),
    case("class_centric-resnet18-224-b64", "resnet18", Work::Distill("class_centric"), 64, 224),
    case("class_centric-resnet18-224-b256", "resnet18", Work::Distill("class_centric"), 256, 224),
];

/// Returns the CPU or GPU case of this name.
pub(crate) fn find(name: &str) -> anyhow::Result<&'static Case> {
    let all = CASES.iter().chain(GPU_CASES);
    all.into_iter()
        .find(|case| case.name == name)
        .with_context(|| format!("unknown case `{name}`; --list prints all cases"))
}

impl Case {
    /// Whether labels are per pixel.
    pub(crate) fn is_dense(&self) -> bool {
        self.network == "deeplabv3plus"
    }

    /// One-line description for `--list`.
    pub(crate) fn description(&self) -> String {
        let work = match self.work {
            Work::Train => "training step".to_string(),
            Work::Frozen => "frozen, forward only".to_string(),
            Work::Distill(method) if self.is_dense() => {
                format!("on ResNet18, {method} with a frozen teacher on ResNet50")
            }
            Work::Distill(method) => format!("{method} with a frozen ResNet50 teacher"),
            Work::TwoPhases => "with two exits, both training phases of MKSMT".to_string(),
            Work::Load => format!("JPEG files to {} batches", crate::loader::BATCHES),
        };
        format!("{} {work}, batch {} at {} px", self.network, self.batch, self.size)
    }
}
