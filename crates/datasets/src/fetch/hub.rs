//! Dataset repositories of the Hugging Face hub, file by file.
//!
//! The hub's own client is not used: it neither goes on with a cut download, nor compares sizes and
//! hashes, nor knows of the offline mode.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::http::{Client, Wanted};
use super::{Origin, Progress, Tell};
use crate::lists::is_below;
use crate::manifest::Source;
use crate::{Error, Result};

/// Files at a time: most are small, and the way to the hub is long.
const AT_ONCE: usize = 8;
/// Most files of a repository.
const MOST_FILES: usize = 500_000;

/// The address that gives a file of a repository.
pub(crate) fn resolve(client: &Client, source: &Source, file: &str) -> String {
    let revision = source.revision.as_deref().unwrap_or("main");
    format!("{}/datasets/{}/resolve/{revision}/{}", client.endpoint, source.id, escaped(file))
}

/// Percent-escapes what a path of an address may not hold.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(char::from(b))
            }
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// One file of a listing.
struct Entry {
    /// Its path in the repository.
    path: String,
    /// Its path below the set's folder.
    to: String,
    size: u64,
    sha256: Option<String>,
}

/// Downloads the files of a repository that the manifest takes into a folder.
pub(crate) fn folder(client: &Client, source: &Source, into: &Path, tell: Tell) -> Result<Origin> {
    let api = format!("{}/api/datasets/{}", client.endpoint, source.id);
    let asked = source.revision.as_deref().unwrap_or("main");
    let refuse = |message: String| Error::Download { what: api.clone(), message };
    let (info, _) = client.json(&format!("{api}/revision/{asked}"), tell)?;
    let revision = info["sha"].as_str().unwrap_or_default().to_string();
    let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_commit || source.revision.as_ref().is_some_and(|r| *r != revision) {
        return Err(refuse(format!(
            "commit `{revision}`, expected {}",
            source.revision.as_deref().unwrap_or("40 hex digits")
        )));
    }
    let mut entries = Vec::new();
    let mut next = Some(format!("{api}/tree/{revision}?recursive=true"));
    while let Some(url) = next {
        let (page, more) = client.json(&url, tell)?;
        let list = page.as_array().ok_or_else(|| refuse("no list of files".to_string()))?;
        for file in list {
            entries.extend(entry(file, source).map_err(&refuse)?);
        }
        if entries.len() > MOST_FILES {
            return Err(refuse(format!("more than {MOST_FILES} files")));
        }
        next = more;
    }
    if entries.is_empty() {
        return Err(refuse(format!("no file below {}", source.take.join(", "))));
    }
    let total = entries.iter().map(|e| e.size).sum();
    let verified = entries.iter().all(|e| e.sha256.is_some());
    tell(Progress::Begin(format!("{} files of {}", entries.len(), source.id), Some(total)));
    let pinned = Source { revision: Some(revision.clone()), ..source.clone() };
    let (place, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let say_only = |progress: Progress| {
        if let Progress::Say(_) = progress {
            tell(progress);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while failed.lock().is_ok_and(|f| f.is_none())
                    && let Some(entry) = entries.get(place.fetch_add(1, Ordering::Relaxed))
                {
                    match one(client, &pinned, entry, into, &say_only) {
                        Ok(()) => tell(Progress::More(entry.size)),
                        Err(e) => {
                            if let Ok(mut failed) = failed.lock() {
                                failed.get_or_insert(e);
                            }
                        }
                    }
                }
            });
        }
    });
    if let Ok(Some(e)) = failed.into_inner() {
        return Err(e);
    }
    tell(Progress::End);
    let url = format!("{}/datasets/{}", client.endpoint, source.id);
    Ok(Origin { url, revision: Some(revision), size: total, sha256: None, verified })
}

fn one(client: &Client, source: &Source, entry: &Entry, into: &Path, tell: Tell) -> Result<()> {
    let path = into.join(&entry.to);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let wanted = Wanted { size: Some(entry.size), sha256: entry.sha256.clone(), ..Wanted::default() };
    client.download(&resolve(client, source, &entry.path), &path, &wanted, tell)?;
    Ok(())
}

/// A file that is taken; a path that leaves its folder is refused.
fn entry(file: &Value, source: &Source) -> std::result::Result<Option<Entry>, String> {
    let Some(path) = file["path"].as_str().filter(|_| file["type"] == "file") else { return Ok(None) };
    if !source.take.is_empty() && !source.take.iter().any(|t| path.starts_with(t)) {
        return Ok(None);
    }
    let to = path.strip_prefix(&source.strip).unwrap_or(path);
    if !is_below(to) || !is_below(path) {
        return Err(format!("the path `{}` leaves its folder", path.escape_debug()));
    }
    let size = file["lfs"]["size"].as_u64().or_else(|| file["size"].as_u64());
    let Some(size) = size else { return Err(format!("no size of `{path}`")) };
    let sha256 = file["lfs"]["oid"].as_str().map(|o| o.trim_start_matches("sha256:").to_string());
    Ok(Some(Entry { path: path.to_string(), to: to.to_string(), size, sha256 }))
}
