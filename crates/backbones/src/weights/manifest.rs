//! Manifests of pretrained weights, and the search for their files.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillhouse_core::data::{IMAGENET_MEAN, IMAGENET_STD};
use stillhouse_core::fs::sha256_file;
use stillhouse_core::registry::WeightsInfo;
use stillhouse_core::weights::{FileSource, WeightsSource};
use stillhouse_core::{Error as CoreError, Result, config, suggest};

use super::read::WeightsFile;
use crate::{Error, FAMILIES};

macro_rules! manifests {
    ($($title:literal),* $(,)?) => {
        &[$(($title, include_str!(concat!("../../../../weights/", $title, ".toml")))),*]
    };
}

/// The manifests, `weights/<arch>.<name>.toml`.
const MANIFESTS: &[(&str, &str)] = manifests![
    "resnet18.imagenet",
    "resnet34.imagenet",
    "resnet50.imagenet",
    "resnet101.imagenet",
    "resnet152.imagenet",
    "mobilenetv2_100.imagenet",
    "vgg13_bn.imagenet",
    "vgg16.imagenet",
    "vgg16_bn.imagenet",
    "vgg19.imagenet",
    "swin_tiny_patch4_window7_224.imagenet",
    "swin_small_patch4_window7_224.imagenet",
    "swin_base_patch4_window7_224.imagenet",
    "swin_base_patch4_window12_384.imagenet",
    "swin_large_patch4_window12_384.imagenet",
    "convnext_tiny.imagenet",
    "tf_efficientnet_b0.imagenet",
    "vit_small_patch16_224.imagenet",
];

/// Description of a weights file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Registry name of the model.
    pub arch: String,
    /// Name of the weights, for example `imagenet`.
    pub name: String,
    /// File name.
    pub file: String,
    /// SHA-256 of the file in hex, or a published prefix of it, or empty if none is published.
    #[serde(default)]
    pub sha256: String,
    /// Size of the file, if known.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// URL of the file, if it can be downloaded without conversion.
    #[serde(default)]
    pub url: Option<String>,
    /// The same weights on the Hugging Face Hub.
    #[serde(default)]
    pub hub: Option<HubFile>,
    /// Number of classes of the head.
    pub classes: usize,
    /// License of the weights.
    pub license: String,
    /// Origin and changes.
    pub source: String,
    /// Instructions to get the file, one sentence.
    pub get: String,
    /// Mean of the input per channel, for RGB in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of the input per channel.
    pub std: [f32; 3],
    /// Architecture variant of the weights.
    #[serde(default)]
    pub variant: toml::Table,
}

/// A file on the Hugging Face Hub.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    /// Repository, `owner/name`.
    pub repo: String,
    /// File in the repository.
    pub file: String,
    /// Commit; the newest by default.
    #[serde(default)]
    pub revision: Option<String>,
}

impl HubFile {
    /// Returns the path of the file in a Hub cache, if it is there.
    fn cached(&self, root: &Path) -> Option<PathBuf> {
        let repo = root.join(format!("models--{}", self.repo.replace('/', "--")));
        let revision = match &self.revision {
            Some(revision) => revision.clone(),
            None => std::fs::read_to_string(repo.join("refs/main")).ok()?.trim().to_string(),
        };
        let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
        let file = repo.join("snapshots").join(revision).join(&self.file);
        (is_commit && file.is_file()).then_some(file)
    }
}

impl Manifest {
    /// Returns the manifest of the weights `name` of a model.
    ///
    /// # Errors
    /// [`Error::UnknownWeights`].
    pub fn find(arch: &str, name: &str) -> Result<Self> {
        let manifests = manifests()?;
        manifests.iter().find(|m| m.arch == arch && m.name == name).cloned().ok_or_else(|| {
            let titles: Vec<String> = manifests.iter().map(Manifest::title).collect();
            let own = manifests.iter().filter(|m| m.arch == arch).map(|m| m.name.as_str());
            let (arch, name) = (arch.to_string(), name.to_string());
            Error::UnknownWeights { suggest: suggest(&name, own), arch, name, known: titles.join(", ") }
                .into()
        })
    }

    /// Returns whether the full SHA-256 is known.
    pub fn is_pinned(&self) -> bool {
        self.sha256.len() == 64
    }

    /// Returns `arch.name`.
    pub fn title(&self) -> String {
        format!("{}.{}", self.arch, self.name)
    }

