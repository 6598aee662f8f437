//! Manifests: TOML files that describe a dataset.
//!
//! A manifest states where a dataset comes from, its license, its classes with their image counts
//! and colors, and its official splits. For a dataset with one folder of images per class
//! (`folders`) it is the whole implementation: a manifest in a data root registers such a dataset
//! without code.

mod file_pattern;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use file_pattern::FilePattern;

use crate::diagnostics::Kind;
use crate::layout::class_folders::simplified;
use crate::layout::text_lists::is_below;
use crate::{Error, Result};

/// Classes fit the `u8` masks and the output layer of any network far below this.
const MAX_CLASSES: usize = 65_536;

/// The manifest of a dataset, read from `datasets/NAME.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Registry name, equal to the file's name without extension.
    #[serde(deserialize_with = "identifier")]
    pub name: String,
    /// Full name.
    #[serde(deserialize_with = "non_empty")]
    pub title: String,
    /// One line for `stillhouse list`.
    #[serde(deserialize_with = "non_empty")]
    pub summary: String,
    /// Publication to cite; empty for synthetic datasets.
    #[serde(default)]
    pub citation: String,
    /// License or terms of use.
    #[serde(deserialize_with = "non_empty")]
    pub license: String,
    /// Official layout below a data root, for the reader; empty for synthetic datasets.
    #[serde(default)]
    pub layout: String,
    /// Folders below a data root that may contain the class folders, in order of preference;
    /// empty for datasets of another layout.
    #[serde(default, deserialize_with = "relative_paths")]
    pub folders: Vec<String>,
    /// Pattern of the image names of a class folder; any name matches if absent.
    #[serde(default)]
    pub file_pattern: Option<FilePattern>,
    /// Folder below a data root that `data fetch` creates; the first of `folders` if absent.
    #[serde(default, deserialize_with = "relative_path")]
    pub fetch_into: Option<String>,
    /// Peculiarities of the official files.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Diagnostics that the official files are known to cause; reported as warnings.
    #[serde(default)]
    pub allow: Vec<Kind>,
    /// Manual steps to obtain a dataset that cannot be downloaded; empty for others.
    #[serde(default)]
    pub access: String,
    /// Download sources.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Total number of images, if the class counts do not determine it.
    #[serde(default)]
    pub images: Option<usize>,
    /// Number of classes, if the dataset's own files name them.
    #[serde(default)]
    pub class_count: Option<usize>,
    /// Official splits.
    #[serde(default)]
    pub splits: Vec<OfficialSplit>,
    /// Classes in the order of their indices.
    #[serde(default, deserialize_with = "distinct_classes")]
    pub classes: Vec<Class>,
    /// Default settings.
    #[serde(default)]
    pub defaults: toml::Table,
    /// The manifest's file, for messages.
    #[serde(skip)]
    pub origin: String,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Name; for class folders also the folder's name.
    #[serde(deserialize_with = "folder_name")]
    pub name: String,
    /// Number of images, if published.
    #[serde(default)]
    pub images: Option<usize>,
    /// Color in label maps; VOC's palette if absent.
    #[serde(default)]
    pub color: Option<[u8; 3]>,
    /// Value in mask files, if it differs from the class index.
    #[serde(default)]
    pub id: Option<u8>,
}

/// One official split.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfficialSplit {
    /// `train`, `val` or `test`.
    pub name: String,
    /// Number of images, if published.
    #[serde(default)]
    pub images: Option<usize>,
}

