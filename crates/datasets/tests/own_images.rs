//! Own images: every usual arrangement of folders is understood or refused with a remedy, and no image
//! vanishes without a word.

mod fixtures;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fixtures::{bmp, gif, gray, jpeg, palette, png, put, request, tiff, webp};
use stillhouse_core::data::{Dataset, SplitMode, SplitSpec, Task};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{Kind, Report, registry, require_readable, split};

fn own(path: &Path, options: &str) -> DatasetRequest {
    let options = toml::from_str(options).unwrap();
    DatasetRequest { path: Some(path.to_path_buf()), options, ..request("folder", path) }
}

fn open(path: &Path, options: &str) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    (registry().get("folder").unwrap().build)(&own(path, options))
}

fn refused(path: &Path, options: &str, words: &[&str]) {
    let error = open(path, options).err().unwrap_or_else(|| panic!("not refused: {words:?}")).to_string();
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

fn check(path: &Path, options: &str) -> Report {
    stillhouse_datasets::check(&own(path, options), false).unwrap()
}

fn keys(set: &dyn Dataset) -> Vec<String> {
    (0..set.len()).map(|i| set.key(i)).collect()
}

/// Writes PNG images of different content.
fn images(root: &Path, names: &[&str]) {
    for (number, name) in names.iter().enumerate() {
        put(&root.join(name), png(6, 5, number));
    }
}

fn split_keys(set: &dyn Dataset, ratio: f64) -> [Vec<String>; 2] {
    let spec = SplitSpec { ratio, mode: SplitMode::Stratified, seed: 0, per_class: None };
    let split = split(set, &spec).unwrap();
    [split.train, split.test].map(|list| list.into_iter().map(|i| set.key(i)).collect())
}

#[test]
fn uses_every_image_that_can_be_decoded() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let files = [
        ("a/1.webp", webp(6, 5, 1)),
        ("a/2.gif", gif(6, 5, 2)),
        ("a/3.bmp", bmp(6, 5, 3)),
        ("a/4.jpe", jpeg(8, 8, 4)),
        ("a/5.JFIF", jpeg(8, 8, 5)),
        ("a/6", png(6, 5, 6)),
        ("a/7.png", jpeg(8, 8, 7)),
        ("b/8.tif", tiff(6, 5, 8)),
        ("b/9.jpg", webp(6, 5, 9)),
        ("b/sub/deep/10.png", png(6, 5, 10)),
        ("b/sub/11.PNG", png(6, 5, 11)),
    ];
    for (name, bytes) in &files {
        put(&at(name), bytes);
    }
    for junk in ["a/.DS_Store", "a/._1.webp", "b/Thumbs.db", "__MACOSX/a/._x.png", ".git/x.png", "README.md"]
    {
        put(&at(junk), "x");
    }
    let set = open(root.path(), "").unwrap();
    let mut expected: Vec<String> = files.iter().map(|(name, _)| name.to_string()).collect();
    expected.sort_by_key(|key| (key.as_bytes()[0], key.as_bytes().to_vec()));
    assert_eq!(keys(&*set), expected);
    assert_eq!(set.info().classes, ["a", "b"]);
    require_readable(&*set).unwrap();
    let report = check(root.path(), "");
    assert!(report.is_ok() && report.diagnostics.is_empty() && report.images == 11, "{report}");
}

#[test]
fn reports_what_cannot_be_used() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    images(root.path(), &["a/1.png", "a/2.png", "b/3.png"]);
    for n in 0..5 {
        put(&at(&format!("a/{n}.heic")), b"\0\0\0\x18ftypheic");
    }
    put(&at("b/page.jpg"), "<html>not found</html>");
    put(&at("b/empty.png"), "");
    put(&at("b/labels.csv"), "1,2\n");
    refused(
        root.path(),
        "",
        &["5 HEIC images", "0.heic", "...", "1 empty files", "page.jpg", "on_error", "data check"],
    );
    let report = check(root.path(), "");
    let kinds: Vec<Kind> = report.diagnostics.iter().map(|d| d.kind).collect();
    assert_eq!(kinds.iter().filter(|k| **k == Kind::Unsupported).count(), 5, "{report}");
    assert_eq!(kinds.iter().filter(|k| **k == Kind::NotImage).count(), 3, "{report}");
    assert!(!report.is_ok() && report.images == 3, "{report}");
    let set = open(root.path(), "on_error = 'skip'").unwrap();
    assert_eq!(keys(&*set), ["a/1.png", "a/2.png", "b/3.png"]);
    assert!(set.info().title.contains("7 files or lines left out"), "{}", set.info().title);
    // Text among the images is ignored with a warning, and fails a check.
    for name in ["a/0.heic", "a/1.heic", "a/2.heic", "a/3.heic", "a/4.heic", "b/page.jpg", "b/empty.png"] {
        fs::remove_file(at(name)).unwrap();
    }
    assert_eq!(open(root.path(), "").unwrap().len(), 3);
    let report = check(root.path(), "");
    assert!(!report.is_ok() && report.diagnostics[0].message.contains("labels.csv"), "{report}");
}

