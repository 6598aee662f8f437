//! Pretrained weights: which there are, and where their files lie.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillhouse_core::data::{IMAGENET_MEAN, IMAGENET_STD};
use stillhouse_core::fs::sha256_file;
use stillhouse_core::registry::WeightsInfo;
use stillhouse_core::{Error as CoreError, Result, config, suggest};

use crate::{Error, FAMILIES};

macro_rules! manifests {
    ($($title:literal),* $(,)?) => {
        &[$(($title, include_str!(concat!("../../../weights/", $title, ".toml")))),*]
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

/// What is known of one weights file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The network, by its registry name.
    pub arch: String,
    /// The weights' name, for example `imagenet`.
    pub name: String,
    /// File name.
    pub file: String,
    /// Its SHA-256, in hex; where only its beginning is published, that much of it; empty where nothing
    /// is.
    #[serde(default)]
    pub sha256: String,
    /// Its size, if it is known.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Address of the file, if it can be had as it is.
    #[serde(default)]
    pub url: Option<String>,
    /// Where the Hugging Face hub has the same weights.
    #[serde(default)]
    pub hub: Option<Hub>,
    /// Classes of its head.
    pub classes: usize,
    /// License of the values.
    pub license: String,
    /// Where they come from and what was changed.
    pub source: String,
    /// How to get the file, one sentence.
    pub get: String,
    /// Input mean per channel, of RGB in [0, 1].
    pub mean: [f32; 3],
    /// Input standard deviation per channel.
    pub std: [f32; 3],
    /// Architecture variant that they were trained in.
    #[serde(default)]
    pub variant: toml::Table,
}

/// A file of the Hugging Face hub.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// Repository, `owner/name`.
    pub repo: String,
    /// File in it.
    pub file: String,
    /// Commit; the newest where it is left out.
    #[serde(default)]
    pub revision: Option<String>,
}

impl Hub {
    /// The file in the hub's cache below `root`, if it lies there.
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
    /// The manifest of these weights, if there is one.
    ///
    /// # Errors
    /// [`Error::UnknownWeights`], inside [`stillhouse_core::Error::Other`].
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

    /// Whether the whole SHA-256 is known.
    pub fn is_pinned(&self) -> bool {
        self.sha256.len() == 64
    }

    /// `arch.name`.
    pub fn title(&self) -> String {
        format!("{}.{}", self.arch, self.name)
    }

    /// Compares a file with what is known of it; its SHA-256.
    ///
    /// # Errors
    /// [`Error::OtherFile`], inside [`stillhouse_core::Error::Other`]; I/O errors with the path.
    pub fn check(&self, path: &Path) -> Result<String> {
        let other = |expected: String, found: String| Error::OtherFile {
            path: path.to_path_buf(),
            weights: self.title(),
            expected,
            found,
            get: self.get.clone(),
        };
        let bytes = std::fs::metadata(path).map_err(CoreError::io(path))?.len();
        if let Some(expected) = self.bytes.filter(|expected| *expected != bytes) {
            return Err(other(format!("{expected} bytes"), format!("{bytes} bytes")).into());
        }
        let sha256 = sha256_file(path)?;
        if !sha256.starts_with(&self.sha256) {
            return Err(other(format!("SHA-256 {}", self.sha256), sha256).into());
        }
        Ok(sha256)
    }

    /// Files that may be these weights, in order: of its own name in each of the folders, then in the
    /// layout of the hub's cache, whose file has a hash of its own.
    fn candidates(&self, roots: &[PathBuf]) -> Vec<(PathBuf, bool)> {
        let own = roots.iter().map(|root| (root.join(&self.file), true));
        let hub = self.hub.iter().flat_map(|hub| roots.iter().filter_map(|root| hub.cached(root)));
        own.filter(|(path, _)| path.is_file()).chain(hub.map(|path| (path, false))).collect()
    }
}

/// All weights that have a manifest, of the networks that this build has.
///
/// # Errors
/// A manifest that cannot be read; a test keeps them readable.
pub fn manifests() -> Result<Vec<Manifest>> {
    let read = |(title, text): &(&str, &str)| config::parse(text, &format!("weights/{title}.toml"));
    let all: Vec<Manifest> = MANIFESTS.iter().map(read).collect::<Result<_>>()?;
    let built = |name: &str| FAMILIES.iter().any(|f| f.rows.iter().any(|row| row.name == name));
    Ok(all.into_iter().filter(|m| built(&m.arch)).collect())
}

/// Endings of files that are taken as they are.
const ENDINGS: [&str; 4] = [".safetensors", ".pth", ".pt", ".bin"];

/// Finds weights of a network: `name` is that of a manifest (`imagenet`), whose file must lie in one
/// of `roots` (or in one that is the hub's cache) and be the one that the manifest means, or a path
/// that ends in `.safetensors`, `.pth`, `.pt` or `.bin`. A path is taken as it is: no variant,
/// ImageNet's mean and standard deviation. For a network that stands on another the weights are the
/// other's: `variant` says which it is.
///
/// # Errors
/// [`Error::UnknownWeights`], [`Error::NoFile`] and [`Error::OtherFile`], inside
/// [`stillhouse_core::Error::Other`]; I/O errors with the path.
pub fn weights(arch: &str, variant: &toml::Table, name: &str, roots: &[PathBuf]) -> Result<WeightsInfo> {
    if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        let path = PathBuf::from(name);
        let sha256 = sha256_file(&path)?;
        let (mean, std) = (IMAGENET_MEAN, IMAGENET_STD);
        return Ok(WeightsInfo { path, sha256, variant: toml::Table::new(), mean, std });
    }
    let manifest = Manifest::find(&inner(arch, variant), name)?;
    let found = |path, sha256| WeightsInfo {
        path,
        sha256,
        variant: manifest.variant.clone(),
        mean: manifest.mean,
        std: manifest.std,
    };
    let mut refused = None;
    for (path, own) in manifest.candidates(roots) {
        let checked = if own { manifest.check(&path) } else { sha256_file(&path) };
        match checked {
            Ok(sha256) => return Ok(found(path, sha256)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| {
        let folders: Vec<String> = roots.iter().map(|r| r.display().to_string()).collect();
        let looked =
            if folders.is_empty() { "any folder: none was given".into() } else { folders.join(", ") };
        let (file, get) = (manifest.file.clone(), manifest.get.clone());
        Error::NoFile { weights: manifest.title(), file, looked, get }.into()
    }))
}

/// The network whose weights a network takes: its own, or those of the one that it stands on.
fn inner(arch: &str, variant: &toml::Table) -> String {
    let family = FAMILIES.iter().find(|f| f.rows.iter().any(|row| row.name == arch));
    let Some(row) = family.filter(|f| f.body.is_none()).and_then(|f| f.rows.iter().find(|r| r.name == arch))
    else {
        return arch.to_string();
    };
    let defaults: toml::Table = toml::from_str(&(row.defaults)()).unwrap_or_default();
    let name = variant.get("backbone").or_else(|| defaults.get("backbone")).and_then(toml::Value::as_str);
    name.unwrap_or(arch).to_string()
}
