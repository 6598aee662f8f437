//! Manifests: what an official dataset should hold, where it comes from, under which terms.

use std::sync::LazyLock;

use serde::Deserialize;

/// The manifest of a dataset, from `datasets/NAME.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Registry name.
    pub name: String,
    /// Full name.
    pub title: String,
    /// What to cite; empty for embedded sets.
    #[serde(default)]
    pub citation: String,
    /// Terms of use, in words.
    pub licence: String,
    /// The official layout below a data root; empty for embedded sets.
    #[serde(default)]
    pub layout: String,
    /// What is odd about the official files.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Where it can be had.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Classes in the order of their indices.
    pub classes: Vec<Class>,
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
    /// MD5 of the archive as public loaders state it.
    #[serde(default)]
    pub md5: Option<String>,
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

/// One class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Its name, and its folder's.
    pub name: String,
    /// Its images.
    pub images: usize,
}

const TEXTS: [(&str, &str); 2] = [
    ("datasets/ucm.toml", include_str!("../../../datasets/ucm.toml")),
    ("datasets/scenes.toml", include_str!("../../../datasets/scenes.toml")),
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
            assert!(!manifest.licence.is_empty());
            assert!(crate::registry().get(&manifest.name).is_ok());
            assert!(manifest.sources.iter().all(|s| s.md5.as_ref().is_none_or(|m| m.len() == 32)));
        }
        assert_eq!(ALL.len(), TEXTS.len());
    }

    #[test]
    fn manifests_agree_with_the_code() {
        let of = |name: &str| find(name).unwrap().classes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
        assert_eq!(of("ucm"), crate::ucm::CLASSES);
        assert!(find("ucm").unwrap().layout.starts_with(crate::ucm::FOLDER));
        assert!(find("ucm").unwrap().classes.iter().all(|c| c.images == 100));
        let request = DatasetRequest {
            name: "scenes".to_string(),
            roots: vec![],
            path: None,
            options: toml::Table::new(),
        };
        let set = (crate::registry().get("scenes").unwrap().build)(&request).unwrap();
        assert_eq!(of("scenes"), set.info().classes);
        let images: usize = find("scenes").unwrap().classes.iter().map(|c| c.images).sum();
        assert_eq!(images, set.len());
    }
}
