//! Downloads of dataset repositories of the Hugging Face hub, file by file.
//!
//! The crate `hf-hub` is not used: it neither resumes downloads, nor verifies sizes and hashes, nor
//! supports the offline mode.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::http::{Client, ExpectedFile};
use super::{Origin, Progress, ProgressFn};
use crate::layout::text_lists::is_below;
use crate::manifest::Source;
use crate::{Error, Result};

/// Most files are small, so latency dominates.
const PARALLEL_DOWNLOADS: usize = 8;
/// Limit for the files of a repository.
const MAX_FILES: usize = 500_000;

/// Returns the URL of a file of a repository.
pub(crate) fn resolve(client: &Client, source: &Source, file: &str) -> String {
    let revision = source.revision.as_deref().unwrap_or("main");
    format!("{}/datasets/{}/resolve/{revision}/{}", client.endpoint, source.id, percent_encoded(file))
}

/// Percent-encodes the path of a URL.
fn percent_encoded(path: &str) -> String {
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

/// One file of a repository.
struct RepositoryFile {
    /// Its path in the repository.
    path: String,
    /// Its path below the dataset's folder.
    target: String,
    size: u64,
    sha256: Option<String>,
}

/// Downloads the files of a repository that the manifest selects into a folder.
pub(crate) fn folder(client: &Client, source: &Source, into: &Path, progress: ProgressFn) -> Result<Origin> {
    let api = format!("{}/api/datasets/{}", client.endpoint, source.id);
    let requested = source.revision.as_deref().unwrap_or("main");
    let invalid = |message: String| Error::Download { source_name: api.clone(), message };
    let (info, _) = client.json(&format!("{api}/revision/{requested}"), progress)?;
    let revision = info["sha"].as_str().unwrap_or_default().to_string();
    let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_commit || source.revision.as_ref().is_some_and(|r| *r != revision) {
        return Err(invalid(format!(
            "expected commit {}, found `{revision}`",
            source.revision.as_deref().unwrap_or("40 hex digits")
        )));
    }
    let mut entries = Vec::new();
    let mut next = Some(format!("{api}/tree/{revision}?recursive=true"));
    while let Some(url) = next {
        let (page, more) = client.json(&url, progress)?;
        let list = page.as_array().ok_or_else(|| invalid("expected a list of files".to_string()))?;
        for file in list {
            entries.extend(selected_file(file, source).map_err(&invalid)?);
        }
        if entries.len() > MAX_FILES {
            return Err(invalid(format!("expected at most {MAX_FILES} files")));
        }
        next = more;
    }
    if entries.is_empty() {
        return Err(invalid(format!("no file below {}", source.take.join(", "))));
    }
    let total = entries.iter().map(|e| e.size).sum();
    let verified = entries.iter().all(|e| e.sha256.is_some());
    progress(Progress::Started(format!("{} files of {}", entries.len(), source.id), Some(total)));
    let pinned = Source { revision: Some(revision.clone()), ..source.clone() };
    let (next_index, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let messages_only = |event: Progress| {
        if let Progress::Message(_) = event {
            progress(event);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL_DOWNLOADS {
            scope.spawn(|| {
                while failed.lock().is_ok_and(|f| f.is_none())
                    && let Some(entry) = entries.get(next_index.fetch_add(1, Ordering::Relaxed))
                {
                    match download_file(client, &pinned, entry, into, &messages_only) {
                        Ok(()) => progress(Progress::Advanced(entry.size)),
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
    progress(Progress::Finished);
    let url = format!("{}/datasets/{}", client.endpoint, source.id);
    Ok(Origin { url, revision: Some(revision), size: total, sha256: None, verified })
}

fn download_file(
    client: &Client,
    source: &Source,
    entry: &RepositoryFile,
    into: &Path,
    progress: ProgressFn,
) -> Result<()> {
    let path = into.join(&entry.target);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let expected =
        ExpectedFile { size: Some(entry.size), sha256: entry.sha256.clone(), ..ExpectedFile::default() };
    client.download(&resolve(client, source, &entry.path), &path, &expected, progress)?;
    Ok(())
}

/// Returns a file that the manifest selects; rejects a path that leaves its folder.
fn selected_file(file: &Value, source: &Source) -> std::result::Result<Option<RepositoryFile>, String> {
    let Some(path) = file["path"].as_str().filter(|_| file["type"] == "file") else { return Ok(None) };
    if !source.take.is_empty() && !source.take.iter().any(|t| path.starts_with(t)) {
        return Ok(None);
    }
    let target = path.strip_prefix(&source.strip).unwrap_or(path);
    if !is_below(target) || !is_below(path) {
        return Err(format!("the path `{}` leaves its folder", path.escape_debug()));
    }
    let size = file["lfs"]["size"].as_u64().or_else(|| file["size"].as_u64());
    let Some(size) = size else { return Err(format!("no size for `{path}`")) };
    let sha256 = file["lfs"]["oid"].as_str().map(|o| o.trim_start_matches("sha256:").to_string());
    Ok(Some(RepositoryFile { path: path.to_string(), target: target.to_string(), size, sha256 }))
}
