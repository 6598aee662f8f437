//! Cityscapes (Cordts et al., CVPR 2016), fine annotations.

use std::path::Path;

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use super::{DatasetEntry, common_defaults};
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{Annotation, FileDataset, FileSample, LabelMapping, find_root, only_options};
use crate::layout::{files_in, folders_in};
use crate::manifest::{Manifest, of_builtin};
use crate::{Error, Result};

pub(crate) const ENTRY: DatasetEntry = DatasetEntry { name: "cityscapes", read, defaults: common_defaults };

/// Label ids in mask files; ids that are not those of a class are ignored.
const LABEL_IDS: usize = 34;

/// Maps label ids to class indices. A byte stores the id -1 (license plate) as 255.
fn label_mapping(manifest: &Manifest) -> LabelMapping {
    let mut table = [None; 256];
    table[..LABEL_IDS].fill(Some(255));
    table[255] = Some(255);
    for (class, id) in manifest.classes.iter().enumerate().filter_map(|(i, c)| Some((i, c.id?))) {
        table[usize::from(id)] = Some(class as u8);
    }
    LabelMapping::from_table(table, "a label id from 0 to 33 (or 255 for -1)")
}

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    only_options(request, &[])?;
    let manifest = of_builtin("cityscapes")?;
    let root = find_root(request, manifest, &["cityscapes", "Cityscapes", "."], "leftImg8bit")?;
    let mut samples = Vec::new();
    let mut splits = Vec::new();
    // The test images have no labels.
    for split in ["train", "val"] {
        let from = samples.len();
        read_split(&root, split, &mut samples, diagnostics)?;
        splits.push((split.to_string(), (from..samples.len()).collect()));
    }
    let classes = manifest.class_names();
    Ok(FileDataset::new(request, &manifest.title, Task::Segmentation, classes, samples)
        .with_masks(label_mapping(manifest))
        .with_splits(splits))
}

fn read_split(
    root: &Path,
    split: &str,
    samples: &mut Vec<FileSample>,
    diagnostics: &mut Diagnostics,
) -> Result<()> {
    const IMAGE: &str = "_leftImg8bit.png";
    const MASK: &str = "_gtFine_labelIds.png";
    let images = root.join("leftImg8bit").join(split);
    if !images.is_dir() {
        let listed_by = "the official layout".to_string();
        return diagnostics.error(Kind::Layout, Error::MissingFile { path: images, listed_by });
    }
    for city in folders_in(&images)? {
        let (image_folder, mask_folder) = (images.join(&city), root.join("gtFine").join(split).join(&city));
        for name in files_in(&image_folder)? {
            let frame = name.strip_suffix(IMAGE).filter(|f| is_frame(f, &city));
            let Some(frame) = frame else {
                let expected = format!("{city}_000000_000000{IMAGE}");
                let error =
                    Error::UnexpectedFile { path: image_folder.join(&name), class: city.clone(), expected };
                diagnostics.error(Kind::Layout, error)?;
                continue;
            };
            let (path, mask) = (image_folder.join(&name), mask_folder.join(format!("{frame}{MASK}")));
            let Ok(meta) = std::fs::metadata(&mask) else {
                let listed_by = path.display().to_string();
                diagnostics.error(Kind::MissingFile, Error::MissingFile { path: mask, listed_by })?;
                continue;
            };
            let annotation = Annotation::Mask { path: mask, bytes: meta.len() };
            let bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
            samples.push(FileSample { key: format!("{split}/{city}/{frame}"), path, annotation, bytes });
        }
        // Masks without an image.
        if mask_folder.is_dir() {
            for name in files_in(&mask_folder)? {
                let Some(frame) = name.strip_suffix(MASK) else { continue };
                let path = image_folder.join(format!("{frame}{IMAGE}"));
                if !path.exists() {
                    let listed_by = mask_folder.join(&name).display().to_string();
                    diagnostics.error(Kind::MissingFile, Error::MissingFile { path, listed_by })?;
                }
            }
        }
    }
    Ok(())
}

/// Whether a name is `<city>_<6 digits>_<6 digits>`.
fn is_frame(name: &str, city: &str) -> bool {
    let numbers = name.strip_prefix(city).and_then(|rest| rest.strip_prefix('_'));
    numbers
        .and_then(|n| n.split_once('_'))
        .is_some_and(|(a, b)| [a, b].iter().all(|n| n.len() == 6 && n.bytes().all(|c| c.is_ascii_digit())))
}
