//! Download of a dataset from its sources (`stillhouse data fetch`).
//!
//! Archives and repositories are downloaded into the work folder `.fetch/NAME` below the data root,
//! verified and unpacked there, and moved to the dataset's folder in one step: an incomplete
//! dataset is never visible, and a later start resumes the download. One process downloads; others
//! wait for it.

pub mod archive;
mod http;
mod hub;
pub(crate) mod parquet;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use stillhouse_core::fs::FolderLock;

pub use http::Client;

use crate::manifest::{Manifest, Source, SourceKind};
use crate::{Error, Result};

/// Default hub endpoint.
pub const HUB: &str = "https://huggingface.co";

/// File in a downloaded folder that records its origin. Written last before the folder is renamed.
pub const RECORD: &str = ".stillhouse-fetch.json";

/// Download configuration.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Data root to download into.
    pub root: PathBuf,
    /// Hub endpoint without a trailing slash.
    pub endpoint: String,
    /// Hub token; sent to the hub only.
    pub token: Option<String>,
    /// Whether downloads are forbidden.
    pub offline: bool,
    /// Whether the archives are kept in `.fetch`.
    pub keep: bool,
    /// Attempts per file after interruptions and temporary rejections.
    pub tries: u32,
    /// Pause after the first failed attempt; doubled each time.
    pub pause: Duration,
}

impl Fetch {
    /// Reads the environment variables of the hub's own tools: `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
    pub fn from_env(root: PathBuf) -> Self {
        let text =
            |name: &str| std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let is_on = |name: &str| {
            text(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str()))
        };
        let file = || {
            let home = || text("HF_HOME").map(PathBuf::from);
            let cache = || text("HOME").map(|h| Path::new(&h).join(".cache/huggingface"));
            let path = text("HF_TOKEN_PATH")
                .map(PathBuf::from)
                .or_else(|| Some(home().or_else(cache)?.join("token")))?;
            let token = fs::read_to_string(path).ok()?.trim().to_string();
            (!token.is_empty() && !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")).then_some(token)
        };
        Self {
            root,
            endpoint: text("HF_ENDPOINT")
                .unwrap_or_else(|| HUB.to_string())
                .trim_end_matches('/')
                .to_string(),
            token: text("HF_TOKEN").or_else(file),
            offline: is_on("HF_HUB_OFFLINE"),
            keep: false,
            tries: 6,
            pause: Duration::from_secs(1),
        }
    }
}

/// Progress events; may come from several threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A message.
    Message(String),
    /// A download starts: name and size in bytes, if known.
    Started(String, Option<u64>),
    /// Bytes received.
    Advanced(u64),
    /// The download restarts; the bytes received so far do not count.
    Restarted,
    /// The download is complete.
    Finished,
}

/// Receives progress events.
pub type ProgressFn<'a> = &'a (dyn Fn(Progress) + Sync);

/// Result of [`fetch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// The dataset's folder.
    pub folder: PathBuf,
    /// Whether the folder existed before.
    pub already_present: bool,
    /// Downloads; empty if the folder existed before.
    pub from: Vec<Origin>,
}

/// One downloaded archive or repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// URL.
    pub url: String,
    /// Commit of the repository.
    pub revision: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of an archive.
    pub sha256: Option<String>,
    /// Whether the content was compared with a published hash, or that of the repository.
    pub verified: bool,
}

/// Downloads a dataset into its folder below the data root, unless that folder exists.
///
/// # Errors
///
/// A manifest without a source that can be downloaded (with the manual steps), offline mode, a
/// rejected request, a download that stays incomplete, a wrong size or hash (the file is removed),
/// a corrupt or malicious archive, a full disk. Complete downloads stay in the work folder, and no
/// error leaves an incomplete dataset behind.
pub fn fetch(manifest: &Manifest, config: &Fetch, progress: ProgressFn) -> Result<Fetched> {
    let Some(target) = manifest.target_folder() else {
        let message = "no source to download from; see the manifest";
        return Err(Error::setting(format!("dataset `{}`", manifest.name), message));
    };
    let folder = config.root.join(target);
    let present = |already_present| Fetched { folder: folder.clone(), already_present, from: Vec::new() };
    if folder.exists() {
        return Ok(present(true));
    }
    let parts = parts(manifest)?;
    if config.offline {
        return Err(Error::Download {
            source_name: manifest.title.clone(),
            message: format!(
                "{} does not exist, and HF_HUB_OFFLINE forbids downloads; unset it, or copy the dataset there",
                folder.display()
            ),
        });
    }
    let work = config.root.join(".fetch").join(&manifest.name);
    let _lock = wait_for_lock(&work, progress)?;
    if folder.exists() {
        // Another process downloaded it.
        return Ok(present(true));
    }
    let client = Client::new(config)?;
    let (downloads, unpacked) = (work.join("downloads"), work.join("unpacked"));
    let remove = |path: &Path| match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    };
    remove(&unpacked)?;
    for path in [&downloads, &unpacked] {
        fs::create_dir_all(path).map_err(Error::io(path))?;
    }
    let mut from = Vec::new();
    for sources in parts {
        from.push(fetch_first_available(&client, manifest, &sources, &downloads, &unpacked, progress)?);
    }
    let record = serde_json::to_vec_pretty(&from).map_err(|e| Error::setting(RECORD, e))?;
    stillhouse_core::fs::write_atomic(&unpacked.join(RECORD), &record)
        .map_err(|e| Error::setting("the record of the download", e))?;
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    stillhouse_core::fs::rename_folder(&unpacked, &folder)
        .map_err(|e| Error::setting(folder.display(), e))?;
    if !config.keep {
        remove(&downloads)?;
    }
    Ok(Fetched { folder, already_present: false, from })
}

