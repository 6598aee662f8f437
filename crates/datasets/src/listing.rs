//! What the datasets of class folders share: the list of their files, read on demand.

use std::fs;
use std::path::{Path, PathBuf};

use stillhouse_core::data::{Dataset, DatasetInfo, Label, Sample};

use crate::{Error, Result, image};

/// Extensions of files that count as images, in any case. What is in them is told by their
/// first bytes.
pub(crate) const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "tif", "tiff"];

/// One image file.
#[derive(Debug)]
pub(crate) struct Item {
    /// Its path below the dataset's root, with `/`.
    key: String,
    path: PathBuf,
    class: u32,
    bytes: u64,
}

/// A classification dataset of files.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) info: DatasetInfo,
    pub(crate) items: Vec<Item>,
}

impl Dataset for Listing {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn key(&self, index: usize) -> String {
        self.items[index].key.clone()
    }

    fn class(&self, index: usize) -> Option<u32> {
        Some(self.items[index].class)
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        let item = &self.items[index];
        let image = image::read_image(&item.path)?;
        Ok(Sample { id: index as u64, image, label: Label::Class(item.class) })
    }

    fn identity(&self) -> stillhouse_core::Result<String> {
        let mut text = format!("{}\n", self.info.name);
        for item in &self.items {
            text.push_str(&format!("{}\t{}\n", item.key, item.bytes));
        }
        Ok(stillhouse_core::files::sha256(text.as_bytes()))
    }
}

/// The image files of one class folder in byte order of their names. `accept` judges a name
/// without its extension: a file it refuses is an error with the expectation it gives.
pub(crate) fn class_items(
    folder: &Path,
    name: &str,
    class: u32,
    accept: impl Fn(&str) -> std::result::Result<(), String>,
) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut others = 0;
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some((stem, extension)) = path.file_stem().zip(path.extension()) else {
            others += 1;
            continue;
        };
        let (stem, extension) = (stem.to_string_lossy(), extension.to_string_lossy().to_lowercase());
        if stem.starts_with('.') || !EXTENSIONS.contains(&extension.as_str()) {
            others += 1;
            continue;
        }
        if let Err(expected) = accept(&stem) {
            return Err(Error::UnexpectedFile { path, class: name.to_string(), expected });
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let key = format!("{name}/{file}");
        let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
        items.push(Item { key, path, class, bytes });
    }
    if items.is_empty() {
        return Err(Error::EmptyClass {
            path: folder.to_path_buf(),
            class: name.to_string(),
            extensions: EXTENSIONS.join(", "),
            found: others,
        });
    }
    items.sort_by(|a, b| a.key.as_bytes().cmp(b.key.as_bytes()));
    Ok(items)
}

/// The names of the folders in a folder, in byte order, hidden ones left out.
pub(crate) fn folders_in(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}

/// A list of names for a message, shortened.
pub(crate) fn some_of(names: &[String]) -> String {
    match names.len() {
        0 => "none".to_string(),
        n if n <= 30 => format!("{n} ({})", names.join(", ")),
        n => format!("{n} ({}, ...)", names[..30].join(", ")),
    }
}
