//! What the fuzz targets in `fuzz/` call: one function per reader of untrusted files, bytes in.
//!
//! Whether the bytes are read or refused does not matter; a panic, a hang or memory without bound
//! is a finding. Readers of folders get a folder of their own that is thrown away.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fetch::{archive as archives, parquet};
use crate::findings::Notes;
use crate::image::{self, As};
use crate::{id_lists, lists as list_files, mat as mat_files};

/// JPEG.
pub fn jpeg(bytes: &[u8]) {
    an_image(b"\xff\xd8\xff", bytes);
}

/// PNG.
pub fn png(bytes: &[u8]) {
    an_image(b"\x89PNG", bytes);
}

/// TIFF of either byte order.
pub fn tiff(bytes: &[u8]) {
    match bytes.first() {
        Some(b'M') => an_image(b"MM\0\x2a", bytes),
        _ => an_image(b"II\x2a\0", bytes),
    }
}

/// BMP.
pub fn bmp(bytes: &[u8]) {
    an_image(b"BM", bytes);
}

/// Puts the format's first bytes there, so that no try is spent on finding them.
fn an_image(magic: &[u8], bytes: &[u8]) {
    let Some(rest) = bytes.get(magic.len()..) else { return };
    let bytes = [magic, rest].concat();
    for to in [As::Rgb, As::Luma, As::Index] {
        if let Ok(image) = image::decode(&bytes, "fuzzed", to, true) {
            assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
        }
    }
    let _ = image::decode_u16(&bytes, "fuzzed");
}

/// MATLAB 5 files.
pub fn mat(bytes: &[u8]) {
    for (_, value) in mat_files::read(bytes, "fuzzed").into_iter().flatten() {
        let _ = (value.numbers(), value.texts(), value.field("Segmentation"));
    }
}

/// Parquet files of images and labels.
pub fn parquet(bytes: &[u8]) {
    in_a_folder(|folder| {
        let path = folder.join("fuzzed.parquet");
        fs::write(&path, bytes)?;
        let _ = parquet::footer(&path).and_then(|footer| parquet::rows(&path, &footer, |_, _| Ok(())));
        Ok(())
    });
}

/// Archives: tar, tar.gz and zip. Nothing may be written outside of the target.
pub fn archive(bytes: &[u8]) {
    in_a_folder(|folder| {
        let (path, into) = (folder.join("fuzzed"), folder.join("into"));
        fs::write(&path, bytes)?;
        fs::create_dir(&into)?;
        let _ = archives::unpack(&path, &into, &[], "");
        assert_eq!(fs::read_dir(folder)?.count(), 2, "something was written outside");
        Ok(())
    });
}

/// Lists of lines, and the lists by image id of CUB and NABirds: the bytes up to a byte 255 are the
/// first of four lists, and so on.
pub fn lists(bytes: &[u8]) {
    in_a_folder(|folder| {
        let names = ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"];
        let mut parts = bytes.splitn(names.len(), |b| *b == 0xff);
        for name in names {
            fs::write(folder.join(name), parts.next().unwrap_or_default())?;
        }
        for mut notes in [Notes::strict(), Notes::collecting()] {
            let _ = list_files::lines(&folder.join(names[0]), &mut notes);
            let classes = id_lists::classes(folder, &mut notes).unwrap_or_default();
            let id = |path: &str| path.split_once('.').and_then(|(id, _)| id.parse().ok());
            let index = |id: u32| classes.contains_key(&id).then_some(0);
            if let Ok(rows) = id_lists::rows(folder, id, &mut notes) {
                let _ = id_lists::items(folder, &rows, index, id, &mut notes);
            }
        }
        Ok(())
    });
}

fn in_a_folder(run: impl FnOnce(&Path) -> std::io::Result<()>) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("stillhouse-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    let result = fs::create_dir_all(&folder).and_then(|()| run(&folder));
    let _ = fs::remove_dir_all(&folder);
    result.expect("a folder for temporary files");
}