/// A download source of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `archive` (a file on the original host) or `hub` (a dataset repository on the Hugging Face hub).
    pub kind: SourceKind,
    /// File name of the archive, or the repository as `owner/name`.
    pub id: String,
    /// Description of the content.
    pub content: String,
    /// URL of the archive on its original host.
    #[serde(default)]
    pub url: Option<String>,
    /// Commit of the repository; the newest one if absent.
    #[serde(default, deserialize_with = "hex::<40, _>")]
    pub revision: Option<String>,
    /// Archive within the repository; all files of the layout if absent.
    #[serde(default)]
    pub file: Option<String>,
    /// Size of the archive in bytes.
    #[serde(default)]
    pub size: Option<u64>,
    /// SHA-256 of the archive, if published.
    #[serde(default, deserialize_with = "hex::<64, _>")]
    pub sha256: Option<String>,
    /// MD5 of the archive, if published.
    #[serde(default, deserialize_with = "hex::<32, _>")]
    pub md5: Option<String>,
    /// Path prefixes to extract from the archive or repository; all files if empty.
    #[serde(default)]
    pub take: Vec<String>,
    /// Path prefix to remove.
    #[serde(default)]
    pub strip: String,
    /// Whether the files are parquet tables of images and labels, to be unpacked into class folders.
    #[serde(default)]
    pub parquet: bool,
    /// Part of the dataset that this source provides. The first available source of each part is
    /// used, and all parts are required.
    #[serde(default)]
    pub part: String,
    /// Whether `data fetch` may use this source, because its files have the official layout.
    #[serde(default)]
    pub fetch: bool,
}

/// Kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// A file on the original host.
    Archive,
    /// A dataset repository on the Hugging Face hub.
    Hub,
}

impl Manifest {
    /// Parses a manifest; `origin` names the file in messages.
    ///
    /// # Errors
    ///
    /// Invalid TOML, an unknown, missing or invalid field, or fields that contradict each other;
    /// the message has file, line, field and expectation.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let mut manifest: Self =
            stillhouse_core::config::parse(text, origin).map_err(|e| Error::Manifest(e.to_string()))?;
        manifest.origin = origin.to_string();
        let invalid = |key: &str, message: &str| {
            let starts = |line: &str| {
                line.trim_start().strip_prefix(key).is_some_and(|l| l.trim_start().starts_with('='))
            };
            let line = text.lines().position(starts).unwrap_or_default() + 1;
            Err(Error::Manifest(format!("{origin}:{line}: `{key}`: {message}")))
        };
        if !manifest.folders.is_empty() && manifest.classes.len() < 2 {
            let found = manifest.classes.len();
            return invalid("classes", &format!("expected at least two classes, found {found}"));
        }
        if manifest.file_pattern.is_some() && manifest.folders.is_empty() {
            return invalid("file_pattern", "expected `folders` too: the pattern applies to class folders");
        }
        let downloadable = manifest.sources.iter().filter(|s| s.fetch);
        for source in downloadable {
            if source.kind == SourceKind::Archive && source.url.is_none() {
                return invalid("sources", &format!("expected a `url` for the archive `{}`", source.id));
            }
            if manifest.target_folder().is_none() {
                return invalid("sources", "expected `fetch_into`, the folder to download into");
            }
            if !manifest.access.is_empty() {
                return invalid("access", "expected no source with `fetch = true` if access is manual");
            }
        }
        Ok(manifest)
    }

    /// Reads a data root's manifest, which has to describe class folders.
    fn open(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        let manifest = Self::parse(&text, &origin)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if manifest.name != stem {
            let line = text.lines().position(|l| l.trim_start().starts_with("name")).unwrap_or_default() + 1;
            return Err(Error::Manifest(format!(
                "{origin}:{line}: `name`: expected `{stem}`, the file's name, found `{}`",
                manifest.name
            )));
        }
        if manifest.folders.is_empty() {
            return Err(Error::Manifest(format!(
                "{origin}:1: missing field `folders`: expected the folders below a data root that may contain \
                 the class folders"
            )));
        }
        Ok(manifest)
    }

    /// Returns the total number of images, if known.
    pub fn total(&self) -> Option<usize> {
        let sum = || self.classes.iter().map(|c| c.images).sum::<Option<usize>>();
        self.images.or_else(|| sum().filter(|_| !self.classes.is_empty()))
    }

    /// Returns the number of classes, if known.
    pub fn class_count(&self) -> Option<usize> {
        self.class_count.or((!self.classes.is_empty()).then_some(self.classes.len()))
    }

    /// Returns the number of images of an official split, if known.
    pub fn split(&self, name: &str) -> Option<usize> {
        self.splits.iter().find(|s| s.name == name)?.images
    }

    /// Returns the folder below a data root that `data fetch` creates.
    pub fn target_folder(&self) -> Option<&str> {
        self.fetch_into.as_ref().or(self.folders.first()).map(String::as_str)
    }

    /// Returns the class names in the order of their indices.
    pub fn class_names(&self) -> Vec<String> {
        self.classes.iter().map(|c| c.name.clone()).collect()
    }

    /// Returns instructions for a dataset that was not found.
    pub(crate) fn hint(&self) -> String {
        if !self.access.is_empty() {
            return self.access.clone();
        }
        let fetch = if self.sources.iter().any(|s| s.fetch) {
            format!("run `stillhouse data fetch {}`, or ", self.name)
        } else {
            String::new()
        };
        format!("{fetch}set STILLHOUSE_DATA to the folder that contains it (sources: {})", self.origin)
    }
}

