//! `stillhouse data fetch`: an official set from its sources to its place, or not at all.
//!
//! Archives and repositories are downloaded into a work folder `.fetch/NAME` below the root,
//! verified, unpacked there, and moved to the set's folder in one step: a set that was cut off is
//! never seen, and a later start goes on where it was. One process downloads, others wait for it.

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

use crate::manifest::{self, Manifest, Source, SourceKind};
use crate::{Error, Result};

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
pub const HUB: &str = "https://huggingface.co";

/// What a fetched folder holds beside the set: where it came from. Written last before the folder
/// gets its name.
pub const RECORD: &str = ".stillhouse-fetch.json";

/// How to fetch.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// The data root that the set is to lie under.
    pub root: PathBuf,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// A token of the hub; it is sent to the hub alone.
    pub token: Option<String>,
    /// Nothing is downloaded.
    pub offline: bool,
    /// Keep the archives in `.fetch`.
    pub keep: bool,
    /// Tries of one file that is cut off or refused for a time.
    pub tries: u32,
    /// Pause after the first failed try; it doubles.
    pub pause: Duration,
}

impl Fetch {
    /// From the environment, as the hub's own tools read it: `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
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

/// What goes on, for a progress bar; may come from several threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A sentence for the person.
    Say(String),
    /// A download begins: its name and its bytes, if they are known.
    Begin(String, Option<u64>),
    /// So many bytes more.
    More(u64),
    /// The bytes that were counted so far do not count: the file begins anew.
    Again,
    /// The download is whole.
    End,
}

/// Where progress is told.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Sync);

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// The set's folder.
    pub folder: PathBuf,
    /// Whether it had been there before.
    pub was_there: bool,
    /// What it was made of; empty where it had been there before.
    pub from: Vec<Origin>,
}

/// One downloaded archive or repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Its address.
    pub url: String,
    /// Commit of the repository.
    pub revision: Option<String>,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of an archive.
    pub sha256: Option<String>,
    /// Whether its bytes were compared with a published hash (or that of the repository).
    pub verified: bool,
}

/// Fetches an official set by its registry name.
///
/// # Errors
///
/// A set without a manifest or source, one that asks for a registration (with what to do), offline
/// mode, an address that refuses, a download that stays cut off, a wrong size or hash (what was
/// downloaded is removed), an archive that is no archive or is hostile, a full disk. What was
/// downloaded before an error stays in the work folder, and no error leaves a half set behind.
pub fn fetch(name: &str, how: &Fetch, tell: Tell) -> Result<Fetched> {
    let manifest = manifest::find(name).filter(|m| !m.folder.is_empty()).ok_or_else(|| {
        Error::setting(format!("dataset `{name}`"), "there is nothing to fetch: it has no official source")
    })?;
    fetch_manifest(manifest, how, tell)
}

/// As [`fetch`], by a manifest.
///
/// # Errors
///
/// As [`fetch`].
pub fn fetch_manifest(manifest: &Manifest, how: &Fetch, tell: Tell) -> Result<Fetched> {
    let folder = how.root.join(&manifest.folder);
    let there = |was_there| Fetched { folder: folder.clone(), was_there, from: Vec::new() };
    if folder.exists() {
        return Ok(there(true));
    }
    let parts = parts(manifest)?;
    if how.offline {
        return Err(Error::Download {
            what: manifest.title.clone(),
            message: format!(
                "{} is not there and HF_HUB_OFFLINE forbids to download; unset it, or put the set there",
                folder.display()
            ),
        });
    }
    let work = how.root.join(".fetch").join(&manifest.name);
    let _lock = wait_for_lock(&work, tell)?;
    if folder.exists() {
        // Another process was at it.
        return Ok(there(true));
    }
    let client = Client::new(how)?;
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
        from.push(first_that_works(&client, manifest, &sources, &downloads, &unpacked, tell)?);
    }
    let record = serde_json::to_vec_pretty(&from).map_err(|e| Error::setting(RECORD, e))?;
    stillhouse_core::fs::write_atomic(&unpacked.join(RECORD), &record)
        .map_err(|e| Error::setting("the record of the download", e))?;
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    stillhouse_core::fs::rename_folder(&unpacked, &folder)
        .map_err(|e| Error::setting(folder.display(), e))?;
    if !how.keep {
        remove(&downloads)?;
    }
    Ok(Fetched { folder, was_there: false, from })
}

