//! Listing of a folder of images: what is an image is decided by the content of the files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::diagnostics::{Kind, LeftOut};
use crate::{Error, Result, decode};

/// A folder and everything below it, except hidden files and those that operating systems leave behind.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// In byte order of their names, as the images.
    pub(crate) folders: Vec<Folder>,
    pub(crate) images: Vec<ImageFile>,
    /// Entries that are neither.
    pub(crate) left_out: Vec<LeftOut>,
}

/// A file in an image format that can be decoded.
#[derive(Debug)]
pub(crate) struct ImageFile {
    pub(crate) path: PathBuf,
    /// Size of the file.
    pub(crate) bytes: u64,
}

impl Folder {
    /// Iterates over the images of this folder and all folders below it.
    pub(crate) fn all_images(&self) -> Box<dyn Iterator<Item = &ImageFile> + '_> {
        Box::new(self.images.iter().chain(self.folders.iter().flat_map(Self::all_images)))
    }

    /// Iterates over the entries left out of this folder and all folders below it.
    pub(crate) fn all_left_out(&self) -> Box<dyn Iterator<Item = &LeftOut> + '_> {
        Box::new(self.left_out.iter().chain(self.folders.iter().flat_map(Self::all_left_out)))
    }

    /// Returns whether there is an image at any depth.
    pub(crate) fn has_images(&self) -> bool {
        self.all_images().next().is_some()
    }

    /// Returns the folders that contain images at any depth.
    pub(crate) fn folders_with_images(&self) -> Vec<&Self> {
        self.folders.iter().filter(|folder| folder.has_images()).collect()
    }
}

/// Lists a folder recursively. Links are followed; one that leads back into a folder above it is left out.
///
/// # Errors
///
/// The folder itself cannot be read.
pub(crate) fn scan(path: &Path) -> Result<Folder> {
    let entries = fs::read_dir(path).map_err(Error::io(path))?;
    let mut above = BTreeSet::from([fs::canonicalize(path).map_err(Error::io(path))?]);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(scan_entries(path, name, entries, &mut above))
}

/// Something of a folder.
enum Entry {
    Image(ImageFile),
    Folder(String, PathBuf),
    LeftOut(LeftOut),
}

fn scan_entries(path: &Path, name: String, entries: fs::ReadDir, above: &mut BTreeSet<PathBuf>) -> Folder {
    let mut folder =
        Folder { name, path: path.to_path_buf(), folders: vec![], images: vec![], left_out: vec![] };
    let mut paths = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if is_junk(&entry.file_name().to_string_lossy()) => {}
            Ok(entry) => paths.push(entry.path()),
            Err(e) => folder.left_out.push(inaccessible(path, &e)),
        }
    }
    paths.sort_unstable();
    let found: Vec<Entry> = paths.into_par_iter().map(classify).collect();
    for entry in found {
        match entry {
            Entry::Image(image) => folder.images.push(image),
            Entry::LeftOut(entry) => folder.left_out.push(entry),
            Entry::Folder(name, path) => match scan_below(name, &path, above) {
                Ok(below) => folder.folders.push(below),
                Err(entry) => folder.left_out.push(entry),
            },
        }
    }
    folder
}

fn scan_below(
    name: String,
    path: &Path,
    above: &mut BTreeSet<PathBuf>,
) -> std::result::Result<Folder, LeftOut> {
    let real = fs::canonicalize(path).map_err(|e| inaccessible(path, &e))?;
    if above.contains(&real) {
        return Err(left_out(path, Kind::Inaccessible, "links to a folder above them"));
    }
    let entries = fs::read_dir(path).map_err(|e| inaccessible(path, &e))?;
    above.insert(real.clone());
    let folder = scan_entries(path, name, entries, above);
    above.remove(&real);
    Ok(folder)
}

/// Returns whether a file can be read and is in a format that can be decoded.
pub(crate) fn is_image(path: &Path) -> bool {
    matches!(classify(path.to_path_buf()), Entry::Image(_))
}

/// Returns what an entry is, from its first bytes.
fn classify(path: PathBuf) -> Entry {
    let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_string) else {
        return Entry::LeftOut(left_out(&path, Kind::NameEncoding, "names that are not UTF-8"));
    };
    let meta = match fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => return Entry::Folder(name, path),
        Ok(meta) => meta,
        Err(e) => return Entry::LeftOut(inaccessible(&path, &e)),
    };
    // Opening a pipe would wait for its other end.
    if !meta.is_file() {
        return Entry::LeftOut(left_out(&path, Kind::NotImage, "special files"));
    }
    let mut head = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    if let Err(e) = read {
        return Entry::LeftOut(inaccessible(&path, &e));
    }
    if decode::format(&head).is_some() {
        return Entry::Image(ImageFile { path, bytes: meta.len() });
    }
    let is_named = has_image_extension(&path);
    Entry::LeftOut(match foreign_format(&head) {
        Some(format) => left_out(&path, Kind::Unsupported, &format!("{format} images")),
        None if is_named && head.is_empty() => left_out(&path, Kind::NotImage, "empty files"),
        None if is_named => left_out(&path, Kind::NotImage, "files named like images with other content"),
        None => LeftOut { is_error: false, ..left_out(&path, Kind::NotImage, "other files") },
    })
}

fn left_out(path: &Path, kind: Kind, group: &str) -> LeftOut {
    LeftOut { path: path.to_path_buf(), kind, group: group.to_string(), is_error: true }
}

