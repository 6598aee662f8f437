//! Manifests: what an official dataset should hold, where it comes from, under which terms.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::findings::Kind;

/// The manifest of a dataset, from `datasets/NAME.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Registry name.
    pub name: String,
    /// Full name.
    pub title: String,
    /// What to cite; empty for synthetic sets.
    #[serde(default)]
    pub citation: String,
    /// Terms of use, in words, and what they allow.
    pub license: String,
    /// The official layout below a data root; empty for synthetic sets.
    #[serde(default)]
    pub layout: String,
    /// The folder below a data root that the set is fetched into; empty for synthetic sets.
    #[serde(default)]
    pub folder: String,
    /// What is odd about the official files.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Findings that the official files are known to have, so that they are no faults.
    #[serde(default)]
    pub allow: Vec<Kind>,
    /// What a person has to do for a set that cannot be fetched; empty for others.
    #[serde(default)]
    pub access: String,
    /// Where it can be had.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Images in all, where the classes do not say.
    #[serde(default)]
    pub images: Option<usize>,
    /// Number of classes, where the set's own files name them.
    #[serde(default)]
    pub class_count: Option<usize>,
    /// Images of the official lists.
    #[serde(default)]
    pub splits: Vec<Class>,
    /// Classes in the order of their indices.
    #[serde(default)]
    pub classes: Vec<Class>,
}

impl Manifest {
    /// Images in all, if they are known.
    pub fn total(&self) -> Option<usize> {
        let summed = || self.classes.iter().map(|c| c.images).sum::<Option<usize>>();
        self.images.or_else(|| summed().filter(|_| !self.classes.is_empty()))
    }

    /// Number of classes, if it is known.
    pub fn class_count(&self) -> Option<usize> {
        self.class_count.or((!self.classes.is_empty()).then_some(self.classes.len()))
    }

    /// Images of an official list, if they are known.
    pub fn split(&self, name: &str) -> Option<usize> {
        self.splits.iter().find(|s| s.name == name)?.images
    }
}

/// A place that gives the dataset.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `archive` (a file of the original host) or `hub` (a dataset repository of the Hugging Face hub).
    pub kind: SourceKind,
    /// The archive's file name, or the repository as owner/name.
    pub id: String,
    /// What it holds.
    pub content: String,
    /// Address of the archive at its original host.
    #[serde(default)]
    pub url: Option<String>,
    /// Commit of the repository; without one its newest is taken, and written down.
    #[serde(default)]
    pub revision: Option<String>,
    /// The archive within the repository; without one all files that the layout needs are taken.
    #[serde(default)]
    pub file: Option<String>,
    /// Bytes of the archive.
    #[serde(default)]
    pub size: Option<u64>,
    /// SHA-256 of the archive.
    #[serde(default)]
    pub sha256: Option<String>,
    /// MD5 of the archive as public loaders state it.
    #[serde(default)]
    pub md5: Option<String>,
    /// What is taken of the archive or repository: paths that begin with one of these; all if there
    /// is none.
    #[serde(default)]
    pub take: Vec<String>,
    /// The beginning of paths that is cut off.
    #[serde(default)]
    pub strip: String,
    /// Whether it holds parquet tables of images and labels, which become class folders.
    #[serde(default)]
    pub parquet: bool,
    /// Which part of the set it is: of one part the first source that can be had is taken, and all
    /// parts are needed.
    #[serde(default)]
    pub part: String,
    /// Whether `data fetch` can use it: the files are as the layout wants them.
    #[serde(default)]
    pub fetch: bool,
}

/// Kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// A file of the original host.
    Archive,
    /// A dataset repository of the Hugging Face hub.
    Hub,
}

/// One class or official list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Its name; a class's is its folder's.
    pub name: String,
    /// Its images, if the number is known.
    #[serde(default)]
    pub images: Option<usize>,
}