/// The sources of each part of the set, in their order.
fn parts(manifest: &Manifest) -> Result<Vec<Vec<&Source>>> {
    if !manifest.access.is_empty() {
        return Err(Error::Access { dataset: manifest.title.clone(), how: manifest.access.clone() });
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
            how: format!(
                "none of its sources is in the official layout; get it by hand: {}",
                known.join("; ")
            ),
        });
    }
    Ok(parts)
}

fn wait_for_lock(work: &Path, tell: Tell) -> Result<FolderLock> {
    let mut told = false;
    loop {
        match FolderLock::take(work) {
            Ok(lock) => return Ok(lock),
            Err(stillhouse_core::Error::Incompatible { .. }) => {
                if !told {
                    tell(Progress::Say("another process is fetching this set; waiting for it".to_string()));
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(stillhouse_core::Error::Io { path, source }) => return Err(Error::Io { path, source }),
            Err(e) => return Err(Error::setting(work.display(), e)),
        }
    }
}

/// Takes the first source that can be had; the error of the first one that cannot, if none.
fn first_that_works(
    client: &Client,
    manifest: &Manifest,
    sources: &[&Source],
    downloads: &Path,
    unpacked: &Path,
    tell: Tell,
) -> Result<Origin> {
    let mut first = None;
    for (i, source) in sources.iter().enumerate() {
        let result = match (source.kind, &source.file) {
            (SourceKind::Hub, None) if source.parquet => {
                let tables = downloads.join("tables");
                hub::folder(client, source, &tables, tell).and_then(|origin| {
                    table::unpack(&tables, &manifest.classes, unpacked, tell).map(|()| origin)
                })
            }
            (SourceKind::Hub, None) => hub::folder(client, source, unpacked, tell),
            _ => an_archive(client, source, downloads, unpacked, tell),
        };
        match result {
            Ok(origin) => return Ok(origin),
            // A full disk or a hostile file is no reason to try elsewhere.
            Err(e @ (Error::Io { .. } | Error::Archive { .. } | Error::Decode { .. })) => return Err(e),
            Err(e) => {
                if i + 1 < sources.len() {
                    tell(Progress::Say(format!("{e}; trying the next source")));
                }
                first.get_or_insert(e);
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::setting("manifest", "a part without a source")))
}

fn an_archive(
    client: &Client,
    source: &Source,
    downloads: &Path,
    unpacked: &Path,
    tell: Tell,
) -> Result<Origin> {
    let (url, name) = match (&source.url, &source.file) {
        (Some(url), _) => (url.clone(), source.id.as_str()),
        (None, Some(file)) => (hub::resolve(client, source, file), file.as_str()),
        (None, None) => return Err(Error::setting(&source.id, "the manifest gives no address")),
    };
    let name = name.rsplit('/').next().unwrap_or(name);
    let path = downloads.join(name);
    let wanted = http::Wanted {
        size: source.size,
        sha256: source.sha256.clone(),
        md5: source.md5.clone(),
        // What is no archive is told before its hash is.
        is_archive: true,
    };
    let got = client.download(&url, &path, &wanted, tell)?;
    tell(Progress::Say(format!("unpacking {name}")));
    if let Err(e) = archive::unpack(&path, unpacked, &source.take, &source.strip) {
        if matches!(e, Error::Archive { .. }) {
            // A later start is not to trip over it again.
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
