//! Downloads that go on where they were cut off and are verified before they get their name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::{Fetch, Progress, Tell};
use crate::{Error, Result};

/// Longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What a download must be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<String>,
    pub(crate) md5: Option<String>,
    pub(crate) is_archive: bool,
}

/// What a download was.
pub(crate) struct Got {
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// Talks to hosts over HTTP.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    pub(crate) endpoint: String,
    token: Option<String>,
    tries: u32,
    pause: Duration,
}

/// Why a try failed.
enum Failed {
    /// Another try may do better, after a pause if the server asks for one.
    Later(String, Option<Duration>),
    Never(Error),
}

impl Client {
    /// A client with the settings of a fetch.
    ///
    /// # Errors
    ///
    /// A token that no header can hold.
    pub fn new(how: &Fetch) -> Result<Self> {
        if how.token.as_ref().is_some_and(|t| t.bytes().any(|b| !(33..127).contains(&b))) {
            return Err(Error::setting("HF_TOKEN", "it holds characters that no token has; set it anew"));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .max_redirects(8)
            .user_agent(concat!("stillhouse/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: config.into(),
            endpoint: how.endpoint.clone(),
            token: how.token.clone(),
            tries: how.tries.max(1),
            pause: how.pause,
        })
    }

    fn get(&self, url: &str, headers: &[(&str, String)]) -> std::result::Result<Response<Body>, Failed> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        // The token is the hub's; a redirect to another host is followed without it.
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
            | ureq::Error::Protocol(_) => Failed::Later(e.to_string(), None),
            other => never(url, other.to_string()),
        })?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            code @ (401 | 403) => Err(never(url, self.refused(url, code))),
            404 | 410 => Err(never(
                url,
                format!("{} there is no such file; the manifest may be out of date", response.status()),
            )),
            429 | 500..=599 => {
                let asked = header(response.headers(), "retry-after").and_then(|v| v.parse().ok());
                let pause = asked.map(Duration::from_secs);
                Err(Failed::Later(format!("the host answers {}", response.status()), pause))
            }
            _ => Err(never(url, format!("the host answers {}", response.status()))),
        }
    }

    fn refused(&self, url: &str, code: u16) -> String {
        let of_hub = url.strip_prefix(&self.endpoint);
        match (of_hub, &self.token) {
            (Some(_), None) => format!(
                "{code}: the hub asks who you are; accept the terms on the set's page, make a token at \
                 {}/settings/tokens and set HF_TOKEN",
                self.endpoint
            ),
            (Some(_), Some(_)) => format!(
                "{code}: the hub does not let this token in; accept the terms on the set's page with its \
                 account, or set HF_TOKEN anew"
            ),
            (None, _) => format!("{code}: the host refuses; get the file by hand"),
        }
    }

    /// Tries until it works, or never can.
    fn again_and_again<T>(
        &self,
        url: &str,
        tell: Tell,
        mut once: impl FnMut() -> std::result::Result<T, Failed>,
    ) -> Result<T> {
        let mut pause = self.pause;
        for left in (0..self.tries).rev() {
            match once() {
                Ok(value) => return Ok(value),
                Err(Failed::Never(e)) => return Err(e),
                Err(Failed::Later(why, _)) if left == 0 => {
                    let message =
                        format!("{why}; {} tries, try again later: it goes on where it is", self.tries);
                    return Err(Error::Download { what: url.to_string(), message });
                }
                Err(Failed::Later(why, asked)) => {
                    let wait = asked.unwrap_or(pause).min(LONGEST_PAUSE);
                    tell(Progress::Say(format!("{url}: {why}; again in {} s", wait.as_secs_f32().ceil())));
                    std::thread::sleep(wait);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        Err(Error::Download { what: url.to_string(), message: "no try was made".to_string() })
    }

    /// A small JSON answer, and the address of the next page if there is one.
    pub(crate) fn json(&self, url: &str, tell: Tell) -> Result<(serde_json::Value, Option<String>)> {
        const MOST: u64 = 1 << 26;
        self.again_and_again(url, tell, || {
            let response = self.get(url, &[])?;
            let next = header(response.headers(), "link").and_then(|l| next_page(l, &self.endpoint));
            let mut text = Vec::new();
            let mut body = response.into_body().into_reader().take(MOST);
            body.read_to_end(&mut text).map_err(|e| Failed::Later(e.to_string(), None))?;
            let value = serde_json::from_slice(&text).map_err(|e| never(url, format!("no JSON: {e}")))?;
            Ok((value, next))
        })
    }

    /// Downloads a single file to `path`, which exists afterwards only if it is whole: of this size and
    /// this SHA-256, where they are known. A part that was downloaded before, beside it, is gone on
    /// with. Returns the SHA-256.
    ///
    /// # Errors
    ///
    /// An address that refuses, a download that stays cut off, a wrong size or hash (what was
    /// downloaded is removed), a full disk.
    pub fn file(
        &self,
        url: &str,
        path: &Path,
        size: Option<u64>,
        sha256: Option<String>,
        tell: Tell,
    ) -> Result<String> {
        let wanted = Wanted { size, sha256, is_archive: true, ..Wanted::default() };
        Ok(self.download(url, path, &wanted, tell)?.sha256)
    }

    /// Downloads to `path`, which exists afterwards only if all of it is right. A part that was
    /// downloaded before, beside it, is gone on with.
    pub(crate) fn download(&self, url: &str, path: &Path, wanted: &Wanted, tell: Tell) -> Result<Got> {
        if !path.exists() {
            let part = beside(path, "part");
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            tell(Progress::Begin(name, wanted.size));
            let total = self.again_and_again(url, tell, || self.continue_part(url, &part, wanted, tell))?;
            tell(Progress::End);
            if let Err(e) = verify(&part, url, total, wanted) {
                // Wrong bytes are of no use for a later try.
                let _ = fs::remove_file(&part);
                let _ = fs::remove_file(beside(&part, "tag"));
                return Err(e);
            }
            fs::rename(&part, path).map_err(Error::io(path))?;
            let _ = fs::remove_file(beside(&part, "tag"));
        }
        let size = fs::metadata(path).map_err(Error::io(path))?.len();
        let sha256 = stillhouse_core::fs::sha256_file(path).map_err(|e| Error::setting(path.display(), e))?;
        if wanted.sha256.as_ref().is_some_and(|w| *w != sha256) {
            // Kept from an earlier start, and changed since.
            fs::remove_file(path).map_err(Error::io(path))?;
            return Err(wrong(url, "SHA-256", &sha256, wanted.sha256.as_deref().unwrap_or_default()));
        }
        Ok(Got { size, sha256 })
    }

    /// Goes on with a part until its end; the file's bytes by the host, if it says.
    fn continue_part(
        &self,
        url: &str,
        part: &Path,
        wanted: &Wanted,
        tell: Tell,
    ) -> std::result::Result<Option<u64>, Failed> {
        let tag_file = beside(part, "tag");
        let had = fs::metadata(part).map_or(0, |m| m.len());
        let tag = fs::read_to_string(&tag_file).unwrap_or_default();
        let mut headers = Vec::new();
        // Without a tag nobody knows whether it is still the same file.
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
                // Not what was asked for: from the beginning.
                let _ = fs::remove_file(&tag_file);
                return Err(Failed::Later(
                    format!("the host answers {} to a range", response.status()),
                    None,
                ));
            }
            _ => (0, header(response.headers(), "content-length").and_then(|v| v.parse().ok())),
        };
        let kind = header(response.headers(), "content-type").unwrap_or_default().to_lowercase();
        if wanted.is_archive && kind.starts_with("text/html") {
            return Err(never(url, "a page (text/html) in place of the archive; get it by hand".to_string()));
        }
        if let (Some(size), Some(total)) = (wanted.size, total)
            && size != total
        {
            return Err(Failed::Never(wrong(url, "size", &total.to_string(), &size.to_string())));
        }
        // A weak tag does not promise the same bytes.
        let tag = header(response.headers(), "etag").filter(|t| t.starts_with('"')).unwrap_or_default();
        fs::write(&tag_file, tag).map_err(|e| Failed::Never(Error::io(&tag_file)(e)))?;
        let io = |e| Failed::Never(Error::io(part)(e));
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(io)?;
        file.set_len(from).map_err(io)?;
        tell(Progress::Again);
        tell(Progress::More(from));
        let limit = total.or(wanted.size);
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 16];
        let mut at = from;
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(Failed::Later(format!("cut off after {at} bytes ({e})"), None)),
            };
            file.write_all(&buffer[..n]).map_err(io)?;
            at += n as u64;
            if limit.is_some_and(|l| at > l) {
                return Err(never(
                    url,
                    format!("more than the {} bytes that it should have", limit.unwrap_or(0)),
                ));
            }
            tell(Progress::More(n as u64));
        }
        file.sync_all().map_err(io)?;
        match limit {
            Some(limit) if at < limit => {
                Err(Failed::Later(format!("cut off after {at} of {limit} bytes"), None))
            }
            _ => Ok(total),
        }
    }
}