fn inaccessible(path: &Path, error: &io::Error) -> LeftOut {
    let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let group = match error.kind() {
        io::ErrorKind::NotFound if is_link => "dead links".to_string(),
        io::ErrorKind::PermissionDenied => "files or folders without read permission".to_string(),
        _ => format!("unreadable files or folders ({error})"),
    };
    left_out(path, Kind::Inaccessible, &group)
}

/// Returns whether a name is hidden, or one of those that operating systems and archivers leave behind.
pub(crate) fn is_junk(name: &str) -> bool {
    const JUNK: [&str; 7] =
        ["thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"];
    name.starts_with('.') || JUNK.contains(&name.to_lowercase().as_str())
}

/// Extensions of images, decodable or not.
const EXTENSIONS: &str = " jpg jpeg jpe jfif png apng tif tiff bmp dib gif webp heic heif avif jp2 j2k jpx jxl \
                          psd ppm pgm pbm pnm tga ico exr hdr svg qoi dds dng cr2 nef arw dcm ";

fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    !extension.is_empty() && EXTENSIONS.contains(&format!(" {extension} "))
}

/// Bytes that are read of each file; DICOM has its mark at byte 128.
const HEAD: u64 = 132;

/// Names an image format without decoder.
fn foreign_format(head: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| head.starts_with(magic);
    let brand = if head.get(4..8) == Some(b"ftyp") { head.get(8..12) } else { None };
    match brand {
        Some(b"avif" | b"avis") => return Some("AVIF"),
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => {
            return Some("HEIC");
        }
        Some(b"crx ") => return Some("camera raw"),
        _ => {}
    }
    let formats: [(&[u8], &str); 16] = [
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"8BPS", "Photoshop"),
        (b"\0\0\x01\0", "icon"),
        (b"v/1\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"qoif", "QOI"),
        (b"DDS ", "DDS"),
        (b"SIMPLE  =", "FITS"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x93NUMPY", "NumPy"),
        (b"<svg", "SVG"),
        (b"FUJIFILM", "camera raw"),
        (b"II\x55\0", "camera raw"),
    ];
    let netpbm = matches!(head, [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..]);
    let known = formats.iter().find(|(magic, _)| starts(magic)).map(|(_, name)| *name);
    known
        .or_else(|| netpbm.then_some("Netpbm"))
        .or_else(|| (head.get(128..132) == Some(b"DICM")).then_some("DICOM"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::png_bytes;

    fn put(path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn decides_by_content() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["a.jpg", "b", "c.JFIF", "d.txt", "sub/deep/e.png", ".hidden.png", "__MACOSX/f.png"] {
            put(&at(name), &png_bytes(1));
        }
        for name in ["Thumbs.db", "._a.jpg", "sub/.DS_Store", "desktop.ini"] {
            put(&at(name), b"x");
        }
        let others: [(&str, &[u8], &str, bool); 7] = [
            ("1.jpg", b"<html>", "files named like images with other content", true),
            ("2.png", b"", "empty files", true),
            ("3.heic", b"\0\0\0\x18ftypheic", "HEIC images", true),
            ("4", b"\0\0\0\x1cftypavif", "AVIF images", true),
            ("5.txt", b"BM, a brand", "other files", false),
            ("6.csv", b"", "other files", false),
            ("7.ppm", b"P6\n1 1\n255\n123", "Netpbm images", true),
        ];
        for (name, bytes, ..) in others {
            put(&at(name), bytes);
        }
        let folder = scan(root.path()).unwrap();
        let names: Vec<&str> =
            folder.all_images().map(|i| i.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.jpg", "b", "c.JFIF", "d.txt", "e.png"]);
        let found: Vec<(String, &str, bool)> = folder
            .all_left_out()
            .map(|f| (f.path.file_name().unwrap().to_string_lossy().into(), f.group.as_str(), f.is_error))
            .collect();
        let expected: Vec<(String, &str, bool)> =
            others.iter().map(|(name, _, group, is_error)| (name.to_string(), *group, *is_error)).collect();
        assert_eq!(found, expected);
    }

    #[cfg(unix)]
    #[test]
    fn follows_links_and_reports_those_that_lead_nowhere() {
        use std::ffi::OsStr;
        use std::os::unix::{ffi::OsStrExt, fs::symlink};
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        put(&at("real/1.png"), &png_bytes(1));
        put(&at("class/2.png"), &png_bytes(2));
        symlink(at("real"), at("class/linked")).unwrap();
        symlink(at("real/1.png"), at("class/3.png")).unwrap();
        symlink(at("absent.png"), at("class/dead.png")).unwrap();
        symlink(at("class"), at("class/loop")).unwrap();
        symlink(at("class/self"), at("class/self")).unwrap();
        fs::write(at("class").join(OsStr::from_bytes(b"\xff.png")), png_bytes(3)).unwrap();
        std::os::unix::net::UnixListener::bind(at("class/socket")).unwrap();
        let folder = scan(&at("class")).unwrap();
        let names: Vec<&str> =
            folder.all_images().map(|i| i.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["2.png", "3.png", "1.png"]);
        let groups: Vec<&str> = folder.all_left_out().map(|f| f.group.as_str()).collect();
        assert_eq!(groups.len(), 5, "{groups:?}");
        assert_eq!(groups[..2], ["dead links", "links to a folder above them"]);
        assert!(groups[2].starts_with("unreadable files or folders ("), "{groups:?}");
        assert_eq!(groups[3..], ["special files", "names that are not UTF-8"]);
        let denied = inaccessible(&at("class"), &io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied.group, "files or folders without read permission");
    }
}
