//! Pascal VOC 2012 segmentation (Everingham et al.) in its official layout, with the augmented
//! list where it is there.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillhouse_core::data::{DatasetInfo, Mask, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::findings::{Kind, Notes};
use crate::listing::{Listing, MaskRule, find};
use crate::lists::{is_below, lines, wrong_line};
use crate::pairs::Pairs;
use crate::set::Set;
use crate::{Error, Result, listing, mat};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "voc",
        summary: "Pascal VOC 2012 segmentation: 20 classes and background, 1,464 (augmented 10,582) training and 1,449 test (val) images",
        source: "Everingham et al., VOC 2012; Hariharan et al., ICCV 2011 (augmented); manifest datasets/voc.toml",
        defaults: || {
            String::from(
                "# VOCdevkit/VOC2012 lies under a data root; it has an official split (split = \"official\"\n\
                 # trains on the list below and tests on val)\n\
                 train = \"train\"  # or \"train_aug\": 10,582 images with the labels in SegmentationClassAug\n",
            )
        },
        build: |request| Ok(listing::open(request, read)?),
    },
    read,
};

/// The classes in the order of their indices.
pub(crate) const CLASSES: [&str; 21] = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    train: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { train: "train".to_string() }
    }
}

fn read(request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
    let options: Options = stillhouse_core::config::from_table(&request.options, "dataset `voc`")
        .map_err(|e| Error::setting("dataset `voc`", e))?;
    if !["train", "train_aug"].contains(&options.train.as_str()) {
        let why = format!("train = {:?}, expected \"train\" or \"train_aug\"", options.train);
        return Err(Error::setting("dataset `voc`", why));
    }
    let root = find(
        request,
        "Pascal VOC 2012",
        &["VOCdevkit/VOC2012", "VOC2012", "."],
        "ImageSets/Segmentation",
        "unpack VOCtrainval_11-May-2012.tar and set STILLHOUSE_DATA to the folder that holds VOCdevkit, \
         or `stillhouse data fetch voc` (sources: datasets/voc.toml)",
    )?;
    let mut pairs = Pairs::new();
    for (split, name) in [("train", options.train.as_str()), ("val", "val")] {
        let list = root.join(format!("ImageSets/Segmentation/{name}.txt"));
        let mut entries = Vec::new();
        for line in lines(&list, notes)? {
            if !is_below(&line.text) || line.text.contains(['/', ' ']) {
                let expected = "the name of an image without extension";
                notes.fault(Kind::ListLine, wrong_line(&list, line.number, &line.text, expected))?;
                continue;
            }
            let image = root.join(format!("JPEGImages/{}.jpg", line.text));
            let own = root.join(format!("SegmentationClass/{}.png", line.text));
            // VOC's own labels have borders; the augmented ones stand in where there are none.
            let mask =
                if name != "train_aug" || own.exists() { own } else { augmented(&root, &line.text, own) };
            entries.push((line.number, line.text, image, mask));
        }
        pairs.add(split, &list, entries, notes)?;
    }
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("Pascal VOC 2012 segmentation, {} images", pairs.items.len()),
        classes: CLASSES.map(String::from).to_vec(),
        task: Task::Segmentation,
        synthetic: false,
    };
    let masks = Some(MaskRule::plain(CLASSES.len(), 255));
    Ok(Listing { info, items: pairs.items, masks, splits: pairs.splits })
}

/// The augmented labels of a name: a gray PNG, or the file of the benchmark, whose folder lies beside
/// `VOCdevkit`; what was expected at first where there is none.
fn augmented(root: &Path, name: &str, own: PathBuf) -> PathBuf {
    let png = root.join(format!("SegmentationClassAug/{name}.png"));
    let beside = |up: usize| root.ancestors().nth(up).unwrap_or(root);
    let mat = |up: usize| beside(up).join(format!("benchmark_RELEASE/dataset/cls/{name}.mat"));
    [png, mat(2), mat(1)].into_iter().find(|p| p.exists()).unwrap_or(own)
}

/// Reads the labels of the augmented set in their own form: the field `Segmentation` of `GTcls`.
pub(crate) fn read_mat(path: &Path) -> Result<Mask> {
    let arrays = mat::read_file(path)?;
    let segmentation = arrays.iter().find(|(n, _)| n == "GTcls").and_then(|(_, v)| v.field("Segmentation"));
    let refuse = |message: &str| Error::Decode {
        name: path.display().to_string(),
        format: "MAT",
        message: message.to_string(),
    };
    let Some(mat::Value::Numbers(sides, values)) = segmentation else {
        return Err(refuse("expected numbers in GTcls.Segmentation"));
    };
    let [height, width] = sides[..] else { return Err(refuse("expected rows and columns")) };
    let mut labels = vec![0; values.len()];
    for (i, value) in values.iter().enumerate() {
        if value.fract() != 0.0 || !(0.0..=255.0).contains(value) {
            return Err(refuse(&format!("the label {value}, expected 0 to 255")));
        }
        // By columns there, by rows here.
        labels[i % height * width + i / height] = *value as u8;
    }
    Ok(Mask { width, height, labels })
}
