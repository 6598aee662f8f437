//! Extraction of tar, tar.gz and zip archives from untrusted hosts.
//!
//! An entry is written only if its path stays below the target and it is a regular file or a folder.
//! Links, devices, encrypted and duplicate entries, paths outside of the target, wrong sizes and
//! decompression bombs are errors that name archive and entry. Nothing is followed or overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::layout::text_lists::is_below;
use crate::{Error, Result};

/// Limit for the entries of an archive.
const MAX_ENTRIES: usize = 1_000_000;
/// Limit for the bytes of an entry.
const MAX_BYTES: u64 = 1 << 32;
/// Limit for the ratio of unpacked to packed bytes.
const MAX_TIMES: u64 = 64;
const FEW: u64 = 1 << 24;
/// Limit for the name of an entry.
const MAX_NAME: u64 = 4096;

/// Extracts the entries whose path starts with one of `take` (all if empty) below `into`, without the
/// prefix `strip`. The format is detected by the first bytes. Returns the number of files.
///
/// # Errors
///
/// [`Error::Archive`] for malicious, corrupt and unknown archives; [`Error::Io`] for the disk.
pub fn unpack(archive: &Path, into: &Path, take: &[String], strip: &str) -> Result<usize> {
    let mut file = File::open(archive).map_err(Error::io(archive))?;
    let size = file.metadata().map_err(Error::io(archive))?.len();
    let mut head = [0; 512];
    let n = fill(&mut file, &mut head).map_err(Error::io(archive))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(archive))?;
    let left = size.saturating_mul(MAX_TIMES).saturating_add(FEW);
    let mut target = Target { archive, into, take, strip, left, entries: 0, files: 0 };
    match &head[..n] {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => zip(&mut target, file)?,
        [0x1f, 0x8b, ..] => tar(&mut target, MultiGzDecoder::new(BufReader::new(file)))?,
        head if head.len() == 512 && checksum_fits(head) => tar(&mut target, BufReader::new(file))?,
        head => {
            let hex: Vec<String> = head.iter().take(4).map(|b| format!("{b:02x}")).collect();
            return Err(target.invalid(
                "",
                format!("not an archive: expected tar, tar.gz or zip, found bytes {}", hex.join(" ")),
            ));
        }
    }
    if target.files == 0 {
        return Err(target.invalid("", format!("no file below {take:?} in {} entries", target.entries)));
    }
    Ok(target.files)
}

/// Extraction target and its remaining limits.
struct Target<'a> {
    archive: &'a Path,
    into: &'a Path,
    take: &'a [String],
    strip: &'a str,
    /// Remaining bytes.
    left: u64,
    entries: usize,
    files: usize,
}

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    /// A link, a device, ...: description.
    Other(&'static str),
}