#[cfg(unix)]
#[test]
fn reports_dead_links_and_foreign_names() {
    use std::ffi::OsStr;
    use std::os::unix::{ffi::OsStrExt, fs::symlink};
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["a/1.png", "b/2.png", "elsewhere/3.png"]);
    let other = tempfile::tempdir().unwrap();
    fs::rename(root.path().join("elsewhere"), other.path().join("real")).unwrap();
    symlink(other.path().join("real"), root.path().join("c")).unwrap();
    assert_eq!(open(root.path(), "").unwrap().info().classes, ["a", "b", "c"]);
    symlink(root.path().join("absent.jpg"), root.path().join("a/dead.jpg")).unwrap();
    symlink(root.path().join("b"), root.path().join("b/loop")).unwrap();
    symlink(root.path().join("nowhere"), root.path().join("d")).unwrap();
    fs::write(root.path().join("b").join(OsStr::from_bytes(b"caf\xe9.png")), png(6, 5, 9)).unwrap();
    let words =
        ["2 dead links", "a/dead.jpg", "1 links to a folder above", "1 names that are not UTF-8", "on_error"];
    refused(root.path(), "", &words);
    let report = check(root.path(), "");
    let errors = report.diagnostics.iter().filter(|d| d.is_error).count();
    assert_eq!((errors, report.images), (4, 3), "{report}");
    let set = open(root.path(), "on_error = 'skip'").unwrap();
    assert_eq!(keys(&*set), ["a/1.png", "b/2.png", "c/3.png"]);
    assert!(set.info().title.contains("4 files"), "{}", set.info().title);
}

#[test]
fn takes_the_split_of_the_folders() {
    for (train, test) in [
        ("train", "test"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "val"),
        ("train", "valid"),
        ("train", "Validation"),
        ("train_set", "eval"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("data_train", "data_val"),
        ("wrapper/train", "wrapper/test"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let name = |part: &str, file: &str| format!("{part}/{file}");
        let files =
            [name(train, "a/1.png"), name(train, "b/2.png"), name(test, "a/3.png"), name(test, "b/4.png")];
        images(root.path(), &files.each_ref().map(String::as_str));
        let set = open(root.path(), "").unwrap();
        assert_eq!(set.info().classes, ["a", "b"], "{train}");
        assert!(set.has_given_split() && set.info().title.contains("split given by folders"), "{train}");
        // No other split is drawn.
        for ratio in [0.5, 0.0] {
            let lists = split_keys(&*set, ratio);
            let stripped = lists.map(|l| l.iter().map(|k| k[k.len() - 7..].to_string()).collect::<Vec<_>>());
            assert_eq!(stripped, [["a/1.png", "b/2.png"], ["a/3.png", "b/4.png"]], "{train}");
        }
        let report = check(root.path(), "");
        assert!(report.is_ok() && report.splits.len() == 2 && report.images == 4, "{report}");
    }
}

#[test]
fn leaves_out_the_validation_part_if_there_is_a_test_part() {
    let root = tempfile::tempdir().unwrap();
    let files =
        ["train/a/1.png", "train/b/2.png", "val/a/3.png", "test/a/4.png", "test/b/5.png", "extra/c/6.png"];
    images(root.path(), &files);
    let set = open(root.path(), "").unwrap();
    assert_eq!(
        split_keys(&*set, 0.8),
        [["train/a/1.png", "train/b/2.png"], ["test/a/4.png", "test/b/5.png"]]
    );
    assert_eq!(set.official_split("val").unwrap(), [2]);
    assert!(set.info().title.contains("val unused"), "{}", set.info().title);
    let report = check(root.path(), "");
    let notes: Vec<&str> = report.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert!(report.is_ok() && notes.len() == 2, "{report}");
    assert!(
        notes[0].contains("extra: left out 1 images in this folder")
            && notes[1].contains("val: no image of 1 classes: `b`"),
        "{report}"
    );
}

#[test]
fn compares_the_classes_of_the_parts() {
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["train/a/1.png", "train/b/2.png", "test/a/3.png"]);
    let report = check(root.path(), "");
    assert!(report.is_ok() && report.to_string().contains("no image of 1 classes: `b`"), "{report}");
    open(root.path(), "").unwrap();
    images(root.path(), &["test/c/9.png"]);
    refused(root.path(), "", &["`c`", "the classes of the training part"]);
    refused(root.path(), "on_error = 'skip'", &["`c`"]);
    assert!(!check(root.path(), "").is_ok());
    // Images without labels cannot be tested on.
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["train/a/1.png", "train/b/2.png", "test/3.png"]);
    let set = open(root.path(), "").unwrap();
    assert_eq!(
        (keys(&*set), set.has_given_split()),
        (vec!["a/1.png".to_string(), "b/2.png".to_string()], false)
    );
    assert!(check(root.path(), "").to_string().contains("left out 1 images without class folders"));
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["val/a/1.png", "test/a/2.png"]);
    refused(root.path(), "", &["`train` next to"]);
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["train/1.png", "test/2.png"]);
    refused(root.path(), "", &["1 images and no folder", "one folder of images per class"]);
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["train/a/1.png", "train/b/2.png", "holdout/a/3.png", "holdout/b/4.png"]);
    refused(root.path(), "", &["`holdout`", "rename it to `test`"]);
    fs::rename(root.path().join("holdout"), root.path().join("test_images")).unwrap();
    assert!(open(root.path(), "").unwrap().has_given_split());
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"]);
    refused(root.path(), "", &["the parts above the classes", "train/cat"]);
    // A vehicle, not a part.
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["train/1.png", "car/2.png", "bus/3.png"]);
    assert_eq!(open(root.path(), "").unwrap().info().classes, ["bus", "car", "train"]);
}

