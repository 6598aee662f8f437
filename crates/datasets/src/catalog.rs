//! All datasets: how each name is registered and how its files are read.

pub(crate) mod camvid;
pub(crate) mod cityscapes;
pub(crate) mod cub;
pub(crate) mod nabirds;
pub(crate) mod stanford_dogs;
pub(crate) mod voc;

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use stillhouse_core::data::Dataset;
use stillhouse_core::registry::{DatasetBuild, DatasetRequest, Entry, Registry};

use crate::file_dataset::{self, ReadFiles};
use crate::layout::{class_folders, image_folder};
use crate::manifest::{self, Manifest};
use crate::{Result, synthetic};

/// A dataset whose files need a reader of their own.
pub(crate) struct DatasetEntry {
    pub(crate) name: &'static str,
    pub(crate) read: ReadFiles,
    /// Settings with their defaults, as TOML text.
    pub(crate) defaults: fn() -> String,
}

const FILE_FORMATS: [DatasetEntry; 7] = [
    cub::ENTRY,
    nabirds::ENTRY,
    stanford_dogs::ENTRY,
    cityscapes::ENTRY,
    voc::ENTRY,
    camvid::ENTRY,
    image_folder::ENTRY,
];

/// Settings of all datasets of files, as TOML text.
pub(crate) fn common_defaults() -> String {
    String::from("on_error = \"error\"  # or \"skip\": leave out unreadable images with a warning\n")
}

/// Returns how the files of a dataset are read; `None` for synthetic datasets.
pub(crate) fn reader(name: &str) -> Option<ReadFiles> {
    if synthetic::builder(name).is_some() {
        return None;
    }
    let format = FILE_FORMATS.iter().find(|entry| entry.name == name);
    Some(format.map_or(class_folders::read as ReadFiles, |entry| entry.read))
}

/// Returns the built-in datasets, then those of the manifests in the data roots.
///
/// An invalid manifest is registered too, with the reason as its summary: using it is an error,
/// using another dataset is not.
pub(crate) fn registry(roots: &[PathBuf]) -> Registry<DatasetBuild> {
    let mut entries: Vec<Entry<DatasetBuild>> = Vec::new();
    entries.extend(manifest::builtin().iter().map(|manifest| Entry {
        name: &manifest.name,
        summary: &manifest.summary,
        source: &manifest.citation,
        defaults: defaults(&manifest.name),
        build: open as DatasetBuild,
    }));
    entries.push(Entry {
        name: image_folder::NAME,
        summary: "own images: one folder per class, folders of images and masks, or lists of both",
        source: "own files: PATH/CLASS/IMAGE, PATH/{train,test}/CLASS/IMAGE, PATH/{images,masks}/NAME, or lists of `IMAGE MASK`",
        defaults: image_folder::ENTRY.defaults,
        build: open,
    });
    for name in manifest::names_in(roots) {
        let (summary, source) = match manifest::find(&name, roots) {
            Ok(Some(manifest)) => (manifest.summary.clone(), manifest.origin.clone()),
            Ok(None) => continue,
            Err(e) => (format!("invalid manifest: {e}"), String::new()),
        };
        entries.push(Entry {
            name: intern(name),
            summary: intern(summary),
            source: intern(source),
            defaults: common_defaults,
            build: open,
        });
    }
    Registry::new("dataset", &entries)
}

fn defaults(name: &str) -> fn() -> String {
    let format = FILE_FORMATS.iter().find(|entry| entry.name == name);
    format.map_or(synthetic::defaults(name).unwrap_or(common_defaults), |entry| entry.defaults)
}

/// Opens a dataset of any kind.
fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    // Rejects a manifest that redefines a built-in name.
    manifest::find(&request.name, &request.roots)?;
    match synthetic::builder(&request.name) {
        Some(build) => build(request),
        None => {
            let read = reader(&request.name).unwrap_or(class_folders::read);
            Ok(file_dataset::open(request, read)?)
        }
    }
}

/// Returns the manifest of class folders that a request names.
pub(crate) fn manifest_of(request: &DatasetRequest) -> Result<Cow<'static, Manifest>> {
    manifest::find(&request.name, &request.roots)?
        .ok_or_else(|| crate::Error::Manifest(format!("no manifest `{}.toml` in a data root", request.name)))
}

/// Keeps a manifest's text for the rest of the process, since registry entries are static; equal
/// texts are kept once, so reading the roots again does not use more memory.
fn intern(text: String) -> &'static str {
    static TEXTS: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let texts = texts.get_or_insert_default();
    if let Some(known) = texts.get(text.as_str()) {
        return known;
    }
    let text: &'static str = Box::leak(text.into_boxed_str());
    texts.insert(text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interns_equal_texts_once() {
        let (a, b) = (intern("text".to_string()), intern("text".to_string()));
        assert!(std::ptr::eq(a, b));
    }

    #[test]
    fn registers_manifests_of_data_roots() {
        let root = tempfile::tempdir().unwrap();
        let text = "name = \"tiny\"\ntitle = \"Tiny\"\nsummary = \"two classes\"\nlicense = \"CC0\"\n\
                    folders = [\"tiny\"]\nclasses = [{ name = \"a\" }, { name = \"b\" }]\n";
        std::fs::write(root.path().join("tiny.toml"), text).unwrap();
        std::fs::write(root.path().join("broken.toml"), "name = 3\n").unwrap();
        let roots = vec![root.path().to_path_buf()];
        let all = registry(&roots);
        assert_eq!(all.get("tiny").unwrap().summary, "two classes");
        let broken = all.get("broken").unwrap();
        assert!(broken.summary.contains("broken.toml:1: `name`"), "{}", broken.summary);
        let request = |name: &str| DatasetRequest {
            name: name.to_string(),
            roots: roots.clone(),
            path: None,
            options: toml::Table::new(),
        };
        let e = (broken.build)(&request("broken")).err().unwrap().to_string();
        assert!(e.contains("broken.toml:1: `name`"), "{e}");
        for class in ["a", "B"] {
            std::fs::create_dir_all(root.path().join("tiny").join(class)).unwrap();
            std::fs::write(root.path().join("tiny").join(class).join("1.png"), crate::fake::png_bytes(1))
                .unwrap();
        }
        let set = (all.get("tiny").unwrap().build)(&request("tiny")).unwrap();
        assert_eq!((set.len(), set.key(1), set.class(1)), (2, "B/1.png".to_string(), Some(1)));
        assert!(registry(&[]).get("tiny").is_err());
    }
}