impl Target<'_> {
    fn invalid(&self, entry: &str, message: impl ToString) -> Error {
        let entry: String = entry.chars().take(200).collect::<String>().escape_debug().to_string();
        let (path, message) = (self.archive.to_path_buf(), message.to_string());
        Error::Archive {
            path,
            message: if entry.is_empty() { message } else { format!("entry `{entry}`: {message}") },
        }
    }

    /// Validates an entry and creates its folder; returns the path of a file to write.
    fn accept(&mut self, name: &str, kind: Kind, size: u64) -> Result<Option<std::path::PathBuf>> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(self.invalid(name, format!("expected at most {MAX_ENTRIES} entries")));
        }
        let plain = name.strip_prefix("./").unwrap_or(name).trim_end_matches('/');
        if kind == Kind::Folder && (plain.is_empty() || plain == ".") {
            return Ok(None);
        }
        if !is_below(plain) || plain.contains(':') {
            return Err(self.invalid(name, "path outside of the target folder"));
        }
        let taken = self.take.is_empty() || self.take.iter().any(|t| plain.starts_with(t.as_str()));
        // Metadata files of macOS.
        let odd = plain.split('/').any(|part| part.starts_with("._") || part == "__MACOSX");
        if !taken || odd {
            return Ok(None);
        }
        match kind {
            Kind::Folder => return Ok(None),
            Kind::Other(what) => {
                return Err(self.invalid(name, format!("expected a regular file or folder, found {what}")));
            }
            Kind::File => {}
        }
        let Some(below) = plain.strip_prefix(self.strip).filter(|p| is_below(p)) else { return Ok(None) };
        if size > MAX_BYTES || size > self.left {
            return Err(
                self.invalid(name, format!("{size} bytes exceed the limit for an archive of this size"))
            );
        }
        let path = self.into.join(below);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        Ok(Some(path))
    }

    /// Writes a file of exactly `size` bytes.
    fn write(&mut self, name: &str, path: &Path, size: u64, data: &mut dyn Read) -> Result<()> {
        let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(self.invalid(name, "duplicate entry"));
            }
            other => other.map_err(Error::io(path))?,
        };
        let mut buffer = vec![0; 1 << 16];
        let mut at = 0u64;
        loop {
            let n = data.read(&mut buffer).map_err(|e| self.invalid(name, format!("corrupt data: {e}")))?;
            if n == 0 {
                break;
            }
            at += n as u64;
            if at > size {
                return Err(self.invalid(name, format!("expected {size} bytes, found more")));
            }
            file.write_all(&buffer[..n]).map_err(Error::io(path))?;
        }
        if at < size {
            return Err(self.invalid(name, format!("expected {size} bytes, found {at}")));
        }
        self.left -= at;
        self.files += 1;
        file.sync_all().map_err(Error::io(path))
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match from.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// Computes the checksum of a tar header, with its own field as spaces.
fn checksum_fits(head: &[u8]) -> bool {
    let sum: u64 =
        head.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
    number(&head[148..156]) == Some(sum)
}