fn verify(part: &Path, url: &str, total: Option<u64>, wanted: &Wanted) -> Result<()> {
    let size = fs::metadata(part).map_err(Error::io(part))?.len();
    for expected in [wanted.size, total].into_iter().flatten() {
        if size != expected {
            return Err(wrong(url, "size", &size.to_string(), &expected.to_string()));
        }
    }
    if wanted.is_archive {
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
            let message = "a page in place of the archive; get it by hand".to_string();
            return Err(Error::Download { what: url.to_string(), message });
        }
    }
    if let Some(expected) = &wanted.sha256 {
        let found = stillhouse_core::fs::sha256_file(part).map_err(|e| Error::setting(part.display(), e))?;
        if found != *expected {
            return Err(wrong(url, "SHA-256", &found, expected));
        }
    } else if let Some(expected) = &wanted.md5 {
        let found = md5_file(part)?;
        if found != *expected {
            return Err(wrong(url, "MD5", &found, expected));
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

fn wrong(url: &str, what: &str, found: &str, expected: &str) -> Error {
    let message = format!(
        "{what} {found}, expected {expected}; the file was changed or damaged, what was downloaded is removed"
    );
    Error::Download { what: url.to_string(), message }
}

fn never(url: &str, message: String) -> Failed {
    Failed::Never(Error::Download { what: url.to_string(), message })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes 100-199/200` as 100 and 200; `bytes */200` as 0 and 200.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let from = if range == "*" { 0 } else { range.split_once('-')?.0.parse().ok()? };
    Some((from, total.parse().ok()))
}

/// The next page of `<URL>; rel="next"`, if it is the same host's.
fn next_page(link: &str, endpoint: &str) -> Option<String> {
    let next = link.split(',').find(|l| l.contains("rel=\"next\""))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    url.starts_with(&format!("{endpoint}/")).then(|| url.to_string())
}

/// The path with a further extension.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{extension}"));
    path.with_file_name(name)
}