/// Built-in manifests in the order of `stillhouse list`.
const BUILTIN: [(&str, &str); 17] = [
    ("datasets/ucm.toml", include_str!("../../../datasets/ucm.toml")),
    ("datasets/rsc11.toml", include_str!("../../../datasets/rsc11.toml")),
    ("datasets/rsscn7.toml", include_str!("../../../datasets/rsscn7.toml")),
    ("datasets/aid.toml", include_str!("../../../datasets/aid.toml")),
    ("datasets/eurosat.toml", include_str!("../../../datasets/eurosat.toml")),
    ("datasets/nwpu_resisc45.toml", include_str!("../../../datasets/nwpu_resisc45.toml")),
    ("datasets/patternnet.toml", include_str!("../../../datasets/patternnet.toml")),
    ("datasets/whu_rs19.toml", include_str!("../../../datasets/whu_rs19.toml")),
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

static PARSED: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
    // A unit test parses each of them, so none is dropped here.
    BUILTIN.iter().filter_map(|(origin, text)| Manifest::parse(text, origin).ok()).collect()
});

/// Returns the built-in manifests in the order of `stillhouse list`.
pub fn builtin() -> &'static [Manifest] {
    &PARSED
}

/// Returns a built-in manifest that the code of a dataset relies on.
pub(crate) fn of_builtin(name: &str) -> Result<&'static Manifest> {
    builtin()
        .iter()
        .find(|m| m.name == name)
        .ok_or_else(|| Error::Manifest(format!("datasets/{name}.toml: not a built-in manifest")))
}

/// Returns the manifest of a dataset: a built-in one, or `NAME.toml` in the first root that has it.
///
/// # Errors
///
/// An invalid manifest, or one in a root that redefines a built-in name.
pub fn find(name: &str, roots: &[PathBuf]) -> Result<Option<Cow<'static, Manifest>>> {
    let path = roots.iter().map(|root| root.join(format!("{name}.toml"))).find(|path| path.is_file());
    let known = builtin().iter().find(|m| m.name == name);
    match (path, known) {
        (None, known) => Ok(known.map(Cow::Borrowed)),
        (Some(path), None) if name != crate::layout::image_folder::NAME => {
            Manifest::open(&path).map(|m| Some(Cow::Owned(m)))
        }
        (Some(path), known) => {
            // The sources of this program contain the built-in manifests in a data root of theirs.
            let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
            let same = known.filter(|known| {
                let parsed = Manifest::parse(&text, &known.origin);
                parsed.is_ok_and(|parsed| parsed == **known)
            });
            let clash = || {
                Error::Manifest(format!(
                    "{}:1: `{name}` is the name of a built-in dataset: expected another name, for the file and \
                     its field `name`",
                    path.display()
                ))
            };
            same.map(|m| Some(Cow::Borrowed(m))).ok_or_else(clash)
        }
    }
}