#[test]
fn finds_the_class_folders_at_another_level() {
    let root = tempfile::tempdir().unwrap();
    let given = root.path().join("EuroSAT");
    images(&given, &["2750/Forest/1.png", "2750/River/2.png", "__MACOSX/2750/._x.png"]);
    put(&given.join("LICENSE"), "MIT");
    let set = open(root.path(), "").unwrap();
    assert_eq!((set.info().classes.join(" "), set.key(0)), ("Forest River".into(), "Forest/1.png".into()));
    assert!(set.info().title.contains("EuroSAT/2750, 2 images"), "{}", set.info().title);
    let report = check(&given, "");
    assert!(report.is_ok() && report.to_string().contains("using"), "{report}");
    // One level too low.
    let class = given.join("2750/Forest");
    refused(&class, "", &["1 images and no folder", "2750, which has 2 folders of images"]);
    images(&class, &["deep/3.png"]);
    refused(&class, "", &["one class, `deep`", "2750, which has 2 folders of images"]);
    // An archive that was unpacked into itself.
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["a/1.png", "b/2.png", "set/a/1.png", "set/b/2.png"]);
    refused(root.path(), "", &["`set`", "the same class folders again"]);
    let root = tempfile::tempdir().unwrap();
    images(
        root.path(),
        &["xray/train/a/1.png", "xray/test/a/2.png", "train/a/1.png", "train/b/3.png", "test/a/2.png"],
    );
    let set = open(root.path(), "").unwrap();
    assert_eq!(keys(&*set), ["train/a/1.png", "train/b/3.png", "test/a/2.png"]);
    assert!(check(root.path(), "").to_string().contains("xray: left out 2 images in this folder"));
    // A part whose neighbors are the others.
    let report = check(&root.path().join("train"), "");
    assert!(report.is_ok() && report.to_string().contains("only this part is used"), "{report}");
    assert!(report.to_string().contains("`test`"), "{report}");
}

#[test]
fn refuses_a_single_class() {
    for files in
        [&["cat/1.png", "cat/2.png"][..], &["train/cat/1.png", "test/cat/2.png"], &["1.png", "cat/2.png"]]
    {
        let root = tempfile::tempdir().unwrap();
        images(root.path(), files);
        refused(root.path(), "", &["one class, `cat`", "at least two classes"]);
    }
    let root = tempfile::tempdir().unwrap();
    refused(root.path(), "", &["no folder"]);
    images(root.path(), &["a/1.png", "b/2.png"]);
    fs::create_dir(root.path().join("c")).unwrap();
    refused(root.path(), "", &["no image of class `c`"]);
    put(&root.path().join("c/3.png"), png(6, 5, 3));
    put(&root.path().join("9.png"), png(6, 5, 4));
    assert!(check(root.path(), "").to_string().contains("left out 1 images next to the folders"));
}

/// Masks of two values.
fn mask(first: u8, second: u8) -> Vec<u8> {
    gray(6, 5, move |x, _| if x < 3 { first } else { second })
}

