//! Resumable downloads over HTTP, verified before they get their final name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::{Fetch, Progress, ProgressFn};
use crate::{Error, Result};

/// Longest pause that a server may request.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Expected properties of a download.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExpectedFile {
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<String>,
    pub(crate) md5: Option<String>,
    pub(crate) is_archive: bool,
}

/// Properties of a finished download.
pub(crate) struct DownloadedFile {
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// HTTP client with retries and resumption.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    pub(crate) endpoint: String,
    token: Option<String>,
    tries: u32,
    pause: Duration,
}

/// Failure of an attempt.
enum RequestError {
    /// Temporary, with the pause that the server requests.
    Retry(String, Option<Duration>),
    /// Permanent.
    Fatal(Error),
}

impl Client {
    /// Creates a client.
    ///
    /// # Errors
    ///
    /// A token with invalid characters.
    pub fn new(config: &Fetch) -> Result<Self> {
        if config.token.as_ref().is_some_and(|t| t.bytes().any(|b| !(33..127).contains(&b))) {
            return Err(Error::setting("HF_TOKEN", "expected visible ASCII characters; set it again"));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .max_redirects(8)
            .user_agent(concat!("stillhouse/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: agent.into(),
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
            tries: config.tries.max(1),
            pause: config.pause,
        })
    }

    fn get(
        &self,
        url: &str,
        headers: &[(&str, String)],
    ) -> std::result::Result<Response<Body>, RequestError> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        // Sent to the hub only; redirects to other hosts go without it.
        if let Some(token) = &self.token
            && url.starts_with(&format!("{}/", self.endpoint))
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|e| match e {
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::ConnectionFailed
            | ureq::Error::HostNotFound
            | ureq::Error::Protocol(_) => RequestError::Retry(e.to_string(), None),
            other => fatal(url, other.to_string()),
        })?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            code @ (401 | 403) => Err(fatal(url, self.rejection(url, code))),
            404 | 410 => Err(fatal(url, format!("{}; the manifest may be out of date", response.status()))),
            429 | 500..=599 => {
                let requested = header(response.headers(), "retry-after").and_then(|v| v.parse().ok());
                let pause = requested.map(Duration::from_secs);
                Err(RequestError::Retry(format!("status {}", response.status()), pause))
            }
            _ => Err(fatal(url, format!("status {}", response.status()))),
        }
    }

    fn rejection(&self, url: &str, code: u16) -> String {
        let of_hub = url.strip_prefix(&self.endpoint);
        match (of_hub, &self.token) {
            (Some(_), None) => format!(
                "{code}: the hub requires authentication; accept the terms on the dataset's page, create a \
                 token at {}/settings/tokens and set HF_TOKEN",
                self.endpoint
            ),
            (Some(_), Some(_)) => format!(
                "{code}: the hub rejects the token; accept the terms on the dataset's page with its account, \
                 or set another HF_TOKEN"
            ),
            (None, _) => format!("{code}: the host rejects the request; download the file manually"),
        }
    }

    /// Repeats an attempt until it succeeds, fails permanently or runs out of tries.
    fn with_retries<T>(
        &self,
        url: &str,
        progress: ProgressFn,
        mut once: impl FnMut() -> std::result::Result<T, RequestError>,
    ) -> Result<T> {
        let mut pause = self.pause;
        for left in (0..self.tries).rev() {
            match once() {
                Ok(value) => return Ok(value),
                Err(RequestError::Fatal(e)) => return Err(e),
                Err(RequestError::Retry(why, _)) if left == 0 => {
                    let message =
                        format!("{why}; gave up after {} attempts; run again later to resume", self.tries);
                    return Err(Error::Download { source_name: url.to_string(), message });
                }
                Err(RequestError::Retry(why, requested)) => {
                    let wait = requested.unwrap_or(pause).min(MAX_PAUSE);
                    progress(Progress::Message(format!(
                        "{url}: {why}; retrying in {} s",
                        wait.as_secs_f32().ceil()
                    )));
                    std::thread::sleep(wait);
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
        Err(Error::Download { source_name: url.to_string(), message: "no attempt was made".to_string() })
    }

    /// Returns a JSON response and the URL of the next page, if any.
    pub(crate) fn json(
        &self,
        url: &str,
        progress: ProgressFn,
    ) -> Result<(serde_json::Value, Option<String>)> {
        const MAX_BYTES: u64 = 1 << 26;
        self.with_retries(url, progress, || {
            let response = self.get(url, &[])?;
            let next = header(response.headers(), "link").and_then(|l| next_page(l, &self.endpoint));
            let mut text = Vec::new();
            let mut body = response.into_body().into_reader().take(MAX_BYTES);
            body.read_to_end(&mut text).map_err(|e| RequestError::Retry(e.to_string(), None))?;
            let value =
                serde_json::from_slice(&text).map_err(|e| fatal(url, format!("expected JSON: {e}")))?;
            Ok((value, next))
        })
    }

    /// Downloads a file to `path`, which exists afterwards only if it is complete and has the given
    /// size and SHA-256. Resumes an earlier partial download in the same folder. Returns the SHA-256.
    ///
    /// # Errors
    ///
    /// A rejected request, a download that stays incomplete, a wrong size or hash (the file is
    /// removed), a full disk.
    pub fn file(
        &self,
        url: &str,
        path: &Path,
        size: Option<u64>,
        sha256: Option<String>,
        progress: ProgressFn,
    ) -> Result<String> {
        let expected = ExpectedFile { size, sha256, is_archive: true, ..ExpectedFile::default() };
        Ok(self.download(url, path, &expected, progress)?.sha256)
    }

    /// Downloads to `path`, which exists afterwards only if it is as expected. Resumes an earlier
    /// partial download in the same folder.
    pub(crate) fn download(
        &self,
        url: &str,
        path: &Path,
        expected: &ExpectedFile,
        progress: ProgressFn,
    ) -> Result<DownloadedFile> {
        if !path.exists() {
            let part = with_suffix(path, "part");
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            progress(Progress::Started(name, expected.size));
            let total =
                self.with_retries(url, progress, || self.continue_part(url, &part, expected, progress))?;
            progress(Progress::Finished);
            if let Err(e) = verify(&part, url, total, expected) {
                // Wrong content cannot be resumed.
                let _ = fs::remove_file(&part);
                let _ = fs::remove_file(with_suffix(&part, "tag"));
                return Err(e);
            }
            fs::rename(&part, path).map_err(Error::io(path))?;
            let _ = fs::remove_file(with_suffix(&part, "tag"));
        }
        let size = fs::metadata(path).map_err(Error::io(path))?.len();
        let sha256 = stillhouse_core::fs::sha256_file(path).map_err(|e| Error::setting(path.display(), e))?;
        if expected.sha256.as_ref().is_some_and(|w| *w != sha256) {
            // Downloaded earlier and modified since.
            fs::remove_file(path).map_err(Error::io(path))?;
            return Err(mismatch(url, "SHA-256", &sha256, expected.sha256.as_deref().unwrap_or_default()));
        }
        Ok(DownloadedFile { size, sha256 })
    }

    /// Resumes a partial file until its end; returns the file's size if the host states it.
    fn continue_part(
        &self,
        url: &str,
        part: &Path,
        expected: &ExpectedFile,
        progress: ProgressFn,
    ) -> std::result::Result<Option<u64>, RequestError> {
        let tag_file = with_suffix(part, "tag");
        let had = fs::metadata(part).map_or(0, |m| m.len());
        let tag = fs::read_to_string(&tag_file).unwrap_or_default();
        let mut headers = Vec::new();
        // Without an entity tag the file may have changed.
        let had = if tag.is_empty() { 0 } else { had };
        if had > 0 {
            headers.push(("range", format!("bytes={had}-")));
            headers.push(("if-range", tag.clone()));
        }
        let response = self.get(url, &headers)?;
        let status = response.status().as_u16();
        let (from, total) = match (status, content_range(response.headers())) {
            (206, Some((from, total))) if from == had => (had, total),
            (416, Some((_, Some(total)))) if total == had => return Ok(Some(had)),
            (206 | 416, _) => {
                // The range does not match: restart.
                let _ = fs::remove_file(&tag_file);
                return Err(RequestError::Retry(format!("status {} for a range", response.status()), None));
            }
            _ => (0, header(response.headers(), "content-length").and_then(|v| v.parse().ok())),
        };
        let kind = header(response.headers(), "content-type").unwrap_or_default().to_lowercase();
        if expected.is_archive && kind.starts_with("text/html") {
            return Err(fatal(
                url,
                "expected an archive, found a page (text/html); download it manually".to_string(),
            ));
        }
        if let (Some(size), Some(total)) = (expected.size, total)
            && size != total
        {
            return Err(RequestError::Fatal(mismatch(url, "size", &total.to_string(), &size.to_string())));
        }
        // A weak tag does not guarantee identical bytes.
        let tag = header(response.headers(), "etag").filter(|t| t.starts_with('"')).unwrap_or_default();
        fs::write(&tag_file, tag).map_err(|e| RequestError::Fatal(Error::io(&tag_file)(e)))?;
        let io = |e| RequestError::Fatal(Error::io(part)(e));
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(io)?;
        file.set_len(from).map_err(io)?;
        progress(Progress::Restarted);
        progress(Progress::Advanced(from));
        let limit = total.or(expected.size);
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 16];
        let mut at = from;
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => {
                    return Err(RequestError::Retry(format!("interrupted after {at} bytes ({e})"), None));
                }
            };
            file.write_all(&buffer[..n]).map_err(io)?;
            at += n as u64;
            if limit.is_some_and(|l| at > l) {
                return Err(fatal(url, format!("expected {} bytes, received more", limit.unwrap_or(0))));
            }
            progress(Progress::Advanced(n as u64));
        }
        file.sync_all().map_err(io)?;
        match limit {
            Some(limit) if at < limit => {
                Err(RequestError::Retry(format!("interrupted after {at} of {limit} bytes"), None))
            }
            _ => Ok(total),
        }
    }
}

