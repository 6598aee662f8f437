//! Own images: class folders, folders of images and masks, or lists of images and masks.

mod arrangement;
mod classes;
mod masks;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use self::arrangement::{Content, recognize};
use self::masks::{MaskClasses, missing_classes, pairs_by_name, pairs_of_list};
use super::image_mask_pairs::ImageMaskPairs;
use super::scan::{Folder, scan};
use crate::catalog::{DatasetEntry, common_defaults};
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{FileDataset, Splits};
use crate::{Error, Result};

/// Registry name.
pub(crate) const NAME: &str = "folder";

pub(crate) const ENTRY: DatasetEntry = DatasetEntry {
    name: NAME,
    read,
    defaults: || {
        format!(
            "# path = \"...\"  # required: folder of the class folders, of `train` and `test`, of `images` and `masks`, or of the lists\n\
             # For segmentation:\n\
             # classes = [\"water\", \"land\"]  # mask values 0, 1, ...; 255 is ignored\n\
             # mask_values = {{ 0 = \"land\", 255 = \"water\" }}  # instead of `classes`; the class \"ignore\" is ignored\n\
             # train = \"train.txt\"  # an image and a mask per line, relative to `path`; without it, pairs by file name\n\
             # test = \"test.txt\"  # without it, draw a split: split = \"global_random\"\n{}",
            common_defaults()
        )
    },
};

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Options {
    classes: Vec<String>,
    mask_values: BTreeMap<String, String>,
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
    let mask_classes = MaskClasses::from_options(&options.classes, &options.mask_values)?;
    if let Some(train) = &options.train {
        return read_lists(request, path, train, options.test.as_deref(), mask_classes, diagnostics);
    }
    if options.test.is_some() {
        let why = "expected a list `train` of images and masks, found only `test`";
        return Err(Error::setting("dataset `folder`", why));
    }
    let given = scan(path)?;
    let arrangement = recognize(&given)?;
    for note in &arrangement.notes {
        diagnostics.note(Kind::Layout, note);
    }
    let root = arrangement.root;
    let title = title(path, root);
    if root.path != given.path {
        diagnostics.note(Kind::Layout, format!("{}: using {}", path.display(), root.path.display()));
    }
    let (classes, samples, splits) = match &arrangement.content {
        Content::Masks(folders) => {
            let Some(MaskClasses { names, mapping }) = mask_classes else {
                return Err(missing_classes(root, folders));
            };
            let (samples, splits) = pairs_by_name(root, folders, diagnostics)?;
            let set = FileDataset::new(request, &title, Task::Segmentation, names, samples);
            return Ok(with_given_split(set.with_masks(mapping).requiring_all_classes(path), splits));
        }
        _ if mask_classes.is_some() => {
            return Err(Error::Layout {
                path: root.path.clone(),
                found: "`classes` of masks, but no folder of masks".to_string(),
                expected: "a list `train` of images and masks, or folders such as `images` and `masks`"
                    .to_string(),
            });
        }
        Content::Classes(root) => classes::from_folders(root, diagnostics)?,
        Content::ClassParts(parts) => classes::from_parts(root, parts, diagnostics)?,
    };
    let set = FileDataset::new(request, &title, Task::Classification, classes, samples);
    Ok(with_given_split(set, splits))
}

/// Reads lists of images and masks.
fn read_lists(
    request: &DatasetRequest,
    path: &Path,
    train: &str,
    test: Option<&str>,
    mask_classes: Option<MaskClasses>,
    diagnostics: &mut Diagnostics,
) -> Result<FileDataset> {
    let Some(MaskClasses { names, mapping }) = mask_classes else {
        let why = "expected `classes` or `mask_values` for the masks of the list `train`, found none";
        return Err(Error::setting("dataset `folder`", why));
    };
    let mut pairs = ImageMaskPairs::new();
    for (split, list) in [("train", Some(train)), ("test", test)] {
        let Some(list) = list else { continue };
        let list = path.join(list);
        let entries = pairs_of_list(path, &list, diagnostics)?;
        pairs.add(split, &list, entries, diagnostics)?;
    }
    // A single list is not a split.
    let splits = if pairs.splits.len() == 2 { pairs.splits } else { Vec::new() };
    let title = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
    let set = FileDataset::new(request, &title, Task::Segmentation, names, pairs.samples);
    Ok(set.with_masks(mapping).requiring_all_classes(path).with_splits(splits))
}

/// Adds the split that the folders define, and names it in the title.
fn with_given_split(mut set: FileDataset, splits: Splits) -> FileDataset {
    if splits.is_empty() {
        return set;
    }
    let has = |name: &str| splits.iter().any(|(split, _)| split == name);
    set.info.title.push_str(match (has("val"), has("test")) {
        (true, true) => ", split given by folders (train and test; val unused)",
        (true, false) => ", split given by folders (train and val)",
        _ => ", split given by folders (train and test)",
    });
    set.has_given_split = true;
    set.with_splits(splits)
}

/// Names the given folder and the one below it that is used.
fn title(given: &Path, root: &Folder) -> String {
    let absolute = std::path::absolute(given).unwrap_or_else(|_| given.to_path_buf());
    let name =
        absolute.file_name().map_or_else(|| given.display().to_string(), |n| n.to_string_lossy().into());
    match root.path.strip_prefix(given) {
        Ok(below) if !below.as_os_str().is_empty() => format!("{name}/{}", below.display()),
        _ => name,
    }
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
            fs::write(root.path().join(class).join(file), crate::fake::png_bytes(1)).unwrap();
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
