//! Pascal VOC 2012 segmentation (Everingham et al.), optionally with the augmented training list.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillhouse_core::data::{Mask, Task};
use stillhouse_core::registry::DatasetRequest;

use super::{DatasetEntry, common_defaults};
use crate::decode::mat;
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{FileDataset, LabelMapping, find_root};
use crate::layout::image_mask_pairs::{ImageMaskPairs, ListedPair};
use crate::layout::text_lists::{is_below, lines, wrong_line};
use crate::manifest::of_builtin;
use crate::{Error, Result};

pub(crate) const ENTRY: DatasetEntry = DatasetEntry {
    name: "voc",
    read,
    defaults: || {
        format!(
            "train = \"train\"  # or \"train_aug\": 10,582 images with the labels of SegmentationClassAug\n{}",
            common_defaults()
        )
    },
};

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

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    let options: Options = stillhouse_core::config::from_table(&request.options, "dataset `voc`")
        .map_err(|e| Error::setting("dataset `voc`", e))?;
    if !["train", "train_aug"].contains(&options.train.as_str()) {
        let why = format!("train = {:?}, expected \"train\" or \"train_aug\"", options.train);
        return Err(Error::setting("dataset `voc`", why));
    }
    let manifest = of_builtin("voc")?;
    let folders = ["VOCdevkit/VOC2012", "VOC2012", "."];
    let root = find_root(request, manifest, &folders, "ImageSets/Segmentation")?;
    let mut pairs = ImageMaskPairs::new();
    for (split, name) in [("train", options.train.as_str()), ("val", "val")] {
        let list = root.join(format!("ImageSets/Segmentation/{name}.txt"));
        let mut entries = Vec::new();
        for line in lines(&list, diagnostics)? {
            if !is_below(&line.text) || line.text.contains(['/', ' ']) {
                let expected = "an image name without extension";
                diagnostics.error(Kind::ListLine, wrong_line(&list, line.number, &line.text, expected))?;
                continue;
            }
            let image = root.join(format!("JPEGImages/{}.jpg", line.text));
            let own = root.join(format!("SegmentationClass/{}.png", line.text));
            // VOC's own labels, which have ignored borders, take precedence over the augmented ones.
            let mask =
                if name != "train_aug" || own.exists() { own } else { augmented(&root, &line.text, own) };
            entries.push(ListedPair { line: line.number, key: line.text, image, mask });
        }
        pairs.add(split, &list, entries, diagnostics)?;
    }
    let classes = manifest.class_names();
    let mapping = LabelMapping::direct(classes.len(), 255);
    Ok(FileDataset::new(request, &manifest.title, Task::Segmentation, classes, pairs.samples)
        .with_masks(mapping)
        .with_splits(pairs.splits))
}

/// Returns the path of the augmented labels of a name: a gray PNG, or the `.mat` file of
/// `benchmark_RELEASE`, which is a sibling of `VOCdevkit` or of the root; `own` if there is none.
fn augmented(root: &Path, name: &str, own: PathBuf) -> PathBuf {
    let png = root.join(format!("SegmentationClassAug/{name}.png"));
    let ancestor = |up: usize| root.ancestors().nth(up).unwrap_or(root);
    let mat = |up: usize| ancestor(up).join(format!("benchmark_RELEASE/dataset/cls/{name}.mat"));
    [png, mat(2), mat(1)].into_iter().find(|p| p.exists()).unwrap_or(own)
}

/// Reads the labels of the augmented set: the field `Segmentation` of `GTcls`.
pub(crate) fn read_mat(path: &Path) -> Result<Mask> {
    let arrays = mat::read_file(path)?;
    let segmentation = arrays.iter().find(|(n, _)| n == "GTcls").and_then(|(_, v)| v.field("Segmentation"));
    let invalid = |message: &str| Error::Decode {
        name: path.display().to_string(),
        format: "MAT",
        message: message.to_string(),
    };
    let Some(mat::Value::Numbers(sides, values)) = segmentation else {
        return Err(invalid("expected numbers in GTcls.Segmentation"));
    };
    let [height, width] = sides[..] else { return Err(invalid("expected rows and columns")) };
    let mut labels = vec![0; values.len()];
    for (i, value) in values.iter().enumerate() {
        if value.fract() != 0.0 || !(0.0..=255.0).contains(value) {
            return Err(invalid(&format!("expected labels from 0 to 255, found {value}")));
        }
        // MATLAB stores columns first.
        labels[i % height * width + i / height] = *value as u8;
    }
    Ok(Mask { width, height, labels })
}
