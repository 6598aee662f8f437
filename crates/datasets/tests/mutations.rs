//! Damaged files yield an error or an image but never a panic, truncated files never an image.

mod fixtures;

use std::path::PathBuf;

use proptest::prelude::{Arbitrary, ProptestConfig, prop, prop_assert, proptest};
use proptest::test_runner::TestRunner;
use stillhouse_datasets::decode::{MAX_PIXELS, PixelFormat, decode, decode_u16, format};
use stillhouse_testkit::golden;

/// Returns the encoded files of the golden folder.
fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let cases = golden::require("transforms").into_iter().filter(|c| c.meta["op"] == "decode");
    let paths = cases.map(|c| c.file(c.meta["inputs"]["file"].as_str().unwrap()));
    paths.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

fn try_all(bytes: &[u8]) -> bool {
    let mut any = false;
    for to in [PixelFormat::Rgb, PixelFormat::Luma, PixelFormat::Index] {
        if let Ok(image) = decode(bytes, "mutated", to, true) {
            assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
            assert!(image.width * image.height <= MAX_PIXELS);
            any = true;
        }
    }
    any | decode_u16(bytes, "mutated").is_ok()
}

#[test]
fn reads_intact_files() {
    let files = files();
    assert!(files.len() >= 30);
    for (path, bytes) in files {
        assert!(try_all(&bytes), "{}", path.display());
    }
}

/// A truncated file is an error, unless only bytes after the last pixel are missing.
#[test]
fn rejects_truncated_files() {
    for (path, bytes) in files() {
        let whole = decode(&bytes, "whole", PixelFormat::Rgb, false).ok();
        let mut lengths: Vec<usize> = (0..40).map(|part| bytes.len() * part / 40).collect();
        lengths.extend(bytes.len().saturating_sub(40)..bytes.len());
        for length in lengths {
            let cut = decode(&bytes[..length], "cut", PixelFormat::Rgb, false).ok();
            let name = path.display();
            assert!(
                cut.is_none() || cut == whole,
                "{name} cut to {length} of {} is another image",
                bytes.len()
            );
            let lossy = bytes.starts_with(&[0xff, 0xd8]);
            assert!(cut.is_none() || !lossy, "{name} cut to {length} of {} is read", bytes.len());
        }
    }
}

/// Returns the golden files of a format.
fn files_of(wanted: &str) -> Vec<Vec<u8>> {
    files().into_iter().map(|f| f.1).filter(|f| format(f) == Some(wanted)).collect()
}

/// Changes bytes of files, and truncates some.
fn damaged_images(files: Vec<Vec<u8>>) {
    let (index, byte) = (prop::sample::Index::arbitrary(), 0u8..=255);
    let changes = prop::collection::vec((0usize..1 << 16, byte, prop::bool::ANY), 1..12);
    let cut = prop::option::of(0.0f64..1.0);
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(fixtures::cases(200)) };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&(index, changes, cut), |(file, changes, cut)| {
        let mut bytes = file.get(&files).clone();
        for (offset, value, in_header) in changes {
            // Headers matter most: half of the changes are in the first 64 bytes.
            let offset = if in_header { offset % 64 } else { offset } % bytes.len();
            bytes[offset] = value;
        }
        if let Some(part) = cut {
            bytes.truncate((bytes.len() as f64 * part) as usize);
        }
        try_all(&bytes);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn accepts_or_rejects_damaged_jpegs() {
    damaged_images(files_of("JPEG"));
}

#[test]
fn accepts_or_rejects_damaged_pngs() {
    damaged_images(files_of("PNG"));
}

#[test]
fn accepts_or_rejects_damaged_tiffs() {
    damaged_images(files_of("TIFF"));
}

#[test]
fn accepts_or_rejects_damaged_bmps() {
    damaged_images(files_of("BMP"));
}

#[test]
fn accepts_or_rejects_damaged_webps_and_gifs() {
    damaged_images((0..3).map(|n| fixtures::webp(31, 17, n)).collect());
    damaged_images((0..3).map(|n| fixtures::gif(31, 17, n)).collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(fixtures::cases(600)))]

    /// Lists and MATLAB files yield a report, or an error that names the file.
    #[test]
    fn accepts_or_rejects_damaged_lists(
        which in 0usize..6,
        changes in prop::collection::vec((0usize..1 << 14, 0u8..=255), 1..10),
        cut in prop::option::of(0.0f64..1.0),
    ) {
        let root = tempfile::tempdir().unwrap();
        let (name, folder, file) = match which {
            0 => ("dogs", fixtures::dogs(root.path(), false), "train_list.mat"),
            1 => ("dogs", fixtures::dogs(root.path(), true), "test_list.mat"),
            2 => ("cub", fixtures::cub(root.path()), "images.txt"),
            3 => ("nabirds", fixtures::nabirds(root.path()), "image_class_labels.txt"),
            4 => ("voc", fixtures::voc(root.path()), "ImageSets/Segmentation/val.txt"),
            _ => ("camvid", fixtures::camvid(root.path()), "train.txt"),
        };
        let path = folder.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        for (offset, value) in changes {
            let offset = offset % bytes.len();
            bytes[offset] = value;
        }
        if let Some(part) = cut {
            bytes.truncate((bytes.len() as f64 * part) as usize);
        }
        std::fs::write(&path, bytes).unwrap();
        let request = fixtures::request(name, root.path());
        if let Err(e) = stillhouse_datasets::check(&request, true) {
            let file = path.file_name().unwrap().to_string_lossy();
            prop_assert!(e.to_string().contains(&*file), "{e}");
        }
        if let Ok(set) = (stillhouse_datasets::registry().get(name).unwrap().build)(&request) {
            (0..set.len()).for_each(|index| drop(set.sample(index)));
        }
    }

    #[test]
    fn rejects_noise(start in 0usize..5, body in prop::collection::vec(0u8..=255, 0..400)) {
        let magic: [&[u8]; 5] = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II\x2a\0", b"MM\0\x2a", b"BM"];
        let bytes: Vec<u8> = magic[start].iter().copied().chain(body).collect();
        prop_assert!(!try_all(&bytes) || start == 4);
    }
}
