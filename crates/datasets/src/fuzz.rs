//! Entry points of the fuzz targets in `fuzz/`: one function per reader of untrusted files.
//!
//! The input may be accepted or rejected; a panic, a hang or unbounded memory is a bug. Readers of
//! files get a temporary folder; an error is one of that folder.

use std::fs;
use std::io::Result;
use std::path::Path;

use crate::decode::{self, PixelFormat, mat as mat_files};
use crate::diagnostics::Diagnostics;
use crate::fetch::{archive as archives, parquet};
use crate::layout::{cub_format, text_lists};

/// JPEG.
pub fn jpeg(bytes: &[u8]) {
    image(b"\xff\xd8\xff", bytes);
}

/// PNG.
pub fn png(bytes: &[u8]) {
    image(b"\x89PNG", bytes);
}

/// TIFF of either byte order.
pub fn tiff(bytes: &[u8]) {
    match bytes.first() {
        Some(b'M') => image(b"MM\0\x2a", bytes),
        _ => image(b"II\x2a\0", bytes),
    }
}

/// BMP.
pub fn bmp(bytes: &[u8]) {
    image(b"BM", bytes);
}

/// WebP.
pub fn webp(bytes: &[u8]) {
    image(b"RIFF\xff\xff\0\0WEBP", bytes);
}

/// GIF.
pub fn gif(bytes: &[u8]) {
    image(b"GIF89a", bytes);
}

/// Prepends the magic bytes, so that no input is wasted on finding them.
fn image(magic: &[u8], bytes: &[u8]) {
    let Some(rest) = bytes.get(magic.len()..) else { return };
    let bytes = [magic, rest].concat();
    for to in [PixelFormat::Rgb, PixelFormat::Luma, PixelFormat::Index] {
        if let Ok(image) = decode::decode(&bytes, "fuzzed", to, true) {
            assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
        }
    }
    let _ = decode::decode_u16(&bytes, "fuzzed");
}

/// MATLAB 5 files.
pub fn mat(bytes: &[u8]) {
    for (_, value) in mat_files::read(bytes, "fuzzed").into_iter().flatten() {
        let _ = (value.numbers(), value.texts(), value.field("Segmentation"));
    }
}

/// Parquet files of images and labels.
pub fn parquet(bytes: &[u8]) -> Result<()> {
    in_temp_dir(|folder| {
        let path = folder.join("fuzzed.parquet");
        fs::write(&path, bytes)?;
        let _ = parquet::footer(&path).and_then(|footer| parquet::rows(&path, &footer, |_, _| Ok(())));
        Ok(())
    })
}

/// Archives: tar, tar.gz and zip. Nothing may be written outside of the target.
pub fn archive(bytes: &[u8]) -> Result<()> {
    in_temp_dir(|folder| {
        let (path, into) = (folder.join("fuzzed"), folder.join("into"));
        fs::write(&path, bytes)?;
        fs::create_dir(&into)?;
        let _ = archives::unpack(&path, &into, &[], "");
        assert_eq!(fs::read_dir(folder)?.count(), 2, "a file was written outside of the target");
        Ok(())
    })
}

/// Text lists, and the CUB format: a byte 255 separates four lists.
pub fn lists(bytes: &[u8]) -> Result<()> {
    in_temp_dir(|folder| {
        let names = ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"];
        let mut parts = bytes.splitn(names.len(), |b| *b == 0xff);
        for name in names {
            fs::write(folder.join(name), parts.next().unwrap_or_default())?;
        }
        for mut diagnostics in [Diagnostics::strict(), Diagnostics::collecting()] {
            let _ = text_lists::lines(&folder.join(names[0]), &mut diagnostics);
            let classes = cub_format::classes(folder, &mut diagnostics).unwrap_or_default();
            let id = |path: &str| path.split_once('.').and_then(|(id, _)| id.parse().ok());
            let index = |id: u32| classes.contains_key(&id).then_some(0);
            if let Ok(rows) = cub_format::rows(folder, id, &mut diagnostics) {
                let _ = cub_format::samples(folder, &rows, index, id, &mut diagnostics);
            }
        }
        Ok(())
    })
}

fn in_temp_dir(run: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    run(tempfile::tempdir()?.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the targets on valid and corrupt files without a fuzzer.
    #[test]
    fn runs_every_target() {
        let lists: &[u8] = b"1 a/b.jpg\n2 a/c.jpg\n\xff1 1\n2 1\n\xff1 1\n2 0\n\xff1 001.a\n";
        for bytes in [b"".as_slice(), b"x", b"\xff\xd8\xff\xe0\0\x10JFIF", b"PK\x05\x06", lists, &[0; 600]] {
            for target in [jpeg, png, tiff, bmp, webp, gif, mat] {
                target(bytes);
            }
            for target in [parquet, archive, self::lists] {
                target(bytes).unwrap();
            }
        }
    }
}
