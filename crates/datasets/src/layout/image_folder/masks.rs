//! Own images with masks: classes by mask values, and pairs by lists or by file names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use stillhouse_core::data::IGNORE_INDEX;

use super::arrangement::MaskFolders;
use super::classes::below;
use super::names::Role;
use crate::diagnostics::{Diagnostics, Kind, LeftOut};
use crate::file_dataset::{Annotation, FileSample, LabelMapping, Splits, read_mask};
use crate::layout::class_folders::relative;
use crate::layout::image_mask_pairs::ListedPair;
use crate::layout::scan::{Folder, ImageFile};
use crate::layout::text_lists::{fields, is_below, lines, wrong_line};
use crate::{Error, Result};

/// Class name for values that are ignored.
const IGNORED: &str = "ignore";
/// Masks that are read to name their values in a message.
const MAX_READ: usize = 50;

/// Classes and the mask values that stand for them.
#[derive(Debug)]
pub(crate) struct MaskClasses {
    pub(crate) names: Vec<String>,
    pub(crate) mapping: LabelMapping,
}

impl MaskClasses {
    /// Reads `classes` (of the values 0, 1, ...) or `mask_values` (value to class); `None` without both.
    pub(crate) fn from_options(
        classes: &[String],
        mask_values: &BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let invalid = |message: String| Err(Error::setting("dataset `folder`", message));
        if classes.is_empty() && mask_values.is_empty() {
            return Ok(None);
        }
        if !classes.is_empty() && !mask_values.is_empty() {
            return invalid("expected `classes` or `mask_values`, found both".to_string());
        }
        let mut values: BTreeMap<u8, &str> =
            (0..IGNORE_INDEX).zip(classes.iter().map(String::as_str)).collect();
        for (value, name) in mask_values {
            let Ok(value) = value.trim().parse::<u8>() else {
                return invalid(format!("`mask_values`: expected values from 0 to 255, found `{value}`"));
            };
            if let Some(other) = values.insert(value, name) {
                return invalid(format!(
                    "`mask_values`: expected one class for {value}, found `{other}` too"
                ));
            }
        }
        let mut names: Vec<String> = Vec::new();
        let mut table = [None; 256];
        for (value, name) in &values {
            if *name == IGNORED {
                table[usize::from(*value)] = Some(IGNORE_INDEX);
                continue;
            }
            let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
                names.push(name.to_string());
                names.len() - 1
            });
            table[usize::from(*value)] = Some(index.min(usize::from(IGNORE_INDEX)) as u8);
        }
        let wanted = classes.iter().filter(|name| *name != IGNORED).count();
        let is_complete = classes.is_empty() || names.len() == wanted;
        if !is_complete || !(2..=usize::from(IGNORE_INDEX)).contains(&names.len()) {
            let found = if classes.is_empty() { names.len() } else { wanted };
            return invalid(format!("expected 2 to 255 distinct classes for the mask values, found {found}"));
        }
        let listed: Vec<String> = values.keys().map(u8::to_string).collect();
        // Without a class of its own, 255 is ignored.
        let ignored_by_default = table[255].is_none();
        table[255].get_or_insert(IGNORE_INDEX);
        let expected = match (mask_values.is_empty(), ignored_by_default) {
            (true, _) => format!("0 to {}, or 255 for ignore", classes.len() - 1),
            (false, true) => format!("{}, or 255 for ignore", listed.join(", ")),
            (false, false) => listed.join(", "),
        };
        let mut mapping = LabelMapping::from_table(table, &expected);
        mapping.declares_ignored = values.values().any(|name| *name == IGNORED);
        Ok(Some(Self { names, mapping }))
    }
}

/// Describes what is missing to use folders of images and masks.
pub(crate) fn missing_classes(root: &Folder, folders: &[MaskFolders]) -> Error {
    let masks: Vec<&ImageFile> = folders.iter().flat_map(|f| f.masks.all_images()).take(MAX_READ).collect();
    let values: BTreeSet<u8> = masks
        .par_iter()
        .filter_map(|mask| read_mask(&mask.path).ok())
        .flat_map_iter(|mask| mask.labels.into_iter().collect::<BTreeSet<u8>>())
        .collect();
    let names = |f: &MaskFolders| {
        format!("`{}` and `{}`", relative(&root.path, &f.images.path), relative(&root.path, &f.masks.path))
    };
    let all: Vec<String> = folders.iter().map(names).collect();
    let shown: Vec<String> = values.iter().take(20).map(u8::to_string).collect();
    let more = if values.len() > 20 { ", ..." } else { "" };
    let example: Vec<String> = values.iter().take(3).map(|v| format!("{v} = \"NAME\"")).collect();
    Error::Layout {
        path: root.path.clone(),
        found: format!(
            "images and masks in {}, with the mask values {}{more}",
            all.join(", "),
            shown.join(", ")
        ),
        expected: format!(
            "the classes of the mask values in an experiment: options = {{ mask_values = {{ {} }} }}, or \
             options = {{ classes = [...] }} for the values 0, 1, ...",
            example.join(", ")
        ),
    }
}

