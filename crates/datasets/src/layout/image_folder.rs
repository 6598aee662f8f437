//! Own images: a folder of class folders, or lists of images and masks.

use std::path::Path;

use serde::Deserialize;
use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use super::class_folders::class_samples;
use super::folders_in;
use super::image_mask_pairs::{ImageMaskPairs, ListedPair};
use super::text_lists::{is_below, lines, wrong_line};
use crate::catalog::{DatasetEntry, common_defaults};
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{FileDataset, LabelMapping};
use crate::{Error, Result};

/// Registry name.
pub(crate) const NAME: &str = "folder";

pub(crate) const ENTRY: DatasetEntry = DatasetEntry {
    name: NAME,
    read,
    defaults: || {
        format!(
            "# path = \"...\"  # required: folder of the class folders, or of the lists\n\
             # For segmentation; paths in the lists are relative to `path`, an image and a mask per line:\n\
             # classes = [\"water\", \"land\"]  # mask values 0, 1, ...; 255 is ignored\n\
             # train = \"train.txt\"\n\
             # test = \"test.txt\"  # without it, draw a split: split = \"global_random\"\n{}",
            common_defaults()
        )
    },
};

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Options {
    classes: Vec<String>,
    train: Option<String>,
    test: Option<String>,
}

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    let options: Options = stillhouse_core::config::from_table(&request.options, "dataset `folder`")
        .map_err(|e| Error::setting("dataset `folder`", e))?;
    let Some(path) = &request.path else {
        return Err(Error::setting(
            "dataset `folder`",
            "expected `path`, the folder of the class folders, found none",
        ));
    };
    let title = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
    let Options { classes, train, test } = options;
    if let Some(train) = train {
        if !(1..=255).contains(&classes.len()) {
            let why = format!("expected 1 to 255 class names for the mask values, found {}", classes.len());
            return Err(Error::setting("dataset `folder`", why));
        }
        let mut pairs = ImageMaskPairs::new();
        for (split, list) in [("train", Some(train)), ("test", test)] {
            let Some(list) = list else { continue };
            let list = path.join(list);
            let entries = pairs_of_list(path, &list, diagnostics)?;
            pairs.add(split, &list, entries, diagnostics)?;
        }
        // A single list is not a split.
        let splits = if pairs.splits.len() == 2 { pairs.splits } else { Vec::new() };
        let mapping = LabelMapping::direct(classes.len(), 255);
        return Ok(FileDataset::new(request, &title, Task::Segmentation, classes, pairs.samples)
            .with_masks(mapping)
            .with_splits(splits));
    }
    if test.is_some() || !classes.is_empty() {
        let why = "expected a list `train` of images and masks with `classes` and `test`, found none";
        return Err(Error::setting("dataset `folder`", why));
    }
    let classes = folders_in(path)?;
    if classes.is_empty() {
        return Err(Error::setting(
            path.display(),
            "expected one folder of images per class, found no folder",
        ));
    }
    let mut samples = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        samples.extend(class_samples(&path.join(name), name, class as u32, |_| Ok(()), diagnostics)?);
    }
    Ok(FileDataset::new(request, &title, Task::Classification, classes, samples))
}

/// Reads a list of `IMAGE MASK`, both below the folder.
fn pairs_of_list(root: &Path, list: &Path, diagnostics: &mut Diagnostics) -> Result<Vec<ListedPair>> {
    let mut entries = Vec::new();
    for line in lines(list, diagnostics)? {
        match line.text.split_once([' ', '\t']).map(|(image, mask)| (image, mask.trim_start())) {
            Some((image, mask)) if is_below(image) && is_below(mask) => {
                entries.push(ListedPair {
                    line: line.number,
                    key: image.to_string(),
                    image: root.join(image),
                    mask: root.join(mask),
                });
            }
            _ => {
                let expected = "an image and a mask, as paths below `path`";
                diagnostics.error(Kind::ListLine, wrong_line(list, line.number, &line.text, expected))?;
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    use stillhouse_core::data::Dataset;

    use super::*;

    fn open(request: &DatasetRequest) -> Result<Arc<dyn Dataset>> {
        crate::file_dataset::open(request, read)
    }

    fn request(path: Option<PathBuf>) -> DatasetRequest {
        DatasetRequest { name: "folder".to_string(), roots: vec![], path, options: toml::Table::new() }
    }

    #[test]
    fn sorts_classes_by_bytes() {
        let root = tempfile::tempdir().unwrap();
        for (class, file) in
            [("b", "1.JPG"), ("B", "2.png"), ("ä", "3.tiff"), ("a", "4.jpeg"), (".git", "5.png")]
        {
            fs::create_dir(root.path().join(class)).unwrap();
            fs::write(root.path().join(class).join(file), b"x").unwrap();
        }
        fs::write(root.path().join("diagnostics.txt"), b"").unwrap();
        let set = open(&request(Some(root.path().to_path_buf()))).unwrap();
        assert_eq!(set.info().classes, ["B", "a", "b", "ä"]);
        assert_eq!((set.len(), set.key(2), set.class(3)), (4, "b/1.JPG".to_string(), Some(3)));
    }

    #[test]
    fn reports_missing_paths_and_images() {
        let root = tempfile::tempdir().unwrap();
        let error = |path: Option<PathBuf>| open(&request(path)).err().unwrap().to_string();
        assert!(error(None).contains("path"));
        assert!(error(Some(root.path().join("absent"))).contains("absent"));
        assert!(error(Some(root.path().to_path_buf())).contains("no folder"));
        fs::create_dir(root.path().join("kelp")).unwrap();
        fs::write(root.path().join("kelp/readme.txt"), b"").unwrap();
        let e = error(Some(root.path().to_path_buf()));
        assert!(e.contains("`kelp`") && e.contains("1 other files"), "{e}");
    }
}
