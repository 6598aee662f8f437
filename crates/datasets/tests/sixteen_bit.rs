//! 16-bit images, and TIFF files that are valid but unusual.

use std::fs;
use std::path::{Path, PathBuf};

use stillhouse_core::data::{Label, WHITE_LEVEL};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::decode::{read_image, read_mask};
use stillhouse_datasets::{Kind, check, registry};
use tiff::encoder::{TiffEncoder, colortype};
use tiff::tags::Tag;

fn png16(path: &Path, values: &[u16; 4]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 2, 2);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
}

fn tiff16(path: &Path, values: &[u16; 4]) {
    let mut encoder = TiffEncoder::new(fs::File::create(path).unwrap()).unwrap();
    encoder.write_image::<colortype::Gray16>(2, 2, values).unwrap();
}

fn request(folder: &Path, options: &str) -> DatasetRequest {
    DatasetRequest {
        name: "folder".into(),
        roots: Vec::new(),
        path: Some(folder.to_path_buf()),
        options: toml::from_str(options).unwrap(),
    }
}

fn open(folder: &Path, options: &str) -> std::sync::Arc<dyn stillhouse_core::data::Dataset> {
    (registry().get("folder").unwrap().build)(&request(folder, options)).unwrap()
}

/// Two classes of two images of a small range; the largest value is in a TIFF file of the second class.
fn small_range(folder: &Path) {
    png16(&folder.join("a/1.png"), &[0, 255, 1530, 3059]);
    png16(&folder.join("a/2.png"), &[9, 10, 11, 12]);
    png16(&folder.join("b/1.png"), &[0, 1, 2, 3]);
    tiff16(&folder.join("b/2.tif"), &[0, 765, 1530, 3060]);
}

#[test]
fn a_small_range_is_scaled_by_the_largest_value_of_the_set() {
    let folder = tempfile::tempdir().unwrap();
    small_range(folder.path());
    let set = open(folder.path(), "");
    assert_eq!(set.white_level(), Some(3060));
    assert!(set.info().title.ends_with("16-bit values to 3060"), "{}", set.info().title);
    let gray = |index: usize| -> Vec<u8> {
        let pixels = set.sample(index).unwrap().image.pixels;
        pixels.chunks_exact(3).map(|p| p[0]).collect()
    };
    assert_eq!(gray(0), [0, 21, 128, 255]);
    assert_eq!(gray(3), [0, 64, 128, 255]);
    assert_eq!(gray(1), [1, 1, 1, 1], "one factor for all images");
    let report = check(&request(folder.path(), ""), false).unwrap();
    assert!(report.is_ok());
    let found: Vec<_> = report.diagnostics.iter().filter(|d| d.kind == Kind::SmallRange).collect();
    assert!(found.len() == 1 && found[0].message.contains("0 to 3060 of 65535"), "{found:?}");

    // A given level holds; larger values are white.
    let given = open(folder.path(), "white_level = 1530");
    assert_eq!((given.white_level(), given.sample(3).unwrap().image.pixels[9]), (Some(1530), 255));
    assert_ne!(given.fingerprint().unwrap(), set.fingerprint().unwrap());
    let same = open(folder.path(), &format!("{WHITE_LEVEL} = 3060"));
    assert_eq!(
        same.fingerprint().unwrap(),
        set.fingerprint().unwrap(),
        "a run that states it is the same run"
    );
    let wrong = (registry().get("folder").unwrap().build)(&request(folder.path(), "white_level = 0"));
    assert!(wrong.err().unwrap().to_string().contains("1 to 65535, found 0"));
}

#[test]
fn the_full_range_is_reduced_to_the_upper_byte() {
    let folder = tempfile::tempdir().unwrap();
    small_range(folder.path());
    png16(&folder.path().join("a/3.png"), &[0, 0x12ff, 0x8000, 0xffff]);
    let set = open(folder.path(), "");
    assert_eq!(set.white_level(), None);
    let at = (0..set.len()).find(|i| set.key(*i) == "a/3.png").unwrap();
    let pixels = set.sample(at).unwrap().image.pixels;
    assert_eq!([0, 3, 6, 9].map(|i| pixels[i]), [0, 0x12, 0x80, 0xff]);
}

#[test]
fn masks_keep_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m/mask.png");
    png16(&path, &[0, 1, 2, 255]);
    assert_eq!(read_mask(&path).unwrap().labels, [0, 1, 2, 255]);
    png16(&path, &[0, 1, 2, 300]);
    let e = read_mask(&path).unwrap_err().to_string();
    assert!(e.contains("mask.png") && e.contains("16-bit value 300") && e.contains("up to 255"), "{e}");
}

#[test]
fn sixteen_bit_masks_of_a_small_range_are_classes() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..3 {
        png16(&folder.path().join(format!("images/{n}.png")), &[n, 1, 2, 3000]);
        png16(&folder.path().join(format!("masks/{n}.png")), &[0, 1, 0, 1]);
    }
    let set = open(folder.path(), "classes = [\"land\", \"water\"]");
    assert_eq!(set.white_level(), Some(3000));
    match set.sample(0).unwrap().label {
        Label::Mask(mask) => assert_eq!(mask.labels, [0, 1, 0, 1]),
        other => panic!("{other:?}"),
    }
}

/// A TIFF of 2x2 gray values with a color map; a tag's first value is replaced.
fn tiff(folder: &Path, tag: u16, value: u16) -> PathBuf {
    let path = folder.join(format!("{tag}-{value}.tif"));
    let mut encoder = TiffEncoder::new(fs::File::create(&path).unwrap()).unwrap();
    let mut image = encoder.new_image::<colortype::Gray8>(2, 2).unwrap();
    let mut map = vec![0u16; 768];
    // Index 1 is red, 2 green, 3 blue.
    (map[1], map[256 + 2], map[512 + 3]) = (0xffff, 0xffff, 0xffff);
    image.encoder().write_tag(Tag::ColorMap, &map[..]).unwrap();
    image.write_data(&[0, 1, 2, 3]).unwrap();
    drop(encoder);
    let mut bytes = fs::read(&path).unwrap();
    let directory = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[directory], bytes[directory + 1]]));
    let mut entries = (0..count).map(|i| directory + 2 + 12 * i);
    let at = entries.find(|at| u16::from_le_bytes([bytes[*at], bytes[at + 1]]) == tag).unwrap();
    bytes[at + 8..at + 10].copy_from_slice(&value.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn reads_palettes_in_tiff() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiff(folder.path(), 262, 3);
    assert_eq!(read_image(&path, None).unwrap().pixels, [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]);
    assert_eq!(read_mask(&path).unwrap().labels, [0, 1, 2, 3]);
    let bytes = fs::read(&path).unwrap();
    for end in 0..bytes.len() {
        fs::write(&path, &bytes[..end]).unwrap();
        let _ = read_image(&path, None);
    }
}

#[test]
fn names_what_tiff_files_need() {
    let folder = tempfile::tempdir().unwrap();
    // ZSTD compression, CIELab, and LogLuv, which the crate does not know.
    for (tag, value, words) in [(259, 50_000, "ZSTD"), (262, 8, "Lab"), (262, 32_845, "32845")] {
        let e = read_image(&tiff(folder.path(), tag, value), None).unwrap_err().to_string();
        assert!(e.contains(words) && !e.contains("fetch"), "{e}");
    }
    let e = read_image(&tiff(folder.path(), 259, 50_000), None).unwrap_err().to_string();
    assert!(e.contains("Deflate, LZW"), "{e}");
}