/// Parses an octal number, or a base-256 number as written by GNU tar; `None` if invalid or negative.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for b in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*b))?;
        }
        return (field[0] != 0xff).then_some(value);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn tar(target: &mut Target, mut from: impl Read) -> Result<()> {
    let mut head = [0; 512];
    // Of the GNU and POSIX extensions only names and sizes matter.
    let (mut long_name, mut long_size) = (None::<String>, None::<u64>);
    // Skipped data counts too: a bomb costs time even if it is not extracted.
    let mut skipped = target.left;
    let mut skip = |target: &Target, from: &mut dyn Read, bytes: u64, name: &str| {
        skipped = skipped
            .checked_sub(bytes)
            .ok_or_else(|| target.invalid(name, "exceeds the limit for an archive of this size"))?;
        let n = std::io::copy(&mut from.take(bytes), &mut std::io::sink())
            .map_err(|e| target.invalid(name, format!("corrupt data: {e}")))?;
        if n < bytes { Err(target.invalid(name, "truncated entry")) } else { Ok(()) }
    };
    loop {
        let n = fill(&mut from, &mut head).map_err(|e| target.invalid("", format!("corrupt data: {e}")))?;
        if n == 512 && head.iter().all(|b| *b == 0) {
            break;
        }
        if n < 512 {
            return Err(target.invalid("", "truncated: no end marker"));
        }
        if !checksum_fits(&head) {
            return Err(target.invalid("", format!("corrupt header after {} entries", target.entries)));
        }
        let Some(size) = number(&head[124..136]) else {
            return Err(target.invalid("", format!("header without size after {} entries", target.entries)));
        };
        let kind = head[156];
        if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            if size > 256 * MAX_NAME {
                return Err(target.invalid("", format!("a name of {size} bytes")));
            }
            let mut data = vec![0; size.next_multiple_of(512) as usize];
            let n =
                fill(&mut from, &mut data).map_err(|e| target.invalid("", format!("corrupt data: {e}")))?;
            if n < data.len() {
                return Err(target.invalid("", "truncated name"));
            }
            data.truncate(size as usize);
            target.entries += 1;
            if target.entries > MAX_ENTRIES {
                return Err(target.invalid("", format!("expected at most {MAX_ENTRIES} entries")));
            }
            match kind {
                b'L' => long_name = Some(text(target, data.split(|b| *b == 0).next().unwrap_or_default())?),
                b'x' => {
                    for (key, value) in pax(target, &data)? {
                        match key.as_str() {
                            "path" => long_name = Some(value),
                            "size" => {
                                long_size = Some(
                                    value
                                        .parse()
                                        .map_err(|_| target.invalid("", "a size that is not a number"))?,
                                );
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
            continue;
        }
        let size = long_size.take().unwrap_or(size);
        let name = match long_name.take() {
            Some(name) => name,
            None => {
                let upto = |field: &[u8]| field.split(|b| *b == 0).next().unwrap_or_default().to_vec();
                let (name, prefix) = (upto(&head[..100]), upto(&head[345..500]));
                let is_ustar = &head[257..262] == b"ustar" && head[262] == 0;
                let whole =
                    if is_ustar && !prefix.is_empty() { [&prefix[..], b"/", &name].concat() } else { name };
                text(target, &whole)?
            }
        };
        let kind = match kind {
            b'0' | 0 | b'7' if name.ends_with('/') => Kind::Folder,
            b'0' | 0 | b'7' => Kind::File,
            b'5' => Kind::Folder,
            b'1' => Kind::Other("a hard link"),
            b'2' => Kind::Other("a symbolic link"),
            b'3' | b'4' | b'6' => Kind::Other("a device or pipe"),
            _ => Kind::Other("an unknown kind of entry"),
        };
        let size = if matches!(kind, Kind::File) { size } else { 0 };
        match target.accept(&name, kind, size)? {
            Some(path) => {
                target.write(&name, &path, size, &mut (&mut from).take(size))?;
                skip(target, &mut from, size.next_multiple_of(512) - size, &name)?;
            }
            None => skip(target, &mut from, size.next_multiple_of(512), &name)?,
        }
    }
    // Reads to the end to verify the checksum of a gzip stream; padding is short.
    let rest = std::io::copy(&mut from.take(FEW), &mut std::io::sink());
    rest.map(|_| ()).map_err(|e| target.invalid("", format!("corrupt data: {e}")))
}

fn text(target: &Target, bytes: &[u8]) -> Result<String> {
    if bytes.len() as u64 > MAX_NAME {
        return Err(target.invalid("", format!("a name of {} bytes", bytes.len())));
    }
    String::from_utf8(bytes.to_vec())
        .map_err(|_| target.invalid(&String::from_utf8_lossy(bytes), "a name that is not UTF-8"))
}

/// Parses `LENGTH KEY=VALUE\n` records.
fn pax(target: &Target, mut data: &[u8]) -> Result<Vec<(String, String)>> {
    let corrupt = || target.invalid("", "corrupt extended header");
    let mut all = Vec::new();
    while !data.is_empty() {
        let space = data.iter().position(|b| *b == b' ').ok_or_else(corrupt)?;
        let length: usize =
            std::str::from_utf8(&data[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(corrupt)?;
        let record = data.get(space + 1..length).filter(|r| r.last() == Some(&b'\n')).ok_or_else(corrupt)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(corrupt)?;
        let key = String::from_utf8_lossy(&record[..equals]).into_owned();
        all.push((
            key.clone(),
            match key.as_str() {
                "path" | "size" => text(target, &record[equals + 1..record.len() - 1])?,
                _ => String::new(),
            },
        ));
        data = &data[length..];
    }
    Ok(all)
}

fn zip(target: &mut Target, file: File) -> Result<()> {
    let corrupt = |target: &Target, e: ZipError| target.invalid("", format!("corrupt archive: {e}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| corrupt(target, e))?;
    // Overlapping entries are a way to build zip bombs.
    if archive.has_overlapping_files().map_err(|e| corrupt(target, e))? {
        return Err(target.invalid("", "overlapping entries"));
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| target.invalid(&format!("{index}"), e))?;
        let name = text(target, entry.name_raw())?;
        let kind = match entry.unix_mode().unwrap_or_default() & 0o170_000 {
            0o120_000 => Kind::Other("a symbolic link"),
            0o040_000 => Kind::Folder,
            0 | 0o100_000 if name.ends_with('/') => Kind::Folder,
            0 | 0o100_000 => Kind::File,
            _ => Kind::Other("a device or pipe"),
        };
        let size = entry.size();
        if let Some(path) = target.accept(&name, kind, size)? {
            // Reading verifies the checksum.
            target.write(&name, &path, size, &mut entry)?;
        }
    }
    Ok(())
}
