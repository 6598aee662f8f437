//! CamVid (Brostow et al. 2008) in its 480x360 version with 11 classes.

use std::path::Path;

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use super::{DatasetEntry, common_defaults};
use crate::Result;
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{FileDataset, LabelMapping, find_root, only_options};
use crate::layout::files_in;
use crate::layout::image_mask_pairs::{ImageMaskPairs, ListedPair};
use crate::layout::text_lists::{lines, wrong_line};
use crate::manifest::of_builtin;

pub(crate) const ENTRY: DatasetEntry = DatasetEntry { name: "camvid", read, defaults: common_defaults };

/// Mask value of unlabeled pixels, which are ignored.
const UNLABELED: u8 = 11;

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    only_options(request, &[])?;
    let manifest = of_builtin("camvid")?;
    let root = find_root(request, manifest, &["CamVid", "camvid", "."], "trainannot")?;
    let mut pairs = ImageMaskPairs::new();
    for split in ["train", "val", "test"] {
        let list = root.join(format!("{split}.txt"));
        let entries = if list.exists() {
            pairs_of_list(&root, &list, split, diagnostics)?
        } else {
            pairs_of_folder(&root, split)?
        };
        pairs.add(split, &list, entries, diagnostics)?;
    }
    let classes = manifest.class_names();
    let mapping = LabelMapping::direct(classes.len(), UNLABELED);
    Ok(FileDataset::new(request, &manifest.title, Task::Segmentation, classes, pairs.samples)
        .with_masks(mapping)
        .with_splits(pairs.splits))
}

/// Reads a list of `IMAGE MASK`. The official lists have their authors' folder in front of each
/// path, so only the last folder and the name count.
fn pairs_of_list(
    root: &Path,
    list: &Path,
    split: &str,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<ListedPair>> {
    let mut entries = Vec::new();
    for line in lines(list, diagnostics)? {
        let below = |text: &str, folder: &str| {
            let (before, file) = text.rsplit_once('/')?;
            let fits = before == folder || before.ends_with(&format!("/{folder}"));
            (fits && !file.is_empty() && file != "..").then(|| root.join(folder).join(file))
        };
        let words = line.text.split_once([' ', '\t']);
        let both = words.and_then(|(image, mask)| {
            below(image, split).zip(below(mask.trim_start(), &format!("{split}annot")))
        });
        let Some((image, mask)) = both else {
            let expected = format!("{split}/NAME {split}annot/NAME.png");
            diagnostics.error(Kind::ListLine, wrong_line(list, line.number, &line.text, &expected))?;
            continue;
        };
        let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if stem(&image) != stem(&mask) {
            let expected = "an image and a mask of the same name";
            diagnostics.error(Kind::Mislabeled, wrong_line(list, line.number, &line.text, expected))?;
        }
        let key = format!("{split}/{}", stem(&image));
        entries.push(ListedPair { line: line.number, key, image, mask });
    }
    Ok(entries)
}

/// Pairs all files of a split's folder with the masks of the same name, if there is no list.
fn pairs_of_folder(root: &Path, split: &str) -> Result<Vec<ListedPair>> {
    let folder = root.join(split);
    let entries = files_in(&folder)?.into_iter().enumerate().map(|(i, file)| {
        let stem = Path::new(&file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mask = root.join(format!("{split}annot/{stem}.png"));
        ListedPair { line: i + 1, key: format!("{split}/{stem}"), image: folder.join(&file), mask }
    });
    Ok(entries.collect())
}