#[test]
fn pairs_images_and_masks_by_name() {
    let layouts: [(&[(&str, &str)], bool); 10] = [
        (&[("images/1.png", "masks/1.png"), ("images/2.png", "masks/2.png")], false),
        (&[("img/a/1.png", "labels/a/1.png"), ("img/b/1.png", "labels/b/1.png")], false),
        (
            &[
                ("JPEGImages/1.jpg", "SegmentationClass/1.png"),
                ("JPEGImages/2.jpg", "SegmentationClass/2.png"),
            ],
            false,
        ),
        (&[("images/1.png", "annotations/1_mask.png"), ("images/2.png", "annotations/2_mask.png")], false),
        (&[("image/img1.png", "gt/mask1.png"), ("image/img2.png", "gt/mask2.png")], false),
        (&[("train/images/1.png", "train/masks/1.png"), ("test/images/2.png", "test/masks/2.png")], true),
        (&[("images/train/1.png", "masks/train/1.png"), ("images/val/2.png", "masks/val/2.png")], true),
        (&[("img_dir/train/1.png", "ann_dir/train/1.png"), ("img_dir/val/2.png", "ann_dir/val/2.png")], true),
        (&[("train/1.png", "train_labels/1_L.png"), ("test/2.png", "test_labels/2_L.png")], true),
        (&[("set/images/1.png", "set/masks/1.png"), ("set/images/2.png", "set/masks/2.png")], false),
    ];
    for (pairs, is_split) in layouts {
        let root = tempfile::tempdir().unwrap();
        for (number, (image, label)) in pairs.iter().enumerate() {
            put(&root.path().join(image), png(6, 5, number));
            put(&root.path().join(label), mask(0, 1));
        }
        refused(root.path(), "", &["images and masks", "mask values 0, 1", "mask_values"]);
        let set = open(root.path(), "classes = ['land', 'water']").unwrap();
        assert_eq!((set.len(), set.info().task), (2, Task::Segmentation), "{pairs:?}");
        assert_eq!(set.has_given_split(), is_split, "{pairs:?}");
        require_readable(&*set).unwrap();
        assert!(keys(&*set)[0].ends_with(pairs[0].0.trim_start_matches("set/")), "{pairs:?}");
        let report = check(root.path(), "classes = ['land', 'water']");
        assert!(report.is_ok() && report.images == 2 && report.mask_values == [0, 1], "{report}");
    }
}

#[test]
fn reports_unpaired_images_and_masks() {
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["images/1.png", "images/2.png", "images/3.png"]);
    put(&root.path().join("masks/1.png"), mask(0, 1));
    put(&root.path().join("masks/4.png"), mask(0, 1));
    put(&root.path().join("masks/5.png"), mask(0, 1));
    let options = "classes = ['a', 'b']";
    let words =
        ["2 images without a mask", "images/2.png", "2 masks without an image", "masks/4.png", "on_error"];
    refused(root.path(), options, &words);
    let report = check(root.path(), options);
    assert_eq!(
        report.diagnostics.iter().filter(|d| d.kind == Kind::Unpaired && d.is_error).count(),
        4,
        "{report}"
    );
    let set = open(root.path(), "classes = ['a', 'b']\non_error = 'skip'").unwrap();
    assert_eq!((set.len(), set.info().title.contains("4 files")), (1, true));
    // Two masks of one image.
    put(&root.path().join("masks/1.bmp"), mask(0, 1));
    refused(root.path(), options, &["not unique"]);
}