/// Returns the names of the manifests in the roots that are not built in, sorted, each once.
pub(crate) fn names_in(roots: &[PathBuf]) -> Vec<String> {
    let mut names = BTreeSet::new();
    for entry in roots.iter().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten() {
        let path = entry.path();
        let is_manifest = path.extension().is_some_and(|e| e == "toml") && path.is_file();
        if let Some(stem) =
            path.file_stem().and_then(|s| s.to_str()).filter(|s| is_manifest && !s.starts_with('.'))
        {
            names.insert(stem.to_string());
        }
    }
    names.retain(|name| builtin().iter().all(|m| m.name != *name));
    names.into_iter().collect()
}

fn identifier<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if text.is_empty() || !text.bytes().all(is_valid) {
        return Err(D::Error::custom(format!(
            "expected lowercase letters, digits, `_` and `-`, found {text:?}"
        )));
    }
    Ok(text)
}

fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(D::Error::custom("expected a text, found none"));
    }
    Ok(text)
}

fn folder_name<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if !is_below(&text) || text.contains('/') {
        return Err(D::Error::custom(format!("expected the name of one folder, found {text:?}")));
    }
    Ok(text)
}

fn relative_paths<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    let paths = Vec::<String>::deserialize(deserializer)?;
    if let Some(path) = paths.iter().find(|path| !is_below(path)) {
        return Err(D::Error::custom(format!("expected a path below a data root, found {path:?}")));
    }
    Ok(paths)
}

fn relative_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<String>, D::Error> {
    let path = String::deserialize(deserializer)?;
    if !is_below(&path) {
        return Err(D::Error::custom(format!("expected a path below a data root, found {path:?}")));
    }
    Ok(Some(path))
}

fn hex<'de, const DIGITS: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() != DIGITS || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(D::Error::custom(format!("expected {DIGITS} lowercase hex digits, found {text:?}")));
    }
    Ok(Some(text))
}

