//! Pretrained weights: which there are, and where their files lie.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stillhouse_core::files::sha256_file;
use stillhouse_core::registry::WeightsInfo;
use stillhouse_core::{Error as CoreError, Result, config, nearest};

use crate::Error;

/// The manifests, `weights/<arch>.<name>.toml`.
const MANIFESTS: &[(&str, &str)] = &[
    ("resnet18.imagenet", include_str!("../../../weights/resnet18.imagenet.toml")),
    ("resnet50.imagenet", include_str!("../../../weights/resnet50.imagenet.toml")),
    ("mobilenetv2_100.imagenet", include_str!("../../../weights/mobilenetv2_100.imagenet.toml")),
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
    /// Its SHA-256, in hex.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// Classes of its head.
    pub classes: usize,
    /// Licence of the values.
    pub licence: String,
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

impl Manifest {
    /// `arch.name`.
    pub fn title(&self) -> String {
        format!("{}.{}", self.arch, self.name)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let other = |expected: String, found: String| Error::OtherFile {
            path: path.to_path_buf(),
            weights: self.title(),
            expected,
            found,
            get: self.get.clone(),
        };
        let bytes = std::fs::metadata(path).map_err(CoreError::io(path))?.len();
        if bytes != self.bytes {
            return Err(other(format!("{} bytes", self.bytes), format!("{bytes} bytes")).into());
        }
        let sha256 = sha256_file(path)?;
        if sha256 != self.sha256 {
            return Err(other(format!("SHA-256 {}", self.sha256), sha256).into());
        }
        Ok(())
    }
}

/// All weights that have a manifest.
///
/// # Errors
/// A manifest that cannot be read; a test keeps them readable.
pub fn manifests() -> Result<Vec<Manifest>> {
    MANIFESTS.iter().map(|(title, text)| config::parse(text, &format!("weights/{title}.toml"))).collect()
}

/// Finds weights of a network: `name` is that of a manifest (`imagenet`), whose file must lie in one
/// of `roots` with its size and SHA-256, or a path that ends in `.safetensors`. A path is taken as it
/// is: no variant, ImageNet's mean and standard deviation.
///
/// # Errors
/// [`Error::UnknownWeights`], [`Error::NoFile`] and [`Error::OtherFile`], inside
/// [`stillhouse_core::Error::Other`]; I/O errors with the path.
pub fn weights(arch: &str, name: &str, roots: &[PathBuf]) -> Result<WeightsInfo> {
    if name.ends_with(".safetensors") {
        let path = PathBuf::from(name);
        let sha256 = sha256_file(&path)?;
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        return Ok(WeightsInfo { path, sha256, variant: toml::Table::new(), mean, std });
    }
    let manifests = manifests()?;
    let manifest = manifests.iter().find(|m| m.arch == arch && m.name == name);
    let manifest = manifest.ok_or_else(|| {
        let titles: Vec<String> = manifests.iter().map(Manifest::title).collect();
        let own = manifests.iter().filter(|m| m.arch == arch).map(|m| m.name.as_str());
        let (arch, name) = (arch.to_string(), name.to_string());
        Error::UnknownWeights { nearest: nearest(&name, own), arch, name, known: titles.join(", ") }
    })?;
    let mut refused = None;
    for path in roots.iter().map(|root| root.join(&manifest.file)).filter(|path| path.is_file()) {
        match manifest.check(&path) {
            Ok(()) => return Ok(found(manifest, path)),
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

fn found(manifest: &Manifest, path: PathBuf) -> WeightsInfo {
    WeightsInfo {
        path,
        sha256: manifest.sha256.clone(),
        variant: manifest.variant.clone(),
        mean: manifest.mean,
        std: manifest.std,
    }
}
