//! Sets with one folder of images per class.

use std::fs;
use std::path::{Path, PathBuf};

use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::DatasetRequest;

use crate::findings::{Kind, Notes};
use crate::listing::{Item, Listing, Truth, find, only_options, some_of};
use crate::{Error, Result};

/// Extensions of files that count as images, in any case. What is in them is told by their
/// first bytes.
pub(crate) const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "tif", "tiff"];

/// An official set of class folders.
pub(crate) struct ClassFolders {
    pub(crate) title: &'static str,
    /// The folder of the class folders below a data root, the official name first.
    pub(crate) folders: &'static [&'static str],
    /// The classes in the order of their indices, as their folders are named.
    pub(crate) classes: &'static [&'static str],
    /// What to do where the set is not found.
    pub(crate) hint: &'static str,
    /// Judges a file's name without its extension in a class; what it refuses belongs elsewhere,
    /// and the answer says what is expected.
    pub(crate) accept: fn(&str, &str) -> std::result::Result<(), String>,
}

impl ClassFolders {
    /// Reads the layout; a folder fits a class if both are the same but for case, spaces, `_`
    /// and `-`.
    pub(crate) fn read(&self, request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
        only_options(request, &[])?;
        let path = find(request, self.title, self.folders, "", self.hint).or_else(|error| {
            // A root that is the set itself: its class folders, or most of them, lie in it.
            let places = request.path.iter().chain(&request.roots);
            let is_set = |p: &PathBuf| {
                folders_in(p).is_ok_and(|names| {
                    2 * names.iter().filter(|n| self.class_of(n).is_some()).count() >= self.classes.len()
                })
            };
            places.flat_map(|p| [p.clone(), p.join("Images")]).find(is_set).ok_or(error)
        })?;
        let found = folders_in(&path)?;
        let mut items = Vec::new();
        for (class, name) in self.classes.iter().enumerate() {
            let Some(folder) = found.iter().find(|f| self.class_of(f) == Some(class)) else {
                notes.fault(
                    Kind::MissingClass,
                    Error::MissingClass {
                        path: path.clone(),
                        class: (*name).to_string(),
                        expected: self.classes.len(),
                        found: some_of(&found),
                    },
                )?;
                continue;
            };
            let accept = |stem: &str| (self.accept)(name, stem);
            items.extend(class_items(&path.join(folder), folder, class as u32, accept, notes)?);
        }
        for extra in found.iter().filter(|f| self.class_of(f).is_none()) {
            notes.remark(
                Kind::ExtraClass,
                format!(
                    "{}: a folder that the official set does not have; its {} classes are read without it",
                    path.join(extra).display(),
                    self.classes.len()
                ),
            );
        }
        let info = DatasetInfo {
            name: request.name.clone(),
            title: format!("{}, {} images", self.title, items.len()),
            classes: self.classes.iter().map(|c| (*c).to_string()).collect(),
            task: Task::Classification,
            synthetic: false,
        };
        Ok(Listing::new(info, items))
    }

    fn class_of(&self, folder: &str) -> Option<usize> {
        let name = simplified(folder);
        self.classes.iter().position(|c| simplified(c) == name)
    }
}

/// A name without case, spaces, `_` and `-`.
pub(crate) fn simplified(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// The image files of one class folder in byte order of their names. A file that `accept` refuses
/// (its name without extension) is a fault with the expectation it gives.
pub(crate) fn class_items(
    folder: &Path,
    name: &str,
    class: u32,
    accept: impl Fn(&str) -> std::result::Result<(), String>,
    notes: &mut Notes,
) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut refused = Vec::new();
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
            refused.push(Error::UnexpectedFile { path, class: name.to_string(), expected });
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let key = format!("{name}/{file}");
        let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
        items.push(Item { key, path, truth: Truth::Class(class), bytes });
    }
    refused.sort_by_key(ToString::to_string);
    for error in refused {
        notes.fault(Kind::Mislabeled, error)?;
    }
    if items.is_empty() {
        notes.fault(
            Kind::MissingClass,
            Error::EmptyClass {
                path: folder.to_path_buf(),
                class: name.to_string(),
                extensions: EXTENSIONS.join(", "),
                found: others,
            },
        )?;
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

/// Whether a name is `prefix` and then only digits, `least` to `most` of them.
pub(crate) fn is_numbered(stem: &str, prefix: &str, least: usize, most: usize) -> bool {
    stem.strip_prefix(prefix)
        .is_some_and(|n| (least..=most).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
}