fn distinct_classes<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Class>, D::Error> {
    let classes = Vec::<Class>::deserialize(deserializer)?;
    if classes.len() > MAX_CLASSES {
        let found = classes.len();
        return Err(D::Error::custom(format!("expected at most {MAX_CLASSES} classes, found {found}")));
    }
    let mut seen = BTreeSet::new();
    // Folders match a class regardless of case, spaces, `_` and `-`.
    match classes.iter().find(|class| !seen.insert(simplified(&class.name))) {
        Some(class) => {
            Err(D::Error::custom(format!("expected distinct names, found `{}` twice", class.name)))
        }
        None => Ok(classes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_builtin_manifest() {
        for (origin, text) in BUILTIN {
            let manifest = Manifest::parse(text, origin).unwrap();
            assert!(origin.ends_with(&format!("/{}.toml", manifest.name)));
            assert!(crate::registry().get(&manifest.name).is_ok());
        }
        assert_eq!(builtin().len(), BUILTIN.len());
    }

    #[test]
    fn builtin_manifests_have_the_published_counts() {
        for (name, classes, images) in [
            ("ucm", 21, 2100),
            ("rsc11", 11, 1232),
            ("rsscn7", 7, 2800),
            ("aid", 30, 10_000),
            ("eurosat", 10, 27_000),
            ("nwpu_resisc45", 45, 31_500),
            ("patternnet", 38, 30_400),
            ("whu_rs19", 19, 1005),
            ("cub", 200, 11_788),
            ("nabirds", 555, 48_562),
            ("dogs", 120, 20_580),
            ("cityscapes", 19, 3475),
            ("voc", 21, 2913),
            ("camvid", 11, 701),
            ("scenes", 21, 4200),
            ("fields", 6, 500),
            ("species", 20, 1000),
        ] {
            let manifest = of_builtin(name).unwrap();
            assert_eq!((manifest.class_count(), manifest.total()), (Some(classes), Some(images)), "{name}");
            let listed = manifest.splits.iter().map(|s| s.images.unwrap()).sum::<usize>();
            assert!(listed == images || manifest.splits.is_empty(), "{name}");
        }
    }

    const VALID: &str = "name = \"tiny\"\ntitle = \"Tiny\"\nsummary = \"two classes\"\nlicense = \"CC0\"\n\
                         folders = [\"tiny\"]\nclasses = [{ name = \"a\" }, { name = \"b\" }]\n";

    #[test]
    fn reports_file_line_and_expectation_of_invalid_fields() {
        assert!(Manifest::parse(VALID, "tiny.toml").is_ok());
        for (from, to, line, words) in [
            ("name = \"tiny\"", "name = \"Tiny Set\"", 1, "`name`: expected lowercase letters"),
            ("title = \"Tiny\"", "title = 3", 2, "`title`: invalid type"),
            ("license = \"CC0\"", "license = \"\"", 4, "`license`: expected a text"),
            ("license = \"CC0\"", "licence = \"CC0\"", 4, "did you mean `license`"),
            ("summary = \"two classes\"\n", "", 1, "missing field `summary`"),
            ("[\"tiny\"]", "[\"../tiny\"]", 5, "`folders`: expected a path below a data root"),
            ("name = \"b\"", "name = \"A\"", 6, "`classes`: expected distinct names, found `A` twice"),
            ("name = \"b\"", "name = \"b/c\"", 6, "expected the name of one folder"),
            ("name = \"b\"", "name = \"b\", images = -1", 6, "classes[1].images"),
            ("classes = [{ name = \"a\" }, { name = \"b\" }]", "classes = []", 6, "at least two classes"),
            ("folders", "file_pattern = \"{klass}\"\nfolders", 5, "`{klass}`"),
            ("folders = [\"tiny\"]", "file_pattern = \"x\"", 5, "expected `folders` too"),
            (
                "folders",
                "sources = [{ kind = \"archive\", id = \"t.zip\", content = \"\", fetch = true }]\nfolders",
                5,
                "expected a `url`",
            ),
            (
                "folders",
                "sources = [{ kind = \"hub\", id = \"a/t\", content = \"\", md5 = \"12\" }]\nfolders",
                5,
                "`sources[0].md5`: expected 32 lowercase hex digits",
            ),
        ] {
            let text = VALID.replacen(from, to, 1);
            let e = Manifest::parse(&text, "tiny.toml").unwrap_err().to_string();
            assert!(e.contains(&format!("tiny.toml:{line}: ")) && e.contains(words), "{to}: {e}");
        }
    }

    #[test]
    fn finds_manifests_of_data_roots() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [other.path().join("absent"), other.path().to_path_buf(), root.path().to_path_buf()];
        fs::write(root.path().join("tiny.toml"), VALID).unwrap();
        assert_eq!(find("tiny", &roots).unwrap().unwrap().title, "Tiny");
        assert_eq!(names_in(&roots), ["tiny"]);
        // The first root wins.
        fs::write(other.path().join("tiny.toml"), VALID.replace("Tiny", "Other")).unwrap();
        assert_eq!(find("tiny", &roots).unwrap().unwrap().title, "Other");
        assert!(find("absent", &roots).unwrap().is_none());
        fs::write(root.path().join("small.toml"), VALID).unwrap();
        let e = find("small", &roots).unwrap_err().to_string();
        assert!(e.contains("small.toml:1: `name`: expected `small`"), "{e}");
        fs::write(root.path().join("small.toml"), "name = \"small\"\n").unwrap();
        assert!(find("small", &roots).unwrap_err().to_string().contains("missing field"));
    }

    #[test]
    fn rejects_redefined_builtin_names() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_path_buf()];
        let builtin = BUILTIN[0].1;
        fs::write(root.path().join("ucm.toml"), format!("# The same fields.\n{builtin}")).unwrap();
        assert!(find("ucm", &roots).unwrap().is_some());
        fs::write(root.path().join("ucm.toml"), VALID.replace("tiny", "ucm")).unwrap();
        fs::write(root.path().join("folder.toml"), VALID.replace("tiny", "folder")).unwrap();
        for name in ["ucm", "folder"] {
            let e = find(name, &roots).unwrap_err().to_string();
            assert!(e.contains(&format!("{name}.toml:1: `{name}` is the name of a built-in")), "{e}");
        }
    }
}