#[test]
fn requires_every_class_in_the_masks() {
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["images/1.png", "images/2.png"]);
    let write = |first, second| {
        put(&root.path().join("masks/1.png"), mask(first, second));
        put(&root.path().join("masks/2.png"), mask(first, second));
    };
    write(0, 255);
    let two = "classes = ['land', 'water']";
    let hint = "mask_values = { 0 = \"land\", 255 = \"water\" }";
    refused(root.path(), two, &["`water` (value 1) never occurs", "50.0 % of their pixels are 255", hint]);
    let report = check(root.path(), two);
    assert!(!report.is_ok() && report.to_string().contains(hint), "{report}");
    let set = open(root.path(), hint).unwrap();
    assert_eq!(set.info().classes, ["land", "water"]);
    let stillhouse_core::data::Label::Mask(labels) = set.sample(0).unwrap().label else { panic!("no mask") };
    assert_eq!(labels.labels[..6], [0, 0, 0, 1, 1, 1]);
    assert!(check(root.path(), hint).is_ok());
    // Other values.
    refused(root.path(), "mask_values = { 0 = 'a', 1 = 'b', 255 = 'c' }", &["`b` (value 1) never occurs"]);
    write(0, 3);
    refused(root.path(), two, &["3 (30 pixels)", "expected 0 to 1", "masks/1.png"]);
    assert!(!check(root.path(), two).is_ok());
    // Mostly ignored, unless that is named.
    let mostly = gray(6, 5, |x, _| match x {
        0 => 0,
        1 => 1,
        _ => 255,
    });
    put(&root.path().join("masks/1.png"), &mostly);
    put(&root.path().join("masks/2.png"), &mostly);
    refused(root.path(), two, &["66.7 % of their pixels are 255", "255 = \"ignore\""]);
    assert!(!check(root.path(), two).is_ok());
    let named = "mask_values = { 0 = 'land', 1 = 'water', 255 = 'ignore' }";
    assert_eq!(open(root.path(), named).unwrap().info().classes, ["land", "water"]);
    assert!(check(root.path(), named).is_ok());
    refused(root.path(), "classes = ['land']", &["2 to 255"]);
}

/// Only the training part counts.
#[test]
fn requires_every_class_in_the_training_masks() {
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["train/images/1.png", "test/images/2.png"]);
    put(&root.path().join("train/masks/1.png"), mask(0, 0));
    put(&root.path().join("test/masks/2.png"), mask(0, 1));
    refused(root.path(), "classes = ['a', 'b']", &["`b` (value 1) never occurs in the training images"]);
    put(&root.path().join("train/masks/1.png"), mask(0, 1));
    put(&root.path().join("test/masks/2.png"), mask(0, 0));
    open(root.path(), "classes = ['a', 'b']").unwrap();
}

#[test]
fn reads_lists_with_spaces_and_tabs_in_names() {
    let root = tempfile::tempdir().unwrap();
    let names =
        [("my image.png", "my mask.png"), ("a\tb.png", "m\tb.png"), ("c.png", "d.png"), ("e f.png", "g.png")];
    for (number, (image, label)) in names.iter().enumerate() {
        put(&root.path().join(image), png(6, 5, number));
        put(&root.path().join(label), mask(0, 1));
    }
    let list = "my image.png\tmy mask.png\n\"a\tb.png\" \"m\tb.png\"\nc.png d.png\n\"e f.png\" g.png\n";
    put(&root.path().join("all.txt"), list);
    let options = "classes = ['a', 'b']\ntrain = 'all.txt'";
    let set = open(root.path(), options).unwrap();
    assert_eq!(keys(&*set), names.map(|(image, _)| image.to_string()));
    require_readable(&*set).unwrap();
    assert!(check(root.path(), options).is_ok());
    put(&root.path().join("all.txt"), "my image.png my mask.png\n");
    refused(root.path(), options, &["all.txt:1", "double quotes"]);
    refused(root.path(), "train = 'all.txt'", &["`classes` or `mask_values`"]);
}

#[test]
fn accepts_any_color_type() {
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["a/1.png", "b/2.png"]);
    put(&root.path().join("a/3.png"), gray(6, 5, |x, _| x as u8));
    put(&root.path().join("b/4.jpg"), palette(6, 5, |x, y| (x + y) as u8));
    let report = check(root.path(), "");
    assert!(report.is_ok() && report.diagnostics.is_empty(), "{report}");
    for n in 0..4 {
        put(&root.path().join(format!("a/alpha{n}.png")), fixtures::rgba(6, 5, 10 + n));
    }
    let report = check(root.path(), "");
    assert!(report.is_ok() && report.diagnostics.len() == 1, "{report}");
    assert!(report.to_string().contains("4 images of RGB with alpha: transparency is dropped: a/alpha0.png"));
}

#[test]
fn names_all_broken_images_at_once() {
    let root = tempfile::tempdir().unwrap();
    images(root.path(), &["a/1.png", "b/2.png"]);
    for n in 0..5 {
        let bytes = png(30, 30, n);
        put(&root.path().join(format!("a/cut{n}.png")), &bytes[..bytes.len() / 2]);
    }
    let set = open(root.path(), "").unwrap();
    let e = require_readable(&*set).unwrap_err().to_string();
    for word in ["5 of 7 images cannot be read", "cut0.png", "cut2.png", "...", "data check"] {
        assert!(e.contains(word), "no `{word}` in {e}");
    }
    assert!(!e.contains("cut3.png"), "{e}");
    let report = check(root.path(), "");
    assert_eq!(report.diagnostics.iter().filter(|d| d.kind == Kind::Broken).count(), 5, "{report}");
}