fn verify(part: &Path, url: &str, total: Option<u64>, expected: &ExpectedFile) -> Result<()> {
    let size = fs::metadata(part).map_err(Error::io(part))?.len();
    for expected in [expected.size, total].into_iter().flatten() {
        if size != expected {
            return Err(mismatch(url, "size", &size.to_string(), &expected.to_string()));
        }
    }
    if expected.is_archive {
        let mut head = [0; 512];
        let n = File::open(part).and_then(|f| {
            let mut f = f.take(512);
            let mut n = 0;
            loop {
                match f.read(&mut head[n..])? {
                    0 => break Ok(n),
                    more => n += more,
                }
            }
        });
        let n = n.map_err(Error::io(part))?;
        let text = head[..n].trim_ascii_start();
        if [&b"<!doctype"[..], b"<html", b"<?xml"]
            .iter()
            .any(|m| text.len() >= m.len() && text[..m.len()].eq_ignore_ascii_case(m))
        {
            let message = "expected an archive, found a page; download it manually".to_string();
            return Err(Error::Download { source_name: url.to_string(), message });
        }
    }
    if let Some(expected) = &expected.sha256 {
        let found = stillhouse_core::fs::sha256_file(part).map_err(|e| Error::setting(part.display(), e))?;
        if found != *expected {
            return Err(mismatch(url, "SHA-256", &found, expected));
        }
    } else if let Some(expected) = &expected.md5 {
        let found = md5_file(part)?;
        if found != *expected {
            return Err(mismatch(url, "MD5", &found, expected));
        }
    }
    Ok(())
}

fn md5_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut hash, mut buffer) = (Md5::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn mismatch(url: &str, property: &str, found: &str, expected: &str) -> Error {
    let message = format!(
        "{property} mismatch: expected {expected}, found {found}; the file was changed or damaged and has been removed"
    );
    Error::Download { source_name: url.to_string(), message }
}

fn fatal(url: &str, message: String) -> RequestError {
    RequestError::Fatal(Error::Download { source_name: url.to_string(), message })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Parses `bytes 100-199/200` as 100 and 200, and `bytes */200` as 0 and 200.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let from = if range == "*" { 0 } else { range.split_once('-')?.0.parse().ok()? };
    Some((from, total.parse().ok()))
}

/// Parses the next page of `<URL>; rel="next"`, if it is on the same host.
fn next_page(link: &str, endpoint: &str) -> Option<String> {
    let next = link.split(',').find(|l| l.contains("rel=\"next\""))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    url.starts_with(&format!("{endpoint}/")).then(|| url.to_string())
}

/// Appends an extension to a path.
fn with_suffix(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{extension}"));
    path.with_file_name(name)
}