/// Groups the usable sources by the part of the dataset that they provide.
fn parts(manifest: &Manifest) -> Result<Vec<Vec<&Source>>> {
    if !manifest.access.is_empty() {
        return Err(Error::Access { dataset: manifest.title.clone(), instructions: manifest.access.clone() });
    }
    let mut parts: Vec<Vec<&Source>> = Vec::new();
    for source in manifest.sources.iter().filter(|s| s.fetch) {
        match parts.iter_mut().find(|p| p[0].part == source.part) {
            Some(part) => part.push(source),
            None => parts.push(vec![source]),
        }
    }
    if parts.is_empty() {
        let known: Vec<String> =
            manifest.sources.iter().map(|s| format!("{} ({})", s.id, s.content)).collect();
        return Err(Error::Access {
            dataset: manifest.title.clone(),
            instructions: format!(
                "none of its sources has the official layout; download it manually: {}",
                known.join("; ")
            ),
        });
    }
    Ok(parts)
}

fn wait_for_lock(work: &Path, progress: ProgressFn) -> Result<FolderLock> {
    let mut reported = false;
    loop {
        match FolderLock::take(work) {
            Ok(lock) => return Ok(lock),
            Err(stillhouse_core::Error::Incompatible { .. }) => {
                if !reported {
                    progress(Progress::Message(
                        "waiting for another process that downloads this dataset".to_string(),
                    ));
                    reported = true;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(stillhouse_core::Error::Io { path, source }) => return Err(Error::Io { path, source }),
            Err(e) => return Err(Error::setting(work.display(), e)),
        }
    }
}

/// Downloads from the first available source; returns the first error if there is none.
fn fetch_first_available(
    client: &Client,
    manifest: &Manifest,
    sources: &[&Source],
    downloads: &Path,
    unpacked: &Path,
    progress: ProgressFn,
) -> Result<Origin> {
    let mut first = None;
    for (i, source) in sources.iter().enumerate() {
        let result = match (source.kind, &source.file) {
            (SourceKind::Hub, None) if source.parquet => {
                let tables = downloads.join("tables");
                hub::folder(client, source, &tables, progress).and_then(|origin| {
                    table::unpack(&tables, &manifest.classes, unpacked, progress).map(|()| origin)
                })
            }
            (SourceKind::Hub, None) => hub::folder(client, source, unpacked, progress),
            _ => fetch_archive(client, source, downloads, unpacked, progress),
        };
        match result {
            Ok(origin) => return Ok(origin),
            // A full disk or a malicious file is not worth another source.
            Err(e @ (Error::Io { .. } | Error::Archive { .. } | Error::Decode { .. })) => return Err(e),
            Err(e) => {
                if i + 1 < sources.len() {
                    progress(Progress::Message(format!("{e}; trying the next source")));
                }
                first.get_or_insert(e);
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::setting("manifest", "a part without a source")))
}

fn fetch_archive(
    client: &Client,
    source: &Source,
    downloads: &Path,
    unpacked: &Path,
    progress: ProgressFn,
) -> Result<Origin> {
    let (url, name) = match (&source.url, &source.file) {
        (Some(url), _) => (url.clone(), source.id.as_str()),
        (None, Some(file)) => (hub::resolve(client, source, file), file.as_str()),
        (None, None) => return Err(Error::setting(&source.id, "the manifest has no URL for it")),
    };
    let name = name.rsplit('/').next().unwrap_or(name);
    let path = downloads.join(name);
    let expected = http::ExpectedFile {
        size: source.size,
        sha256: source.sha256.clone(),
        md5: source.md5.clone(),
        // Detects an error page before a hash mismatch.
        is_archive: true,
    };
    let got = client.download(&url, &path, &expected, progress)?;
    progress(Progress::Message(format!("unpacking {name}")));
    if let Err(e) = archive::unpack(&path, unpacked, &source.take, &source.strip) {
        if matches!(e, Error::Archive { .. }) {
            // A later start would fail on it again.
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        return Err(e);
    }
    Ok(Origin {
        url,
        revision: source.revision.clone(),
        size: got.size,
        sha256: Some(got.sha256),
        verified: source.sha256.is_some() || source.md5.is_some(),
    })
}