    /// Verifies size and hash of a file, and returns its SHA-256.
    ///
    /// # Errors
    /// [`Error::WrongFile`], or an I/O error.
    pub fn verify(&self, path: &Path) -> Result<String> {
        let wrong = |expected: String, found: String| Error::WrongFile {
            path: path.to_path_buf(),
            weights: self.title(),
            expected,
            found,
            get: self.get.clone(),
        };
        let bytes = std::fs::metadata(path).map_err(CoreError::io(path))?.len();
        if let Some(expected) = self.bytes.filter(|expected| *expected != bytes) {
            return Err(wrong(format!("{expected} bytes"), format!("{bytes} bytes")).into());
        }
        let sha256 = sha256_file(path)?;
        if !sha256.starts_with(&self.sha256) {
            return Err(wrong(format!("SHA-256 {}", self.sha256), sha256).into());
        }
        Ok(sha256)
    }

    /// Returns candidate files in search order: by file name in each folder, then in Hub caches. The flag
    /// is whether the manifest's hash applies; the Hub's file is a different one.
    fn candidates(&self, roots: &[PathBuf]) -> Vec<(PathBuf, bool)> {
        let own = roots.iter().map(|root| (root.join(&self.file), true));
        let hub = self.hub.iter().flat_map(|hub| roots.iter().filter_map(|root| hub.cached(root)));
        own.filter(|(path, _)| path.is_file()).chain(hub.map(|path| (path, false))).collect()
    }
}

/// Returns the manifests of all models of this build.
///
/// # Errors
/// An invalid manifest.
pub fn manifests() -> Result<Vec<Manifest>> {
    let read = |(title, text): &(&str, &str)| config::parse(text, &format!("weights/{title}.toml"));
    let all: Vec<Manifest> = MANIFESTS.iter().map(read).collect::<Result<_>>()?;
    let built = |name: &str| FAMILIES.iter().any(|f| f.entries.iter().any(|entry| entry.name == name));
    Ok(all.into_iter().filter(|m| built(&m.arch)).collect())
}

/// Returns whether a value is a path, not the name of a manifest: it has a path separator, or the file
/// exists.
fn is_path(value: &str) -> bool {
    value.contains(std::path::is_separator) || Path::new(value).is_file()
}

/// Describes a file without a manifest.
fn own_file(path: PathBuf, key: Option<String>) -> Result<WeightsInfo> {
    let sha256 = WeightsFile::open(&path)?.sha256()?;
    let (mean, std) = (IMAGENET_MEAN, IMAGENET_STD);
    Ok(WeightsInfo { path, sha256, key, variant: toml::Table::new(), mean, std })
}

/// Finds the weights of a model. A name is that of a manifest (`imagenet`), whose file must be in one of
/// `roots` (folders or Hub caches) and match the manifest. A value with a path separator, or that is an
/// existing file, is a path: the file is used with the default variant and ImageNet's mean and standard
/// deviation. For a model with a backbone, whose name is in `variant`, the weights are the backbone's.
///
/// # Errors
/// [`Error::UnknownWeights`], [`Error::NotFound`], [`Error::WrongFile`], [`Error::Malformed`], or an I/O error.
pub fn find_weights(
    arch: &str,
    variant: &toml::Table,
    source: &WeightsSource,
    roots: &[PathBuf],
) -> Result<WeightsInfo> {
    let name = match source {
        WeightsSource::File(FileSource { file, key }) => return own_file(file.clone(), key.clone()),
        WeightsSource::Name(name) if is_path(name) => return own_file(PathBuf::from(name), None),
        WeightsSource::Name(name) => name,
    };
    let manifest = Manifest::find(&backbone_name(arch, variant), name)?;
    let info = |path, sha256| WeightsInfo {
        path,
        sha256,
        key: None,
        variant: manifest.variant.clone(),
        mean: manifest.mean,
        std: manifest.std,
    };
    let mut first_error = None;
    for (path, pinned) in manifest.candidates(roots) {
        let checked = if pinned { manifest.verify(&path) } else { sha256_file(&path) };
        match checked {
            Ok(sha256) => return Ok(info(path, sha256)),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| {
        let folders: Vec<String> = roots.iter().map(|r| r.display().to_string()).collect();
        let searched = if folders.is_empty() { "no folder".into() } else { folders.join(", ") };
        let (file, get) = (manifest.file.clone(), manifest.get.clone());
        Error::NotFound { weights: manifest.title(), file, searched, get }.into()
    }))
}

/// Returns the model whose weights apply: the model itself, or its backbone.
fn backbone_name(arch: &str, variant: &toml::Table) -> String {
    let family = FAMILIES.iter().find(|f| f.entries.iter().any(|entry| entry.name == arch));
    let Some(entry) =
        family.filter(|f| f.backbone.is_none()).and_then(|f| f.entries.iter().find(|e| e.name == arch))
    else {
        return arch.to_string();
    };
    let defaults: toml::Table = toml::from_str(&(entry.defaults)()).unwrap_or_default();
    let name = variant.get("backbone").or_else(|| defaults.get("backbone")).and_then(toml::Value::as_str);
    name.unwrap_or(arch).to_string()
}