/// Pairs the images of folders with the masks of the same name. Returns the samples, and a split if
/// there are several parts.
pub(crate) fn pairs_by_name(
    root: &Folder,
    folders: &[MaskFolders],
    diagnostics: &mut Diagnostics,
) -> Result<(Vec<FileSample>, Splits)> {
    let (mut samples, mut splits) = (Vec::new(), Vec::new());
    let mut left_out = Vec::new();
    for MaskFolders { part, images, masks } in folders {
        let from = samples.len();
        left_out.extend(images.all_left_out().chain(masks.all_left_out()).cloned());
        let mut unused: BTreeSet<&Path> = masks.all_images().map(|mask| mask.path.as_path()).collect();
        let by_stem = index(masks, |stem| stem.to_string());
        let by_key = index(masks, |stem| Role::Masks.pair_key(stem));
        for image in images.all_images() {
            let stem = below(images, &image.path);
            let found = by_stem.get(&stem).or_else(|| by_key.get(&Role::Images.pair_key(&stem)));
            let group = match found.map(Vec::as_slice) {
                Some([mask]) if unused.remove(mask.path.as_path()) => {
                    samples.push(FileSample {
                        key: relative(&root.path, &image.path),
                        path: image.path.clone(),
                        annotation: Annotation::Mask { path: mask.path.clone(), bytes: mask.bytes },
                        bytes: image.bytes,
                    });
                    continue;
                }
                Some(_) => "images whose mask is not unique",
                None => "images without a mask",
            };
            left_out.push(unpaired(&image.path, group));
        }
        left_out.extend(unused.into_iter().map(|path| unpaired(path, "masks without an image")));
        if let Some(part) = part {
            splits.push((part.split().to_string(), (from..samples.len()).collect()));
        }
    }
    diagnostics.left_out(&root.path, &left_out)?;
    if samples.is_empty() {
        return Err(Error::Layout {
            path: root.path.clone(),
            found: "no image with a mask of the same name".to_string(),
            expected:
                "names such as images/7.jpg and masks/7.png; otherwise write lists (see docs/datasets.md)"
                    .to_string(),
        });
    }
    // A single part is not a split.
    Ok((samples, if splits.len() > 1 { splits } else { Vec::new() }))
}

fn unpaired(path: &Path, group: &str) -> LeftOut {
    LeftOut { path: path.to_path_buf(), kind: Kind::Unpaired, group: group.to_string(), is_error: true }
}

fn index(masks: &Folder, key: impl Fn(&str) -> String) -> BTreeMap<String, Vec<&ImageFile>> {
    let mut all = BTreeMap::<String, Vec<&ImageFile>>::new();
    for mask in masks.all_images() {
        all.entry(key(&below(masks, &mask.path))).or_default().push(mask);
    }
    all
}

/// Reads a list of images and masks, both below the folder.
pub(crate) fn pairs_of_list(
    root: &Path,
    list: &Path,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<ListedPair>> {
    let mut entries = Vec::new();
    for line in lines(list, diagnostics)? {
        match fields(&line.text).as_deref() {
            Some([image, mask]) if is_below(image) && is_below(mask) => {
                entries.push(ListedPair {
                    line: line.number,
                    key: image.clone(),
                    image: root.join(image),
                    mask: root.join(mask),
                });
            }
            _ => {
                let expected = "an image and a mask, as paths below `path`; separate them with a tab, or put \
                                names with spaces in double quotes";
                diagnostics.error(Kind::ListLine, wrong_line(list, line.number, &line.text, expected))?;
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(classes: &[&str], values: &[(&str, &str)]) -> Result<Option<MaskClasses>> {
        let classes: Vec<String> = classes.iter().map(ToString::to_string).collect();
        let values = values.iter().map(|(v, n)| (v.to_string(), n.to_string())).collect();
        MaskClasses::from_options(&classes, &values)
    }

    #[test]
    fn maps_mask_values_to_classes() {
        let found = classes(&[], &[("255", "water"), ("0", "land"), ("7", "ignore"), ("9", "land")]);
        let MaskClasses { names, mapping } = found.unwrap().unwrap();
        assert_eq!(names, ["land", "water"]);
        let of = [0, 7, 9, 255, 1].map(|value| mapping.class(value));
        assert_eq!(of, [Some(0), Some(255), Some(0), Some(1), None]);
        let MaskClasses { names, mapping } = classes(&["a", "b"], &[]).unwrap().unwrap();
        assert_eq!(names, ["a", "b"]);
        assert_eq!([0, 1, 2, 255].map(|value| mapping.class(value)), [Some(0), Some(1), None, Some(255)]);
        assert!(classes(&[], &[]).unwrap().is_none());
        let many: Vec<String> = (0..256).map(|i| format!("c{i}")).collect();
        assert!(MaskClasses::from_options(&many[..255], &BTreeMap::new()).is_ok());
        assert!(MaskClasses::from_options(&many, &BTreeMap::new()).is_err());
    }

    #[test]
    fn rejects_invalid_mask_values() {
        for (names, values, word) in [
            (&["a"][..], &[][..], "2 to 255"),
            (&["a", "a"], &[], "distinct"),
            (&["ignore", "a"], &[], "found 1"),
            (&["a", "b"], &[("0", "a")], "both"),
            (&[], &[("0", "a"), ("255", "ignore")], "found 1"),
            (&[], &[("256", "a"), ("0", "b")], "`256`"),
            (&[], &[("x", "a"), ("0", "b")], "`x`"),
            (&[], &[("1", "a"), ("01", "b")], "for 1"),
        ] {
            let e = classes(names, values).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
    }
}