const TEXTS: [(&str, &str); 13] = [
    ("datasets/ucm.toml", include_str!("../../../datasets/ucm.toml")),
    ("datasets/rsc11.toml", include_str!("../../../datasets/rsc11.toml")),
    ("datasets/rsscn7.toml", include_str!("../../../datasets/rsscn7.toml")),
    ("datasets/aid.toml", include_str!("../../../datasets/aid.toml")),
    ("datasets/cub.toml", include_str!("../../../datasets/cub.toml")),
    ("datasets/nabirds.toml", include_str!("../../../datasets/nabirds.toml")),
    ("datasets/dogs.toml", include_str!("../../../datasets/dogs.toml")),
    ("datasets/cityscapes.toml", include_str!("../../../datasets/cityscapes.toml")),
    ("datasets/voc.toml", include_str!("../../../datasets/voc.toml")),
    ("datasets/camvid.toml", include_str!("../../../datasets/camvid.toml")),
    ("datasets/scenes.toml", include_str!("../../../datasets/scenes.toml")),
    ("datasets/fields.toml", include_str!("../../../datasets/fields.toml")),
    ("datasets/species.toml", include_str!("../../../datasets/species.toml")),
];

static ALL: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
    // A unit test reads every text, so none is left out here.
    TEXTS.iter().filter_map(|(origin, text)| stillhouse_core::config::parse(text, origin).ok()).collect()
});

/// The manifest of a registry name, if there is one.
pub fn find(name: &str) -> Option<&'static Manifest> {
    ALL.iter().find(|m| m.name == name)
}

#[cfg(test)]
mod tests {
    use stillhouse_core::registry::DatasetRequest;

    use super::*;

    #[test]
    fn every_manifest_is_read() {
        for (origin, text) in TEXTS {
            let manifest: Manifest = stillhouse_core::config::parse(text, origin).unwrap();
            assert!(origin.ends_with(&format!("/{}.toml", manifest.name)));
            assert!(!manifest.license.is_empty());
            assert!(crate::registry().get(&manifest.name).is_ok());
            for source in &manifest.sources {
                let hex = |text: &Option<String>, length: usize| {
                    let is_hex = |t: &String| t.len() == length && t.bytes().all(|b| b.is_ascii_hexdigit());
                    text.as_ref().is_none_or(is_hex)
                };
                assert!(
                    hex(&source.md5, 32) && hex(&source.sha256, 64) && hex(&source.revision, 40),
                    "{origin}"
                );
                assert!(source.kind == SourceKind::Hub || !source.fetch || source.url.is_some(), "{origin}");
            }
            let gated = !manifest.access.is_empty();
            assert!(!gated || manifest.sources.iter().all(|s| !s.fetch), "{origin}");
        }
        assert_eq!(ALL.len(), TEXTS.len());
    }

    #[test]
    fn manifests_agree_with_the_code() {
        let of = |name: &str| find(name).unwrap().classes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
        assert_eq!(of("ucm"), crate::ucm::CLASSES);
        assert_eq!(of("rsc11"), crate::rsc11::CLASSES);
        assert_eq!(of("rsscn7"), crate::rsscn7::CLASSES);
        assert_eq!(of("aid"), crate::aid::CLASSES);
        assert_eq!(of("cityscapes"), crate::cityscapes::CLASSES);
        assert_eq!(of("voc"), crate::voc::CLASSES);
        assert_eq!(of("camvid"), crate::camvid::CLASSES);
        assert!(find("ucm").unwrap().layout.starts_with(crate::ucm::FOLDER));
        for (name, classes, images) in [
            ("ucm", 21, 2100),
            ("rsc11", 11, 1232),
            ("rsscn7", 7, 2800),
            ("aid", 30, 10_000),
            ("cub", 200, 11_788),
            ("nabirds", 555, 48_562),
            ("dogs", 120, 20_580),
            ("cityscapes", 19, 3475),
            ("voc", 21, 2913),
            ("camvid", 11, 701),
        ] {
            let manifest = find(name).unwrap();
            assert_eq!((manifest.class_count(), manifest.total()), (Some(classes), Some(images)), "{name}");
            let listed = manifest.splits.iter().map(|s| s.images.unwrap()).sum::<usize>();
            assert!(listed == images || manifest.splits.is_empty(), "{name}");
        }
        for name in ["scenes", "fields", "species"] {
            let (roots, options) = (vec![], toml::Table::new());
            let request = DatasetRequest { name: name.to_string(), roots, path: None, options };
            let set = (crate::registry().get(name).unwrap().build)(&request).unwrap();
            assert_eq!(of(name), set.info().classes);
            assert_eq!(find(name).unwrap().total(), Some(set.len()));
        }
    }
}
