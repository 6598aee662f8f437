//! Own images: a folder of class folders, or lists of images with masks.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::class_folders::{class_items, folders_in};
use crate::findings::{Kind, Notes};
use crate::listing::{Listing, MaskRule};
use crate::lists::{is_below, lines, wrong_line};
use crate::pairs::Pairs;
use crate::set::Set;
use crate::{Error, Result, listing};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "folder",
        summary: "own images: one folder per class, or lists of images and masks; no code needed",
        source: "your own files: PATH/CLASS/*.{jpg,jpeg,png,tif,tiff}, or lists of `IMAGE MASK`",
        defaults: || {
            String::from(
                "# path = \"...\"  # required: the folder of the class folders, or of the lists\n\
                 # For segmentation; paths in the lists are below `path`, two words a line:\n\
                 # classes = [\"water\", \"land\"]  # a mask's values are 0, 1, ..., and 255 for ignore\n\
                 # train = \"train.txt\"  # image mask\n\
                 # test = \"test.txt\"  # without it the split is drawn: split = \"global_random\"\n",
            )
        },
        build: |request| Ok(listing::open(request, read)?),
    },
    read,
};

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Options {
    classes: Vec<String>,
    train: Option<String>,
    test: Option<String>,
}

fn read(request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
    let options: Options = stillhouse_core::config::from_table(&request.options, "dataset `folder`")
        .map_err(|e| Error::setting("dataset `folder`", e))?;
    let Some(path) = &request.path else {
        return Err(Error::setting(
            "dataset `folder`",
            "expected a path, found none; name the folder of the class folders",
        ));
    };
    let title = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
    let info = |items: usize, classes: Vec<String>, task: Task| DatasetInfo {
        name: request.name.clone(),
        title: format!("{title}, {items} images"),
        classes,
        task,
        synthetic: false,
    };
    let Options { classes, train, test } = options;
    if let Some(train) = train {
        if !(1..=255).contains(&classes.len()) {
            let why =
                format!("{} classes, expected 1 to 255 names for the values of the masks", classes.len());
            return Err(Error::setting("dataset `folder`", why));
        }
        let mut pairs = Pairs::new();
        for (split, list) in [("train", Some(train)), ("test", test)] {
            let Some(list) = list else { continue };
            let list = path.join(list);
            let entries = listed(path, &list, notes)?;
            pairs.add(split, &list, entries, notes)?;
        }
        // One list is no split.
        let splits = if pairs.splits.len() == 2 { pairs.splits } else { Vec::new() };
        let masks = Some(MaskRule::plain(classes.len(), 255));
        let info = info(pairs.items.len(), classes, Task::Segmentation);
        return Ok(Listing { info, items: pairs.items, masks, splits });
    }
    if test.is_some() || !classes.is_empty() {
        let why = "`classes` and `test` go with a list `train` of images and masks; add it or remove them";
        return Err(Error::setting("dataset `folder`", why));
    }
    let classes = folders_in(path)?;
    if classes.is_empty() {
        return Err(Error::setting(
            path.display(),
            "expected one folder of images per class, found no folder; sort the images into class folders",
        ));
    }
    let mut items = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        items.extend(class_items(&path.join(name), name, class as u32, |_| Ok(()), notes)?);
    }
    Ok(Listing::new(info(items.len(), classes, Task::Classification), items))
}

/// `image mask` of each line, both below the folder.
fn listed(root: &Path, list: &Path, notes: &mut Notes) -> Result<Vec<(usize, String, PathBuf, PathBuf)>> {
    let mut entries = Vec::new();
    for line in lines(list, notes)? {
        match line.text.split_once([' ', '\t']).map(|(image, mask)| (image, mask.trim_start())) {
            Some((image, mask)) if is_below(image) && is_below(mask) => {
                entries.push((line.number, image.to_string(), root.join(image), root.join(mask)));
            }
            _ => {
                let expected = "an image and a mask, paths below the folder of the list";
                notes.fault(Kind::ListLine, wrong_line(list, line.number, &line.text, expected))?;
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
        listing::open(request, read)
    }

    fn request(path: Option<PathBuf>) -> DatasetRequest {
        DatasetRequest { name: "folder".to_string(), roots: vec![], path, options: toml::Table::new() }
    }

    #[test]
    fn classes_are_in_byte_order() {
        let root = tempfile::tempdir().unwrap();
        for (class, file) in
            [("b", "1.JPG"), ("B", "2.png"), ("ä", "3.tiff"), ("a", "4.jpeg"), (".git", "5.png")]
        {
            fs::create_dir(root.path().join(class)).unwrap();
            fs::write(root.path().join(class).join(file), b"x").unwrap();
        }
        fs::write(root.path().join("notes.txt"), b"").unwrap();
        let set = open(&request(Some(root.path().to_path_buf()))).unwrap();
        assert_eq!(set.info().classes, ["B", "a", "b", "ä"]);
        assert_eq!((set.len(), set.key(2), set.class(3)), (4, "b/1.JPG".to_string(), Some(3)));
    }

    #[test]
    fn empty_things_are_named() {
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
